"""The loop: stops save the compute, peers share what they should, seeds fix everything (traps 8 and 22)."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.nodes import always_edits, given_image, prompt_roots, trajectory
from r3_rl.policy.base import Drawing, Sampling
from r3_rl.rollout.engine import Engine, Stopwatch, run_loop
from r3_rl.rollout.rows import Parts, row_seeds
from r3_rl.stages import CRITIQUE
from r3_rl.stages.settings import DrawingPlan
from r3_rl.types import Prompt, Verdict
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy


class Counting:
    """A policy that remembers how many rows each call had."""

    def __init__(self, policy):
        self.policy, self.spec, self.written, self.drawn = policy, policy.spec, [], []

    def write(self, contexts, sampling, seeds):
        self.written.append(len(contexts))
        return self.policy.write(contexts, sampling, seeds)

    def draw(self, contexts, drawings, seeds, noise_seeds=None):
        self.drawn.append(len(contexts))
        return self.policy.draw(contexts, drawings, seeds, noise_seeds)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def at_once(score):
    """A panel whose answer is there as soon as it is asked."""

    def submit(batch):
        answer = Future()
        answer.set_result(score(batch))
        return answer

    return submit


def brightness(batch):
    """0.5 to 1 by how bright the image is; every fifth score is missing."""
    levels = [round(0.5 + float(image.mean()) / 510, 6) for image in batch.images]
    return [Verdict(total=None if i % 5 == 4 else level, scores={"light": level}) for i, level in enumerate(levels)]


def test_a_stopped_trajectory_leaves_the_batch(policy):
    counting = Counting(policy)
    walked = run_loop(counting, PROMPTS * 4, loop(), rounds=3, seed=1)
    images = [len(t.rounds) for t in walked]
    assert len(set(images)) > 2, "some stop at once, some go on"
    still = [sum(n > r for n in images) for r in range(4)]
    assert counting.drawn == still[: len(counting.drawn)] and still[0] == 12
    assert counting.written == [12, 12, *still[1:3]][: len(counting.written)], "plans, then critics of what goes on"
    for t in walked:
        if len(t.rounds) < 4:
            assert t.last_critique.stop or not t.last_critique.well_formed
        else:
            assert t.last_critique is None
        assert t.rounds[0].plan is not None and t.rounds[0].critique is None
        assert all(r.plan is None and r.critique.instruction for r in t.rounds[1:])


def given_images():
    """An image a prompt, half right."""
    return [given_image(p, i, verdict=Verdict(total=0.5)) for p, i in zip(PROMPTS, pictures(3), strict=True)]


def test_several_images_are_drawn_from_one_plan(policy):
    counting = Counting(policy)
    drafts = Engine(policy=counting, settings=loop()).drafts(PROMPTS, seed=3, plans=2, drafts=2)
    assert counting.written == [6] and counting.drawn == [12]
    for i in range(0, 12, 2):
        assert drafts[i].parent is drafts[i + 1].parent, "one text, one credit"
        assert drafts[i].sample.context[-1] is drafts[i + 1].sample.context[-1]
        assert not torch.equal(drafts[i].image, drafts[i + 1].image), "the painter's noise differs"
    assert drafts[0].parent.sample.text != drafts[2].parent.sample.text
    single = Engine(policy=policy, settings=loop()).drafts(PROMPTS, seed=3, plans=4)
    for i in range(0, 12, 2):
        assert drafts[i].parent.sample.token_ids == single[i].parent.sample.token_ids, (
            "a row's seed follows from its place"
        )
        torch.testing.assert_close(drafts[i].image, single[i].image, atol=1e-5, rtol=0)


def test_several_refinements_are_drawn_by_one_critique(policy):
    counting = Counting(policy)
    engine = Engine(policy=counting, submit=at_once(brightness), settings=loop())
    roots = engine.roots(given_images(), num_rows=4)
    critiques = engine.write(CRITIQUE, roots, engine.settings.critique, seed=3, each=2)
    refined = engine.refinements(critiques, seed=3, progress=0.0)
    assert counting.written == [6] and len(critiques) == 6 and len(refined) == 12
    for i, critique in enumerate(critiques):
        first, second = refined[2 * i : 2 * i + 2]
        assert (first is None) == (second is None) == (not critique.critique.instruction)
        if first is not None:
            assert first.parent is second.parent is critique
            assert first.sample.context[-1] is second.sample.context[-1], "one instruction, encoded once"
            assert not torch.equal(first.image, second.image)
    assert any(refined), "some critiques ask for an edit"


def test_nothing_is_asked_of_the_policy_when_all_have_stopped(policy):
    stopping = replace(loop(), protocol=AllStop(reflect_template="check {prompt}"))
    counting = Counting(policy)
    walked = run_loop(counting, PROMPTS, stopping, rounds=3, seed=1)
    assert counting.drawn == [3] and counting.written == [3, 3]
    assert all(t.last_critique.stop and len(t.rounds) == 1 for t in walked)


class AllStop(type(loop().protocol)):
    def read_critique(self, segment):
        return replace(super().read_critique(segment), well_formed=True, stop=True, instruction="")


def test_a_trajectory_does_not_depend_on_which_others_stop(policy):
    settings = loop()
    whole = run_loop(policy, PROMPTS * 2, settings, rounds=2, seed=3)
    shorter = run_loop(policy, PROMPTS, settings, rounds=2, seed=3)
    for a, b in zip(whole, shorter, strict=False):
        assert [r.critique.segment.token_ids for r in a.rounds[1:]] == [
            r.critique.segment.token_ids for r in b.rounds[1:]
        ]
        torch.testing.assert_close(a.final.image.image, b.final.image.image, atol=1e-4, rtol=0)


def test_the_same_seed_is_the_same_loop_and_another_is_not(policy):
    settings = loop()

    def final(seed):
        return torch.stack([t.final.image.image for t in run_loop(policy, PROMPTS, settings, rounds=2, seed=seed)])

    assert torch.equal(final(5), final(5))
    assert not torch.allclose(final(5), final(6), atol=1e-2)


def test_evaluation_takes_the_likeliest_words_and_no_stochastic_step(policy):
    calm = loop(plan=Sampling(max_new_tokens=5, temperature=1.5, top_p=0.5)).for_evaluation(0.0)
    assert (
        calm.plan.temperature == calm.critique.temperature == 0
        and calm.plan.top_p == 1
        and calm.plan.max_new_tokens == 5
    )
    walked = run_loop(policy, PROMPTS, calm, rounds=1, seed=1)
    again = run_loop(policy, PROMPTS, calm, rounds=0, seed=2)
    assert [t.rounds[0].plan.text for t in walked] == [t.rounds[0].plan.text for t in again]
    assert all(len(r.image.times) == 0 for t in walked for r in t.rounds)
    assert loop(plan=None).for_evaluation(0.3).plan is None


def test_without_a_plan_the_prompt_is_drawn(policy):
    settings = loop(plan=None)
    counting = Counting(policy)
    (draft, *others) = Engine(policy=counting, settings=settings).drafts(PROMPTS, seed=1, plans=2)
    assert counting.written == [] and len(others) == 5
    assert draft.parent is draft.root and trajectory(draft).rounds[0].plan is None
    assert [p.text for p in draft.sample.context] == [PROMPTS[0].text]


def test_seeds_of_rows_differ_by_row_stage_and_step():
    seeds = [s for seed in range(3) for stage in range(4) for s in row_seeds(seed, stage, 50)]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) < 2**62
    assert row_seeds(1, 2, 50)[:10] == row_seeds(1, 2, 10)


def test_peers_share_their_stochastic_steps_and_groups_do_not():
    plan = DrawingPlan(drawing=Drawing(num_steps=20), num_sde_steps=2)
    rows = plan.rows([0, 0, 1, 1, 2, 2, 3, 0], seed=1, progress=0.0)
    steps = [r.sde_steps for r in rows]
    assert steps[0] == steps[1] == steps[7] and steps[2] == steps[3]
    assert len(set(steps)) > 2 and all(len(set(s)) == 2 and max(s) < 20 for s in steps)
    assert [r.sde_steps for r in plan.rows([0, 0], seed=1, progress=0.0)] == steps[:2]
    assert [r.sde_steps for r in plan.rows([0, 0], seed=2, progress=0.0)] != steps[:2]


def test_peers_are_matched_at_one_noise_if_it_is_shared():
    how = Drawing(num_steps=8, convention="matching")
    own = DrawingPlan(drawing=how).rows([0, 0, 1], seed=1, progress=0.0)
    assert [row.matching_seed for row in own] == [None] * 3
    shared = DrawingPlan(drawing=how, matching_noise="shared")
    first, second, other = (row.matching_seed for row in shared.rows([0, 0, 1], seed=1, progress=0.0))
    assert first == second != other and None not in (first, other)
    assert shared.rows([0], seed=2, progress=0.0)[0].matching_seed != first


@pytest.mark.parametrize(
    ("options", "progress", "allowed"),
    [
        ({"window": "random", "window_size": 2, "num_sde_steps": 1}, 0.0, {(0,), (1,)}),
        ({"window": "first", "num_sde_steps": 3}, 0.0, {(0, 1, 2)}),
        ({"window": "sliding", "num_sde_steps": 2}, 0.0, {(0, 1)}),
        ({"window": "sliding", "num_sde_steps": 2}, 1.0, {(6, 7)}),
        ({"window": "all"}, 0.0, {tuple(range(8))}),
    ],
)
def test_windows(options, progress, allowed):
    plan = DrawingPlan(drawing=Drawing(num_steps=8), **options)
    found = {r.sde_steps for seed in range(20) for r in plan.rows([0, 1], seed=seed, progress=progress)}
    assert found == allowed


def test_the_last_step_of_cps_is_never_stochastic():
    plan = DrawingPlan(drawing=Drawing(num_steps=3, convention="cps"), window="all")
    assert plan.rows([0], seed=0, progress=0.0)[0].sde_steps == (0, 1)
    with pytest.raises(InputError, match="no step that can be stochastic"):
        DrawingPlan(drawing=Drawing(num_steps=1, convention="cps")).rows([0], seed=0, progress=0.0)


def test_shared_noise_starts_peers_alike(policy):
    settings = loop(num_steps=2)
    settings = replace(settings, draft=replace(settings.draft, shared_noise=True, num_sde_steps=2, window="all"))
    settings = replace(settings, refine=settings.draft)
    engine = Engine(policy=policy, settings=settings)
    a, b, c, _ = (node.sample for node in engine.drafts(PROMPTS[:2], seed=1, plans=2, progress=0.0))
    assert torch.equal(a.states[0], b.states[0]) and not torch.equal(a.states[0], c.states[0])
    critiques = engine.critiques(given_images()[:2], seed=3, each=2)
    drawn = engine.refinements([always_edits(k) for k in critiques], seed=1, progress=0.0)
    x, y, z, _ = (node.sample for node in drawn)
    assert torch.equal(x.states[0], y.states[0]) and not torch.equal(x.states[0], z.states[0])


def engine_of(policy, **options):
    return Engine(policy=policy, submit=at_once(brightness), settings=loop(), **options)


def test_drafts_keep_their_peers_and_missing_scores(policy):
    drafts = engine_of(policy).drafts(PROMPTS, seed=0, plans=3, progress=0.0)
    assert [node.root.id.row for node in drafts] == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert [node.prompt.text for node in drafts] == [p.text for p in PROMPTS for _ in range(3)]
    assert [i for i, node in enumerate(drafts) if node.score is None] == [4]
    assert all(len(node.sample.times) == 2 for node in drafts)


@pytest.mark.parametrize("per_plan", [1, 2, 4])
def test_rows_are_shared_out_from_the_root_down(policy, per_plan):
    first_group = 2
    drafts = engine_of(policy, first_group=first_group).drafts(
        PROMPTS[:2], seed=0, plans=4 // per_plan, drafts=per_plan
    )
    assert [(node.id.row, node.id.depth, node.num_rows) for node in drafts] == [(8 + i, 2, 1) for i in range(8)]
    plans = list(dict.fromkeys(node.parent for node in drafts))
    assert [(plan.id.row, plan.num_rows) for plan in plans] == [(8 + i, per_plan) for i in range(0, 8, per_plan)]
    assert {plan.group for plan in plans} == {node.root for node in drafts}, "plans are compared within the prompt"
    for node in drafts:
        assert node.group is (node.parent if per_plan > 1 else node.root), "images within their plan, if it has several"
    with pytest.raises(AssertionError, match="3 children of 4 rows"):
        prompt_roots(PROMPTS, num_rows=4)[0].children("plan", 3)


def test_refinements_branch_from_one_image(policy):
    images, engine = given_images(), engine_of(policy)
    critiques = engine.critiques(images, seed=2, each=3)
    refined = engine.refinements(critiques, seed=2, progress=0.0)
    for i, (critique, image) in enumerate(zip(critiques, refined, strict=True)):
        assert critique.sample.context[0].image is images[i // 3].image and critique.root.id.row == i - i % 3
        assert (image is None) == (not critique.critique.instruction)
        if image is not None:
            assert image.verdict is not None and image.num_refinements == 1
            assert image.sample.context[0].image is images[i // 3].image and image.sample.context[0].use == "edit"
            assert image.sample.context[1].text == critique.critique.instruction


def test_further_rounds_keep_their_rows_and_their_stochastic_steps(policy):
    engine = engine_of(policy)
    *drafts, unscored = engine.drafts(PROMPTS[:2], seed=2, plans=3, progress=0.0)[:5]
    *ends, stayed = engine.round([*drafts, unscored], seed=9, progress=0.0)
    assert unscored.score is None and stayed is unscored, "nothing that follows could be said to gain"
    critiques = [end if end.critique else end.above for end in ends]
    refined = [None if end.critique else end for end in ends]
    assert [c.parent for c in critiques] == drafts and [c.id.row for c in critiques] == list(range(4))
    steps = [{node.sample.drawing.sde_steps for node in refined[i : i + 3] if node} for i in (0, 3)]
    assert all(len(found) <= 1 for found in steps), "peers share them"
    assert all(node.num_refinements == 1 and node.id.depth == 4 for node in refined if node)
    walked = [trajectory(image or critique) for image, critique in zip(refined, critiques, strict=True)]
    for draft, critique, image, t in zip(drafts, critiques, refined, walked, strict=True):
        assert t.rounds[0].image is draft.sample and t.rounds[0].plan is draft.parent.sample
        assert t.rounds[0].verdict is draft.verdict and len(t.rounds) == (2 if image else 1)
        assert (t.rounds[1].critique if image else t.last_critique) is critique.critique
        assert t.last_critique is None or image is None


def test_scorers_see_the_image_that_was_refined(policy):
    seen = []

    def score(batch):
        seen.append(batch)
        return brightness(batch)

    node = given_image(Prompt(text="a red circle", columns={"k": 1}), pictures(1)[0], verdict=Verdict(total=0.5))
    engine = Engine(policy=policy, submit=at_once(score), settings=loop())
    engine.refinements(engine.critiques([node], seed=0, each=6), seed=0, progress=0.0)
    (batch,) = seen
    assert batch.count == len(batch.critiques) == len(batch.draft_images) < 6
    assert batch.columns()["k"] == [1] * batch.count
    assert batch.draft_images[0].shape == (36, 36, 3)


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_is_scored_before_the_next_is_drawn(policy, whole):
    counting, seen = Counting(policy), []

    def submit(batch):
        seen.append((batch.groups, len(counting.drawn)))
        return at_once(brightness)(batch)

    one, many = (
        Engine(policy=p, submit=s, settings=loop(), parts=parts)
        for p, s, parts in (
            (policy, at_once(brightness), Parts()),
            (counting, submit, Parts(count=2, whole_groups=whole)),
        )
    )
    whole_batch, in_parts = (e.drafts(PROMPTS, seed=0, plans=3, progress=0.0) for e in (one, many))
    assert counting.drawn == ([6, 3] if whole else [5, 4]) and counting.written == [9]
    groups = [node.root.id.row for node in in_parts]
    assert seen == [(groups[: counting.drawn[0]], 1), (groups[counting.drawn[0] :], 2)]
    for a, b in zip(whole_batch, in_parts, strict=True):
        assert a.parent.sample.token_ids == b.parent.sample.token_ids and a.prompt is b.prompt
        torch.testing.assert_close(a.image, b.image, atol=1e-5, rtol=0)

    a, b = (e.refinements(e.critiques(given_images(), seed=2, each=3), seed=2, progress=0.0) for e in (one, many))
    stopped = [node is None for node in a]
    assert stopped == [node is None for node in b] and 0 < sum(stopped) < 9
    assert all(node.verdict is not None for node in b if node)
    for x, y in zip(a, b, strict=True):
        if x is not None:
            torch.testing.assert_close(x.image, y.image, atol=1e-5, rtol=0)


def test_a_stopwatch_adds_up_even_when_the_stage_fails():
    watch = Stopwatch()
    with watch("plan", 1), pytest.raises(ValueError), watch("score", 1):
        raise ValueError
    with watch("draft", 1):
        pass
    assert set(watch.seconds) == {"draft", "score"}
