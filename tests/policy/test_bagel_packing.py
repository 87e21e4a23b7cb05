"""Batches of like and unlike rows, packed."""

from __future__ import annotations

import pytest
import torch

from r3_rl.policy.bagel import packing
from r3_rl.policy.bagel.packing import LatentBlock, TextBlock, pack
from tests.policy.tiny_bagel import tiny_bagel


def rows(lengths):
    """A text of each length, and after every second one an image that is drawn."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for i, length in enumerate(lengths):
        ids = torch.randint(5, 16, (length,), generator=generator).tolist()
        blocks = [TextBlock(ids=ids, num_scored=length - 1)]
        if i % 2:
            tokens = torch.randn(4, 192, generator=generator)
            blocks.append(LatentBlock(tokens=tokens, grid=(2, 2), time=0.5, noisy=True))
        out.append(blocks)
    return out


@pytest.mark.parametrize("lengths", [[5, 9, 7, 12], [12, 12, 12, 12], [30, 4, 4, 4, 4, 5]])
def test_padding_rounds_the_number_of_tokens_and_changes_nothing(monkeypatch, lengths):
    model = tiny_bagel()
    monkeypatch.setattr(packing, "_LEAST_TOKENS", 8)
    sizes, found = [], []
    for size in (1, 8):
        monkeypatch.setattr(packing, "_ROUND", size)
        model.zero_grad()
        packed = pack(rows(lengths), model.config)
        out = model(packed, keep=True)
        (out.logits.square().sum() + out.velocity.square().sum()).backward()
        found.append([out.logits, out.velocity, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        sizes.append(packed.layout.num_understanding)
    assert sizes[0] % 8 and sizes[1] == sizes[0] + -sizes[0] % 8
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_a_batch_without_padding_and_a_small_one_stay(monkeypatch):
    config = tiny_bagel().config
    monkeypatch.setattr(packing, "_ROUND", 8)
    whole = [[TextBlock(ids=list(range(5, 14)))] for _ in range(3)]
    monkeypatch.setattr(packing, "_LEAST_TOKENS", 8)
    assert pack(whole, config).layout.num_understanding == 27
    monkeypatch.setattr(packing, "_LEAST_TOKENS", 512)
    assert pack(rows([5, 9, 7, 12]), config).layout.num_understanding == 5 + 9 + 7 + 12 + 2 * 2
