"""Two objectives, one gradient: probing changes nothing, an aggregator removes what conflicts."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pytest
import torch

from r3_rl import registered
from r3_rl.balance.aggregators import GradVac, config, equal_norms
from r3_rl.balance.conflict import Conflict, place_of
from r3_rl.balance.gradients import Balancer
from r3_rl.errors import MissingPackageError
from r3_rl.observe.metrics import unknown_names
from r3_rl.observe.numbers import Numbers
from r3_rl.training.batcher import Batcher
from r3_rl.training.config import R3Config
from r3_rl.training.parallel import Learner
from r3_rl.training.update import LossSettings, accumulate, step_sizes
from tests.training.rollouts import gradient, step_credits, trained_policy


@dataclass(frozen=True)
class Pull:
    """A credit whose gradient is known."""

    objective: str
    direction: tuple[float, ...]
    stage: str = "plan"


AGGREGATORS = [name for name in registered.names(registered.AGGREGATORS) if name != "sum"]
OF_TORCHJD = [name for name in AGGREGATORS if name not in ("equal_norms", "config")]
E, F = (1.0, 0.0), (0.0, 1.0)
CONFLICT = (-0.5, 1.0)


def combined(aggregator, *pulls, probe_every=1, step=0, before=None, kept=False, by_stage=False):
    """The gradient that a balancer leaves, and what it measured. kept: images' gradients are not for the weight."""
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = None if before is None else torch.tensor([before])
    balancer = Balancer(
        {module.weight: "shared/0"},
        aggregator=aggregator,
        probe_every=probe_every,
        seed=0,
        by_stage=by_stage,
        kept_from_images=[module.weight] if kept else [],
    )

    def run(part, normalisers):
        assert normalisers == (3.0, 4.0)
        for pull in part:
            (module.weight @ torch.tensor(pull.direction)).sum().backward()
        return Numbers({"image/count": len(part)})

    numbers = balancer.accumulate(step, pulls, run, (3.0, 4.0))
    assert numbers["image/count"] == len(pulls)
    left = None if module.weight.grad is None else module.weight.grad[0]
    return left, {name: value for name, value in numbers.items() if name != "image/count"}


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


@pytest.mark.parametrize("by_stage", [False, True])
@pytest.mark.parametrize("probe_every", [0, 1])
@pytest.mark.parametrize("before", [None, (10.0, 20.0)])
@pytest.mark.parametrize("with_text", [False, True])
def test_what_images_are_kept_from_learns_from_texts_alone(by_stage, probe_every, before, with_text):
    pulls = [Pull("generation", CONFLICT, "draft"), Pull("generation", F, "refinement")]
    pulls += [Pull("understanding", E, "critique")] * with_text
    options = {"probe_every": probe_every, "before": before, "by_stage": by_stage}
    got, _ = combined("sum", *pulls, kept=True, **options)
    if before is None and not with_text:
        assert got is None, "a gradient of zeros would let momentum move it"
    else:
        torch.testing.assert_close(got, torch.tensor(before or (0.0, 0.0)) + float(with_text) * torch.tensor(E))
    free, _ = combined("sum", *pulls, **options)
    assert free is not None and not torch.equal(free, torch.zeros(2) if got is None else got)


def test_what_stood_in_the_parameters_stays():
    for aggregator in ("sum", *(["pcgrad"] if torchjd_is_there() else [])):
        got, _ = combined(aggregator, understanding(*E), generation(*F), before=(10.0, 20.0))
        torch.testing.assert_close(got, torch.tensor([11.0, 21.0]))


@pytest.mark.parametrize("aggregator", ["sum", "config", "equal_norms"])
def test_weights_that_no_objective_reached_have_no_gradient_and_stay(aggregator):
    used, unused = (torch.nn.Parameter(torch.ones(1, 2)) for _ in range(2))
    places = {used: "shared/0", unused: "shared/1"}
    balancer = Balancer(places, aggregator=aggregator, probe_every=1, seed=0)
    optimizer = torch.optim.AdamW([used, unused], lr=0.1, weight_decay=0.0)
    unused.grad = torch.ones(1, 2)
    optimizer.step()  # momentum that zeros for a gradient would go on with
    optimizer.zero_grad()
    before = unused.detach().clone()

    def run(part, normalisers):
        for pull in part:
            (used @ torch.tensor(pull.direction)).sum().backward()
        return Numbers({})

    balancer.accumulate(0, [understanding(*E), generation(*F)], run, (1.0, 1.0))
    assert unused.grad is None
    assert used.grad is not None
    optimizer.step()
    assert torch.equal(unused, before)
    assert not torch.equal(used, torch.ones(1, 2))


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
    gram = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = Conflict(step=0, objectives=("understanding", "generation"), grams={"shared/0": gram}, weights=(1.0, 1.0))
    assert "grad/cosine" not in found.numbers() and found.numbers()["grad/norm_generation"] == pytest.approx(2**0.5)


@dataclass(frozen=True)
class Staged:
    """A credit of a stage."""

    stage: str
    direction: tuple[float, ...]

    @property
    def objective(self):
        return "generation" if self.stage in ("draft", "refinement") else "understanding"


def test_stages_are_objectives_of_their_own_place_by_place():
    one, two = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    places = {one.weight: "shared/0", two.weight: "shared/1"}
    balancer = Balancer(places, aggregator="sum", probe_every=1, seed=0, by_stage=True)
    seen = []
    balancer.on_probe = seen.append

    def run(part, normalisers):
        for credit in part:
            direction = torch.tensor(credit.direction)
            ((one.weight @ direction) - (two.weight @ direction)).sum().backward()
        return Numbers({"loss": 1.0})

    pulls = [Staged("plan", E), Staged("draft", CONFLICT), Staged("critique", F), Staged("plan", F)]
    numbers = balancer.accumulate(7, pulls, run, (1.0, 1.0))
    (found,) = seen
    assert found.step == 7 and found.objectives == ("plan", "draft", "critique")
    torch.testing.assert_close(found.grams["shared/0"], found.grams["shared/1"])
    expected = torch.tensor([[2.0, 0.5, 1.0], [0.5, 1.25, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found.grams["shared/0"], expected)
    assert numbers["grad/cosine/plan_draft"] == pytest.approx(0.5 / (2 * 1.25) ** 0.5)
    assert unknown_names(numbers) == [] and "grad/cosine" not in numbers
    assert one.weight.grad.tolist() == [[0.5, 3.0]]
    assert found.row()["grams"]["shared/0"] == expected.tolist() and len(found.row()["weights"]) == 3


def test_a_parameter_counts_in_its_layer_and_branch():
    assert place_of("language_model.model.layers.11.mlp_moe_gen.up_proj.lora_A.default.weight", "generation") == (
        "generation/11"
    )


SOLVERS = {"upgrad": "quadprog", "dual_proj": "quadprog", "cagrad": "cvxpy"}


@pytest.fixture
def jd(request):
    named = request.node.callspec.params.get("name", "") if hasattr(request.node, "callspec") else ""
    if named in SOLVERS:
        pytest.importorskip(SOLVERS[named])
    return pytest.importorskip("torchjd.aggregation")


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_gives_the_sum_where_nothing_conflicts(name, jd):
    got, numbers = combined(name, understanding(*E), generation(*F))
    torch.testing.assert_close(got, torch.tensor([1.0, 1.0]), atol=1e-3, rtol=0)
    assert numbers["grad/weight_understanding"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name != "equal_norms"])
def test_every_aggregator_removes_a_conflict(name, jd):
    """The plain sum of these goes against the first: -0.5 + 0.3 < 0."""
    first, second = torch.tensor([0.3, 0.0]), torch.tensor(CONFLICT)
    plain, metrics = combined("sum", understanding(*first.tolist()), generation(*CONFLICT))
    assert metrics["grad/cosine"] < 0 and plain @ first < 0
    got, again = combined(name, understanding(*first.tolist()), generation(*CONFLICT))
    # solvers of quadratic programs add a little to the diagonal
    assert got @ first >= -1e-3 and got @ second >= -1e-3
    measured = {key: value for key, value in again.items() if "weight" not in key}
    assert measured == {key: value for key, value in metrics.items() if "weight" not in key}


@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize(
    ("name", "theirs", "options", "scale"),
    [
        ("pcgrad", "PCGrad", {}, 0),
        ("gradvac", "GradVac", {}, 0),
        ("mgda", "MGDA", {}, 1),
        ("upgrad", "UPGrad", {}, 1),
        ("dual_proj", "DualProj", {}, 1),
        ("cagrad", "CAGrad", {"c": 0.5}, 1 / 1.5),
        ("config", "ConFIG", {}, 0),
        ("aligned_mtl", "AlignedMTL", {}, 1),
        ("imtl_g", "IMTLG", {}, 1),
    ],
)
def test_weights_of_the_gram_matrix_are_torchjds_aggregator_of_whole_gradients(jd, num, name, theirs, options, scale):
    rows = torch.randn(num, 60, generator=torch.Generator().manual_seed(num)).double() + 0.05
    ours = registered.find(registered.AGGREGATORS, name)
    ours = ours() if isinstance(ours, type) else ours
    torch.manual_seed(0)
    expected = getattr(jd, theirs)(**options)(rows) * (num * scale or 1)
    torch.manual_seed(0)
    torch.testing.assert_close(ours(rows @ rows.T) @ rows, expected, rtol=1e-6, atol=1e-6)


def test_equal_norms_gives_every_objective_the_same_say():
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(equal_norms(rows @ rows.T) @ rows, torch.tensor([2.0, 2.0], dtype=torch.float64))
    assert equal_norms(torch.zeros(2, 2, dtype=torch.float64)).tolist() == [0, 0]
    assert config(torch.zeros(2, 2, dtype=torch.float64)).tolist() == [0, 0]


def test_the_vaccine_goes_on_where_a_checkpoint_left_it(jd):
    grams = [
        (rows := torch.randn(3, 9, generator=torch.Generator().manual_seed(i)).double()) @ rows.T for i in range(6)
    ]

    def weights(aggregate, some):
        out = []
        for gram in some:
            torch.manual_seed(1)
            out.append(aggregate(gram))
        return out

    whole, first, second = GradVac(), GradVac(), GradVac()
    expected = weights(whole, grams)
    assert first.state() == {}
    weights(first, grams[:4])
    second.load(json.loads(json.dumps(first.state())))
    torch.testing.assert_close(torch.stack(weights(second, grams[4:])), torch.stack(expected[4:]), rtol=0, atol=0)


def test_an_aggregator_of_the_users(tmp_path):
    (tmp_path / "own.py").write_text("def first(gram):\n    return gram.new_tensor([1.0, 0.0])\n")
    got, numbers = combined(f"{tmp_path}/own.py:first", understanding(*E), generation(*CONFLICT))
    assert got.tolist() == [1.0, 0.0] and numbers["grad/weight_generation"] == 0


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
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(MissingPackageError, match=r"MGDA needs torchjd: .*; pip install 'r3-rl\[balance\]'"):
        combined("mgda", understanding(*E), generation(*F))
    with pytest.raises(MissingPackageError, match="GradVac"):
        Balancer({}, aggregator="gradvac", probe_every=0, seed=0)


def test_probing_a_real_step_gives_the_gradient_of_the_plain_one():
    policy = trained_policy()
    credits, settings = step_credits(policy), LossSettings().losses()
    batcher, learner = Batcher(policy=policy), Learner(policy, R3Config("out"))

    def run(part, normalisers):
        return accumulate(batcher, part, settings, learner, normalisers)

    gradients = []
    for probe_every in (0, 1):
        places = {p: "all/0" for p in policy.module.parameters() if p.requires_grad}
        balancer = Balancer(places, aggregator="sum", probe_every=probe_every, seed=0)
        numbers = balancer.accumulate(0, credits, run, step_sizes(credits))
        gradients.append(gradient(policy))
        assert {"text/loss", "image/loss"} < set(numbers)
    torch.testing.assert_close(*gradients, atol=2e-5 * float(gradients[0].norm()), rtol=0)
