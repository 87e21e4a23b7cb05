"""What every edit budget gives and what as many drafts would have given, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r3_rl.benches.base import GREEDY, Job
from r3_rl.benches.drawing import DrawingBench
from r3_rl.evaluate.gallery import by_judge
from r3_rl.types import Verdict
from tests.evaluate.scripted import BROKEN, EDIT, STOP, Scripted, image, number_of, settings
from tests.policy.tiny import PROMPTS

RIGHT = 0.5
"""Images whose number is at least this are right."""


def judge(images, prompts):
    return [Verdict(total=float(float(i[0, 0, 0]) >= RIGHT)) for i in images]


def bench(rounds, prompts=PROMPTS[:1], verdicts=None, **options):
    return DrawingBench(
        name="b", title="B", prompts=prompts, rounds=rounds, verdicts=verdicts or by_judge(judge), **options
    )


def measured(bench, *, said, images):
    """The values of the first prompt. said: what the critique says, by the number of the image."""
    policy = Scripted(say=lambda context: said[number_of(context)], images=[image(n) for n in images])
    loop = replace(settings(), plan=None)
    job = Job(policy=policy, loop=loop, decoding=GREEDY, seed=0, rounds=bench.rounds[-1])
    found = bench.measure(job, slice(0, len(bench.items)))
    assert policy.images == [], "as many images as the budget allows"
    return found


def test_a_repaired_draft_at_every_budget():
    # the loop draws 0.1, 0.2 and 0.6; drawing again gives 0.3, 0.7 and 0.4
    said = {0.1: EDIT, 0.2: EDIT, 0.6: STOP, 0.3: EDIT, 0.7: STOP}
    (sample,) = measured(bench([0, 1, 2, 3]), said=said, images=[0.1, 0.2, 0.6, 0.3, 0.7, 0.4])
    values = sample.values
    assert [values[n] for n in ("draft", "round_1", "round_2", "round_3", "final")] == [0, 0, 1, 1, 1]
    assert [values[f"repair_{n}"] for n in (1, 2, 3)] == [0, 1, 1] and "damage_1" not in values
    assert [values[f"gain_{n}"] for n in (1, 2, 3)] == [0, 1, 1]
    assert [values[f"images_{n}"] for n in (0, 1, 2, 3)] == [1, 2, 3, 3], "it stopped after two rounds"
    # of two drafts the critic takes the last, 0.3; of three 0.7, at which it would stop; of four the same
    assert [values[f"best_own_critic_{n}"] for n in (1, 2, 3)] == [0, 1, 1]
    assert [values[f"best_oracle_{n}"] for n in (1, 2, 3)] == [0, 1, 1]
    assert [values[f"looking_{n}"] for n in (1, 2, 3)] == [0, 0, 0]
    assert values["ita_own/wrong"] == 1 and "ita_own/right" not in values
    assert set(sample.images) == {"round_0", "round_1", "round_2", "draft_1", "draft_2", "draft_3"}
    assert sample.images["round_2"].score == 1 and sample.images["draft_1"].score == 0


def test_a_right_draft_that_an_edit_breaks():
    (sample,) = measured(bench([0, 1]), said={0.9: EDIT}, images=[0.9, 0.1, 0.8])
    values = sample.values
    assert (values["damage_1"], values["gain_1"], values["final"]) == (1, -1, 0) and "repair_1" not in values
    assert values["ita_own/right"] == 0 and values["looking_1"] == -1


def test_a_malformed_critique_ends_the_loop_and_picks_the_next_draft():
    (sample,) = measured(bench([0, 1]), said={0.1: BROKEN}, images=[0.1, 0.9])
    values = sample.values
    assert (values["images_1"], values["round_1"], values["best_own_critic_1"], values["looking_1"]) == (1, 0, 1, -1)
    assert sample.shown["rounds"][0]["well_formed"] is False


def test_drafts_only_have_nothing_to_compare():
    (sample,) = measured(bench([0]), said={}, images=[0.9])
    assert set(sample.values) == {"unscored", "draft", "final", "images_0"}


def test_a_missing_score_is_never_0():
    def unscored(images, prompts):
        return [Verdict(total=None if float(i[0, 0, 0]) < 0.3 else 1.0) for i in images]

    b = bench([0, 1], verdicts=by_judge(unscored), redraw=False)
    (sample,) = measured(b, said={0.9: EDIT}, images=[0.9, 0.1])
    assert sample.values == {"unscored": 1.0} and sample.images["round_1"].score is None


def test_several_images_of_a_prompt_are_one_item():
    found = measured(bench([0], copies=2), said={}, images=[0.9, 0.1])
    assert found[0].item == found[1].item and [s.copy for s in found] == [0, 1]
    assert [s.values["draft"] for s in found] == [1, 0]


@pytest.mark.parametrize("rounds", [[0], [0, 1, 2, 3], [2]])
def test_every_value_has_a_row(rounds):
    said = {0.9: EDIT, 0.1: EDIT}
    prompts = [replace(PROMPTS[0], columns={"tag": "one"}), replace(PROMPTS[1], columns={"tag": "two"})]
    count = 2 * (1 + 2 * rounds[-1])
    found = measured(bench(rounds, prompts, graded=True), said=said, images=[0.9, 0.1] * (count // 2))
    names = {name for sample in found for name in sample.values}
    rows = {figure.name for figure in bench(rounds, prompts, graded=True).figures(sorted(names))}
    assert names - {"final", "images_0", *(n for n in names if n.startswith("final/"))} <= rows
