import random

import numpy as np
import psutil
import pytest

from r3_rl.observe.guards import DEFAULTS, GUARDS, PATIENCE, LiveGuards, look, ratio_tolerance_of
from r3_rl.observe.memory import held_bytes
from r3_rl.recipe.guarding import GuardsSection
from tests.conftest import REPOSITORY


def run(draft, gain, *, steps=100, noise=0.03):
    """Rows whose draft score and gain follow two functions of the progress in [0, 1]."""
    source = random.Random(1)
    return [
        {
            "step": step,
            "refine/draft_score": draft(step / steps) + source.gauss(0, noise),
            "refine/gain_mean": gain(step / steps) + source.gauss(0, noise),
        }
        for step in range(1, steps + 1)
    ]


def names(rows):
    return [finding.name for finding in look(rows)]


def test_gain_rising_because_drafts_get_worse_is_named():
    rows = run(lambda done: 0.7 - 0.3 * done, lambda done: 0.05 + 0.25 * done)
    (finding,) = look(rows)
    assert finding.name == "drafts_get_worse"
    assert "the gain rose from 0.0" in finding.sentence and "fell from 0.6" in finding.sentence
    assert "worse drafts" in finding.found.advice


def test_it_is_also_named_after_a_rise():
    """Drafts that rise first and fall then end where they began; start against end would see nothing."""
    rows = run(lambda done: 0.5 + 0.8 * done * (1 - done), lambda done: 0.3 - 0.8 * done * (1 - done))
    assert names(rows) == ["drafts_get_worse"]


def test_it_is_named_when_reason_and_refine_steps_alternate():
    rows = run(lambda done: 0.7 - 0.3 * done, lambda done: 0.05 + 0.25 * done, steps=200)
    for row in rows:
        del row["refine/gain_mean" if row["step"] % 2 else "refine/draft_score"]
    assert names(rows) == ["drafts_get_worse"]


def test_worse_drafts_without_gain_are_a_collapse():
    assert names(run(lambda done: 0.7 - 0.4 * done, lambda done: 0.1)) == ["draft_collapse"]


@pytest.mark.parametrize(
    ("draft", "gain"),
    [
        (lambda done: 0.5 + 0.3 * done, lambda done: 0.1 + 0.1 * done),
        (lambda done: 0.5 + 0.3 * done, lambda done: 0.2 - 0.2 * done),
        (lambda done: 0.6, lambda done: 0.1),
    ],
)
def test_healthy_runs_raise_nothing(draft, gain):
    assert names(run(draft, gain)) == []


def test_a_short_run_is_not_judged():
    assert names(run(lambda done: 0.9 - 0.8 * done, lambda done: done, steps=30)) == []


def test_equal_groups_missing_scores_ratio_and_non_finite_values():
    rows = [
        {
            "step": step,
            "frac_reward_zero_std": 0.8,
            "scores/missing_fraction": 0.5 if step == 2 else 0.0,
            "ratio/image_deviation": 3e-3 if step == 3 else 1e-6,
            "kl": None if step == 4 else 0.1,
            **({"not_finite": ["kl"]} if step == 4 else {}),
        }
        for step in range(1, 6)
    ]
    found = {finding.name: finding.found.message for finding in look(rows)}
    assert set(found) == {"equal_groups", "missing_scores", "off_policy_ratio", "not_finite"} <= set(GUARDS)
    assert "80%" in found["equal_groups"]
    assert "10.00% of all" in found["missing_scores"] and "step 2: 50.0%" in found["missing_scores"]
    assert "image" in found["off_policy_ratio"] and "step 3" in found["off_policy_ratio"]
    assert look(rows[2:3], ratio_tolerance=ratio_tolerance_of("bfloat16")) == []
    assert "kl" in found["not_finite"] and "step 4" in found["not_finite"]


def test_gradients_near_the_epsilon_are_named():
    near = [{"step": step, "grad/over_epsilon": 3.0} for step in range(1, 31)]
    (finding,) = look(near)
    assert finding.name == "near_epsilon" and "3 times" in finding.sentence and "adam_epsilon" in finding.sentence
    assert names([{**row, "grad/over_epsilon": 300.0} for row in near]) == []
    assert names([{**row, "grad/over_epsilon": 0.1 if row["step"] < 5 else 300.0} for row in near]) == [], "warm-up"


def test_one_flat_step_is_nothing_and_a_lasting_one_is_said_once():
    live = LiveGuards()
    said = [live.add({"step": step, "frac_reward_zero_std": 1.0}) for step in range(1, 9)]
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert str(said[4][0]).startswith("guard equal_groups warns at step 5: in the last 5 steps 100% of the groups had")
    assert not any(LiveGuards([{"step": s, "frac_reward_zero_std": 1.0} for s in range(1, 9)]).add({"step": 9}))


def test_the_recipe_has_a_key_for_every_guard_in_the_same_order():
    assert list(GuardsSection.model_fields) == list(GUARDS) == list(DEFAULTS)
    assert set().union(*(guard.explains for guard in GUARDS.values())) <= set(GUARDS)


def dead(step, *, since=3, formed=0.0, **more):
    gone = step >= since
    moved = {"reward": 0.5, "reward_std": 0.1, "frac_reward_zero_std": 0.0, "refine/frac_well_formed": 1.0}
    lost = {"reward": 0.0, "reward_std": 0.0, "frac_reward_zero_std": 1.0, "refine/frac_well_formed": formed}
    return {"step": step, **(lost if gone else moved), **more}


def test_a_dead_policy_is_named_and_nothing_that_follows_from_it():
    """The advice to choose harder prompts would be wrong."""
    rows = [dead(step) for step in range(1, 12)]
    assert names(rows) == ["dead_policy"]
    assert "before step 3" in look(rows)[0].sentence and "was 0.500" in look(rows)[0].sentence
    live, first = LiveGuards(), []
    for row in rows:
        first += [(said.step, said.finding.name, said.stops) for said in live.add(row)]
    assert first == [(5, "malformed", False), (7, "dead_policy", True)]


def test_a_rare_reward_is_no_dead_policy():
    """Steps in which all fail are part of a hard task; only a stretch that chance does not make is the policy's."""
    rare = [dead(step, since=1, formed=1.0) | {"reward": 0.01 * (step % 5 == 0)} for step in range(1, 60)]
    assert "dead_policy" not in names(rare)
    assert "dead_policy" not in names([dead(step, since=1) for step in range(1, 30)]), "nothing ever scored"
    well_formed = [dead(step, since=21, formed=1.0) for step in range(1, 31)]
    assert names(well_formed[:25])[:1] == ["dead_policy"], "twenty steps with reward, then five without"
    solved = [dead(step) | {"reward": 1.1} for step in range(1, 30)]
    assert "dead_policy" not in names(solved)


def test_a_guard_that_stopped_a_run_gives_the_resumed_one_time():
    rows = [dead(step) for step in range(1, 8)]
    live = LiveGuards(rows)
    said = [live.add(dead(step)) for step in range(8, 8 + PATIENCE + 2)]
    assert [len(lines) for lines in said] == [0] * PATIENCE + [1, 0] and said[PATIENCE][0].stops


def test_what_is_off_does_not_look_and_what_stops_says_so():
    rows = [dead(step) for step in range(1, 12)]
    assert look(rows, actions={**DEFAULTS, "dead_policy": "off"})[0].name != "dead_policy"
    live = LiveGuards(actions={**DEFAULTS, "missing_scores": "stop"})
    (said,) = live.add({"step": 4, "scores/missing_fraction": 0.5})
    assert str(said).startswith("guard missing_scores stops the run at step 4: ")


def flat(steps=60, **metrics):
    """Rows in which metrics are functions of the step, or constants."""
    return [{"step": s, **{n: v(s) if callable(v) else v for n, v in metrics.items()}} for s in range(1, steps + 1)]


BAD = {
    "held_out_falls": {
        "rewards/bright/mean": lambda s: 0.2 + s / 100 + s % 2 / 50,
        "eval_rewards/strict/mean": lambda s: 0.6 - s / 120 + s % 2 / 50,
    },
    "kl_runaway": {"kl": lambda s: s / 20},
    "clip_pinned": {"clip_ratio/region_mean": lambda s: 0.8 * (s % 2)},
    "no_change": {"grad_norm": 0.1, "weights/step_size": 1e-30},
    "entropy_collapse": {"entropy": lambda s: 0.5 if s < 20 else 0.004},
    "malformed": {"refine/frac_well_formed": lambda s: 1.0 if s < 20 else 0.3},
    "stop_rate": {"refine/frac_stopped": lambda s: 0.3 if s < 20 else 1.0},
    "equal_noise": {"ranks/shared_noise": 1.0},
    "memory_growth": {"memory/held_bytes": lambda s: 1e9 + 5e6 * s},
}
GOOD = {
    "held_out_falls": {
        "rewards/bright/mean": lambda s: 0.2 + s / 100 + s % 2 / 50,
        "eval_rewards/strict/mean": lambda s: 0.3 + s / 120 + s % 2 / 50,
    },
    "kl_runaway": {"kl": lambda s: 0.3 + 5 * (s == 30)},
    "clip_pinned": {"clip_ratio/region_mean": lambda s: 0.3 * (s % 2)},
    "no_change": {"grad_norm": 0.1, "weights/step_size": 1e-6},
    "entropy_collapse": {"entropy": lambda s: 0.05},
    "malformed": {"refine/frac_well_formed": lambda s: 0.8},
    "stop_rate": {"refine/frac_stopped": lambda s: 0.0},
    "equal_noise": {"ranks/shared_noise": 0.0},
    "memory_growth": {"memory/held_bytes": lambda s: 2e8 + 4e5 * s},
}


@pytest.mark.parametrize("name", list(BAD))
def test_each_guard_names_what_is_wrong_and_only_that(name):
    assert names(flat(**BAD[name])) == [name]
    assert names(flat(**GOOD[name])) == []


def test_critiques_and_plans_are_judged_apart():
    """Their entropies differ tenfold; a mean over both would hide what either does."""
    rows = flat(**{"entropy": lambda s: 0.5 if s % 2 else (0.05 if s < 30 else 0.003)})
    rows = [row | ({} if row["step"] % 2 else {"refine/frac_stopped": 0.3}) for row in rows]
    (finding,) = look(rows)
    assert finding.name == "entropy_collapse" and "the critiques have 0.003" in finding.sentence
    assert "rollout.critique.temperature" in finding.sentence
    cut = flat(**{"refine/frac_well_formed": 0.1, "completions/clipped_ratio": 0.9})
    assert "rollout.plan.max_new_tokens" in look(cut)[0].sentence


def test_a_critic_that_never_stops_is_right_where_no_image_is():
    never = {"refine/frac_stopped": 0.0}
    assert names(flat(**never, **{"refine/frac_wrong_edited": 1.0})) == []
    assert names(flat(**never, **{"refine/frac_right_kept": 0.0})) == ["stop_rate"]
    always = {"refine/frac_stopped": 1.0}
    assert names(flat(**always, **{"refine/frac_right_kept": 1.0})) == []
    assert names(flat(**always, **{"refine/frac_wrong_edited": 0.0})) == ["stop_rate"]


def test_the_page_names_every_guard_with_its_threshold():
    page = (REPOSITORY / "docs" / "guards.md").read_text(encoding="utf-8")
    for guard in GUARDS.values():
        assert f"| `{guard.name}`: {guard.words} | `{DEFAULTS[guard.name]}` | {guard.threshold} |" in page, guard.name


def test_every_sentence_is_one_and_names_the_fix():
    for name, metrics in BAD.items():
        (finding,) = look(flat(**metrics))
        assert finding.guard is GUARDS[name]
        assert ". " not in finding.sentence and not finding.sentence.endswith(".") and "; " in finding.sentence


def test_memory_that_fills_up_and_stays_is_no_leak():
    assert names(flat(**{"memory/held_bytes": lambda s: 1e9 + 5e7 * min(s, 30)})) == []


def test_what_the_allocator_keeps_is_not_held():
    """Freed memory stays with the process of a run, which would look like a leak."""
    before = held_bytes()
    kept = np.ones(4_000_000)
    with_it = held_bytes()
    assert with_it - before > 0.9 * kept.nbytes
    small = [bytes(10_000) for _ in range(3_000)]
    assert held_bytes() - with_it > 25e6
    resident = psutil.Process().memory_info().rss
    del small[::2]  # every second one: nothing of it can go back
    assert held_bytes() - with_it < 20e6
    assert psutil.Process().memory_info().rss > resident - 5e6
