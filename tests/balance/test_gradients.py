"""Two objectives, one gradient: probing changes nothing, an aggregator removes what conflicts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from r3_rl.balance.gradients import AGGREGATORS, Balancer, compare, load_aggregator
from r3_rl.errors import MissingPackageError
from r3_rl.observe.metrics import Numbers, unknown_names
from r3_rl.training.batcher import Batcher
from r3_rl.training.update import LossSettings, accumulate, step_sizes
from tests.training.rollouts import gradient, step_credits, trained_policy


@dataclass(frozen=True)
class Pull:
    """A credit whose gradient is known."""

    objective: str
    direction: tuple[float, ...]


E, F = (1.0, 0.0), (0.0, 1.0)
CONFLICT = (-0.5, 1.0)


def combined(aggregator, *pulls, probe_every=1, step=0, before=None):
    """The gradient that a balancer leaves, and what it measured."""
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = None if before is None else torch.tensor([before])
    balancer = Balancer(module, aggregator=aggregator, probe_every=probe_every, seed=0)

    def run(part, normalisers):
        assert normalisers == (3.0, 4.0)
        for pull in part:
            (module.weight @ torch.tensor(pull.direction)).sum().backward()
        return Numbers({"image/count": len(part)})

    numbers = balancer.accumulate(step, pulls, run, (3.0, 4.0))
    assert numbers["image/count"] == len(pulls)
    return module.weight.grad[0], dict(numbers.without(["image/count"]))


def understanding(*direction):
    return Pull("understanding", direction)


def generation(*direction):
    return Pull("generation", direction)


def test_probing_leaves_the_sum_and_measures_the_parts():
    got, metrics = combined("sum", understanding(*E), generation(*CONFLICT), generation(*E))
    torch.testing.assert_close(got, torch.tensor([1.5, 1.0]))
    assert metrics["grad/norm_understanding"] == 1
    assert metrics["grad/norm_generation"] == pytest.approx(1.25**0.5)
    assert metrics["grad/cosine"] == pytest.approx(0.5 / 1.25**0.5)
    assert unknown_names(metrics) == []


def test_what_stood_in_the_parameters_stays():
    for aggregator in ("sum", *(["pcgrad"] if torchjd_is_there() else [])):
        got, _ = combined(aggregator, understanding(*E), generation(*F), before=(10.0, 20.0))
        torch.testing.assert_close(got, torch.tensor([11.0, 21.0]))


def torchjd_is_there():
    try:
        import torchjd  # noqa: F401
    except ImportError:
        return False
    return True


def test_steps_between_probes_are_plain():
    got, metrics = combined("sum", understanding(*E), generation(*F), probe_every=10, step=3)
    assert got.tolist() == [1, 1] and metrics == {}
    _, metrics = combined("sum", understanding(*E), generation(*F), probe_every=0)
    assert metrics == {}


def test_one_objective_alone_needs_no_balance():
    got, metrics = combined("sum", understanding(*E), understanding(*F))
    assert got.tolist() == [1, 1] and metrics == {}


def test_the_cosine_of_nothing_is_absent():
    assert "grad/cosine" not in compare(torch.zeros(2), torch.ones(2))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_gives_the_sum_where_nothing_conflicts(name):
    pytest.importorskip("torchjd")
    try:
        load_aggregator(name)(torch.eye(2))
    except MissingPackageError:
        pytest.skip(f"{name} needs a solver that is not installed")
    got, _ = combined(name, understanding(*E), generation(*F))
    torch.testing.assert_close(got, torch.tensor([1.0, 1.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_removes_a_conflict(name):
    """The plain sum of these goes against the first: -0.5 + 0.3 < 0."""
    pytest.importorskip("torchjd")
    try:
        load_aggregator(name)(torch.eye(2))
    except MissingPackageError:
        pytest.skip(f"{name} needs a solver that is not installed")
    first, second = torch.tensor([0.3, 0.0]), torch.tensor(CONFLICT)
    plain, metrics = combined("sum", understanding(*first.tolist()), generation(*CONFLICT))
    assert metrics["grad/cosine"] < 0 and plain @ first < 0
    got, again = combined(name, understanding(*first.tolist()), generation(*CONFLICT))
    assert got @ first >= -1e-5 and got @ second >= -1e-5
    assert again == metrics, "what was measured is what stood there before"


def test_pcgrad_is_the_projection_it_says():
    pytest.importorskip("torchjd")
    first, second = torch.tensor([0.3, 0.0]), torch.tensor(CONFLICT)
    got, _ = combined("pcgrad", understanding(0.3, 0.0), generation(*CONFLICT))
    dot = first @ second
    torch.testing.assert_close(got, first - dot / (second @ second) * second + second - dot / (first @ first) * first)


def test_an_aggregator_leaves_the_random_state_alone():
    pytest.importorskip("torchjd")
    states = []
    for aggregator in ("sum", "pcgrad"):
        torch.manual_seed(3)
        combined(aggregator, understanding(*E), generation(*CONFLICT))
        states.append(torch.rand(2))
    assert torch.equal(*states)


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(MissingPackageError, match=r"'mgda' needs torchjd; pip install 'r3-rl\[balance\]'"):
        load_aggregator("mgda")


def test_probing_a_real_step_gives_the_gradient_of_the_plain_one():
    policy = trained_policy()
    credits, settings = step_credits(policy), LossSettings()
    batcher = Batcher(policy=policy)

    def run(part, normalisers):
        return accumulate(batcher, part, settings, backward=lambda loss: loss.backward(), normalisers=normalisers)

    gradients = []
    for probe_every in (0, 1):
        balancer = Balancer(policy.module, aggregator="sum", probe_every=probe_every, seed=0)
        numbers = balancer.accumulate(0, credits, run, step_sizes(credits))
        gradients.append(gradient(policy))
        assert {"text/loss", "image/loss"} < set(numbers)
    torch.testing.assert_close(*gradients, atol=2e-5 * float(gradients[0].norm()), rtol=0)
