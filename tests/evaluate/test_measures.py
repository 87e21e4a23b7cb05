"""What is measured before and after: shares that mean what they say, on sets that stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from r3_rl.evaluate import reflection, shapes
from r3_rl.evaluate.gallery import by_panel
from r3_rl.evaluate.reflection import (
    FixedDrafts,
    differences,
    measure_fixed,
    measure_loop,
    own_drafts,
    own_wrong_drafts,
    right,
    swap_test,
)
from r3_rl.evaluate.shapes import (
    ShapesBench,
    judge,
    measure_critiques,
    measure_edits,
    measure_questions,
    synthetic_nodes,
)
from r3_rl.policy.base import Sampling
from r3_rl.rollout.episode import make_critiques, run_loop
from r3_rl.rollout.protocol import PROTOCOLS
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.types import ImageSegment, Prompt, Round, TextSegment, Trajectory, Verdict
from r3_rl.worlds.shapes.data import ShapesStream, fixed_wrong_drafts, held_out_questions
from r3_rl.worlds.shapes.drawing import render
from r3_rl.worlds.shapes.judging import useful_edits
from r3_rl.worlds.shapes.language import critique_text
from r3_rl.worlds.shapes.prompts import sample_prompts, sample_scene
from r3_rl.worlds.shapes.scene import Edit, free_cells
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy
from tests.training.rollouts import trained_policy


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def fixed(count, seed=0):
    return FixedDrafts(prompts=PROMPTS * count, images=tuple(pictures(3 * count, seed=seed)))


def by_brightness(images, prompts):
    """Right where the first pixel is bright: about half of them, whoever asks."""
    assert len(images) == len(prompts)
    return [Verdict(total=float(image[0, 0, 0] > 0.5)) for image in images]


def always(total):
    return lambda images, prompts: [Verdict(total=total) for _ in images]


def reading(stop):
    """Settings whose critiques all stop, or all ask for the same edit."""

    class Reader(type(loop().protocol)):
        def read_critique(self, segment):
            return replace(
                super().read_critique(segment), well_formed=True, stop=stop, instruction="" if stop else "add a cross"
            )

    return replace(loop(), protocol=Reader(reflect_template="check {prompt}"))


def test_the_loop_is_measured_by_round_and_by_kind(policy):
    prompts = [Prompt(text=p.text, columns={"tag": t}) for p, t in zip(PROMPTS * 2, "aabbcc", strict=True)]
    found = measure_loop(policy, prompts, loop(), by_brightness, rounds=2, seed=3, harder=("b", "c"))
    assert [t.prompt for t in found.trajectories] == prompts
    values = found.values
    assert set(values) == {
        *(f"{part}{kind}" for part in ("draft", "final") for kind in ("", "/a", "/b", "/c")),
        "round_1", "harder_draft", "harder_final",
    }  # fmt: skip
    assert {len(values[n]) for n in ("draft", "round_1", "final")} == {6}
    assert values["draft"] == [float(t.rounds[0].image.image[0, 0, 0] > 0.5) for t in found.trajectories]
    assert values["final"] == [float(t.final.image.image[0, 0, 0] > 0.5) for t in found.trajectories]
    assert values["harder_final"] == values["final/b"] + values["final/c"]
    assert all(r.verdict is not None for t in found.trajectories for r in t.rounds)
    assert found.intervals()["draft"].count == 6


def test_a_stopped_trajectory_keeps_its_draft_as_the_final_image(policy):
    found = measure_loop(policy, PROMPTS, reading(stop=True), by_brightness, rounds=2, seed=3)
    assert found.values["draft"] == found.values["round_1"] == found.values["final"]


def test_large_sets_are_measured_in_parts(policy, monkeypatch):
    monkeypatch.setattr(reflection, "CHUNK", 2)
    found = measure_loop(policy, PROMPTS, loop(), by_brightness, rounds=1, seed=3)
    assert [t.prompt for t in found.trajectories] == list(PROMPTS)
    values = measure_fixed(policy, fixed(1), fixed(1), loop(), by_brightness, seed=1).values
    assert {len(v) for v in values.values()} == {3}


@pytest.mark.parametrize("stop", [True, False])
def test_fixed_drafts(policy, stop):
    found = measure_fixed(policy, fixed(2), fixed(1), reading(stop), always(1.0), seed=1).values
    assert found["wrong_drafts_edited"] == [float(not stop)] * 6
    assert found["wrong_drafts_repaired"] == [float(not stop)] * 6, "right after a refinement, which a stop has not"
    assert found["right_drafts_kept"] == [float(stop)] * 3
    worse = measure_fixed(policy, fixed(2), fixed(0), reading(stop), always(0.9), seed=1).values
    assert worse["wrong_drafts_repaired"] == [0.0] * 6 and "right_drafts_kept" not in worse


def test_the_swap_test_reads_with_the_base(policy):
    trained, base = trained_policy(moved=0.4), tiny_policy()
    walked = run_loop(trained, PROMPTS * 3, loop(), rounds=0, seed=2)
    walked = reflection.judged(walked, by_brightness)
    wrong = own_drafts(walked, wanted=0.0)
    values = swap_test(trained, wrong, loop(), seed=5).values
    assert 0 < len(wrong.images) < 9
    for name, critic in (("own", trained), ("base", base)):
        said = make_critiques(critic, wrong.images, wrong.prompts, loop(), 5)
        assert values[f"swap_{name}_critic_edits"] == [float(bool(c.instruction)) for c in said], name
    assert swap_test(trained, FixedDrafts(prompts=(), images=()), loop(), seed=5).values == {}


def test_wrong_drafts_are_looked_for_until_there_are_enough(policy):
    walked = reflection.judged(run_loop(policy, PROMPTS * 3, loop(), rounds=0, seed=2), by_brightness)
    first = own_drafts(walked, wanted=0.0)
    count = len(first.images) + 3

    def look(judge=by_brightness, **options):
        return own_wrong_drafts(policy, walked, loop(), judge, seed=7, **options)

    found, again = look(count=count), look(count=count)
    assert len(found.images) == len(found.prompts) == count
    assert all(torch.equal(a, b) for a, b in zip(found.images, first.images, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(found.images, again.images, strict=True))
    assert not any(torch.equal(a, b) for a in found.images[-3:] for b in first.images), "drafts of their own"
    assert all(right(v) == 0 for v in by_brightness(found.images, found.prompts))
    assert len(look(count=2).images) == 2
    assert len(look(always(1.0), count=count, most_passes=1).images) == len(first.images), "a policy may be good"


def trajectory(total, prompt=PROMPTS[0]):
    (image,) = pictures(1)
    empty = torch.zeros(0)
    segment = ImageSegment(
        context=(), image=image, states=empty, next_states=empty, times=empty, next_times=empty, log_probs=empty
    )
    return Trajectory(prompt=prompt, rounds=(Round(image=segment, verdict=Verdict(total=total)),))


def test_own_drafts_are_chosen_by_their_verdict():
    walked = [trajectory(t) for t in (1.0, 0.0, 0.5, None, 1.0)]
    assert len(own_drafts(walked, wanted=1.0).images) == 2
    assert len(own_drafts(walked, wanted=0.0).images) == 3
    assert len(own_drafts(walked, wanted=0.0, limit=2).images) == 2
    assert right(None) == right(Verdict(total=None)) == 0.0 and right(Verdict(total=1 - 1e-7)) == 1.0
    both = own_drafts(walked, wanted=1.0) + own_drafts(walked, wanted=0.0)
    assert len(both.prompts) == len(both.images) == 5


def test_differences_pair_what_was_measured_on_the_same_items():
    before = {"draft": [0.0, 0.0, 1.0, 1.0], "final": [1.0], "swap_own_critic_edits": [1.0, 0.0], "gone": [1.0, 0.0]}
    after = {"draft": [1.0, 0.0, 1.0, 1.0], "final": [1.0, 0.0], "swap_own_critic_edits": [1.0, 1.0]}
    found = differences(before, after)
    assert set(found) == {"draft"}, "other lengths and swapped critics were not measured on the same items"
    assert found["draft"].mean == 0.25 and found["draft"].count == 4


def test_the_inspector_judges_what_is_drawn():
    rng = np.random.default_rng(0)
    prompts = sample_prompts(8, split="held_out", seed=1)
    images = [torch.from_numpy(i) for i in render([sample_scene(p, rng) for p in prompts])]
    verdicts = judge(images, prompts)
    assert [v.total for v in verdicts] == [1.0] * 8
    black = judge([torch.zeros(3, 36, 36)] * 8, prompts)
    assert [v.total for v in black] == [0.0] * 8 and all(v.words for v in black)
    assert judge([], []) == []


def test_synthetic_nodes_are_wrong_and_of_the_kinds_asked_for():
    pairs = synthetic_nodes(12, 3, tags=("counting",))
    assert {p.columns["tag"] for p, _ in pairs} == {"counting"}
    assert sum(right(v) for v in judge([i for _, i in pairs], [p for p, _ in pairs])) == 0
    again = synthetic_nodes(12, 3, tags=("counting",))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(pairs, again, strict=True))


class Oracle:
    """Knows the answers: what a perfect policy would be measured as."""

    def __init__(self, texts=(), images=()):
        self.texts, self.images = list(texts), list(images)

    def write(self, contexts, sampling, seeds):
        assert sampling.greedy
        said, self.texts = self.texts[: len(contexts)], self.texts[len(contexts) :]
        return [TextSegment(context=(), token_ids=(1,), log_probs=torch.zeros(1), text=t, ended=True) for t in said]

    def draw(self, contexts, drawings, seeds, noise_seeds=None):
        drawn, self.images = self.images[: len(contexts)], self.images[len(contexts) :]
        return [replace(trajectory(1.0).rounds[0].image, image=image) for image in drawn]


def test_questions_and_edits_of_a_perfect_policy_are_all_right(monkeypatch):
    monkeypatch.setattr(shapes, "CHUNK", 4)
    asked = held_out_questions(6, shapes.SEED + 4)
    assert measure_questions(Oracle([q.text for q in asked]), 6) == [1.0] * 6
    assert measure_questions(Oracle(["<think> x </think> dunno"] * 6), 6) == [0.0] * 6
    edits = ShapesStream(seed=shapes.SEED + 5).edits(6)
    assert measure_edits(Oracle(images=[torch.from_numpy(e.target) for e in edits]), 6, loop()) == [1.0] * 6
    sources = [torch.from_numpy(e.source) for e in edits]
    assert measure_edits(Oracle(images=sources), 6, loop()) == [0.0] * 6


class Critic(Oracle):
    """An oracle that is sampled from."""

    def write(self, contexts, sampling, seeds):
        return super().write(contexts, Sampling(temperature=0.0), seeds)


def test_a_critique_is_useful_where_its_edit_leaves_less_to_do():
    drafts, rng = fixed_wrong_drafts(8), np.random.default_rng(0)
    settings = replace(loop(), protocol=PROTOCOLS["compact"])
    useful = [critique_text(d.scene, useful_edits(d.scene, d.prompt, rng)[0]) for d in drafts]
    assert measure_critiques(Critic(useful), 8, settings) == [1.0] * 8
    assert measure_critiques(Critic([critique_text(d.scene, None) for d in drafts]), 8, settings) == [0.0] * 8
    elsewhere = [critique_text(d.scene, Edit("remove", "red", "circle", *free_cells(d.scene)[0])) for d in drafts]
    assert measure_critiques(Critic(elsewhere), 8, settings) == [0.0] * 8, "nothing stands there"


def small_bench(**options):
    return ShapesBench(num_prompts=6, num_fixed=6, num_right=4, num_questions=4, rounds=1, **options)


def test_both_phases_are_judged_on_the_same_sets(policy):
    settings = loop(critique=Sampling(max_new_tokens=4), num_steps=2)
    bench = small_bench(tags=("counting", "multi_count"))
    before = bench.measure(policy, settings)
    wrong, rights = bench.wrong, bench.rights
    assert len(wrong.images) == 6 and len(rights.images) == 4
    own = [t.rounds[0].image.image for t in before.trajectories]
    assert sum(any(image is o for o in own) for image in wrong.images) == 3, "half of them the base's own"
    after = bench.measure(policy, settings)
    assert bench.wrong is wrong and bench.rights is rights
    changes = differences(before.values, after.values)
    assert {"draft", "final", "wrong_drafts_edited", "wrong_drafts_repaired", "right_drafts_kept", "questions"} <= set(
        changes
    )
    assert all(change.mean == 0 for change in changes.values()), "the same policy twice"
    assert {p.columns["tag"] for p in bench.prompts()} == {"counting", "multi_count"}
    assert [p.text for p in bench.prompts()] == [t.prompt.text for t in before.trajectories]


def test_a_bench_says_which_sets_it_measures_on(policy):
    settings = loop(critique=Sampling(max_new_tokens=4), num_steps=2)
    one, same, other = small_bench(), small_bench(), small_bench(tags=("counting",))
    assert set(one.sets()) == {"prompts", "questions"}, "fixed drafts are made by the first measurement"
    for bench in (one, same, other):
        bench.measure(policy, settings)
    assert one.sets() == same.sets() and set(one.sets()) == {"prompts", "wrong", "right", "questions"}
    differing = {name for name, digest in other.sets().items() if digest != one.sets()[name]}
    assert differing == {"prompts", "wrong", "right"}


def test_a_panel_gives_verdicts_of_whole_trajectories(policy):
    seen = []

    def score(images, completions, draft_images=None, critiques=None, **columns):
        seen.append((completions, draft_images, critiques))
        return [float(i.mean()) / 255 for i in images]

    with Panel([ScorerSpec(name="light", scorer=score)]) as panel:
        walked = run_loop(policy, PROMPTS, loop(), rounds=2, seed=1)
        scored = by_panel(panel)(walked)
        assert "rewards/light/mean" not in panel.metrics(), "a training step reports nothing of it"
    images = [r for t in scored for r in t.rounds]
    assert all(r.verdict.total == pytest.approx(float(r.image.image.mean()), abs=2e-3) for r in images)
    completions, draft_images, critiques = seen[0]
    assert len(completions) == len(images) and sum(d is None for d in draft_images) == 3
    assert completions[0] == walked[0].rounds[0].plan.text
    assert [c for c in critiques if c] == [r.critique.segment.text for t in walked for r in t.rounds[1:]]
