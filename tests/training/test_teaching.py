"""Supervised steps: right examples, the same losses whatever the passes are, and no rollouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r3_rl import ranks
from r3_rl.errors import InputError, RunError
from r3_rl.observe.metrics import unknown_names
from r3_rl.policy.base import SupervisedNoise
from r3_rl.recipe.supervised import SupervisedSection
from r3_rl.training.config import R3Config
from r3_rl.training.trainer import R3Trainer
from tests.policy.tiny import PROMPTS, loop, tiny_policy
from tests.training.test_trainer import LORA, assert_equal_weights, make, run, untimed, weights

TEXTS = {"critique": 3, "question": 2, "plan": 4}
NOISE = SupervisedNoise(times_per_image=2, time_mean=1.0, soften_below=0.35)


def gradient(trainer) -> dict[str, torch.Tensor]:
    """Of a first step, which is not taken."""
    trainer.prepare()
    trainer.updater._taught(0)
    found = {name: p.grad.clone() for p, name in trainer.learner.names.items() if p.grad is not None}
    trainer.close()
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_texts_give_the_same_gradient_in_passes_of_any_size(tmp_path, size):
    whole = gradient(make(tmp_path / "a", supervised={**TEXTS, "micro_batch": 32}))
    parts = gradient(make(tmp_path / "b", supervised={**TEXTS, "micro_batch": size}))
    assert whole.keys() == parts.keys() and any(bool(g.any()) for g in whole.values())
    for name, values in whole.items():  # sums of both signs: an element's rounding is that of the largest ones
        assert float((parts[name] - values).abs().max()) <= 3e-6 * float(values.abs().max()), name


def test_the_losses_are_means_over_tokens_and_over_latent_dimensions(tmp_path):
    """Against the policy's own sums over all examples at once, with the step's noise."""
    taught = {"text_to_image": 3, "edit": 2, "critique": 2}
    trainer = make(tmp_path, supervised=taught, max_steps=1, text_loss_weight=0.5, image_loss_weight=3.0)
    counts = [(task, count) for task, count in SupervisedSection(**taught).counts() if count]
    examples = [e for task, count in counts for e in trainer.updater.teacher.examples(task, count, 0)]
    with torch.no_grad():
        sums = trainer.policy.supervised(examples, NOISE, torch.Generator().manual_seed(0))
    (row,) = run(trainer)
    assert row["image/loss"] == pytest.approx(float(sums.flow) / sums.num_flow, rel=1e-4)
    assert row["text/loss"] == pytest.approx(float(sums.text) / sums.num_text, rel=1e-4)
    assert row["loss"] == pytest.approx(3 * row["image/loss"] + 0.5 * row["text/loss"], rel=1e-5)
    assert unknown_names(row) == [] and "reward" not in row


@pytest.mark.parametrize(
    ("taught", "learns"),
    [
        ({"text_to_image": 2}, {"understanding", "generation"}),
        ({"edit": 2}, {"generation", "context"}),
        ({"critique": 2}, {"understanding"}),
    ],
    ids=["drawings", "edits", "critiques"],
)
def test_each_task_teaches_its_branch(tmp_path, taught, learns):
    found = gradient(make(tmp_path, supervised=taught))
    moved = {"generation" if "_moe_gen" in name else "understanding" for name, g in found.items() if bool(g.any())}
    assert moved >= learns - {"context"}, "the words of an edit are read by the understanding branch"
    assert "context" in learns or moved == learns


@pytest.mark.parametrize("kind", ["split", "routed"])
def test_a_routed_adapter_learns_by_stage_what_a_shared_one_learns_at_once(tmp_path, kind):
    """Fresh adapters change nothing, so the losses of a first step are the same; each stage moves its own part."""
    taught = {"text_to_image": 3, "edit": 2, "critique": 2}
    rows = []
    for name in ("shared", kind):
        trainer = make(tmp_path / name, supervised=taught, max_steps=1, lora=replace(LORA, routing=name))
        rows += run(trainer)
    assert rows[1]["text/loss"] == pytest.approx(rows[0]["text/loss"], rel=1e-5)
    assert rows[1]["image/loss"] == pytest.approx(rows[0]["image/loss"], rel=1e-4)
    found = gradient(make(tmp_path / "again", supervised=taught, lora=replace(LORA, routing=kind)))
    parts = {
        name.split(".lora_B.")[1].split(".")[0] for name, g in found.items() if ".lora_B." in name and bool(g.any())
    }
    assert parts == {"plan", "draft", "critique", "refinement"} | ({"shared", "answer"} if kind == "routed" else set())


@pytest.mark.parametrize(
    ("taught", "stage"), [({"question": 2}, "answer"), ({"plan": 2}, "plan"), ({"edit": 2}, "refinement")]
)
def test_one_task_teaches_one_part_of_a_split_adapter(tmp_path, taught, stage):
    found = gradient(make(tmp_path, supervised=taught, lora=replace(LORA, routing="split")))
    moved = {
        name.split(".lora_B.")[1].split(".")[0] for name, g in found.items() if ".lora_B." in name and bool(g.any())
    }
    assert moved == {stage}


def test_every_process_has_plans_and_their_images(tmp_path, monkeypatch):
    """Dealt out before they are taken apart: else one of two processes would have all plans, the other all images."""
    teacher = make(tmp_path, supervised={"text_to_image": 4}).updater.teacher
    monkeypatch.setattr(ranks, "count", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        assert [e.task for e in teacher._share(0, staged=True)] == ["plan", "draft", "plan", "draft"]
        assert [e.task for e in teacher._share(0, staged=False)] == ["", ""]


def test_what_is_taught_is_learned(tmp_path):
    """Ten steps on a hundred plans: their words are likelier afterwards."""
    rows = run(make(tmp_path, supervised={"plan": 32}, max_steps=10, learning_rate=3e-2))
    assert rows[-1]["text/loss"] < 0.8 * rows[0]["text/loss"], [row["text/loss"] for row in rows]


def test_the_same_seed_teaches_the_same_and_another_one_other_examples(tmp_path):
    taught = {"text_to_image": 2, "question": 2}
    runs = [make(tmp_path / name, supervised=taught, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    rows = [untimed(run(trainer)) for trainer in runs]
    assert rows[0] == rows[1] != rows[2]
    assert rows[0][0]["text/loss"] != rows[0][1]["text/loss"], "every step has examples of its own"
    assert_equal_weights(weights(runs[0]), weights(runs[1]))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    trainer = make(tmp_path, supervised={"plan": 2})
    with torch.no_grad():
        next(iter(trainer.learner.names)).fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        trainer.train()
    trainer.close()


def test_supervised_steps_without_examples_are_refused(tmp_path):
    with pytest.raises(InputError, match="supervised steps without examples"):
        R3Trainer(
            tiny_policy(),
            lambda images, **columns: [0.0] * len(images),
            R3Config(str(tmp_path), supervised={"plan": 2}),
            list(PROMPTS),
            processing_class=loop(),
        )
    with pytest.raises(InputError, match="set one task above 0"):
        R3Config(str(tmp_path), supervised={})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algorithm.supervised={}"], "algorithm.supervised.text_to_image: a step without any example learns nothing"),
        (["algorithm.supervised={critiqe: 3}"], "unknown key; did you mean 'critique'?"),
        (["algorithm.supervised={plan: 3}", "algorithm.answer_share=0.5"], "supervised steps have no rollouts"),
        (["algorithm.supervised={plan: 3}", "algorithm.text_loss_weight=0"], "all of the loss that weighs 0"),
        (["algorithm.supervised={edit: 3}", "balance.aggregator=config"], "supervised steps add their gradients up"),
        (["lora.start=nowhere"], "lora.start: no such folder"),
        (["lora.start=empty"], "holds no adapter; name a run that is done"),
        (["lora.start=routed"], "is routed by task; `r3 export` writes plain adapters"),
        (["lora.start=plain", "balance.routing=routed"], "adapters that are routed by task begin anew"),
        (["lora.start=plain", "lora.enabled=false"], "full weights have no adapter to begin from"),
    ],
)
def test_what_does_not_go_together_is_one_line_of_r3_check(r3, workplace, overrides, said):
    for name in ("empty", "plain", "routed"):
        Path(name).mkdir()
    for name in ("plain", "routed"):
        Path(name, "adapter_config.json").write_text("{}")
    Path("routed", "routing.json").write_text("{}")
    done = r3("check", "shapes_r3", *overrides)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1, done.err
