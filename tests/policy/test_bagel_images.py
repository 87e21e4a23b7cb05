"""Resizing and cutting images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from r3_rl.errors import InputError
from r3_rl.pixels import to_uint8
from r3_rl.policy.bagel import images
from r3_rl.policy.bagel.config import ResizeRule
from r3_rl.policy.bagel.images import patchify, resize, resized_size, to_float
from r3_rl.scoring import batch

RULE = ResizeRule(longest=64, shortest=32, stride=16)


def noise_u8(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_8_bit_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(to_uint8(to_float(levels)), levels)
    assert np.array_equal(to_uint8(to_float(Image.fromarray(levels))), levels)
    assert torch.equal(to_float(torch.from_numpy(levels)), to_float(levels))


def test_levels_are_rounded_half_to_even_and_clamped():
    values = torch.tensor([-0.5, 0.0, 0.5 / 255, 1.5 / 255, 0.9999, 1.0, 7.0]).view(1, 1, 7).expand(3, 1, 7)
    assert to_uint8(values)[0, :, 0].tolist() == [0, 0, 0, 2, 255, 255, 255]
    assert to_uint8(values[None]).shape == (1, 1, 7, 3)


def test_what_scorers_see_is_what_the_model_is_shown_again():
    assert batch.to_uint8 is images.to_uint8 is to_uint8


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 4, 4, dtype=torch.int64),
        torch.zeros(4, 4, 3),
        np.zeros((4, 4, 4), np.uint8),
        torch.full((3, 2, 2), 2.0),
    ],
    ids=["integers", "channels last", "four channels", "beyond 1"],
)
def test_what_is_no_image_is_refused_with_the_fix(image):
    with pytest.raises(InputError, match=r"give|divide"):
        to_float(image)


def test_an_image_of_the_right_size_is_not_touched():
    image = torch.rand(3, 32, 48)
    assert resize(image, RULE) is image


@pytest.mark.parametrize("size", [(7, 9), (500, 20), (33, 47), (64, 64), (1, 1)])
def test_every_size_ends_on_the_stride_within_the_limit(size):
    image = resize(torch.rand(3, *size), RULE)
    assert tuple(image.shape[1:]) == resized_size(*size, RULE)
    assert all(side % RULE.stride == 0 and side <= RULE.longest for side in image.shape[1:])


def test_height_and_width_are_not_swapped():
    wide = torch.zeros(3, 20, 40)
    wide[:, :, 20:] = 1
    out = resize(wide, RULE)
    assert out.shape[2] > out.shape[1]
    assert out[:, :, 0].max() < 0.1 and out[:, :, -1].min() > 0.9


def test_patches_of_a_batch_are_those_of_its_images():
    images = torch.rand(3, 3, 8, 12)
    batch = patchify(images, 4)
    assert torch.equal(batch, torch.stack([patchify(image, 4) for image in images]))
    # the second patch of the second row of patches starts at pixel (4, 4): red, green, blue of it, then the next pixel
    assert torch.equal(batch[0, 4, :6], torch.cat([images[0, :, 4, 4], images[0, :, 4, 5]]))
    with pytest.raises(InputError, match="does not divide"):
        patchify(images, 5)
