"""The scorers of the shapes world: the same score whatever form the picture comes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from r3_rl.errors import DataError
from r3_rl.rewards.shapes import shapes, shapes_strict
from r3_rl.worlds.shapes.drawing import render
from r3_rl.worlds.shapes.prompts import sample_prompts, sample_scene
from r3_rl.worlds.shapes.scene import Obj

ASKED = [{"class": "circle", "count": 2, "color": "red"}]
ONE, TWO = (Obj("red", "circle", 0, 0),), (Obj("red", "circle", 0, 0), Obj("red", "circle", 2, 1))


def as_bytes(picture):
    return (picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("form", [as_bytes, lambda p: Image.fromarray(as_bytes(p)), torch.from_numpy, np.asarray])
def test_every_form_of_a_picture_gets_the_same_score(form):
    images = [form(picture) for picture in render([ONE, TWO, ()])]
    assert shapes(images=images, include=[ASKED] * 3) == pytest.approx([0.15, 1.0, 0.0])
    assert shapes_strict(images=images, include=[ASKED] * 3) == [0.0, 1.0, 0.0]


def test_the_weight_of_the_strict_verdict_is_a_parameter():
    images = list(render([ONE]))
    assert shapes(images=images, include=[ASKED], strict_weight=0.0) == [0.5]
    with pytest.raises(ValueError, match="strict_weight must lie between 0 and 1"):
        shapes(images=images, include=[ASKED], strict_weight=2.0)


def test_reasons_are_given_in_words():
    said = {}
    shapes(
        prompts=["two red circles"] * 2,
        completions=["", ""],
        images=list(render([ONE, TWO])),
        include=[ASKED] * 2,
        tag=["count_color"] * 2,
        log_extra=said.__setitem__,
    )
    assert said == {"reason": ["expected red circle>=2, found 1", "correct"]}


def test_right_pictures_of_every_kind_score_one():
    rng = np.random.default_rng(12)
    prompts = sample_prompts(100, split="held_out", seed=rng)
    images = list(render([sample_scene(prompt, rng) for prompt in prompts]))
    assert np.mean(shapes_strict(images=images, include=[p.columns["include"] for p in prompts])) == 1.0


def test_what_is_no_picture_is_refused():
    with pytest.raises(DataError, match="cannot read an image of int64"):
        shapes_strict(images=[np.zeros((36, 36, 3), int)], include=[ASKED])
