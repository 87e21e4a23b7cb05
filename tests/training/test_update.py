"""The update: any packing gives one gradient, and the KL term pulls towards the base."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from r3_rl.errors import RunError
from r3_rl.modalities import TextPiece
from r3_rl.observe.metrics import unknown_names
from r3_rl.policy.base import Sampling
from r3_rl.policy.prefixes import context_key, written_before
from r3_rl.training.batcher import Batcher, micro_batches
from r3_rl.training.config import R3Config
from r3_rl.training.credit import Credit
from r3_rl.training.parallel import Learner
from r3_rl.training.update import LossSettings, _weightless, accumulate, step_sizes
from tests.policy.tiny import PAPER_GUIDANCE, loop
from tests.training.rollouts import gradient, names, step_credits, trained_policy

LOSSES = LossSettings()
WHOLE = 100_000


@pytest.fixture(scope="module")
def policy():
    return trained_policy()


@pytest.fixture(scope="module")
def credits(policy):
    return step_credits(policy)


def updated(policy, credits, settings=LOSSES, *, token_budget=WHOLE, **options):
    batcher = Batcher(policy=policy, token_budget=token_budget)
    numbers = accumulate(batcher, credits, settings.losses(), Learner(policy, R3Config("out")), **options)
    return numbers, gradient(policy)


@pytest.mark.parametrize("loss", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("budget", [64, 150, 400])
def test_any_packing_gives_the_gradient_of_one_batch(policy, credits, budget, loss):
    settings = replace(LOSSES, text_loss=loss, image_loss=loss)
    whole, expected = updated(policy, credits, settings)
    cut, got = updated(policy, credits, settings, token_budget=budget)
    assert len(micro_batches(policy, credits, WHOLE)) == 1 < len(micro_batches(policy, credits, budget))
    assert expected.norm() > 0
    torch.testing.assert_close(got, expected, atol=2e-5 * float(expected.norm()), rtol=0)
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-3, abs=1e-5)
    for name, value in whole.items():
        assert cut[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_loss_of_the_users_takes_the_place_of_ours(policy, credits, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from r3_rl.algorithm import LossOutputs\n"
        "from r3_rl.algorithm.surrogates import clip\n\n\n"
        "def halved(inputs):\n"
        "    found = clip(inputs)\n"
        "    return LossOutputs(values=found.values / 2, ratio=found.ratio)\n"
    )
    named = f"{own}:halved"
    _, expected = updated(policy, credits)
    _, got = updated(policy, credits, replace(LOSSES, text_loss=named, image_loss=named))
    torch.testing.assert_close(got, expected / 2)
    texts = [c for c in credits if c.objective == "understanding"]
    _, of_texts = updated(policy, texts, replace(LOSSES, image_loss=named))
    torch.testing.assert_close(of_texts, updated(policy, texts)[1])


def test_packing_with_guidance_and_kl_too(policy):
    settings = replace(LOSSES, beta=0.1, image_beta=0.1)
    guided = step_credits(policy, loop(guidance=PAPER_GUIDANCE))
    _, expected = updated(policy, guided, settings)
    _, got = updated(policy, guided, settings, token_budget=200)
    torch.testing.assert_close(got, expected, atol=2e-5 * float(expected.norm()), rtol=0)


def test_parts_of_a_step_add_up_under_its_normalisers(policy, credits):
    _, expected = updated(policy, credits)
    sizes = step_sizes(credits)
    parts = [updated(policy, part, normalisers=sizes)[1] for part in (credits[:5], credits[5:])]
    torch.testing.assert_close(sum(parts), expected, atol=2e-5 * float(expected.norm()), rtol=0)


def test_micro_batches_keep_the_budget_and_everything(policy, credits):
    batches = micro_batches(policy, credits, 200)
    assert sorted(id(c) for b in batches for c in b) == sorted(id(c) for c in credits)
    for batch in batches:
        assert policy.num_tokens([c.segment for c in batch]) <= 200 or len(batch) <= 2


def test_what_peers_share_is_counted_once_in_a_micro_batch(policy, credits):
    segments = [[c.segment for c in batch] for batch in micro_batches(policy, credits, WHOLE)]
    exact = policy.num_tokens(segments[0])
    assert exact < sum(policy.num_tokens([segment]) for segment in segments[0])
    assert [len(micro_batches(policy, credits, exact + more)) for more in (-1, 0)] == [2, 1]


def test_peers_lie_side_by_side_in_a_micro_batch(policy, credits):
    for batch in micro_batches(policy, credits, 150):
        owners = [c.segment.context[0].key for c in batch]
        assert len(set(owners)) == 1 + sum(a != b for a, b in itertools.pairwise(owners))


def test_a_plan_travels_with_its_draft(policy, credits):
    for batch in micro_batches(policy, credits, 1):
        assert names(batch) in (["draft", "plan"], ["critique"], ["refinement"], ["plan"], ["draft"])
        if names(batch) == ["draft", "plan"]:
            plan, draft = sorted(batch, key=lambda c: c.stage, reverse=True)
            assert written_before(draft.segment.context) == (context_key(plan.segment.context), plan.segment.token_ids)
    assert ["draft", "plan"] in [names(b) for b in micro_batches(policy, credits, 1)]


def test_peers_that_wrote_the_same_plan_are_all_kept(policy, credits):
    plan = next(c for c in credits if c.stage == "plan")
    twins = [plan, replace(plan, segment=replace(plan.segment, token_ids=(*plan.segment.token_ids,)))]
    found = [c for batch in micro_batches(policy, [*twins, *credits], 200) for c in batch]
    assert len(found) == len(credits) + 2 and all(any(c is twin for c in found) for twin in twins)


def test_a_system_prompt_does_not_make_all_rows_peers(policy):
    system = TextPiece(text="draw", keep=True)
    contexts = [(system, TextPiece(text=text)) for text in ("a red circle", "a cross") for _ in range(3)]
    texts = policy.write(contexts, Sampling(max_new_tokens=20), range(6))
    mixed = [Credit(segment=texts[i], advantage=1.0, stage="plan") for i in (0, 3, 1, 4, 2, 5)]
    (batch,) = micro_batches(policy, mixed, 10_000)
    owners = [c.segment.context[1].key for c in batch]
    assert sum(a != b for a, b in itertools.pairwise(owners)) == 1


def test_on_policy_the_loss_is_minus_the_mean_advantage(policy, credits):
    numbers, _ = updated(policy, credits)
    num_text, num_image = step_sizes(credits)
    text = -sum(c.advantage * len(c.segment.token_ids) for c in credits if c.objective == "understanding") / num_text
    image = -sum(c.advantage * len(c.segment.times) for c in credits if c.objective == "generation") / num_image
    assert numbers["text/loss"] == pytest.approx(text, abs=1e-4)
    assert numbers["image/loss"] == pytest.approx(image, abs=1e-4)
    assert numbers["loss"] == pytest.approx(text + 2 * image, abs=1e-4)
    assert numbers["ratio/text_deviation"] < 1e-4 and numbers["ratio/image_deviation"] < 1e-4
    assert unknown_names(numbers) == []


def test_every_sampled_token_and_step_enters_the_loss(policy):
    """The end token too, texts that ran into their limit, and images, which have one length all."""
    long = Sampling(max_new_tokens=40)
    mixed = step_credits(policy, loop(plan=long, critique=long))
    texts = [c.segment for c in mixed if c.objective == "understanding"]
    assert {text.ended for text in texts} == {True, False}
    sizes = updated(policy, mixed, token_budget=200)[0].sizes
    assert sizes["ratio/text_mean"] == sum(len(text.token_ids) for text in texts)
    assert sizes["ratio/image_mean"] == sum(len(c.segment.times) for c in mixed if c.objective == "generation") > 0


def test_weights_scale_the_objectives(policy, credits):
    both = updated(policy, credits, replace(LOSSES, text_loss_weight=1.0, image_loss_weight=2.0))[1]
    text = updated(policy, credits, replace(LOSSES, text_loss_weight=1.0, image_loss_weight=0.0))[1]
    image = updated(policy, credits, replace(LOSSES, text_loss_weight=0.0, image_loss_weight=1.0))[1]
    torch.testing.assert_close(text + 2 * image, both, atol=2e-5 * float(both.norm()), rtol=0)


def test_what_weighs_nothing_is_not_replayed(policy, credits):
    numbers, _ = updated(policy, credits, replace(LOSSES, text_loss_weight=0.0))
    assert "ratio/image_mean" in numbers and not {"kl", "ratio/text_mean", "text/loss"} & set(numbers)


def test_a_divergence_that_was_not_measured_has_no_number(policy, credits):
    numbers = updated(policy, credits, replace(LOSSES, beta=0.1, image_beta=0.0))[0]
    assert "kl" in numbers and "image/kl" not in numbers and "ratio/image_mean" in numbers


@pytest.mark.parametrize("kind", ["mean", "velocity"])
def test_kl_is_zero_at_the_base_and_pulls_back_elsewhere(credits, kind):
    settings = replace(LOSSES, beta=1.0, image_beta=1.0, image_kl=kind)
    fresh = trained_policy(moved=0.0)
    start, _ = updated(fresh, step_credits(fresh), settings)
    assert start["kl"] == pytest.approx(0, abs=1e-6)
    assert start["image/kl"] == pytest.approx(0, abs=1e-6)

    moved = trained_policy(moved=0.3)
    still = [replace(c, advantage=0.0) for c in step_credits(moved)]
    before, pull = updated(moved, still, settings)
    assert before["kl"] > 1e-3 and before["image/kl"] > 1e-6
    assert pull.norm() > 0, "the KL term alone has gradient"
    assert before["text/loss"] == pytest.approx(before["kl"], rel=1e-3)
    assert before["image/loss"] == pytest.approx(before["image/kl"], rel=1e-3)
    _step(moved, pull, 1e-2 / float(pull.norm()))
    after = updated(moved, still, settings)[0]
    assert after["loss"] < before["loss"]


def _step(policy, direction, size):
    at = 0
    with torch.no_grad():
        for p in policy.module.parameters():
            if p.requires_grad:
                p -= size * direction[at : at + p.numel()].view_as(p)
                at += p.numel()


def test_kl_of_one_kind_leaves_the_other_alone(policy, credits):
    passes = []
    replay = policy.replay
    policy.replay = lambda segments: (passes.append(len(segments)), replay(segments))[1]
    try:
        updated(policy, credits, replace(LOSSES, beta=0.5))
    finally:
        del policy.replay
    assert passes == [len(credits), sum(c.objective == "understanding" for c in credits)]


def test_a_step_uphill_raises_the_log_prob_of_what_was_better(credits):
    policy = trained_policy()
    mine = step_credits(policy)
    _, direction = updated(policy, mine)
    before = weighted_log_prob(policy, mine)
    _step(policy, direction, 1e-3 / float(direction.norm()))
    assert weighted_log_prob(policy, mine) > before


def weighted_log_prob(policy, credits):
    """Sum of advantage times mean log-prob, weighted as the loss weighs it."""
    num_text, num_image = step_sizes(credits)
    total = 0.0
    with torch.no_grad():
        for credit, result in zip(credits, policy.replay([c.segment for c in credits]), strict=True):
            weight = 1 / num_text if credit.objective == "understanding" else 2 / num_image
            total += weight * credit.advantage * float(result.log_probs.double().sum())
    return total


def test_a_loss_that_is_not_finite_stops_before_its_gradient(policy, credits):
    broken = [Credit(segment=c.segment, advantage=float("nan"), stage=c.stage) for c in credits[:2]]
    with pytest.raises(RunError, match="the loss is not finite"):
        updated(policy, broken)
    assert gradient(policy).norm() == 0


def test_nothing_to_learn_is_an_empty_update(policy):
    numbers, got = updated(policy, [])
    assert dict(numbers) == {"loss": 0.0} and got.norm() == 0


@pytest.mark.parametrize("guidance", [None, PAPER_GUIDANCE], ids=["plain", "guided"])
def test_a_dummy_is_a_small_pass_that_leaves_a_gradient_of_zero(policy, guidance):
    batcher = Batcher(policy=policy, drawing=loop(guidance=guidance).draft.drawing)
    text, image = (batcher.dummies[kind, ""].segment for kind in ("understanding", "generation"))
    assert len(text.token_ids) == 1 and image.states.shape[:2] == (1, 1) and image.drawing.size == (12, 12)
    _weightless(policy.replay([text, image])).backward()
    touched = [p.grad for p in policy.module.parameters() if p.grad is not None]
    assert touched and all(not g.any() for g in touched)
    policy.module.zero_grad(set_to_none=True)
