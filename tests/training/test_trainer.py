"""A run: every schedule trains, the same seed is the same run, a resumed run is the uninterrupted one (traps 8-17)."""

from __future__ import annotations

import io
import itertools
import json
import resource
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import TrainerCallback

from r3_rl.errors import CheckpointError, InputError, MissingPackageError, RunError, ScorerError
from r3_rl.evaluate.build import right_examples
from r3_rl.modalities import TextSegment
from r3_rl.nodes import given_image
from r3_rl.observe.metrics import unknown_names
from r3_rl.observe.progress import RunProgress
from r3_rl.observe.recorder import Recorder, new_run_folder, read_lines
from r3_rl.policy.adapters import AdapterSettings, adapted_layers
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.rollout.prompts import PromptStream
from r3_rl.scoring.base import ScorerInfo, scorer_info
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.training import checkpoint
from r3_rl.training import updater as updater_module
from r3_rl.training.callbacks import RecordCallback
from r3_rl.training.config import R3Config
from r3_rl.training.manifest import checked, newest_whole, numbered
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import Verdict
from r3_rl.worlds.base import find_world
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy

LORA = AdapterSettings(rank=2)
WORLD = find_world()


def red(images, **columns):
    """How red the image is."""
    return [float(image[..., 0].mean()) / 255 for image in images]


def reddish(images, **columns):
    """1 for the redder ones, so that groups are mixed."""
    return [float(score > 0.485) for score in red(images)]


def make(
    folder,
    scorer=red,
    *,
    seed=0,
    policy=None,
    loop_settings=None,
    dataset=PROMPTS,
    lora=LORA,
    questions=None,
    about=None,
    **options,
):
    args = R3Config(
        **{
            "output_dir": str(folder),
            "max_steps": 2,
            "num_prompts": 2,
            "num_generations": 3,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_steps": 1000,
            "seed": seed,
            "report_to": "none",
            "disable_tqdm": True,
            "node_choice": "uniform",
            **options,
        }
    )
    trainer = R3Trainer(
        policy or tiny_policy(),
        scorer,
        args,
        list(dataset) if not isinstance(dataset, PromptStream) else dataset,
        processing_class=loop_settings or loop(),
        peft_config=lora,
        questions=questions,
        about=about,
        examples=partial(right_examples, WORLD, WORLD.tags) if args.supervised else None,
    )
    return trainer


def run(trainer, **options):
    """Trains; the rows that were logged."""
    trainer.train(**options)
    trainer.close()
    return [{k: v for k, v in row.items() if k != "step"} for row in trainer.state.log_history[:-1]]


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.policy.module.named_parameters() if p.requires_grad}


def assert_equal_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def untimed(rows):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and not k.endswith("_s")}
        for row in rows
    ]


@pytest.mark.parametrize(
    "schedule", ["tree", "full", "episode", "draft_only", "critique_only", "cotrain", "progressive"]
)
def test_every_schedule_trains_and_names_its_numbers(tmp_path, schedule):
    trainer = make(tmp_path, schedule=schedule, probe_every=1, rounds=2, beta=0.01, image_beta=0.01)
    before = weights(trainer)
    rows = run(trainer)
    assert len(rows) == 2
    for row in rows:
        assert unknown_names(row) == []
        assert row["entropy"] > 0 and row["num_tokens"] > 0 and row["memory/peak_bytes"] > 1e7
        assert row["grad_norm"] > 0 and row["time/step_s"] > 0 and row["rewards/red/mean"] > 0
        assert row["ratio/text_deviation"] < 1e-4
    stages = {name for row in rows for name in row if name.startswith(("refine/", "image/loss", "time/"))}
    assert ("refine/gain_mean" in stages) is (schedule in ("tree", "full", "episode", "progressive"))
    assert ("image/loss" in stages) is (schedule != "critique_only")
    assert ("time/critique_s" in stages) is (schedule != "draft_only")
    assert "refine/draft_score" in stages
    after = weights(trainer)
    assert any(not torch.equal(before[n], after[n]) for n in before)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert any("_moe_gen" in n for n in moved) is (schedule != "critique_only")


def test_the_numbers_of_whole_trajectories_are_those_of_all_rounds(tmp_path):
    """Schedule `full`: what is logged and recorded is the trajectory, not its last round."""
    trainer = make(
        tmp_path, schedule="full", rounds=2, num_generations=None, branch={"plan": 6, "critique": 1}, max_steps=1
    )
    seen = []
    trainer.on_collected = lambda step, collected: seen.append(collected)
    (row,) = run(trainer)
    walked = seen[0].trajectories()
    lengths = [len(t.rounds) for t in walked]
    assert len(walked) == 12 and {1, 2, 3} == set(lengths), "drafts that were left alone, and two rounds of others"
    first, last = ([t.rounds[i].verdict.total for t in walked] for i in (0, -1))
    gains = [b - a for a, b in zip(first, last, strict=True)]
    assert row["refine/draft_score"] == pytest.approx(sum(first) / 12)
    assert row["refine/final_score"] == pytest.approx(sum(last) / 12)
    in_float32 = torch.tensor(last) - torch.tensor(first)  # as scores are kept: a small difference of large numbers
    assert row["refine/gain_mean"] == pytest.approx(float(in_float32.mean()))
    assert row["refine/frac_improved"] == pytest.approx(sum(gain > 0 for gain in gains) / 12)
    said = [r.critique for t in walked for r in t.rounds[1:]] + [t.last_critique for t in walked if t.last_critique]
    assert row["refine/frac_stopped"] == pytest.approx(sum(c.stop for c in said) / len(said))
    plans = [trainer.loop.protocol.plan_well_formed(t.rounds[0].plan) for t in walked]
    assert row["refine/frac_well_formed"] == pytest.approx(
        (sum(plans) + sum(c.well_formed for c in said)) / (12 + len(said))
    )
    assert row["image/count"] == sum(lengths)
    recorder = Recorder(new_run_folder(tmp_path, "run"), keep_trajectories=12)
    recorder.trajectories(1, walked)
    kept = read_lines(recorder.run_folder / "trajectories.jsonl").rows
    assert sorted(len(row["rounds"]) for row in kept) == sorted(lengths)


def test_the_generation_branch_may_have_a_rate_of_its_own(tmp_path):
    trainer = make(tmp_path, schedule="draft_only", image_learning_rate=1e-9, lr_scheduler_type="linear")
    before = {n: p.detach().clone() for n, p in trainer.policy.module.named_parameters() if p.requires_grad}
    run(trainer)
    moved = {
        branch: max(
            float((p.detach() - before[n]).abs().max())
            for n, p in trainer.policy.module.named_parameters()
            if n in before and ("_moe_gen" in n) == (branch == "generation")
        )
        for branch in ("understanding", "generation")
    }
    assert moved["understanding"] > 1e-3 and 0 < moved["generation"] < 1e-8, moved


@pytest.mark.parametrize("schedule", ["draft_only", "tree"])
def test_images_may_teach_the_branch_that_draws_alone(tmp_path, schedule):
    """With frozen texts nothing that reads moves; with texts it moves as texts alone move it."""
    options = {"schedule": schedule, "max_steps": 2, "text_loss_weight": 0.0}
    moved = {}
    for kept in ("generation", "all"):
        trainer = make(tmp_path / kept, image_gradients=kept, **options)
        before = {n: p.detach().clone() for n, p in trainer.policy.module.named_parameters() if p.requires_grad}
        run(trainer)
        after = {n: p.detach() for n, p in trainer.policy.module.named_parameters() if n in before}
        moved[kept] = [{n for n in before if ("_moe_gen" in n) is own and not torch.equal(before[n], after[n])}
                       for own in (True, False)]  # fmt: skip
    assert moved["generation"][0] and not moved["generation"][1]
    assert moved["all"][0] and moved["all"][1]


def test_what_reads_learns_the_same_from_texts_whether_or_not_images_are_there(tmp_path):
    """One step of both: weights that read take the step that they take when images weigh nothing."""
    found = []
    for options in ({"image_gradients": "generation"}, {"image_loss_weight": 0.0}):
        trainer = make(tmp_path / str(len(found)), schedule="draft_only", max_steps=1, max_grad_norm=1e9, **options)
        run(trainer)
        found.append({n: p for n, p in weights(trainer).items() if "_moe_gen" not in n})
    assert found[0].keys() == found[1].keys() and found[0]
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-5, atol=1e-7)


def test_full_weights_train_with_a_reference_of_their_own(tmp_path):
    trainer = make(tmp_path, lora=None, schedule="draft_only", beta=0.1, image_beta=0.1)
    rows = run(trainer)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[1]["kl"] > 1e-6


def test_the_same_seed_is_the_same_run_bit_for_bit(tmp_path):
    runs = [make(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    rows = [untimed(run(trainer)) for trainer in runs]
    assert rows[0] == rows[1] != rows[2]
    assert_equal_weights(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ({"schedule": "tree", "scorer": reddish, "node_choice": "spread_only", "depth": 2}, 2),
        ({"schedule": "cotrain", "num_iterations": 2}, 2),
        ({"schedule": "draft_only", "lora": None, "beta": 0.1, "image_beta": 0.1}, 2),
        ({"schedule": "draft_only", "lora": AdapterSettings(rank=2, dropout=0.3)}, 2),
        ({"supervised": {"text_to_image": 3, "critique": 2}, "lora": AdapterSettings(rank=2, dropout=0.3)}, 2),
    ],
    ids=["tree", "iterations", "full_weights", "dropout", "supervised"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, options, cut):
    """Its reference too: the KL of full weights is measured from the base and not from where the run goes on."""
    options = {"max_steps": 4, "save_steps": 1 if "num_iterations" not in options else 2, **options}
    whole = make(tmp_path / "whole", **options)
    rows = untimed(run(whole))
    again = make(tmp_path / "again", **options)
    resumed = untimed(run(again, resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{cut}")))
    assert resumed[-(4 - cut) :] == rows[cut:]
    assert_equal_weights(weights(whole), weights(again))
    a, b = whole.schedule.pool.groups, again.schedule.pool.groups
    assert [[n.score for n in group] for group in a] == [[n.score for n in group] for group in b]
    images = [[n.image for group in groups for n in group] for groups in (a, b)]
    assert all(map(torch.equal, *images))
    assert bool(images[0]) is (whole.updater.teacher is None)


@pytest.mark.parametrize("schedule", ["tree", "full"])
def test_scorers_that_overlap_with_drawing_change_nothing(tmp_path, schedule):
    drawing = threading.Event()

    class Red:
        """Its first call ends only after the next part has begun to be drawn, and late calls end first."""

        __name__ = "red"
        num_calls = 0

        def __call__(self, images, **columns):
            self.num_calls += 1
            if self.num_calls == 1:
                assert drawing.wait(20), "the second part was not drawn while the first was scored"
            time.sleep(0.05 / self.num_calls)
            return red(images)

    options = {"schedule": schedule, "num_parts": 3, "rounds": 2}
    apart, overlapping = make(tmp_path / "a", **options), make(tmp_path / "b", scorer=Red(), **options)
    engine = apart.schedule.engine

    def wait_for_each(batch):
        answer = Future()
        answer.set_result(apart.panel.score(batch))
        return answer

    engine.submit = wait_for_each
    draws, plain = [], overlapping.policy.draw

    def draw(*args):
        draws.append(len(args[0]))
        if len(draws) == 2:
            drawing.set()
        return plain(*args)

    overlapping.policy.draw = draw
    rows = [untimed(run(trainer)) for trainer in (apart, overlapping)]
    assert draws[:3] == [2, 2, 2]
    assert rows[0] == rows[1]
    assert_equal_weights(weights(apart), weights(overlapping))


def test_parts_keep_groups_whole_for_a_scorer_that_compares_peers(tmp_path):
    seen = []

    @scorer_info(needs=("images",), group_wise=True)
    def reddest(images, **columns):
        seen.append(len(images))
        return [float(score == max(red(images))) for score in red(images)]

    run(make(tmp_path, scorer=reddest, num_parts=6, max_steps=1))
    assert seen == [3, 3]


@pytest.mark.parametrize("image_rate", [None, 4e-3])
def test_settings_of_the_optimiser_that_change_on_resume_act(tmp_path, image_rate):
    """And are not the checkpoint's; moments and the course's step are (trap 16)."""
    options = {"lr_scheduler_type": "linear", "warmup_steps": 0, "max_steps": 4, "schedule": "draft_only"}
    run(make(tmp_path, save_steps=2, image_learning_rate=image_rate, **options))
    changed = {"learning_rate": 1e-3, "image_learning_rate": image_rate and 2e-3, "adam_beta1": 0.5}
    again = make(tmp_path / "again", **{**options, "max_steps": 8}, **changed)
    rows = run(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [row["learning_rate"] for row in rows[2:]] == [pytest.approx(1e-3 * (8 - s) / 8) for s in range(2, 8)]
    groups = again.learner.optimizer.param_groups
    assert {group["betas"] for group in groups} == {(0.5, again.args.adam_beta2)}
    assert {group["initial_lr"] for group in groups} == {1e-3, *([2e-3] if image_rate else [])}
    assert {int(state["step"]) for state in again.learner.optimizer.state.values()} == {8}


def test_a_rate_more_than_the_checkpoint_has_is_a_line(tmp_path):
    run(make(tmp_path, max_steps=1, save_steps=1))
    again = make(tmp_path / "again", image_learning_rate=1e-3)
    with pytest.raises(CheckpointError, match=r"has 1 groups of weights with rates of their own, not 2"):
        again.train(resume_from_checkpoint=tmp_path / "checkpoint-1")


def test_later_checkpoints_are_kept_aside_when_a_run_goes_back(tmp_path, capsys):
    """Else a run that is killed before its next checkpoint would go on from a course that was given up."""
    run(make(tmp_path, max_steps=4, save_steps=1, save_total_limit=4, schedule="draft_only"))
    again = make(tmp_path, max_steps=3, save_steps=1, save_total_limit=2, schedule="draft_only")
    again.on_collected = lambda step, collected: names.append({path.name for path in tmp_path.iterdir()})
    names = []
    run(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    aside = {"passed-over-checkpoint-3", "passed-over-checkpoint-4"}
    assert names == [{"checkpoint-1", "checkpoint-2", *aside}]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-3", *aside}
    assert "checkpoint-4 is later, and kept as passed-over-checkpoint-4 until you remove it" in capsys.readouterr().out


def test_checkpoints_that_were_there_before_a_run_stay(tmp_path):
    run(make(tmp_path, max_steps=3, save_steps=3, schedule="draft_only"))
    run(make(tmp_path, max_steps=2, save_steps=1, save_total_limit=1, schedule="draft_only"))
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    run(make(tmp_path / "a", max_steps=1, save_steps=1))
    full = make(tmp_path / "b", lora=None)
    with pytest.raises(CheckpointError, match=r"holds no schedule\.pt"):
        full.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))


@pytest.mark.parametrize("part", ["save_weights", "save_pool", "save_random"])
def test_a_crash_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch, part):
    trainer = make(tmp_path / "checkpoints", max_steps=3, save_steps=1, schedule="draft_only")
    save = getattr(checkpoint, part)

    def cut_off(*arguments, **options):
        save(*arguments, **options)
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint, part, cut_off)
        trainer.train()
    trainer.close()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"checkpoint-1", ".checkpoint-2.partial"}
    last, problems = newest_whole(tmp_path / "checkpoints")
    assert last is not None and last.step == 1 and not problems, "what was cut off never had its name"
    again = make(tmp_path / "checkpoints", max_steps=3, save_steps=1, schedule="draft_only")
    run(again, resume_from_checkpoint=last)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {f"checkpoint-{step}" for step in (1, 2, 3)}, "nothing is left of it"


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "node_pool.safetensors", "optimizer.pt"])
def test_a_full_disk_is_one_clear_line_and_the_last_checkpoint_stays(tmp_path, file):
    """With a limit on the size of a file in place of a full disk: the system refuses the last bytes of it."""
    trainer = make(tmp_path, max_steps=3, save_steps=1, schedule="draft_only")
    size = run_first_step(trainer, tmp_path / "checkpoint-1" / file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
        with pytest.raises(RunError, match=r"checkpoint could not be written: .*GiB are free.*--resume goes on"):
            trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    trainer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"], "what was written of it gave its room back"
    assert checked(tmp_path / "checkpoint-1").step == 1


def run_first_step(trainer, file):
    """How large a file of the first checkpoint is."""
    trainer.args.max_steps, whole = 1, trainer.args.max_steps
    trainer.train()
    trainer.args.max_steps = whole
    return file.stat().st_size


def test_updates_on_the_same_rollouts_roll_out_once(tmp_path):
    trainer = make(tmp_path, schedule="draft_only", num_iterations=2, max_steps=4)
    drawn = []
    trainer.on_collected = lambda step, collected: drawn.append((step, collected.phase))
    rows = run(trainer)
    assert drawn == [(0, "reason"), (2, "reason")]
    assert ["ratio/text_deviation" in row for row in rows] == [True, False, True, False]
    assert rows[1]["ratio/text_mean"] != 1.0 and rows[1]["refine/draft_score"] == rows[0]["refine/draft_score"]


def test_steps_between_two_lines_are_averaged(tmp_path):
    single = run(make(tmp_path / "a", max_steps=2))
    (joint,) = run(make(tmp_path / "b", max_steps=2, logging_steps=2))
    assert joint["refine/draft_score"] == single[0]["refine/draft_score"], "a reason step"
    assert joint["refine/gain_mean"] == single[1]["refine/gain_mean"], "and a refine step in one line"
    assert joint["reward"] == pytest.approx((single[0]["reward"] + single[1]["reward"]) / 2)


def test_equal_rewards_stop_the_run_with_the_reason(tmp_path):
    def flat(images, **columns):
        return [0.5] * len(images)

    trainer = make(tmp_path, flat, max_steps=9, schedule="draft_only", max_zero_variance_steps=2, format_weight=0.0)
    trainer.loop = replace(trainer.loop, plan=None)
    trainer.schedule.engine.settings = trainer.loop
    with pytest.raises(RunError, match=r"equal rewards for 2 steps.*finer scores"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.state.log_history[0]["frac_reward_zero_std"] == 1.0
    assert trainer.state.log_history[0]["grad_norm"] == 0


def test_missing_scores_have_no_advantage_and_are_counted(tmp_path):
    def sometimes(images, **columns):
        return [None if i % 3 == 0 else value for i, value in enumerate(red(images))]

    panel = Panel([ScorerSpec(name="sometimes", scorer=sometimes)], max_failed_fraction=0.5)
    trainer = make(tmp_path, panel, schedule="draft_only", max_steps=1)
    seen = []
    trainer.on_collected = lambda step, collected: seen.append(collected)
    (row,) = run(trainer)
    assert row["scores/missing_fraction"] == pytest.approx(1 / 3) == row["frac_reward_missing"]
    assert row["rewards/sometimes/missing_fraction"] == pytest.approx(1 / 3)
    missing = [id(draft.sample) for i, draft in enumerate(seen[0].leaves) if i % 3 == 0]
    assert not {id(c.segment) for c in seen[0].credits} & set(missing)


def test_too_many_missing_scores_stop_the_run(tmp_path):
    def broken(images, **columns):
        raise OSError("the file is gone")

    trainer = make(tmp_path, broken, schedule="draft_only")
    with pytest.raises(ScorerError, match=r"6 of 6 scores are missing.*the file is gone"):
        trainer.train()
    trainer.close()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path):
    trainer = make(tmp_path, schedule="draft_only")
    parameter = next(p for p in trainer.policy.module.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(trainer)
    with pytest.raises(RunError, match="the gradient is not finite"):
        trainer.train()
    trainer.close()
    assert_equal_weights(before, weights(trainer))


def test_a_time_budget_ends_the_run(tmp_path):
    trainer = make(tmp_path, max_steps=50, time_budget_s=1e-6)
    run(trainer)
    assert trainer.state.global_step == 1


def test_under_a_time_budget_the_rate_falls_with_the_clock(tmp_path):
    trainer = make(tmp_path, max_steps=10, time_budget_s=1.0, lr_scheduler_type="linear", warmup_steps=0)
    trainer.prepare()
    optimizer, scheduler = trainer.learner.optimizer, trainer.learner.scheduler
    for trainer.time_budget.used in (0.0, 0.45, 0.3, 2.0):
        optimizer.step()
        scheduler.step()
        step = scheduler.last_epoch
        course = max(step, min(int(10 * trainer.time_budget.used), 10))
        expected = trainer.args.learning_rate * (1 - course / 10)
        assert scheduler.get_last_lr()[0] == pytest.approx(expected)
    trainer.close()


def test_numbers_are_recorded_line_by_line(tmp_path):
    folder = new_run_folder(tmp_path, "run")
    progress = SimpleNamespace(
        seen=[], update=lambda step, logs: progress.seen.append(step), begin=lambda *_, **__: None
    )
    trainer = make(folder / "checkpoints", max_steps=3)
    trainer.add_callback(RecordCallback(Recorder(folder), progress))
    run(trainer)
    lines = read_lines(folder / "metrics.jsonl").rows
    assert [line["step"] for line in lines] == [1, 2, 3] == progress.seen
    for line in lines:
        assert unknown_names(line.keys() - {"step", "not_finite"}) == []


def test_a_guard_speaks_once_when_it_first_finds_something(tmp_path):
    """While the run goes on, with what to try; and not again by a resumed run."""

    def sometimes(images, **columns):
        return [None if i == 0 else value for i, value in enumerate(red(images))]

    said, options = [], {"schedule": "draft_only", "save_steps": 2}
    for max_steps, more in ((2, {}), (3, {"resume_from_checkpoint": str(tmp_path / "c" / "checkpoint-2")})):
        out = io.StringIO()
        panel = Panel([ScorerSpec(name="sometimes", scorer=sometimes)], max_failed_fraction=0.5)
        trainer = make(tmp_path / "c", panel, max_steps=max_steps, **options)
        with RunProgress("r", total_steps=3, console=Console(file=out, width=200)) as progress:
            trainer.guards.say = progress.note
            run(trainer, **more)
        said.append([line for line in out.getvalue().split("\n") if "guard" in line])
    sentence = "guard missing_scores warns at step 1: scores were missing in 1 of 1 step, "
    assert [len(lines) for lines in said] == [1, 0] and said[0][0].startswith(sentence)


def test_a_resumed_run_counts_the_time_left_from_its_own_steps(tmp_path):
    """With a clock of one second a look: three steps of a resumed run are no seven steps."""
    options = {"schedule": "draft_only", "save_steps": 4}
    run(make(tmp_path / "a", max_steps=4, **options))
    again = make(tmp_path / "b", max_steps=7, **options)
    looks, out = itertools.count(), io.StringIO()
    console = Console(file=out, width=200)
    folder = new_run_folder(tmp_path, "run")
    with RunProgress("r", total_steps=7, console=console, clock=lambda: float(next(looks))) as progress:
        again.add_callback(RecordCallback(Recorder(folder), progress))
        run(again, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert "step 5/7" in out.getvalue().split("\n")[0] and "s/step 1.00  left 2 s" in out.getvalue().split("\n")[0]


def test_waiting_for_held_out_scorers_is_no_time_of_the_update(tmp_path):
    trainer = make(tmp_path, schedule="draft_only", max_steps=1)
    updated = threading.Event()

    def slow(images, **columns):
        updated.wait(60)
        time.sleep(3)
        return [0.5] * len(images)

    accumulate = trainer.updater.accumulate
    trainer.updater.accumulate = lambda *args: (accumulate(*args), updated.set())[0]
    trainer.held_out = Panel([ScorerSpec(name="slow", scorer=slow)], held_out=True)
    (row,) = run(trainer)
    assert row["time/held_out_s"] > 2.5
    assert row["time/update_s"] + row["time/held_out_s"] <= row["time/step_s"]


def test_held_out_scorers_are_scored_and_never_trained_on(tmp_path):
    held_out = Panel([ScorerSpec(name="blue", scorer=lambda images, **c: [0.25] * len(images))], held_out=True)
    trainer = make(tmp_path, schedule="tree")
    trainer.held_out = held_out
    rows = run(trainer)
    assert rows[0]["eval_rewards/blue/mean"] == 0.25 and rows[0]["rewards/red/mean"] != 0.25
    assert rows[1]["eval_rewards/blue/mean"] == 0.25, "refined images are scored as well"
    assert unknown_names(rows[0]) == []


def test_held_out_scorers_change_nothing_of_the_training(tmp_path):
    def broken(images, **columns):
        raise OSError("the judge is gone")

    alone, watched = (make(tmp_path / name, schedule="draft_only", num_iterations=2) for name in ("a", "b"))
    specs = [ScorerSpec(name="bright", scorer=lambda images, **c: [i.mean() / 255 for i in images])]
    specs.append(ScorerSpec(name="broken", scorer=broken))
    watched.held_out = Panel(specs, held_out=True, max_failed_fraction=1.0)
    plain, rows = run(alone), run(watched)
    assert_equal_weights(weights(alone), weights(watched))
    assert {k: v for k, v in untimed(rows)[0].items() if not k.startswith("eval_rewards/")} == untimed(plain)[0]
    assert all(row["eval_rewards/broken/missing_fraction"] == 1 and row["eval_rewards/bright/mean"] > 0 for row in rows)
    assert all("eval_rewards/broken/mean" not in row for row in rows), "missing is never 0"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda images, **columns: [0.5], "scorer 'late': it returned 1 scores for 6 samples"),
        (lambda letters, **columns: [0.5] * len(letters), "demands the column 'letters'"),
        (lambda images, **columns: [None] * len(images), "6 of 6 scores are missing"),
    ],
    ids=["broken", "column", "missing"],
)
def test_a_held_out_scorer_never_stops_the_run(tmp_path, caplog, answer, said):
    trainer = make(tmp_path, schedule="draft_only", max_steps=3)
    fine = ScorerSpec(name="fine", scorer=lambda images, **columns: [0.25] * len(images))
    trainer.held_out = Panel([fine, ScorerSpec(name="late", scorer=answer)], held_out=True)
    rows = run(trainer)
    assert [row["eval_rewards/late/missing_fraction"] for row in rows] == [1, 1, 1]
    assert all(row["eval_rewards/fine/mean"] == 0.25 and "eval_rewards/late/mean" not in row for row in rows)
    (line,) = [record.message for record in caplog.records if "late" in record.message]
    assert said in line, "once"


def test_held_out_scorers_that_apply_to_nothing_are_a_line(caplog):
    spec = ScorerSpec(name="reads", scorer=lambda completions: [1.0], info=ScorerInfo(needs=("questions",)))
    with Panel([spec], held_out=True) as panel:
        for _ in range(2):
            panel.score(ScoreBatch(prompts=[PROMPTS[0]], texts=["a"]))
            assert "eval_rewards/reads/mean" not in panel.metrics()
    (line,) = [record.message for record in caplog.records]
    assert "no scorer applies to any of 1 samples: 'reads' needs questions" in line


@pytest.mark.parametrize("schedule", ["tree", "critique_only"])
def test_nodes_drawn_by_the_world_fill_their_share(tmp_path, schedule):
    made = []

    def synthetic(count, seed):
        made.append(count)
        return [given_image(PROMPTS[0], i, verdict=Verdict(total=0.2)) for i in pictures(count)]

    trainer = make(tmp_path, num_prompts=4, dataset=PROMPTS * 2, synthetic_fraction=0.5, schedule=schedule)
    trainer.schedule.synthetic = synthetic
    seen = []
    trainer.on_collected = lambda step, collected: seen.append(collected)
    run(trainer)
    assert set(made) == {2}
    before = [(leaf.above if leaf.critique else leaf.above.above).score for leaf in seen[-1].leaves]
    assert before.count(0.2) == 2 * 3 and len(before) == 4 * 3


@pytest.mark.parametrize("schedule", ["tree", "critique_only", "answers"])
def test_texts_start_from_so_many_images_a_prompt_and_no_two_processes_share_a_row(tmp_path, schedule):
    def given(count, seed):
        columns = {"answer": "yes"}
        prompts = [replace(PROMPTS[0], columns=columns)] * count
        return [given_image(p, i, verdict=Verdict(total=0.2)) for p, i in zip(prompts, pictures(count), strict=True)]

    options = {"answer_share": 1.0} if schedule == "answers" else {"schedule": schedule, "synthetic_fraction": 1.0}
    branch = {"plan": 2, "critique": 2, "answer": 2}
    options |= {"num_generations": None, "branch": branch, "questions": lambda count, seed: given(12, seed)}
    made = make(tmp_path, num_prompts=2, nodes_per_prompt=3, **options).schedule
    made.synthetic = given
    rows = []
    for first in (0, 2):  # as the first and the second of two processes with two prompts each
        made.engine = replace(made.engine, first_group=first)
        found = made.collect(1 if schedule == "tree" else 0, PROMPTS[:2], seed=1, progress=0.0)
        assert len({leaf.root for leaf in found.leaves}) == 2 * 3
        rows.append({leaf.id.row for leaf in found.leaves})
    assert rows == [set(range(12)), set(range(12, 24))]


@pytest.mark.parametrize(("schedule", "second"), [("tree", "refine"), ("cotrain", "critique")])
@pytest.mark.parametrize(("reason_steps", "reflect_steps"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3)])
def test_so_many_steps_of_either_kind_take_turns(tmp_path, schedule, second, reason_steps, reflect_steps):
    made = make(tmp_path, schedule=schedule, reason_steps=reason_steps, reflect_steps=reflect_steps).schedule
    turn = ["reason"] * reason_steps + [second] * reflect_steps
    assert [made._phase(step, seed=step, progress=0.0) for step in range(2 * len(turn))] == 2 * turn


def test_a_tree_without_a_mixed_group_draws_more_drafts(tmp_path):
    trainer = make(tmp_path, node_choice="spread_only")
    phases = []
    trainer.on_collected = lambda step, collected: phases.append(collected.phase)
    run(trainer)
    assert phases == ["reason", "reason"]


def test_plain_scorers_and_weights_make_a_panel(tmp_path):
    def short(completions, **columns):
        return [1 / len(text) for text in completions]

    trainer = make(tmp_path, [red, short], reward_weights=[1.0, 0.5], schedule="draft_only", max_steps=1)
    assert trainer.panel.names == ("red", "short")
    (row,) = run(trainer)
    assert row["weighted_rewards/short/mean"] == pytest.approx(0.5 * row["rewards/short/mean"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"num_generations": 1}, "branch.plan: 1 plan and 1 draft in a reason step: no text and no image has a peer"),
        ({"num_generations": None, "branch": {"critique": 1}}, "branch.critique: 1 critique and 1 refinement in a ref"),
        ({"num_generations": 3, "branch": {"plan": 4}}, "both branch and num_generations; give one of them"),
        ({"num_generations": None, "branch": {"plan": 0}}, r"branch.plan=0: .* greater than or equal to 1"),
        (
            {"num_generations": None, "branch": {"plans": 4}},
            "branch.plans=4: .*; known: plan, draft, critique, refinement, answer",
        ),
        ({"num_iterations": 2, "save_steps": 3}, "falls between the 2 updates"),
        ({"reward_weights": [1.0, 2.0]}, "2 reward_weights for 1 reward_funcs"),
        ({"lora": AdapterSettings(rank=2, branches="generation")}, "learn nothing from texts"),
    ],
)
def test_arguments_that_contradict_each_other(tmp_path, options, problem):
    with pytest.raises(InputError, match=problem):
        make(tmp_path, **options)
    with pytest.raises(InputError, match="takes no eval_dataset"):
        R3Trainer(tiny_policy(), red, R3Config(str(tmp_path)), [], [1])


def test_weights_too_coarse_for_small_steps_are_not_trained(tmp_path):
    with pytest.raises(InputError, match=r"weights in bfloat16 are to be trained.*an adapter"):
        make(tmp_path, policy=tiny_policy(dtype=torch.bfloat16), lora=None).train()
    adapted = make(tmp_path, policy=tiny_policy(dtype=torch.bfloat16), schedule="draft_only", learning_rate=1e-6)
    before = weights(adapted)
    run(adapted)
    assert {p.dtype for p in before.values()} == {torch.float32}
    moved = {n for n, p in weights(adapted).items() if "lora_A" in n and not torch.equal(p, before[n])}
    assert moved, "steps of a millionth arrive"


@pytest.mark.parametrize("branches", ["understanding", "generation"])
def test_one_branch_alone_can_be_trained(tmp_path, branches):
    text_weight = 0.0 if branches == "generation" else 1.0
    trainer = make(tmp_path, lora=AdapterSettings(rank=2, branches=branches), text_loss_weight=text_weight)
    check = trainer.self_check()
    assert list(check.gradient_norm) == [branches]
    assert all(row["grad_norm"] >= 0 for row in run(trainer))
    assert all(("_moe_gen" in name) is (branches == "generation") for name in weights(trainer))


def test_a_checkpoint_holds_plain_files_alone(tmp_path):
    run(make(tmp_path, max_steps=2, save_steps=2))
    folder = tmp_path / "checkpoint-2"
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "node_pool.json", "node_pool.safetensors"} <= names
    assert "training_args.bin" not in names and "model.safetensors" not in names
    assert len(json.loads((folder / "node_pool.json").read_text())) == 2


class _Watch(TrainerCallback):
    """Looks at the policy between the steps."""

    def __init__(self, policy):
        self.policy, self.merged = policy, []

    def on_step_end(self, args, state, control, **kwargs):
        self.merged.append(on_one_weight(self.policy.module))


def on_one_weight(module):
    """Which of its adapted layers run on the cached sum."""
    return [layer.plain_weight("") is not None for layer in adapted_layers(module).values()]


@pytest.mark.parametrize(("dropout", "merged"), [(0.0, True), (0.1, False)])
def test_updates_run_on_merged_weights_unless_the_adapter_drops(tmp_path, monkeypatch, dropout, merged):
    found = []

    def watched(policy, segments):
        found.extend(on_one_weight(policy.module))
        return replay(policy, segments)

    replay = BagelPolicy.replay
    monkeypatch.setattr(BagelPolicy, "replay", watched)
    run(make(tmp_path, lora=AdapterSettings(rank=2, dropout=dropout)))
    assert found and set(found) == {merged}


def test_dropout_acts_in_updates_and_nowhere_else(tmp_path, monkeypatch):
    """Where it acts, a text is scored differently from how it was sampled."""
    policy = tiny_policy(adapter=AdapterSettings(rank=4, alpha=8.0, dropout=0.5), moved=0.1)
    trainer = make(tmp_path, policy=policy, lora=None, schedule="draft_only", probe_every=0, learning_rate=1e-6)
    inside, outside, accumulate = [], [], updater_module.accumulate

    def deviation(credits):
        text = next(c.segment for c in credits if isinstance(c.segment, TextSegment))
        return float((policy.replay([text])[0].log_probs.detach() - text.log_probs).abs().max())

    def watched(batcher, credits, *args, **kwargs):
        inside.append(deviation(credits))
        return accumulate(batcher, credits, *args, **kwargs)

    monkeypatch.setattr(updater_module, "accumulate", watched)
    trainer.on_collected = lambda step, collected: outside.append(deviation(collected.credits))
    assert max(trainer.self_check().deviation.values()) < 1e-4
    rows = run(trainer)
    assert min(inside) > 1e-3, "it acts"
    assert max(outside) < 1e-4
    assert "ratio/text_deviation" not in rows[0], "it would be taken for a rollout that replay disagrees with"
    policy.module.train()  # a mode that a caller sets for the whole module reaches no rollout
    assert max(trainer.self_check().deviation.values()) < 1e-4


def test_what_is_dropped_follows_from_seed_and_step(tmp_path):
    """However much of the global random state is used in between, by a gallery for example."""
    runs = []
    for name, wasted in (("a", 0), ("b", 7)):
        policy = tiny_policy(adapter=AdapterSettings(rank=4, dropout=0.5), moved=0.1)
        runs.append(make(tmp_path / name, policy=policy, lora=None, probe_every=2, num_iterations=2))
        runs[-1].on_collected = lambda step, collected, wasted=wasted: torch.rand(wasted)
        run(runs[-1])
    assert_equal_weights(*map(weights, runs))


def test_merged_weights_are_gone_after_a_step(tmp_path):
    trainer = make(tmp_path)
    watch = _Watch(trainer.policy)
    trainer.add_callback(watch)
    run(trainer)
    assert len(watch.merged) == 2 and not any(merged for step in watch.merged for merged in step)


class _Heard(TrainerCallback):
    """Every event in order, with the step."""

    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def heard(args, state, control, **kwargs):
            assert kwargs["model"] is not None and kwargs["optimizer"] is not None
            self.events.append((name, state.global_step))

        return heard


def test_callbacks_of_transformers_hear_what_they_know(tmp_path):
    heard = _Heard()
    trainer = make(tmp_path, max_steps=2, save_steps=2, logging_steps=2, schedule="draft_only")
    trainer.add_callback(heard)
    run(trainer)
    update = ["on_pre_optimizer_step", "on_optimizer_step"]
    assert heard.events == [
        ("on_train_begin", 0), ("on_step_begin", 0), *((e, 0) for e in update), ("on_step_end", 1),
        ("on_step_begin", 1), *((e, 1) for e in update), ("on_step_end", 2), ("on_log", 2), ("on_save", 2),
        ("on_log", 2), ("on_train_end", 2),
    ]  # fmt: skip
    assert trainer.pop_callback(_Heard) is heard and trainer.pop_callback(_Heard) is None


def test_a_callback_may_log_save_and_stop(tmp_path):
    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_log = control.should_save = control.should_training_stop = state.global_step == 1

    trainer = make(tmp_path, max_steps=9, logging_steps=9, schedule="draft_only")
    trainer.add_callback(Stops)
    assert len(run(trainer)) == 1 and trainer.state.global_step == 1
    assert [c.name for c in numbered(tmp_path)] == ["checkpoint-1"]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(make(tmp_path, max_steps=4, save_steps=1, save_total_limit=2, schedule="draft_only"))
    assert [c.name for c in numbered(tmp_path)] == ["checkpoint-3", "checkpoint-4"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_module_is_in_training_mode_in_updates_and_nowhere_else(tmp_path, monkeypatch):
    modes, accumulate = [], updater_module.accumulate

    def watched(batcher, *args, **kwargs):
        modes.append(("update", batcher.policy.module.training))
        return accumulate(batcher, *args, **kwargs)

    monkeypatch.setattr(updater_module, "accumulate", watched)
    trainer = make(tmp_path, schedule="draft_only", max_steps=1, probe_every=0)
    trainer.on_collected = lambda *_: modes.append(("rollout", trainer.policy.module.training))
    trainer.policy.module.train()
    run(trainer)
    assert modes == [("rollout", False), ("update", True)] and not trainer.policy.module.training


def test_a_tracker_that_is_not_installed_names_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("r3_rl.training.callbacks.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"'tensorboard' needs .*pip install 'r3-rl\[track\]'"):
        make(tmp_path, report_to="tensorboard")


def test_what_is_saved_is_what_is_pushed(tmp_path, monkeypatch):
    import huggingface_hub

    pushed = {}

    def upload(self, *, repo_id, folder_path, commit_message):
        pushed[repo_id] = sorted(p.name for p in Path(folder_path).iterdir()), commit_message

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    address = "https://huggingface.co/me/drawer"
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **_: huggingface_hub.RepoUrl(address))
    trainer = make(tmp_path / "run", hub_model_id="me/drawer")
    trainer.save_model(tmp_path / "saved")
    assert trainer.push_to_hub("Trained") == address
    assert pushed == {"me/drawer": (sorted(p.name for p in (tmp_path / "saved").iterdir()), "Trained")}
    trainer.close()
