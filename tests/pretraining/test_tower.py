"""The understanding tower learns to see before anything reads, and what cannot be taught is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.evaluate.pretrain import new_policy
from r3_rl.policy.bagel.backbone import BAGEL, SHARED
from r3_rl.pretraining.tower import train_tower
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.worlds.base import find_world
from r3_rl.worlds.shapes.board import NINE
from r3_rl.worlds.shapes.scene import Obj
from r3_rl.worlds.shapes.squares import squares
from tests.policy.toy import TOY
from tests.worlds.toy import ToyWorld

SHAPES = find_world("shapes")
SMALL = {
    "hidden_size": 32, "num_layers": 1, "intermediate_size": 32, "num_heads": 2, "num_kv_heads": 1,
    "vit_hidden_size": 32, "vit_num_layers": 1,
}  # fmt: skip


def section(steps, **model):
    return PretrainSection.model_validate(
        {"tower_steps": steps, "tower_images": 32, "warmup_steps": 5, "model": {**SMALL, **model}}
    )


def trained(settings, *, backbone=SHARED, world=SHAPES, seed=0):
    policy = new_policy(backbone, settings, world, seed=seed)
    return policy, list(train_tower(policy, backbone, world, settings, seed=seed))


@pytest.mark.parametrize("backbone", [BAGEL, SHARED])
@pytest.mark.parametrize("world", [SHAPES, ToyWorld()], ids=lambda world: world.name)
def test_it_learns_to_tell_what_is_in_each_square(backbone, world):
    settings = section(60, vit_patch_size=8, latent_patch_size=8) if world.name == "toy" else section(60)
    _, told = trained(settings, backbone=backbone, world=world)
    first, last = told[0][1], told[-1][1]
    assert last["tower/loss"] < 0.6 * first["tower/loss"]
    assert last["tower/right"] > first["tower/right"] + 0.3


def test_only_the_tower_moves_and_the_same_seed_moves_it_the_same_way():
    settings = section(3)
    fresh = dict(new_policy(SHARED, settings, SHAPES, seed=0).module.named_parameters())
    (one, _), (other, _) = trained(settings), trained(settings)
    again = dict(other.module.named_parameters())
    moved = {name.split(".")[0] for name, p in one.module.named_parameters() if not torch.equal(p, fresh[name])}
    assert moved == {"vit_model", "connector"}
    assert all(torch.equal(p, again[name]) for name, p in one.module.named_parameters())


def test_no_steps_touch_nothing():
    assert trained(section(0))[1] == []


class Plain(ToyWorld):
    """Its images are not made of squares."""

    def squares(self, scenes):
        return None


@pytest.mark.parametrize(
    ("backbone", "world", "model", "words"),
    [
        (TOY, ToyWorld(), {}, "no tower that can be trained alone"),
        (SHARED, Plain(), {"vit_patch_size": 8, "latent_patch_size": 8}, "'toy' are not made of squares"),
        (SHARED, ToyWorld(), {"vit_patch_size": 4, "latent_patch_size": 8}, "sees 16 patches, the world has 4 squares"),
    ],
)
def test_what_cannot_be_taught_is_refused_in_one_line(backbone, world, model, words):
    settings = section(1)
    if backbone is TOY:
        size = TOY.size_section()
        policy = TOY.new(size, world.tokenizer(), image_size=world.image_size, background=0.0, seed=0)
    else:
        policy = new_policy(backbone, section(1, **model), world, seed=0)
    with pytest.raises(InputError, match=words):
        next(train_tower(policy, backbone, world, settings, seed=0))


def test_labels_say_what_the_inspector_sees():
    rng = np.random.default_rng(0)
    mosaic = find_world("mosaic")
    scenes = [mosaic.scene(prompt, rng) for prompt in mosaic.prompts(20, split="train", seed=0)]
    found = mosaic.squares(scenes)
    assert found.labels.shape == (20, 25, 5)
    assert found.sizes == (2, 6, 4, 2, 2)
    for labels, seen in zip(found.labels, mosaic.inspect(mosaic.draw(scenes)), strict=True):
        assert mosaic.squares([seen]).labels[0].tolist() == labels.tolist()
        assert {divmod(int(k), 5) for k in np.flatnonzero(labels[:, 0] == 1)} == {this.cell for this in seen}


def test_a_malformed_object_is_told_apart():
    clean = Obj("red", "circle", 0, 0)
    labels = squares([(clean,), (clean._replace(rough="faded"),)], NINE).labels
    assert labels[0, 0].tolist()[:4] == labels[1, 0].tolist()[:4]
    assert (labels[0, 0, 4], labels[1, 0, 4]) == (0, 1)
