"""Muon: updates of a matrix have singular values near 1, and they descend."""

from __future__ import annotations

import torch

from r3_rl.pretraining.muon import Muon, orthogonalise


def test_updates_are_nearly_orthogonal_whatever_the_scale_and_shape():
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 6, 6), (3, 4, 12), (1, 12, 4)):
        for scale in (1e-4, 1.0, 1e3):
            made = orthogonalise(scale * torch.randn(shape, generator=generator), num_steps=8)
            assert (torch.linalg.svdvals(made) - 1).abs().max() < 0.4


def test_a_batch_is_what_its_matrices_are_alone():
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalise(x), torch.cat([orthogonalise(m[None]) for m in x]))


def test_it_descends_and_leaves_parameters_without_gradient_alone():
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(6, 4, generator=generator)
    weight, idle = torch.nn.Parameter(torch.zeros(6, 4)), torch.nn.Parameter(torch.ones(6, 4))
    optimiser = Muon([weight, idle], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0] and torch.equal(idle, torch.ones(6, 4))


def test_weight_decay_is_decoupled():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimiser = Muon([weight], lr=0.5, weight_decay=0.2)
    weight.grad = torch.zeros(2, 2)
    optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.9))
