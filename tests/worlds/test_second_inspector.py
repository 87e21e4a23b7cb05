"""The second inspector of the mosaic world: right by itself, and a scorer that can be held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r3_rl.errors import CheckpointError
from r3_rl.rewards.mosaic import mosaic, mosaic_second, mosaic_strict
from r3_rl.worlds.base import find_world
from r3_rl.worlds.shapes.board import NINE
from r3_rl.worlds.shapes.drawing import render
from r3_rl.worlds.shapes.mosaic.board import MOSAIC
from r3_rl.worlds.shapes.scene import random_scene
from r3_rl.worlds.shapes.second_inspector import FILE, inspect, place_of
from r3_rl.worlds.shapes.second_training import agreement, train
from r3_rl.worlds.shapes.validation import disturb

WORLD = find_world("mosaic")


def scenes(count, *, rough="", seed=4):
    rng = np.random.default_rng(seed)
    drawn = [random_scene(MOSAIC.any_number(rng), rng, MOSAIC) for _ in range(count)]
    return [tuple(o._replace(rough=rough, wear=float(rng.random()) if rough else 0.0) for o in one) for one in drawn]


@pytest.mark.parametrize(
    ("condition", "least"), [("clean", 0.98), ("noise 0.05", 0.96), ("blur 0.7", 0.96), ("brightness 0.8", 0.87)]
)
def test_it_reads_what_is_drawn(condition, least):
    shown = scenes(100)
    images = disturb(render(shown, MOSAIC), condition, np.random.default_rng(0))
    _, second, _ = agreement(shown, images, MOSAIC)
    assert second >= least


@pytest.mark.parametrize(
    ("rough", "least"), [("faded", 0.97), ("half", 0.75), ("merged", 0.87), ("tinted", 0.5), ("smeared", 0.95)]
)
def test_it_finds_malformed_objects(rough, least):
    shown = scenes(60, rough=rough)
    found = [sum(o.malformed for o in seen) for seen in inspect(render(shown, MOSAIC), MOSAIC)]
    assert sum(found) >= least * sum(map(len, shown))


def test_scorers_agree_on_exact_images_and_tell_near_misses():
    rng = np.random.default_rng(2)
    prompts = WORLD.prompts(60, split="held_out", seed=rng)
    right = [WORLD.scene(prompt, rng) for prompt in prompts]
    near = [WORLD.near_miss(scene, prompt, rng) for scene, prompt in zip(right, prompts, strict=True)]
    asked = [prompt.columns["include"] for prompt in prompts]
    for scorer in (mosaic, mosaic_strict, mosaic_second):
        assert np.mean(scorer(images=list(WORLD.draw(right)), include=asked)) > 0.95
    for scorer in (mosaic_strict, mosaic_second):
        assert np.mean(scorer(images=list(WORLD.draw(near)), include=asked)) < 0.05
    assert 0 < np.mean(mosaic(images=list(WORLD.draw(near)), include=asked)) < 0.3
    assert mosaic_strict(images=list(WORLD.draw(right[:1])), include=[[{"class": "circle", "count": 26}]]) == [None]


def test_it_is_small_and_its_training_repeats_itself():
    assert (place_of(MOSAIC) / FILE).stat().st_size < 1_000_000
    one, two = (train(MOSAIC, seed=3, steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_board_without_one_says_how_to_make_it():
    with pytest.raises(CheckpointError, match=r"second_training shapes"):
        inspect(np.zeros((1, 3, 36, 36)), NINE)
