"""What is measured before and after: shares that mean what they say, on sets that stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from r3_rl.evaluate import measured, reflection
from r3_rl.evaluate.gallery import by_panel
from r3_rl.evaluate.measured import Measured, decodings, differences, entropies, right
from r3_rl.evaluate.reflection import (
    FixedDrafts,
    edited_and_repaired,
    first_critique,
    measure_loop,
    own_drafts,
    read,
    refine_once,
    repair_and_damage,
    stops_if_right,
    swap_test,
)
from r3_rl.observe.statistics import mean_of, share, unpaired_difference
from r3_rl.policy.base import Sampling
from r3_rl.rollout.engine import Engine, run_loop
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.types import Prompt, Verdict
from tests.evaluate.scripted import BROKEN, EDIT, STOP, critique, segment, trajectory
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
    assert set(values) - {f"{what}_round_{k}" for what in ("repair", "damage") for k in (1, 2)} == {
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


def test_large_sets_are_measured_in_chunks(policy, monkeypatch):
    complete = read(policy, fixed(1), loop(), 1)
    monkeypatch.setattr(measured, "CHUNK", 2)
    found = measure_loop(policy, PROMPTS, loop(), by_brightness, rounds=1, seed=3)
    assert [t.prompt for t in found.trajectories] == list(PROMPTS)
    assert len(refine_once(policy, fixed(1), loop(), seed=1)) == 3
    chunked = read(policy, fixed(1), loop(), 1)
    assert [c.segment.text for c in chunked[:2]] == [c.segment.text for c in complete[:2]] and len(chunked) == 3


def test_repair_and_damage_by_round():
    walked = [
        trajectory(0.0, 1.0),
        trajectory(0.0, 0.0, 1.0),
        trajectory(0.0),
        trajectory(0.5, 0.5, 0.5),
        trajectory(1.0),
        trajectory(1.0, 0.0, 1.0),
        trajectory(1.0, 0.0, 0.0),
    ]
    assert repair_and_damage(walked, 2) == {
        "repair_round_1": [1.0, 0.0, 0.0, 0.0],
        "damage_round_1": [0.0, 1.0, 1.0],
        "repair_round_2": [1.0, 1.0, 0.0, 0.0],
        "damage_round_2": [0.0, 0.0, 1.0],
    }
    only_right = repair_and_damage([trajectory(1.0)], 1)
    assert only_right == {"repair_round_1": [], "damage_round_1": [0.0]}, "no wrong draft, no figure of wrong drafts"


@pytest.mark.parametrize("stop", [True, False])
def test_fixed_wrong_drafts(policy, stop):
    refined = refine_once(policy, fixed(2), reading(stop), seed=1)
    found = edited_and_repaired(refined, fixed(2).prompts, always(1.0))
    assert found["wrong_drafts_edited"] == [float(not stop)] * 6
    assert found["wrong_drafts_repaired"] == [float(not stop)] * 6, "right after a refinement, which a stop has not"
    worse = edited_and_repaired(refined, fixed(2).prompts, always(0.9))
    assert worse["wrong_drafts_repaired"] == [0.0] * 6


def test_a_refinement_is_judged_with_its_own_prompt(policy):
    refined = refine_once(policy, fixed(1), reading(stop=False), seed=1)
    refined[1] = replace(refined[1], image=None)

    def last_prompt_only(images, prompts):
        return [Verdict(total=float(prompt is PROMPTS[2])) for prompt in prompts]

    found = edited_and_repaired(refined, PROMPTS, last_prompt_only)
    assert found == {"wrong_drafts_edited": [1.0, 0.0, 1.0], "wrong_drafts_repaired": [0.0, 0.0, 1.0]}


def test_a_critique_is_right_if_it_stops_at_right_images_only():
    stop, edit, broken = critique(STOP), critique(EDIT), critique(BROKEN)
    found = stops_if_right([stop, edit, broken], [stop, edit, broken])
    assert found == {
        "ita": [1.0, 0.0, 0.0, 0.0, 1.0, 1.0],
        "ita/right": [1.0, 0.0, 0.0],
        "ita/wrong": [0.0, 1.0, 1.0],
    }


def test_the_first_critique_is_the_one_about_the_draft():
    assert first_critique(trajectory(0.0, said=STOP)).stop
    refined = trajectory(0.0, 1.0, said=STOP)
    assert first_critique(refined) is refined.rounds[1].critique
    assert first_critique(trajectory(0.0)) is None


def test_the_swap_test_reads_with_the_base():
    trained, base = trained_policy(moved=0.4), tiny_policy()
    walked = reflection.judged(run_loop(trained, PROMPTS * 3, loop(), rounds=0, seed=2), by_brightness)
    wrong = own_drafts(walked, wanted=0.0)
    own = read(trained, wrong, loop(), 5)
    with trained.reference():
        by_base = read(trained, wrong, loop(), 5)
    values = swap_test(own, by_base)
    assert 0 < len(wrong.images) < 9
    for name, critic in (("own", trained), ("base", base)):
        said = Engine(policy=critic, settings=loop()).critiques(wrong.nodes(slice(None)), seed=5)
        assert values[f"swap_{name}_critic_edits"] == [float(bool(c.critique.instruction)) for c in said], name


def test_own_drafts_are_chosen_by_their_verdict():
    walked = [trajectory(t) for t in (1.0, 0.0, 0.5, None, 1.0)]
    assert len(own_drafts(walked, wanted=1.0).images) == 2
    assert len(own_drafts(walked, wanted=0.0).images) == 3
    assert len(own_drafts(walked, wanted=0.0, limit=2).images) == 2
    assert right(None) == right(Verdict(total=None)) == 0.0 and right(Verdict(total=1 - 1e-7)) == 1.0
    both = own_drafts(walked, wanted=1.0) + own_drafts(walked, wanted=0.0)
    assert len(both.prompts) == len(both.images) == 5 and len(both.first(2).images) == 2


def test_differences_pair_what_was_measured_on_the_same_items():
    before = {"draft": [0.0, 0.0, 1.0, 1.0], "final": [1.0], "swap_own_critic_edits": [1.0, 0.0], "gone": [1.0, 0.0]}
    after = {"draft": [1.0, 0.0, 1.0, 1.0], "final": [1.0, 0.0], "swap_own_critic_edits": [1.0, 1.0]}
    found = differences(before, after)
    assert set(found) == {"draft"}, "other lengths and swapped critics were not measured on the same items"
    assert found["draft"].mean == 0.25 and found["draft"].count == 4


@pytest.mark.parametrize(
    "name",
    ["image_right_given_plan", "repair_round_2", "damage_round_1_greedy", "ita_own_drafts_greedy", "questions_own"],
)
def test_what_is_measured_on_the_policys_own_items_is_never_paired(name):
    before, after = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    assert differences({name: before}, {name: after})[name] == unpaired_difference(before, after)
    assert differences({name: before}, {name: after[:2]})[name].mean == 0.75
    assert differences({name: before}, {}) == {} == differences({name: []}, {name: after})


def test_values_are_named_by_their_decoding_and_empty_ones_left_out():
    found = Measured()
    found.add({"draft": [1.0], "draft/counting": [0.0], "repair_round_1": []})
    found.add({"draft": [0.0], "draft/counting": [1.0], "repair_round_1": []}, "_greedy")
    assert found.values == {
        "draft": [1.0], "draft/counting": [0.0], "draft_greedy": [0.0], "draft_greedy/counting": [1.0],
    }  # fmt: skip
    sampled, greedy = decodings(loop()).items()
    assert sampled == ("", loop()) and greedy[0] == "_greedy"
    assert greedy[1].plan.temperature == greedy[1].critique.temperature == 0 and greedy[1].draft == loop().draft


def test_entropies_are_means_in_nats_and_have_a_bootstrap_interval():
    texts = [segment("a", log_probs=(-1.0, -2.0)), None, segment("b", log_probs=(-4.0,))]
    assert entropies(texts) == [1.5, 4.0]
    found = Measured(values={"entropy_plan": [1.5, 4.0], "draft": [1.0, 0.0]}).intervals()
    assert found == {"entropy_plan": mean_of([1.5, 4.0]), "draft": share([1.0, 0.0])}


def test_entropy_of_sampled_plans_is_that_of_their_log_probs(policy):
    walked = run_loop(policy, PROMPTS, loop(plan=Sampling(max_new_tokens=3)), rounds=0, seed=1)
    found = entropies([t.rounds[0].plan for t in walked])
    assert found == [pytest.approx(-float(t.rounds[0].plan.log_probs.sum()) / 3) for t in walked]
    without = run_loop(policy, PROMPTS, loop(plan=None), rounds=0, seed=1)
    assert entropies([t.rounds[0].plan for t in without]) == []


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


def test_means_of_other_items_are_compared_unpaired():
    rng = np.random.default_rng(0)
    before, after = (rng.normal(mean, 1.0, count).tolist() for mean, count in ((4.0, 200), (5.0, 300)))
    change = differences({"true_plan_roughness": before}, {"true_plan_roughness": after})["true_plan_roughness"]
    assert change.mean == pytest.approx(np.mean(after) - np.mean(before)) and change.count == 200
    half = 1.96 * np.sqrt(1 / 200 + 1 / 300)
    assert change.high - change.low == pytest.approx(2 * half, rel=0.15), "that of Welch's test, nearly"
