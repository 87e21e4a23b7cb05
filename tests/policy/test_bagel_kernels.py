"""The hand-written parts of the decoder against autograd and against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r3_rl.modalities import TextPiece
from r3_rl.policy.bagel.attention import CachePart, attend
from r3_rl.policy.bagel.decoding import Decoding
from r3_rl.policy.bagel.encoder import encode
from r3_rl.policy.bagel.kernels import _RmsNorm, _Rotate, rms_norm, rotate
from r3_rl.policy.bagel.packing import LatentBlock, LookBlock, TextBlock, pack
from r3_rl.policy.base import Sampling
from tests.policy.golden_set import in_order
from tests.policy.tiny import CONFIG, tiny_policy


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_rms_norm_has_the_gradient_of_its_equation():
    x, weight = normal(3, 2, 5, dtype=torch.float64), normal(5, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: _RmsNorm.apply(a, b, 1e-3), (x.requires_grad_(), weight.requires_grad_())
    )
    frozen = weight.detach()
    assert torch.autograd.gradcheck(lambda a: _RmsNorm.apply(a, frozen, 1e-3), (x,))


def test_rms_norm_is_its_equation_in_both_precisions():
    x, weight = normal(4, 6), normal(6, seed=1)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), expected)
    coarse = rms_norm(x.bfloat16(), weight.bfloat16(), 1e-6)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), expected, atol=0.05, rtol=0.02)


def test_rotation_has_the_gradient_of_its_equation_and_keeps_lengths():
    x = normal(3, 2, 8, dtype=torch.float64)
    angle = normal(3, 1, 4, seed=1, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    assert torch.autograd.gradcheck(lambda a: _Rotate.apply(a, cos, sin), (x.requires_grad_(),))
    turned = rotate(x, cos, sin)
    half = torch.cat([-x[..., 4:], x[..., :4]], -1)
    torch.testing.assert_close(turned, x * torch.cat([cos, cos], -1) + half * torch.cat([sin, sin], -1))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def parts(seed=0):
    """A part that pairs of rows share, with padding, and a part of every row's own."""
    valid = torch.tensor([[True, True, False], [True, True, True]])
    shared = CachePart(keys=[normal(2, 2, 3, 4, seed=seed)], values=[normal(2, 2, 3, 4, seed=seed + 1)], valid=valid)
    shared = shared.read_by([0, 0, 1, 1])
    assert shared.share == 2 and shared.owner is None
    own = CachePart(keys=[normal(4, 2, 2, 4, seed=seed + 2)], values=[normal(4, 2, 2, 4, seed=seed + 3)], valid=None)
    return [shared, own]


def seen(cached):
    return [part.layer(0) for part in cached]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_both_backends_attend_alike(masked, cached):
    q, k, v = normal(4, 5, 4, 4, seed=7), normal(4, 5, 2, 4, seed=8), normal(4, 5, 2, 4, seed=9)
    for x in (q, k, v):
        x.requires_grad_()
    mask = torch.ones(4, 5, 5, dtype=torch.bool).tril() if masked else None
    past = seen(parts()) if cached else []
    outs = [attend(q, k, v, mask, past, backend=backend) for backend in ("matmul", "sdpa")]
    torch.testing.assert_close(*outs)
    weights = normal(*outs[0].shape, seed=3)
    gradients = [torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in outs]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_shared_part_is_what_its_copies_would_be():
    shared, own = parts()
    copies = CachePart(
        keys=[shared.keys[0].repeat_interleave(2, 0)],
        values=[shared.values[0].repeat_interleave(2, 0)],
        valid=shared.valid.repeat_interleave(2, 0),
    )
    q, k, v = normal(4, 3, 4, 4, seed=7), normal(4, 3, 2, 4, seed=8), normal(4, 3, 2, 4, seed=9)
    expected = attend(q, k, v, None, seen([copies, own]))
    torch.testing.assert_close(attend(q, k, v, None, seen([shared, own])), expected)
    rows = torch.tensor([0, 3, 2])
    left = [part.select(rows) for part in (shared, own)]
    assert [part.share for part in left] == [1, 1]
    torch.testing.assert_close(attend(q[rows], k[rows], v[rows], None, seen(left)), expected[rows])


@pytest.mark.parametrize("backend", ["matmul", "sdpa"])
@pytest.mark.parametrize(
    "owner", [[0, 0, 1, 0], [1, 0, 1, 0], [0, -1, 1, 1], [-1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
)
def test_a_part_serves_groups_of_any_size_and_order(owner, backend):
    whole, own = parts()
    whole = replace(whole, share=1)
    q, k, v = normal(4, 3, 4, 4, seed=7), normal(4, 3, 2, 4, seed=8), normal(4, 3, 2, 4, seed=9)
    read = whole.read_by(owner)
    assert all(x.untyped_storage().data_ptr() == whole.keys[0].untyped_storage().data_ptr() for x in read.keys)
    assert (read.owner is None) == (owner in ([1, 1, 1, 1], [0, 0, 1, 1])), "equal runs keep the stacked product"
    left = torch.tensor([3, 1])
    fewer = [part.select(left) for part in (read, own)]
    for batch, past, rows in ((range(4), [read, own], range(4)), ([3, 1], fewer, range(2))):
        some = list(batch)
        found = attend(q[some], k[some], v[some], None, seen(past), backend=backend)
        for row, b in zip(rows, batch, strict=True):
            alone = [CachePart(keys=[own.keys[0][b, None]], values=[own.values[0][b, None]], valid=None)]
            if owner[b] >= 0:
                alone.insert(0, whole.read_by([owner[b]]))
            expected = attend(q[b, None], k[b, None], v[b, None], None, seen(alone))
            torch.testing.assert_close(found[row, None], expected)


def test_what_equal_runs_share_stays_shared_next_to_unequal_groups():
    """Peers that wrote the same plan are a group of their own, and their prompt is no dearer for it."""
    policy = tiny_policy()
    a, b, *plans = (TextPiece(text=text) for text in ("a red circle", "a cross", "up", "down", "draw a circle"))
    contexts = [(a, plans[i]) for i in (0, 0, 1, 2)] + [(b, plans[i]) for i in (0, 1, 2, 2)]
    encoded = encode(policy.model, policy.reader, contexts)
    assert [(part.share, part.owner, part.keys[0].shape[0]) for part in encoded.parts] == [(4, None, 2), (1, None, 8)]
    ragged = encode(policy.model, policy.reader, contexts[1:])
    assert [(part.share, part.owner, part.keys[0].shape[0]) for part in ragged.parts] == [(1, None, 7)]
    tokens = torch.arange(8) + 5
    whole = Decoding(policy.model, encoded, 1).logits(tokens)
    torch.testing.assert_close(Decoding(policy.model, ragged, 1).logits(tokens[1:]), whole[1:], atol=2e-5, rtol=1e-5)


def test_encoding_fills_no_cache_for_nothing():
    policy = tiny_policy()
    nothing = encode(policy.model, policy.reader, [(), ()])
    assert nothing.parts == [] and nothing.next_position.tolist() == [0, 0]
    mixed = encode(policy.model, policy.reader, [(), (TextPiece(text="a red circle"),)])
    assert mixed.next_position.tolist() == [0, 5]
    sampling = Sampling(max_new_tokens=5)
    (alone,) = policy.write([()], sampling, [1])
    beside, _ = policy.write([(), (TextPiece(text="a"),)], sampling, [1, 2])
    assert alone.token_ids == beside.token_ids


def packed_row():
    """Text, a looked-at image, a clean and two noisy latents: 5, 4 + 2, 2 + 2, 2 + 2 and 2 + 2 tokens."""
    look = LookBlock(patches=torch.zeros(4, 432), grid=(2, 2))
    clean, first, second = (
        LatentBlock(tokens=torch.full((2, 432), value), grid=(2, 1), time=value, noisy=value > 0)
        for value in (0.0, 0.5, 0.25)
    )
    return [TextBlock(ids=[1, 9, 8, 7, 2], num_scored=3), look, clean, first, second]


def test_positions_of_a_packed_row():
    packed = pack([packed_row()], CONFIG, start=[10])
    position = in_order(packed.layout, packed.layout.position).tolist()
    assert position == [10, 11, 12, 13, 14, *[15] * 6, *[16] * 4, *[17] * 8]
    assert packed.next_position.tolist() == [17], "noisy blocks do not move what follows"
    assert packed.targets.tolist() == [9, 8, 7]
    assert packed.latent_position_ids.tolist() == [0, 3] * 3, "two rows of one column in a table of three columns"
    assert packed.latent_times.tolist() == [0, 0, 0.5, 0.5, 0.25, 0.25]
    assert packed.noisy_index.tolist() == [2, 3, 4, 5]


def test_who_looks_at_whom():
    mask = pack([packed_row()], CONFIG).layout.mask[0]
    text, look, clean, first, second = (slice(a, b) for a, b in ((0, 5), (5, 11), (11, 15), (15, 19), (19, 23)))
    assert torch.equal(mask[text, text], torch.ones(5, 5, dtype=torch.bool).tril())
    for image in (look, clean, first, second):
        assert mask[image, image].all()
    assert mask[look, text].all() and mask[clean, look].all() and not mask[look, clean].any()
    assert mask[first, clean].all() and mask[second, clean].all() and mask[second, text].all()
    assert not mask[second, first].any(), "a noisy block is seen by nobody outside itself"


def test_padding_is_looked_at_by_nobody_but_itself():
    packed = pack([packed_row(), [TextBlock(ids=[1, 2])]], CONFIG)
    assert packed.valid.sum(1).tolist() == [23, 2]
    short = packed.layout.mask[1]
    assert not short[:2, 2:].any() and torch.equal(short[2:, 2:], torch.eye(21, dtype=torch.bool))
    assert packed.layout.num_understanding == 5 + 6 + 3 * 2 + 2
