"""The float32 products that go another way are the same products."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from r3_rl.policy import linear as module
from r3_rl.policy.linear import Linear, linear

HAS_OPERATION = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
needs_operation = pytest.mark.skipif(not HAS_OPERATION, reason="this torch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """The other way taken for every size, on every processor, and counted."""
    seen = []

    def counted(x, weight, bias=None):
        seen.append((tuple(x.shape), tuple(weight.shape)))
        return plain(x, weight, bias)

    plain = module._onednn
    monkeypatch.setattr(module, "_onednn", counted)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "_LEAST_PRODUCTS", 0)
    return seen


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(product, x, weight, bias, grad, trained):
    leaves = [t.detach().requires_grad_(t_trained) for t, t_trained in zip((x, weight, bias), trained, strict=True)]
    out = product(*leaves)
    out.backward(grad)
    return [out, *(leaf.grad for leaf in leaves)]


@needs_operation
@pytest.mark.parametrize("rows", [(7,), (3, 5), (700,)])
@pytest.mark.parametrize(("num_in", "num_out"), [(24, 40), (40, 24), (16, 16)])
@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False), (False, True, True)])
def test_values_and_gradients_are_those_of_torch(calls, rows, num_in, num_out, trained):
    x, weight, bias = numbers(*rows, num_in), numbers(num_out, num_in, seed=1), numbers(num_out, seed=2)
    grad = numbers(*rows, num_out, seed=3)
    found = with_gradients(linear, x, weight, bias, grad, trained)
    expected = with_gradients(F.linear, x, weight, bias, grad, trained)
    assert len(calls) == 1 + trained[0] + trained[1]
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-5)


@needs_operation
@pytest.mark.parametrize("laid", ["transposed", "every other row", "some columns"])
def test_tensors_that_lie_otherwise_in_memory(calls, laid):
    """A summed output's gradient has strides of 0, a split weight others than its shape says."""
    x = {
        "transposed": lambda: numbers(24, 70).t(),
        "every other row": lambda: numbers(140, 24)[::2],
        "some columns": lambda: numbers(70, 60)[:, 7:31],
    }[laid]()
    weight = numbers(24, 40, seed=1).t()
    grad = numbers(1).expand(70, 40)
    found, expected = (
        with_gradients(product, x, weight, numbers(40), grad, (True, True, True)) for product in (linear, F.linear)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@needs_operation
def test_without_gradient_and_without_bias(calls):
    x, weight = numbers(33, 20), numbers(12, 20, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=2e-5, rtol=1e-5)
    assert calls == [((33, 20), (12, 20))]


@needs_operation
@pytest.mark.parametrize("case", ["half", "double", "autocast", "switched off", "other processor"])
def test_everything_else_is_left_to_torch(calls, monkeypatch, case):
    dtype = {"half": torch.bfloat16, "double": torch.float64}.get(case, torch.float32)
    layer = Linear(20, 12).to(dtype)
    x = numbers(33, 20).to(dtype)
    if case == "other processor":
        monkeypatch.setattr(module, "onednn_is_faster", lambda: False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        before = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = case != "switched off"
        try:
            out = layer(x)
        finally:
            torch.backends.mkldnn.enabled = before
    assert calls == []
    assert out.dtype == (torch.bfloat16 if case == "autocast" else dtype)


def test_a_small_product_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(module, "_onednn", None)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    assert Linear(8, 8)(numbers(4, 8)).shape == (4, 8)


@pytest.mark.parametrize(
    ("text", "expected"), [("vendor_id : AuthenticAMD", True), ("vendor_id : GenuineIntel", False)]
)
def test_who_made_the_processor_decides(monkeypatch, text, expected):
    monkeypatch.setattr(module, "_processor", lambda: text)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert module.onednn_is_faster.__wrapped__() == (expected and HAS_OPERATION)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not module.onednn_is_faster.__wrapped__()
