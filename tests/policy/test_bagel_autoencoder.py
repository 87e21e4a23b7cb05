"""The autoencoder: released names, round trips, types. Its numbers stand in test_goldens_primitives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r3_rl.errors import CheckpointError, InputError
from r3_rl.policy.bagel.autoencoder import Autoencoder, latents_to_tokens, tokens_to_latents
from r3_rl.policy.bagel.config import AutoencoderConfig

LAYOUT = Path(__file__).parents[1] / "golden" / "bagel" / "checkpoint_layout.json"
TINY = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, downsample=2)
PIXELS = AutoencoderConfig(kind="identity", z_channels=3, downsample=1, scale_factor=1.0, shift_factor=0.0)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Autoencoder(TINY)


def test_the_released_file_fits_key_by_key():
    released = json.loads(LAYOUT.read_text())["ae"]
    with torch.device("meta"):
        slots = Autoencoder(AutoencoderConfig()).stored_slots()
    assert {name: list(slot.shape) for name, slot in slots.items()} == released
    assert len({slot.key for slot in slots.values()}) == len(released)


def test_pixels_pass_through_the_identity_unchanged():
    images = torch.rand(2, 3, 4, 6) * 2 - 1
    ae = Autoencoder(PIXELS)
    assert torch.equal(ae.encode(images), images)
    assert torch.equal(ae.decode(ae.encode(images)), images)
    assert ae.stored_state() == {}


def test_scaling_is_undone_by_decoding():
    ae = Autoencoder(replace(PIXELS, scale_factor=0.5, shift_factor=0.25))
    images = torch.full((1, 3, 2, 2), 0.75)
    assert torch.equal(ae.encode(images), torch.full((1, 3, 2, 2), 0.25))
    assert torch.equal(ae.decode(ae.encode(images)), images)


def test_shapes_of_an_image_that_is_not_square(tiny):
    latents = tiny.encode(torch.rand(2, 3, 8, 12))
    assert latents.shape == (2, 4, 4, 6)
    assert tiny.decode(latents).shape == (2, 3, 8, 12)


def test_neither_direction_changes_the_type_of_the_weights(tiny):
    half = Autoencoder(TINY).to(torch.bfloat16)
    half.load_state_dict(tiny.state_dict())
    images = torch.rand(1, 3, 8, 8)
    latents = half.encode(images)
    assert latents.dtype == half.decode(latents).dtype == torch.float32
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(latents, tiny.encode(images), atol=0.02, rtol=0.05)


def test_it_is_frozen_and_repeatable(tiny):
    assert not any(p.requires_grad for p in tiny.parameters())
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(tiny.encode(images), tiny.encode(images))


def test_wrong_images_and_sizes_are_refused(tiny):
    with pytest.raises(InputError, match="multiples of 2"):
        tiny.encode(torch.rand(1, 3, 7, 8))
    with pytest.raises(InputError, match="batch"):
        tiny.encode(torch.rand(3, 8, 8))
    with pytest.raises(CheckpointError, match="hands pixels through"):
        Autoencoder(replace(PIXELS, z_channels=4))
    with pytest.raises(CheckpointError, match="shrink by 2"):
        Autoencoder(replace(TINY, downsample=8))
    with pytest.raises(CheckpointError, match="unknown autoencoder kind"):
        Autoencoder(replace(TINY, kind="vq"))


def test_tokens_are_row_major_with_the_channel_fastest():
    latents = torch.rand(2, 5, 4, 6)
    tokens = latents_to_tokens(latents, 2)
    assert tokens.shape == (2, 6, 20)
    assert torch.equal(tokens[1, 4, :10], torch.cat([latents[1, :, 2, 2], latents[1, :, 2, 3]]))
    assert torch.equal(tokens_to_latents(tokens, (4, 6), 2), latents)
    with pytest.raises(InputError):
        tokens_to_latents(tokens, (6, 6), 2)
    with pytest.raises(InputError):
        latents_to_tokens(latents, 4)
