"""Decoding token by token gives what the packed forward pass gives."""

from __future__ import annotations

import pytest
import torch

from r3_rl.modalities import TextPiece
from r3_rl.policy.adapters import AdapterSettings, adapted_layers, adapter_merged, attach
from r3_rl.policy.bagel import decoding
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.bagel.decoding import Decoding
from r3_rl.policy.bagel.encoder import encode
from r3_rl.policy.bagel.packing import TextBlock, pack
from tests.policy.tiny_bagel import tiny_bagel, tiny_policy

WRITTEN = torch.tensor([[5, 9, 7, 6], [8, 5, 11, 10], [6, 6, 12, 5], [9, 10, 5, 7]])


def unlike_norms(model):
    """Norms of one would hide a norm that is left out."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith("_proj.bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def contexts(shared: bool):
    first, second = TextPiece(text="a red circle"), TextPiece(text="blue square top left draw")
    if shared:
        second = TextPiece(text="a blue square")
    return [(first,), (first,), (second,), (second,)]


def decoded(model, encoded, tokens):
    step = Decoding(model, encoded, tokens.shape[1])
    return [step.logits(tokens[:, t]) for t in range(tokens.shape[1])]


def packed(model, encoded, tokens):
    """All tokens at once, after the same contexts."""
    rows = [[TextBlock(ids=[*row.tolist(), 0], num_scored=tokens.shape[1])] for row in tokens]
    with torch.no_grad():
        out = model(pack(rows, model.config, start=encoded.next_position.tolist()), encoded.parts)
    return list(out.logits.view(*tokens.shape, -1).unbind(1))


@pytest.fixture(params=["copied", "called"])
def model(request, monkeypatch):
    if request.param == "called":
        monkeypatch.setattr(decoding, "_MOST_COPIED_BYTES", 0)
    return unlike_norms(tiny_bagel())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("backend", ["matmul", "sdpa"])
def test_logits_are_those_of_the_packed_pass(model, shared, backend):
    model.decoder.backend = backend
    policy = tiny_policy(model)
    encoded = encode(model, policy.reader, contexts(shared))
    assert (encoded.parts[0].share == 2) and (encoded.parts[0].valid is None) == shared
    for one, all_at_once in zip(decoded(model, encoded, WRITTEN), packed(model, encoded, WRITTEN), strict=True):
        torch.testing.assert_close(one, all_at_once, atol=2e-5, rtol=1e-5)


def test_without_any_context(model):
    encoded = encode(model, tiny_policy(model).reader, [()] * len(WRITTEN))
    for one, all_at_once in zip(decoded(model, encoded, WRITTEN), packed(model, encoded, WRITTEN), strict=True):
        torch.testing.assert_close(one, all_at_once, atol=2e-5, rtol=1e-5)


def test_rows_that_stay_go_on_as_before(model):
    policy = tiny_policy(model)
    encoded = encode(model, policy.reader, contexts(shared=False))
    whole = decoded(model, encoded, WRITTEN)
    stay, step = torch.tensor([3, 1]), Decoding(model, encoded, 4)
    for t in range(2):
        step.logits(WRITTEN[:, t])
    step.select(stay)
    for t in (2, 3):
        logits = step.logits(WRITTEN[stay, t])
        torch.testing.assert_close(logits, whole[t][stay], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("merged", [True, False])
def test_an_adapter_is_not_left_out(merged):
    model = unlike_norms(tiny_bagel())
    attach(model, AdapterSettings(rank=2), BAGEL.spec.branches, seed=0)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B["default"].weight.normal_(std=0.3)
    policy = tiny_policy(model)
    encoded = encode(model, policy.reader, contexts(shared=True))
    expected = packed(model, encoded, WRITTEN)
    if merged:
        with adapter_merged(model):
            found = decoded(model, encoded, WRITTEN)
    else:
        found = decoded(model, encoded, WRITTEN)
    with policy.reference():
        base = decoded(model, encoded, WRITTEN)
    torch.testing.assert_close(found[-1], expected[-1], atol=5e-5, rtol=1e-4)
    assert (found[-1] - base[-1]).abs().max() > 1e-2


def test_bfloat16_is_as_near_as_rounding_lets_it_be(model):
    exact = tiny_policy(model)
    encoded = encode(model, exact.reader, contexts(shared=True))
    expected = decoded(model, encoded, WRITTEN)[-1]
    rough = unlike_norms(tiny_bagel()).to(torch.bfloat16)
    encoded = encode(rough, tiny_policy(rough).reader, contexts(shared=True))
    found = decoded(rough, encoded, WRITTEN)[-1]
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).norm() / expected.norm()) < 0.03
