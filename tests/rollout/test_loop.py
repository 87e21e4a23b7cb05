"""The loop: stops save the compute, peers share what they should, seeds fix everything (traps 8 and 22)."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.policy.base import Drawing, Sampling
from r3_rl.rollout.collector import Collector, Stopwatch
from r3_rl.rollout.episode import DrawingPlan, Parts, make_critiques, make_drafts, make_refinements, row_seeds, run_loop
from r3_rl.rollout.tree import Node
from r3_rl.types import Prompt, Verdict
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy


class Counting:
    """A policy that remembers how many rows each call had."""

    def __init__(self, policy):
        self.policy, self.written, self.drawn = policy, [], []

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


def test_several_images_are_drawn_from_one_plan(policy):
    counting = Counting(policy)
    settings = loop()
    drawings = [settings.draft.drawing] * 12
    drafts = make_drafts(counting, PROMPTS, settings, drawings, 3, group=4, per_plan=2)
    assert counting.written == [6] and counting.drawn == [12]
    for i in range(0, 12, 2):
        assert drafts[i].plan is drafts[i + 1].plan, "one text, one credit"
        assert drafts[i].image.context[-1] is drafts[i + 1].image.context[-1]
        assert not torch.equal(drafts[i].image.image, drafts[i + 1].image.image), "the painter's noise differs"
    assert drafts[0].plan.text != drafts[2].plan.text
    single = make_drafts(policy, PROMPTS, settings, drawings, 3, group=4)
    for i in range(0, 12, 2):
        assert drafts[i].plan.token_ids == single[i].plan.token_ids, "a row's seed follows from its place"
        torch.testing.assert_close(drafts[i].image.image, single[i].image.image, atol=1e-5, rtol=0)


def test_several_refinements_are_drawn_by_one_critique(policy):
    counting = Counting(policy)
    collector = Collector(
        policy=counting, submit=at_once(brightness), settings=loop(), num_generations=4, images_per_critique=2
    )
    nodes = [
        Node(prompt=p, image=i, score=0.5, verdict=Verdict(total=0.5))
        for p, i in zip(PROMPTS, pictures(3), strict=True)
    ]
    found = collector.refinements(nodes, seed=3)
    assert counting.written == [6] and len(found.critiques) == 12 and found.per_critique == 2
    for i in range(0, 12, 2):
        assert found.critiques[i] is found.critiques[i + 1]
        first, second = found.images[i], found.images[i + 1]
        if first is None:
            assert second is None
        else:
            assert first.context[-1] is second.context[-1], "one instruction, encoded once"
            assert not torch.equal(first.image, second.image)
    assert any(found.images), "some critiques ask for an edit"


def test_nothing_is_asked_of_the_policy_when_all_have_stopped(policy):
    stopping = replace(loop(), protocol=AllStop(reflect_template="check {prompt}"))
    counting = Counting(policy)
    walked = run_loop(counting, PROMPTS, stopping, rounds=3, seed=1)
    assert counting.drawn == [3, 0] and counting.written == [3, 3]
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


def test_drafts_may_be_given(policy):
    settings = loop()
    drafts = make_drafts(policy, PROMPTS, settings, [settings.draft.drawing] * 3, 9)
    walked = run_loop(Counting(policy), PROMPTS, settings, rounds=1, seed=1, drafts=drafts)
    assert [t.rounds[0] for t in walked] == drafts


def test_evaluation_takes_the_likeliest_words_and_no_stochastic_step(policy):
    calm = loop(plan=Sampling(max_new_tokens=5, temperature=1.5, top_p=0.5)).for_evaluation(0.0)
    assert calm.plan.greedy and calm.critique.greedy and calm.plan.top_p == 1 and calm.plan.max_new_tokens == 5
    walked = run_loop(policy, PROMPTS, calm, rounds=1, seed=1)
    again = run_loop(policy, PROMPTS, calm, rounds=0, seed=2)
    assert [t.rounds[0].plan.text for t in walked] == [t.rounds[0].plan.text for t in again]
    assert all(len(r.image.times) == 0 for t in walked for r in t.rounds)
    assert loop(plan=None).for_evaluation(0.3).plan is None


def test_without_a_plan_the_prompt_is_drawn(policy):
    settings = loop(plan=None)
    counting = Counting(policy)
    (draft, *_) = make_drafts(counting, PROMPTS, settings, [settings.draft.drawing] * 6, 1, group=2)
    assert counting.written == [] and draft.plan is None
    assert [p.text for p in draft.image.context] == [PROMPTS[0].text]


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
    drawings = settings.draft.rows([0, 0, 1, 1], seed=0, progress=0.0)
    a, b, c, _ = make_drafts(policy, PROMPTS[:2], settings, drawings, 1, group=2)
    assert torch.equal(a.image.states[0], b.image.states[0]) and not torch.equal(a.image.states[0], c.image.states[0])
    settings = replace(settings, refine=settings.draft)
    images = [a.image.image, a.image.image, c.image.image]
    critiques = make_critiques(policy, images, PROMPTS, settings, 3)
    critiques = [replace(k, well_formed=True, stop=False, instruction="add a cross") for k in critiques]
    drawings = settings.refine.rows([0, 0, 1], seed=0, progress=0.0)
    x, y, z = make_refinements(policy, critiques, images, PROMPTS, settings, drawings, 1, groups=[0, 0, 1])
    assert torch.equal(x.states[0], y.states[0]) and not torch.equal(x.states[0], z.states[0])


def collector(policy, **options):
    return Collector(policy=policy, submit=at_once(brightness), settings=loop(), num_generations=3, **options)


def test_collected_drafts_keep_their_peers_and_missing_scores(policy):
    drafts = collector(policy).drafts(PROMPTS, seed=0)
    assert drafts.groups == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    assert [p.text for p in drafts.prompts] == [p.text for p in PROMPTS for _ in range(3)]
    assert [i for i, reward in enumerate(drafts.rewards) if reward is None] == [4]
    assert all(len(r.image.times) == 2 for r in drafts.rounds)
    pooled = drafts.node_groups()
    assert [len(g.nodes) for g in pooled] == [3, 2, 3], "an image without a score is no node"
    assert pooled[1].nodes[0].prompt is drafts.prompts[3] and pooled[0].nodes[0].depth == 0


def test_rewards_of_drafts_may_be_more_than_totals(policy):
    def ranks(verdicts, groups):
        return [float(g) for g in groups]

    assert collector(policy, rewards=ranks).drafts(PROMPTS[:2], seed=0).rewards == (0, 0, 0, 1, 1, 1)


def test_collected_refinements_branch_from_one_image(policy):
    nodes = [
        Node(prompt=p, image=i, score=0.5, verdict=Verdict(total=0.5))
        for p, i in zip(PROMPTS, pictures(3), strict=True)
    ]
    found = collector(policy).refinements(nodes, seed=2)
    assert found.groups == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    for node, critique, image, verdict in zip(found.nodes, found.critiques, found.images, found.verdicts, strict=True):
        assert critique.segment.context[0].image is node.image
        assert (image is None) == (not critique.instruction) == (verdict is None)
        if image is not None:
            assert image.context[0].image is node.image and image.context[0].use == "edit"
            assert image.context[1].text == critique.instruction
    for group in found.node_groups():
        assert all(n.depth == 1 for n in group.nodes)


def test_a_chain_keeps_one_row_a_node_and_the_peers_it_is_given(policy):
    nodes = [Node(prompt=PROMPTS[0], image=i, score=0.5, verdict=Verdict(total=0.5)) for i in pictures(4)]
    found = collector(policy).chain(nodes, [0, 0, 1, 1], seed=2)
    assert len(found.critiques) == 4 and found.groups == (0, 0, 1, 1)
    steps = {g: i.drawing.sde_steps for g, i in zip(found.groups, found.images, strict=True) if i is not None}
    assert all(i is None or i.drawing.sde_steps == steps[g] for g, i in zip(found.groups, found.images, strict=True))


def test_scorers_see_the_image_that_was_refined(policy):
    seen = []

    def score(batch):
        seen.append(batch)
        return brightness(batch)

    node = Node(
        prompt=Prompt(text="a red circle", columns={"k": 1}),
        image=pictures(1)[0],
        score=0.5,
        verdict=Verdict(total=0.5),
    )
    Collector(policy=policy, submit=at_once(score), settings=loop(), num_generations=6).refinements([node], seed=0)
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
        Collector(policy=p, submit=s, settings=loop(), num_generations=3, parts=parts)
        for p, s, parts in (
            (policy, at_once(brightness), Parts()),
            (counting, submit, Parts(count=2, whole_groups=whole)),
        )
    )
    whole_batch, in_parts = one.drafts(PROMPTS, seed=0), many.drafts(PROMPTS, seed=0)
    assert counting.drawn == ([6, 3] if whole else [5, 4]) and counting.written == [9]
    assert seen == [(list(in_parts.groups[: counting.drawn[0]]), 1), (list(in_parts.groups[counting.drawn[0] :]), 2)]
    assert whole_batch.prompts == in_parts.prompts
    for a, b in zip(whole_batch.rounds, in_parts.rounds, strict=True):
        assert a.plan.token_ids == b.plan.token_ids
        torch.testing.assert_close(a.image.image, b.image.image, atol=1e-5, rtol=0)

    nodes = [
        Node(prompt=p, image=i, score=0.5, verdict=Verdict(total=0.5))
        for p, i in zip(PROMPTS, pictures(3), strict=True)
    ]
    a, b = one.refinements(nodes, seed=2), many.refinements(nodes, seed=2)
    stopped = [image is None for image in a.images]
    assert stopped == [image is None for image in b.images] and 0 < sum(stopped) < 9
    assert stopped == [verdict is None for verdict in b.verdicts]
    for x, y in zip(a.images, b.images, strict=True):
        if x is not None:
            torch.testing.assert_close(x.image, y.image, atol=1e-5, rtol=0)


def test_a_stopwatch_adds_up_even_when_the_stage_fails():
    watch = Stopwatch()
    with watch.stage("draft"), pytest.raises(ValueError), watch.stage("score"):
        raise ValueError
    with watch.stage("draft"):
        pass
    assert set(watch.seconds) == {"draft", "score"}
