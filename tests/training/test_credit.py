"""Credits against the reward table of the method, on cases small enough to do by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from r3_rl.modalities import FlowSegment, TextSegment, still
from r3_rl.nodes import Node, NodeId, prompt_roots
from r3_rl.observe.metrics import unknown_names
from r3_rl.policy.base import Drawing
from r3_rl.training.credit import CreditSettings
from r3_rl.training.earned import credit_critiques, credit_drafts, credit_refinements, credit_trajectories
from r3_rl.types import Critique, Prompt, Verdict

PLAIN = CreditSettings(gain="paper", format_mode="gate", format_weight=0.1)
PROMPT = Prompt(text="a red circle")
BLANK = torch.zeros(3, 2, 2)


def text(ended=True):
    return TextSegment(context=(), token_ids=(5, 6, 2), log_probs=torch.zeros(3), text="x", ended=ended)


def image(steps=2):
    zeros = torch.zeros(steps)
    states = torch.zeros(steps, 4, 3)
    return FlowSegment(
        context=(), image=BLANK, states=states, next_states=states, times=zeros, next_times=zeros, log_probs=zeros,
        drawing=Drawing(),
    )  # fmt: skip


def prompt_nodes(groups):
    """The root of each row, one a group, with its rows."""
    roots = {g: Node(id=NodeId(row=g, depth=0), prompt=PROMPT, num_rows=groups.count(g)) for g in dict.fromkeys(groups)}
    return [roots[g] for g in groups]


def drafts(scores, *, well_formed=None, groups=None, plan=True, per_plan=1, steps=2):
    """Rows of a reason turn: their scores (None is missing), what their plans are like, whose peers they are."""
    out, above = [], None
    for i, (score, root) in enumerate(zip(scores, prompt_nodes(list(groups or [0] * len(scores))), strict=True)):
        above = root if not plan else above
        if plan and i % per_plan == 0:
            formed = well_formed[i // per_plan] if well_formed else True
            above = Node(
                id=NodeId(row=i, depth=1), prompt=PROMPT, stage="plan", num_rows=per_plan, parent=root, sample=text(),
                well_formed=formed,
            )  # fmt: skip
        drawn = Node(id=NodeId(row=i, depth=2), prompt=PROMPT, stage="draft", parent=above, sample=image(steps))
        out.append(replace(drawn, verdict=Verdict(total=score)))
    return out


def refinements(before, after, *, groups=None, per_critique=1, best=1.0):
    """Where each row of a refine turn ends. `after`: a score, None for a missing one, "stop" or "malformed"."""
    critiques, ends = [], []
    for i, (b, a, root) in enumerate(zip(before, after, prompt_nodes(list(groups or [0] * len(before))), strict=True)):
        if i % per_critique == 0:
            said = Critique(
                segment=text(),
                well_formed=a != "malformed",
                stop=a == "stop",
                instruction="" if isinstance(a, str) else "e",
            )
            looked_at = Node(
                id=NodeId(row=i, depth=1), prompt=PROMPT, stage="draft", num_rows=per_critique, parent=root,
                sample=still(BLANK), verdict=Verdict(total=b, best=best),
            )  # fmt: skip
            critiques.append(
                Node(
                    id=NodeId(row=i, depth=2),
                    prompt=PROMPT,
                    stage="critique",
                    num_rows=per_critique,
                    parent=looked_at,
                    sample=said.segment,
                    critique=said,
                    well_formed=said.well_formed,
                )
            )
        drawn = Node(
            id=NodeId(row=i, depth=3), prompt=PROMPT, stage="refinement", parent=critiques[-1], sample=image(),
            verdict=Verdict(total=None if isinstance(a, str) else a, best=best),
        )  # fmt: skip
        ends.append(critiques[-1] if isinstance(a, str) else drawn)
    return ends


def found(stage, kind):
    return [round(c.advantage, 5) for c in stage.credits if c.stage == kind]


def test_drafts_earn_their_score_and_plans_their_form_too():
    stage = credit_drafts(drafts([1.0, 0.0, 0.5], well_formed=[True, True, False]), PLAIN)
    assert found(stage, "draft") == [0.5, -0.5], "V - mean; the middle one has none and is left out"
    plans = torch.tensor([1.1, 0.1, 0.0])  # f (V + w)
    assert found(stage, "plan") == pytest.approx((plans - plans.mean()).tolist(), abs=1e-4)
    added = credit_drafts(drafts([1.0, 0.0, 0.5], well_formed=[True, True, False]), replace(PLAIN, format_mode="add"))
    plans = torch.tensor([1.1, 0.1, 0.5])  # V + w f
    assert found(added, "plan") == pytest.approx((plans - plans.mean()).tolist(), abs=1e-4)


def test_drafts_are_compared_with_drafts_of_their_prompt_alone():
    stage = credit_drafts(drafts([1.0, 0.0, 0.4, 0.2], groups=[0, 0, 1, 1]), PLAIN)
    assert found(stage, "draft") == [0.5, -0.5, 0.1, -0.1]
    assert (stage.num_groups, stage.num_flat_groups) == (2, 0)


def test_images_of_a_plan_are_compared_with_each_other_and_the_plan_by_their_mean_with_other_plans():
    def branched(scores, well_formed=None):
        return drafts(scores, groups=[0] * 4 + [1] * 4, well_formed=well_formed, per_plan=2)

    stage = credit_drafts(branched([1.0, 0.5, 0.0, 0.0, 0.25, 0.75, 0.5, 0.5]), PLAIN)
    assert found(stage, "draft") == [0.25, -0.25, -0.25, 0.25], (
        "two plans whose images are equal teach the painter nothing"
    )
    assert found(stage, "plan") == [0.375, -0.375], "one credit a plan; the plans of the second prompt are equally good"
    assert (stage.num_groups, stage.num_flat_groups) == (2, 0)
    gaps = credit_drafts(branched([1.0, None, 0.0, None, None, None, 0.5, 0.0]), PLAIN)
    assert found(gaps, "plan") == [0.5, -0.5], (
        "a missing image is left out of its plan's mean, a plan without any of all"
    )
    assert found(gaps, "draft") == [0.25, -0.25]
    formed = credit_drafts(branched([1.0, 1.0, 1.0, 1.0] * 2, well_formed=[True, False, True, True]), PLAIN)
    assert found(formed, "plan") == pytest.approx([0.55, -0.55]) and found(formed, "draft") == []
    assert (formed.num_groups, formed.num_flat_groups) == (2, 1)


def test_refinements_are_compared_by_their_critique_and_critiques_by_the_mean_of_theirs():
    after = [1.0, 0.5, 0.25, 0.75, "stop", "stop", "malformed", "malformed"]
    stage = credit_refinements(refinements([0.5] * 8, after, per_critique=2), PLAIN)
    assert found(stage, "refinement") == [0.25, -0.25, -0.25, 0.25], "each against the other one of its critique"
    rewards = torch.tensor([0.25 + 0.1, 0.0 + 0.1, 0.0 + 0.1, 0.0])  # f (C + w): means, a stop's, a malformed one's
    assert found(stage, "critique") == pytest.approx((rewards - rewards.mean()).tolist(), abs=1e-6)
    stage = credit_refinements(refinements([0.5] * 4, [1.0, None, 0.25, 0.25], per_critique=2), PLAIN)
    assert found(stage, "critique") == pytest.approx([0.375, -0.375]), "a missing score is left out of the mean"


def test_without_plans_there_is_no_text_to_credit():
    stage = credit_drafts(drafts([1.0, 0.0], plan=False), PLAIN)
    assert found(stage, "plan") == [] and found(stage, "draft") == [0.5, -0.5]


def test_missing_scores_are_in_no_statistic_and_teach_nothing():
    stage = credit_drafts(drafts([1.0, None, 0.0]), PLAIN)
    assert found(stage, "draft") == [0.5, -0.5] and found(stage, "plan") == [0.5, -0.5]
    assert stage.metrics["frac_reward_missing"] == pytest.approx(1 / 3)
    assert stage.metrics["refine/draft_score"] == 0.5
    nothing = credit_drafts(drafts([None, None]), PLAIN)
    assert nothing.credits == () and nothing.num_groups == 0
    assert not any(math.isnan(v) for v in nothing.metrics.values())


def test_a_flat_group_is_counted_and_left_out():
    stage = credit_drafts(drafts([0.5, 0.5, 1.0, 0.0], groups=[0, 0, 1, 1]), PLAIN)
    assert (stage.num_groups, stage.num_flat_groups) == (2, 1)
    assert len(stage.credits) == 4 and stage.metrics["frac_reward_zero_std"] == 0.5
    form = credit_drafts(drafts([0.5, 0.5], well_formed=[True, False]), PLAIN)
    assert form.num_flat_groups == 0, "equal images, but one plan is malformed: there is something to learn"
    assert found(form, "draft") == [] and len(found(form, "plan")) == 2


def test_normalised_rewards_replace_the_scores_of_drafts():
    asked = []

    def normalised(verdicts, groups):
        asked.append(groups)
        return [-4 * verdict.total + 3 for verdict in verdicts]

    stage = credit_drafts(drafts([1.0, 0.0, 1.0, 0.0], groups=[0, 0, 1, 1]), PLAIN, normalised)
    assert found(stage, "draft") == [-2.0, 2.0, -2.0, 2.0] and asked == [[0, 0, 1, 1]]


CASES = [  # V0, V1, paper, released
    (0.5, 1.0, 0.5, 0.5),
    (0.5, 0.25, -0.25, -0.25),
    (0.5, "stop", 0.0, 0.0),
    (1.0, "stop", 1.0, 1.0),
    (1.0, 0.5, 0.0, -0.5),
]


@pytest.mark.parametrize(("kind", "column"), [("paper", 2), ("released", 3)])
def test_critiques_earn_the_gain_and_their_form(kind, column):
    stage = credit_refinements(
        refinements([c[0] for c in CASES], [c[1] for c in CASES]), replace(PLAIN, gain=kind, format_weight=0.0)
    )
    gains = torch.tensor([c[column] for c in CASES])
    assert found(stage, "critique") == pytest.approx([a for a in (gains - gains.mean()).tolist() if a], abs=1e-4)


def test_the_right_decision_earns_its_weight_beside_the_gain():
    """A wrong image: an edit that helps, one that harms, a stop, a malformed text. A right one: a stop, an edit."""
    ends = refinements([0.5, 0.5, 0.5, 0.5], [1.0, 0.25, "stop", "malformed"])
    settings = replace(PLAIN, format_weight=0.0, decision_weight=0.5)
    earned = torch.tensor([0.5 + 0.5, -0.25 + 0.5, 0.0, 0.0])
    stage = credit_refinements(ends, settings)
    assert found(stage, "critique") == pytest.approx((earned - earned.mean()).tolist(), abs=1e-4)
    assert found(stage, "refinement") == [0.375, -0.375], "what was drawn earns the gain alone"
    kept = credit_refinements(refinements([1.0, 1.0], ["stop", 0.5]), settings)
    assert found(kept, "critique") == [0.75, -0.75]


def test_what_is_perfect_follows_from_the_weights_of_the_panel():
    """With weights that add up to 1.3 an image of 1.1 is not perfect: stopping at it earns nothing."""
    ends = refinements([1.1, 1.1], ["stop", 1.3], best=1.3)
    stage = credit_refinements(ends, replace(PLAIN, format_weight=0.0))
    assert found(stage, "critique") == pytest.approx([-0.1, 0.1], abs=1e-4)
    assert stage.metrics["tree/frac_perfect"] == 0 and stage.metrics["refine/frac_wrong_edited"] == 0.5
    alone = credit_critiques([ends[0], ends[1].above], replace(PLAIN, format_weight=0.0))
    assert found(alone, "critique") == [-0.5, 0.5]


def test_refined_images_are_compared_with_refined_images_of_the_same_image():
    before, after = [0.5] * 4, [1.0, "stop", 0.0, "malformed"]
    stage = credit_refinements(refinements(before, after), PLAIN)
    assert found(stage, "refinement") == [0.5, -0.5], "stops and malformed critiques drew nothing: they are no peers"
    texts = torch.tensor([0.6, 0.1, -0.4, 0.0])  # f (C + w)
    assert found(stage, "critique") == pytest.approx((texts - texts.mean()).tolist(), abs=1e-4)
    two = credit_refinements(refinements(before, [1.0, 0.5, 0.0, 0.25], groups=[0, 0, 1, 1]), PLAIN)
    assert found(two, "refinement") == [0.25, -0.25, -0.125, 0.125]


def test_the_released_image_reward_is_the_score():
    """On a perfect image the paper gives refinements no gain to compare; the released code still compares scores."""
    broken = refinements([1.0, 1.0], [0.5, 0.0])
    assert found(credit_refinements(broken, PLAIN), "refinement") == []
    assert found(credit_refinements(broken, replace(PLAIN, gain="released")), "refinement") == [0.25, -0.25]


def test_repair_puts_useless_refinements_last():
    stage = credit_refinements(
        refinements([0.5, 0.5, 0.5], [1.0, 0.5, 0.25]), replace(PLAIN, gain="repair", format_weight=0.0)
    )
    values = torch.tensor([0.5, -0.25, -0.25])
    assert found(stage, "critique") == pytest.approx((values - values.mean()).tolist(), abs=1e-4)


def test_a_missing_score_after_refinement_is_no_loss():
    stage = credit_refinements(refinements([0.5, 0.5, 0.5], [1.0, None, 0.5]), PLAIN)
    assert found(stage, "critique") == [0.25, -0.25] and found(stage, "refinement") == [0.25, -0.25]
    assert stage.metrics["frac_reward_missing"] == pytest.approx(1 / 3)


def test_numbers_of_a_refine_step():
    before, after = [0.5, 0.5, 1.0, 0.5], [1.0, 0.25, "stop", "malformed"]
    m = credit_refinements(refinements(before, after), PLAIN).metrics
    assert m["refine/frac_improved"] == m["refine/frac_regressed"] == m["refine/frac_stopped"] == 0.25
    assert m["refine/frac_well_formed"] == 0.75 and m["tree/frac_perfect"] == 0.25
    assert m["refine/gain_mean"] == pytest.approx(0.25 / 4) and m["refine/final_score"] == pytest.approx(2.75 / 4)
    assert m["refine/frac_wrong_edited"] == pytest.approx(2 / 3) and m["refine/frac_right_kept"] == 1
    assert m["image/count"] == 2 and m["completions/mean_length"] == 3 and m["completions/clipped_ratio"] == 0
    assert unknown_names(m) == []


def test_a_trajectory_has_one_advantage_that_reaches_all_of_it():
    """Four ways on from one wrong image: repaired in two rounds, stopped after one, stopped at once, malformed."""
    (root,) = prompt_roots([PROMPT], num_rows=4)
    root = replace(root, sample=still(BLANK), verdict=Verdict(total=0.25))

    def critique(row, parent, instruction="e", *, formed=True):
        said = Critique(segment=text(), well_formed=formed, stop=formed and not instruction, instruction=instruction)
        return Node(
            id=NodeId(row=row, depth=parent.id.depth + 1), prompt=PROMPT, stage="critique", parent=parent,
            sample=said.segment, critique=said, well_formed=formed,
        )  # fmt: skip

    def refined(row, parent, score):
        place = NodeId(row=row, depth=parent.id.depth + 1)
        verdict = Verdict(total=score)
        return Node(id=place, prompt=PROMPT, stage="refinement", parent=parent, sample=image(), verdict=verdict)

    twice = refined(0, critique(0, refined(0, critique(0, root), 0.5)), 1.0)
    once = critique(1, refined(1, critique(1, root), 0.75), "")
    leaves = [twice, once, critique(2, root, ""), critique(3, root, "", formed=False)]
    stage = credit_trajectories(leaves, replace(PLAIN, format_weight=0.0))
    rewards = torch.tensor([1.0, 0.75, 0.25, 0.0])  # what the last image scores; nothing for a malformed end
    a, b, c, d = (rewards - rewards.mean()).tolist()
    assert [round(credit.advantage, 5) for credit in stage.credits] == pytest.approx([a] * 4 + [b] * 3 + [c, d])
    assert [credit.stage[0] for credit in stage.credits] == list("crcrcrccc")
    assert stage.metrics["refine/frac_wrong_edited"] == pytest.approx(3 / 6) and stage.num_groups == 1
    assert stage.metrics["refine/frac_stopped"] == pytest.approx(2 / 6) and unknown_names(stage.metrics) == []
    missing = credit_trajectories([refined(0, critique(0, root), None), once, leaves[2]], PLAIN)
    assert [round(x.advantage, 5) for x in missing.credits] == [0.25] * 3 + [-0.25], "a missing score is no loss"


def test_critiques_alone_are_judged_by_their_decision():
    ends = refinements([1.0, 1.0, 0.5, 0.5], ["stop", 0.0, "stop", 0.0], groups=[0, 0, 1, 1])
    critiques = [end if end.critique else end.above for end in ends]
    stage = credit_critiques(critiques, replace(PLAIN, format_weight=0.0))
    assert found(stage, "critique") == [0.5, -0.5, -0.5, 0.5]
    assert stage.metrics["refine/frac_right_kept"] == stage.metrics["refine/frac_wrong_edited"] == 0.5
    assert unknown_names(stage.metrics) == []
    empty = credit_critiques([], PLAIN)
    assert empty.credits == () and empty.num_groups == 0


def test_scaling_divides_by_the_spread_of_the_peers():
    stage = credit_drafts(drafts([1.0, 0.0, 0.6, 0.4], groups=[0, 0, 1, 1]), replace(PLAIN, scale_rewards="group"))
    assert found(stage, "draft") == pytest.approx([0.7071, -0.7071, 0.7066, -0.7066], abs=1e-3)


def test_images_without_stochastic_steps_are_not_trained():
    assert found(credit_drafts(drafts([1.0, 0.0], steps=0), PLAIN), "draft") == []


def test_texts_are_understanding_and_images_generation():
    stage = credit_drafts(drafts([1.0, 0.0]), PLAIN)
    assert {c.stage: c.objective for c in stage.credits} == {"plan": "understanding", "draft": "generation"}


def branched(root, *counts, stages=("plan", "draft")):
    """The nodes of the last stage below a root whose nodes have so many children, ragged where a count is a list: then
    only so many of the rows are there."""
    above = [root]
    for stage, count in zip(stages, counts, strict=True):
        kept = count if isinstance(count, list) else [count] * len(above)
        made = [node.children(stage, max(kept))[:n] for node, n in zip(above, kept, strict=True)]
        sample = text if stage in ("plan", "critique") else image
        above = [replace(node, sample=sample()) for siblings in made for node in siblings]
    return above


def scored(nodes, values):
    return [replace(node, verdict=Verdict(total=v)) for node, v in zip(nodes, values, strict=True)]


def test_a_text_with_one_child_earns_what_its_child_does_and_is_compared_with_all():
    (root,) = prompt_roots([PROMPT], num_rows=4)
    values = [1.0, 0.25, 0.5, 0.0]
    several = credit_drafts(scored(branched(root, 4, 1), values), replace(PLAIN, format_weight=0.0))
    mean = sum(values) / 4
    assert found(several, "plan") == found(several, "draft") == [v - mean for v in values]


def test_ragged_siblings_are_compared_among_themselves():
    """Of four plans with at most three drafts each, some drafts are not there: the mean is over those that are."""
    (root,) = prompt_roots([PROMPT], num_rows=12)
    values = [1.0, 0.0, 0.5, 0.25, 0.75, 1.0]
    stage = credit_drafts(scored(branched(root, 4, [3, 2, 1, 0]), values), replace(PLAIN, format_weight=0.0))
    first, second = [1.0, 0.0, 0.5], [0.25, 0.75]
    assert found(stage, "draft") == [0.5, -0.5, -0.25, 0.25], "the third of 0.5 is the mean; a lone one learns nothing"
    means = torch.tensor([sum(first) / 3, sum(second) / 2, 1.0])
    assert found(stage, "plan") == pytest.approx((means - means.mean()).tolist(), abs=1e-5)
    assert sum(a for a in found(stage, "draft")) == 0


def test_critiques_of_one_image_among_several_are_compared_with_each_other():
    """Schedule `full` with two critiques an image: peers are siblings, not all critiques of the prompt."""
    (root,) = prompt_roots([PROMPT], num_rows=4)
    drafts_of = scored(branched(root, 1, 2), [0.0, 0.5])
    said = Critique(segment=text(), well_formed=True, stop=False, instruction="e")
    ends = []
    for draft, after in zip(drafts_of, ([1.0, 0.5], [0.5, 0.75]), strict=True):
        critiques = [replace(c, sample=said.segment, critique=said) for c in draft.children("critique", 2)]
        images = [replace(c.children("refinement", 1)[0], sample=image()) for c in critiques]
        ends += scored(images, after)
    stage = credit_refinements(ends, replace(PLAIN, format_weight=0.0))
    assert found(stage, "critique") == [0.25, -0.25, -0.125, 0.125]
    # a refinement by itself is compared with all of the prompt: gains 1, 0.5, 0 and 0.25
    assert found(stage, "refinement") == [0.5625, 0.0625, -0.4375, -0.1875]


def test_a_frozen_stage_has_no_credit_and_others_have_what_they_had():
    ends = refinements([0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.5, "stop"])
    whole = credit_refinements(ends, PLAIN)
    frozen = credit_refinements(ends, replace(PLAIN, frozen_stages=("critique",)))
    assert {c.stage for c in whole.credits} == {"critique", "refinement"}
    left = [c for c in whole.credits if c.stage == "refinement"]
    assert [(c.stage, c.advantage) for c in frozen.credits] == [(c.stage, c.advantage) for c in left]
    assert frozen.metrics["reward"] == whole.metrics["reward"]
    trajectories = credit_trajectories(ends, replace(PLAIN, frozen_stages=("refinement",)))
    assert {c.stage for c in trajectories.credits} == {"critique"}


def test_groups_of_which_only_frozen_stages_differ_are_flat():
    ends = drafts([0.2, 0.9])
    assert credit_drafts(ends, PLAIN).num_flat_groups == 0
    assert credit_drafts(ends, replace(PLAIN, frozen_stages=("plan", "draft"))).num_flat_groups == 1
    assert credit_drafts(ends, replace(PLAIN, frozen_stages=("plan", "draft"))).credits == ()
