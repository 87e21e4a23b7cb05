from __future__ import annotations

import pytest
import torch

from r3_rl.algorithm import LossInputs, LossOutputs, k3, policy_loss
from r3_rl.algorithm.surrogates import cispo, clip, gspo
from r3_rl.errors import InputError, RunError
from r3_rl.flow import Guidance, combine, kl_mean, log_prob, sample, shifted_schedule, stochastic_step
from r3_rl.observe.numbers import Numbers
from r3_rl.observe.numbers import combine as combine_numbers

SURROGATES = (clip, gspo, cispo)
TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}


def given(new, old, advantages, owner=None, **settings):
    """Elements of one segment each, if nothing else is said."""
    owner = torch.arange(len(new)) if owner is None else owner
    return LossInputs(log_probs=new, old_log_probs=old, advantages=advantages, owner=owner, **settings)


@pytest.fixture
def elements():
    """New, old and reference log-probs and advantages of 24 elements."""
    return torch.randn(4, 24, generator=torch.Generator().manual_seed(2)).mul(0.4).unbind()


def test_recorded_losses(recorded):
    if not recorded.get("losses"):
        pytest.skip("the golden set holds no losses")
    for case in recorded["losses"]:
        new, old, weight = (torch.tensor(case[key]) for key in ("logp_new", "logp_old", "advantages"))
        count, epsilon = len(new), case["clip"]
        torch.testing.assert_close((new - old).exp(), torch.tensor(case["ratio"]), **TOLERANCE)
        inputs = given(new, old, weight, epsilon=epsilon)
        mean = clip(inputs).values.mean()
        torch.testing.assert_close(mean, torch.tensor(case["mixgrpo_flow_loss"]), **TOLERANCE)
        # R3 divides by the count plus 1e-4
        found = policy_loss(inputs, normaliser=count + 1e-4)
        torch.testing.assert_close(found.loss, torch.tensor(case["r3_loss"]), **TOLERANCE)
        # the record counts every ratio outside the range, ours those that the clip holds back
        outside = float(((torch.tensor(case["ratio"]) - 1).abs() > epsilon).float().mean())
        assert outside == pytest.approx(case["clip_fraction"])
        assert found.statistics.means()["clip_ratio/region"] <= outside + 1e-6


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("cuts", [(24,), (8, 8, 8), (2, 22), (6, 0, 18)])
def test_micro_batches_add_up_to_the_whole(elements, cuts, surrogate):
    new, old, reference, weight = elements
    whole_in, parts_in = new.clone().requires_grad_(True), new.clone().requires_grad_(True)
    owner = torch.arange(12).repeat_interleave(2)  # a text is never cut in two

    def run(log_probs, rows):
        numbers = owner[rows] - (owner[rows].min() if len(owner[rows]) else 0)
        inputs = given(log_probs, old[rows], weight[rows], numbers, epsilon=0.1, epsilon_high=0.3)
        return policy_loss(inputs, normaliser=24, surrogate=surrogate, beta=0.5, kl=k3(log_probs, reference[rows]))

    whole = run(whole_in, slice(None))
    ends = torch.tensor(cuts).cumsum(0).tolist()
    rows = [slice(end - size, end) for end, size in zip(ends, cuts, strict=True)]
    parts = [run(parts_in[row], row) for row in rows]
    whole.loss.backward()
    for part in parts:
        part.loss.backward()
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    torch.testing.assert_close(parts_in.grad, whole_in.grad)
    of_parts = [(part.statistics.means(), float(part.statistics.count)) for part in parts]
    joined = combine_numbers([Numbers(m, dict.fromkeys(m, size)) for m, size in of_parts], over="batches")
    for name in ("ratio", "kl", "clip_ratio/low", "clip_ratio/high", "clip_ratio/region"):
        assert joined[name] == pytest.approx(whole.statistics.means()[name], rel=1e-5), name
    assert joined["kl"] > 0 and joined["clip_ratio/region"] > 0


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "slope"),
    [(0.0, 1.0, -1), (0.0, -1.0, 1), (0.5, 1.0, 0), (0.5, -1.0, 1), (-0.5, 1.0, -1), (-0.5, -1.0, 0), (0.25, 1.0, -1)],
)
def test_the_clip_holds_back_only_what_goes_too_far_the_right_way(log_ratio, advantage, slope):
    new = torch.tensor([log_ratio], requires_grad=True)
    inputs = given(new, torch.zeros(1), torch.tensor([advantage]), epsilon=0.2, epsilon_high=0.3)
    found = policy_loss(inputs, normaliser=1)
    found.loss.backward()
    assert new.grad is not None and new.grad.sign().item() == slope
    low, high = float(found.statistics.clipped_low), float(found.statistics.clipped_high)
    assert (low, high) == (float(log_ratio < 0 and slope == 0), float(log_ratio > 0 and slope == 0))


def test_on_the_first_pass_the_ratio_of_guided_steps_is_one():
    # Sampled as one batch, scored again alone and in another order: unlike times, guidance on and off, two renorms.
    schedule, generator = shifted_schedule(9, 3.0), torch.Generator().manual_seed(7)
    x, full, text_dropped, image_dropped, noise = torch.randn(5, 6, 4, 3, generator=generator).unbind()
    at = torch.tensor([0, 1, 2, 4, 6, 7])
    for guidance in (Guidance(text=4.0), Guidance(text=4.0, image=1.5, renorm="text_channel")):

        def step(rows, guidance=guidance):
            velocity = combine(guidance, schedule[at[rows]], full[rows], text_dropped[rows], image_dropped[rows])
            return stochastic_step(x[rows], velocity, schedule[at[rows]], schedule[at[rows] + 1], "r3_monotonic", 0.7)

        everything = torch.arange(6)
        drawn = sample(step(everything), noise)
        old = log_prob(step(everything), drawn)
        for order in (everything, everything.flip(0), torch.tensor([3])):
            again = log_prob(step(order), drawn[order])
            found = policy_loss(given(again, old[order], torch.ones(len(order))), normaliser=6)
            assert found.statistics.means()["ratio_deviation_max"] < 1e-5
        # scoring without the guidance that was sampled with is what the statistic must betray
        plain = stochastic_step(x, full, schedule[at], schedule[at + 1], "r3_monotonic", 0.7)
        off = policy_loss(given(log_prob(plain, drawn), old, torch.ones(6)), normaliser=6)
        assert off.statistics.means()["ratio_deviation_max"] > 1e-2
        assert float(kl_mean(plain.mean, step(everything).mean, plain.std).max()) > 1e-3


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_on_policy_gradient_is_that_of_the_plain_policy_gradient(elements, surrogate):
    new, _, _, weight = elements
    log_probs = new.clone().requires_grad_(True)
    policy_loss(given(log_probs, new, weight), normaliser=24, surrogate=surrogate).loss.backward()
    torch.testing.assert_close(log_probs.grad, -weight / 24)


def test_k3_is_the_divergence_in_expectation_and_never_negative(elements):
    policy, reference = torch.randn(2, 9, generator=torch.Generator().manual_seed(4)).log_softmax(-1).unbind()
    expected = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * k3(policy, reference)).sum(), expected)
    assert bool((k3(elements[0], elements[2]) >= 0).all())
    assert k3(policy, policy).abs().max() == 0


def test_the_kl_term_pulls_towards_the_reference(elements):
    new, _, reference, _ = elements
    log_probs = new.clone().requires_grad_(True)
    inputs = given(log_probs, new, torch.zeros(24))
    policy_loss(inputs, normaliser=24, beta=1.0, kl=k3(log_probs, reference)).loss.backward()
    assert log_probs.grad is not None
    assert torch.equal(log_probs.grad.sign(), (new - reference).sign())


def test_kl_without_a_coefficient_is_only_watched(elements):
    new, old, reference, weight = elements
    inputs = given(new, old, weight)
    plain = policy_loss(inputs, normaliser=24)
    watched = policy_loss(inputs, normaliser=24, kl=k3(new, reference))
    assert torch.equal(plain.loss, watched.loss) and float(watched.statistics.kl) > 0
    assert plain.statistics.kl is None
    assert torch.equal(policy_loss(inputs, normaliser=24, kl=old.square()).loss, plain.loss)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_micro_batch_without_elements_costs_nothing_and_can_be_differentiated(surrogate):
    new = torch.empty(0, requires_grad=True)
    found = policy_loss(given(new, torch.empty(0), torch.empty(0)), normaliser=5, surrogate=surrogate)
    found.loss.backward()
    assert float(found.loss.detach()) == 0 and found.statistics.means() == {}


def test_gradient_in_the_wrong_place_stops_the_run(elements):
    new, old, _, weight = elements
    log_probs = new.clone().requires_grad_(True)
    inputs = given(log_probs, old, weight)
    with pytest.raises(RunError, match="KL term carries no gradient"):
        policy_loss(inputs, normaliser=24, beta=0.1, kl=torch.ones(24))
    with pytest.raises(RunError, match="old_log_probs carries gradient"):
        policy_loss(given(log_probs, log_probs, weight), normaliser=24)
    with pytest.raises(RunError, match="reference_log_probs carries gradient"):
        k3(log_probs, log_probs * 1)
    with pytest.raises(InputError, match="no kl"):
        policy_loss(inputs, normaliser=24, beta=0.1)


@pytest.mark.parametrize("normaliser", [0, -1, float("nan")])
def test_a_normaliser_that_is_not_positive_is_refused(elements, normaliser):
    new, old, _, weight = elements
    with pytest.raises(InputError, match="whole step"):
        policy_loss(given(new, old, weight), normaliser=normaliser)


def test_shapes_that_would_broadcast_are_refused(elements):
    new, old, _, weight = elements
    right = {"new": new, "old": old, "advantages": weight}
    for wrong in ({"old": old[:, None]}, {"advantages": weight[:1]}, {"owner": torch.zeros(1, dtype=torch.int64)}):
        with pytest.raises(InputError, match="vectors of one length"):
            policy_loss(given(**(right | wrong)), normaliser=24)
    with pytest.raises(InputError, match="the surrogate's values"):
        policy_loss(given(**right), normaliser=24, surrogate=lambda i: LossOutputs(values=new.sum(), ratio=new))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("clip_range", [(-0.1, None), (1.5, None), (0.2, -0.1)])
def test_senseless_clip_ranges_are_refused(elements, clip_range, surrogate):
    new, old, _, weight = elements
    with pytest.raises(InputError, match="epsilon"):
        surrogate(given(new, old, weight, epsilon=clip_range[0], epsilon_high=clip_range[1]))


def test_gspo_has_one_ratio_a_text_whatever_its_words_do():
    # One text far up and far down at once, whose mean ratio is 1: clipped word by word, untouched as a whole.
    new, old = torch.tensor([1.0, -1.0, 0.3], requires_grad=True), torch.zeros(3)
    inputs = given(new, old, torch.ones(3), torch.tensor([0, 0, 1]), epsilon=0.2)
    found = gspo(inputs)
    torch.testing.assert_close(found.values, torch.tensor([-1.0, -1.0, -1.2]))
    found.values.sum().backward()
    # d/d log_prob of sum over 2 words of s = exp(mean): 2 * s / 2 each; the clipped text has none
    torch.testing.assert_close(new.grad, torch.tensor([-1.0, -1.0, 0.0]))


def test_gspo_and_clip_agree_where_every_text_is_one_word(elements):
    new, old, _, weight = elements
    inputs = given(new, old, weight)
    torch.testing.assert_close(gspo(inputs).values, clip(inputs).values)


def test_cispo_keeps_the_gradient_that_the_clip_drops():
    new = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    cispo(given(new, torch.zeros(3), torch.ones(3), epsilon=0.2)).values.sum().backward()
    torch.testing.assert_close(new.grad, -torch.tensor([1.2, 1.0, torch.tensor(-1.0).exp().item()]))
