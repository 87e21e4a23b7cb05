"""The bench: the same sets before and after, both decodings, nothing from nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r3_rl.evaluate import shapes
from r3_rl.evaluate.measured import differences
from r3_rl.evaluate.shapes import ShapesBench
from r3_rl.evaluate.shapes_sets import FixedSets, OwnDrafts
from r3_rl.observe.measures import GROUPS, OWN, greedy, measure_of, pattern, plain_names
from r3_rl.policy.base import Sampling
from r3_rl.types import Verdict
from tests.evaluate.scripted import trajectory
from tests.policy.tiny import loop, tiny_policy
from tests.training.rollouts import trained_policy

SETTINGS = loop(critique=Sampling(max_new_tokens=4), num_steps=2)
SAME_ITEMS = {
    *("draft", "final", "plan_right", "wrong_drafts_edited", "wrong_drafts_repaired", "right_drafts_kept"),
    *("instruction_useful", "ita_fixed", "listing", "questions"),
}


@pytest.fixture(scope="module")
def policy():
    made = tiny_policy()
    made.module.requires_grad_(False)  # nothing is trained: it is its own base
    return made


def small_bench(**options):
    sizes = {"num_prompts": 6, "num_fixed": 6, "num_right": 4, "num_questions": 5, "num_pairs": 3, "num_plans": 3}
    sizes["num_others"] = options.pop("num_others", 4)
    return ShapesBench(**sizes, num_edits=3, num_own_questions=4, rounds=1, **options)


def by_light(images, prompts):
    """Right if the first pixel is bright: some of an untrained policy's drafts."""
    return [Verdict(total=float(image[0, 0, 0] > 0.5)) for image in images]


@pytest.fixture(scope="module")
def phases(policy):
    """The same policy measured twice with one bench; judged so that some of its drafts are right."""
    bench = small_bench(tags=("counting", "multi_count"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "judge", by_light)
        before = bench.measure(policy, SETTINGS)
        fixed = bench.fixed
        return bench, fixed, before, bench.measure(policy, SETTINGS)


def test_both_phases_are_judged_on_the_same_sets(phases):
    bench, fixed, before, after = phases
    assert bench.fixed is fixed
    assert len(fixed.wrong.images) == 6 and len(fixed.rights.images) == 4
    own = [t.rounds[0].image.image for t in before.trajectories]
    num_wrong = before.values["draft"].count(0.0)
    num_own = sum(any(image is o for o in own) for image in fixed.wrong.images)
    assert num_own == min(3, num_wrong) > 0, "half of them the base's own"
    assert len(fixed.synthetic) == 6 - num_own
    changes = differences(before.values, after.values)
    assert SAME_ITEMS | {greedy(name) for name in SAME_ITEMS} <= set(changes)
    assert all(change.mean == 0 for change in changes.values()), "the same policy twice"
    assert before.values["ita_base_drafts"] == after.values["ita_base_drafts"], "though read once in the first phase"
    assert {p.columns["tag"] for p in bench.prompts()} == {"counting", "multi_count"}
    assert [p.text for p in bench.prompts()] == [t.prompt.text for t in before.trajectories]


def test_kinds_that_are_not_asked_for_are_measured_as_a_control(policy):
    bench = small_bench(tags=("counting", "multi_count"), num_others=5)
    others = {prompt.columns["tag"] for prompt in bench._other_prompts()}
    assert others and not others & {"counting", "multi_count"}
    found = bench.measure(policy, SETTINGS).values
    assert len(found["other_draft"]) == len(found["other_final_greedy"]) == 5
    everything = small_bench(num_others=5)
    assert everything._other_prompts() == []
    assert not any(name.startswith("other_") for name in everything.measure(policy, SETTINGS).values)


def test_every_figure_of_the_table_is_measured_in_its_decodings(phases):
    _, _, found, _ = phases
    plain = set(plain_names(found.values))
    expected = {name for group in GROUPS.values() for name in group}
    # the texts of an untrained policy are no plans and fit no scene, and nothing that it draws has a clean object; a
    # loop of one round ends with it; of few questions a kind may be missing
    missing = expected - {pattern(name) for name in plain}
    allowed = {"image_right_given_plan", "edit_carried_out", "questions_own", "round_#"}
    assert missing <= allowed | {name for name in expected if name.startswith("questions/")}
    for name in plain:
        measure = measure_of(name)
        assert measure is not None, name
        decodings = {"both": {name, greedy(name)}, "sampled": {name}, "once": {name}}[measure.decoding]
        assert {n for n in (name, greedy(name)) if n in found.values} == decodings, name
    assert all(found.values.values()), "no figure without items"
    assert found.intervals().keys() == found.values.keys()


def test_a_trained_policy_is_measured_on_the_bases_drafts_and_on_its_own(monkeypatch):
    monkeypatch.setattr(shapes, "judge", by_light)
    bench, trained = small_bench(), trained_policy(moved=0.4)
    with trained.reference():
        before = bench.measure(trained, SETTINGS)
    assert before.values["ita_base_drafts"] == before.values["ita_own_drafts"], "the base's drafts are its own"
    after = bench.measure(trained, SETTINGS)
    base, own = (after.values[f"ita_{whose}_drafts_greedy"] for whose in ("base", "own"))
    assert len(base) == len(before.values["ita_base_drafts_greedy"]) > 0
    assert base != own or len(base) != len(own)
    assert before.values["swap_own_critic_edits"] == before.values["swap_base_critic_edits"]
    assert after.values["swap_own_critic_edits"] != after.values["swap_base_critic_edits"], "two critics"
    changes = differences(before.values, after.values)
    assert measure_of("ita_own_drafts").items == OWN and "ita_own_drafts" in changes
    assert any(changes[name].mean for name in changes)


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_drafts_of_one_kind_only_leave_out_what_wants_both(policy, monkeypatch, total):
    monkeypatch.setattr(shapes, "judge", lambda images, prompts: [Verdict(total=total) for _ in images])
    bench = small_bench()
    bench.measure(policy, SETTINGS)
    found = bench.measure(policy, SETTINGS)
    assert not any(name.startswith(("ita_own", "ita_base")) for name in found.values)
    left_out = "repair" if total else "damage"
    assert not any(name.startswith(left_out) for name in found.values)
    assert ("swap_own_critic_edits" in found.values) is (total == 0)
    assert bench.fixed.base_drafts.rights.images == bench.fixed.base_drafts.wrongs.images == ()
    assert set(bench.sets()) >= {"wrong", "right", "base_drafts"}


def test_a_loop_without_plans_has_no_figures_of_plans(policy):
    found = small_bench().measure(policy, replace(SETTINGS, plan=None))
    assert not any("plan" in name for name in found.values)
    assert "entropy_critique" in found.values and "draft_greedy" in found.values


def test_settings_that_are_greedy_have_no_entropy(policy):
    found = small_bench().measure(policy, SETTINGS.for_evaluation(0.0))
    assert not any(name.startswith("entropy") for name in found.values)
    assert found.values["final"] == found.values["final_greedy"]


def test_own_drafts_are_balanced_by_leaving_some_out():
    own = OwnDrafts.of([trajectory(t) for t in (1.0, 0.0, 1.0, 1.0, 0.0)], limit=10)
    assert (len(own.rights.images), len(own.wrongs.images)) == (2, 2)
    few = OwnDrafts.of([trajectory(t) for t in (0.0, 0.0, 1.0, 0.0)], limit=2)
    assert (len(few.rights.images), len(few.wrongs.images)) == (1, 2)
    for uneven in (few, OwnDrafts(rights=own.rights, wrongs=few.wrongs.first(1))):
        assert len(uneven.balanced().rights.images) == len(uneven.balanced().wrongs.images) == 1


def test_a_bench_says_which_sets_it_measures_on(policy):
    one, other = small_bench(), small_bench(tags=("counting",))
    drawn_by_the_world = {"prompts", "plans", "pairs", "edits", "questions", "others"}
    assert set(one.sets()) == drawn_by_the_world, "fixed drafts are made by the first measurement"
    for bench in (one, other):
        bench.fixed = FixedSets.of(
            [], OwnDrafts.of([], limit=1), num_wrong=6, num_right=4, tags=bench.tags
        )  # fmt: skip
    sets = one.sets()
    assert set(sets) == drawn_by_the_world | {"wrong", "right", "base_drafts"}
    assert {name for name, digest in other.sets().items() if digest != sets[name]} == {
        "prompts", "plans", "pairs", "wrong", "right", "others",
    }  # fmt: skip
    items = {measure.items for group in GROUPS.values() for measure in group.values()}
    assert items == set(sets) | {OWN}, "every figure's set has a digest"
    more = small_bench()
    more.num_edits = 4
    assert more.sets()["edits"] != sets["edits"] and more.sets()["pairs"] == sets["pairs"]
