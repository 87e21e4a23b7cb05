"""Guidance of images that are not square: every branch sees the same shape, in the rollout and in the replay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.policy.base import Drawing
from tests.policy.tiny import pictures, tiny_policy

# nothing renormalised away: a dropped branch that differs is pulled from four times over
STRONG = Guidance(text=4.0, interval=(0.0, 1.0), renorm_min=1.0)
DRAWING = Drawing(num_steps=3, convention="r3_constant", eta=0.05, sde_steps=(0, 1, 2))


@pytest.mark.parametrize("size", [(24, 36), (36, 24)])
@pytest.mark.parametrize("edited", [False, True])
def test_a_dropped_context_that_is_the_full_one_changes_nothing(size, edited):
    """Only a text that guidance keeps: the branch without text reads what the full one reads, so they must agree."""
    policy = tiny_policy()
    image = ImagePiece(image=pictures(1, height=size[0], width=size[1])[0], use="edit")
    context = (*((image,) if edited else ()), TextPiece(text="a red circle", keep=True))
    plain = replace(DRAWING, size=size)
    guided = replace(plain, guidance=STRONG)
    (a,), (b,) = (policy.draw([context], [drawing], [1]) for drawing in (plain, guided))
    torch.testing.assert_close(a.image, b.image, atol=1e-4, rtol=0)
    (with_branch, without) = policy.replay([b, replace(b, drawing=plain)])
    torch.testing.assert_close(with_branch.velocity, without.velocity, atol=1e-4, rtol=0)
    dropped = (*context[:-1], replace(context[-1], keep=False))
    (c,) = policy.draw([dropped], [guided], [1])
    assert not torch.allclose(c.image, a.image, atol=1e-2), "guidance by a text that is dropped does pull"
