"""A plan tells what each square of an image is to hold, before any is drawn; what cannot be taught is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from r3_rl.errors import InputError
from r3_rl.evaluate.pretrain import new_policy
from r3_rl.modalities import TextPiece
from r3_rl.policy.bagel.backbone import BAGEL, SHARED
from r3_rl.policy.base import Example
from r3_rl.pretraining.sketch import train_sketch
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.worlds.base import find_world
from tests.policy.toy import TOY
from tests.pretraining.test_tower import SMALL, Plain
from tests.worlds.toy import ToyWorld

SHAPES = find_world("shapes")
ON_TOY = {"vit_patch_size": 8, "latent_patch_size": 8}


def section(steps, *, plans=32, edits=0, **model):
    counts = {"sketch_steps": steps, "sketch_plans": plans, "sketch_edits": edits}
    return PretrainSection.model_validate({**counts, "warmup_steps": 5, "model": {**SMALL, "num_layers": 2, **model}})


def trained(settings, *, backbone=SHARED, world=SHAPES, seed=0):
    policy = new_policy(backbone, settings, world, seed=seed)
    return policy, list(train_sketch(policy, backbone, world, settings, seed=seed))


@pytest.mark.parametrize(("backbone", "plans", "edits"), [(BAGEL, 16, 16), (SHARED, 32, 0), (SHARED, 0, 32)])
def test_it_learns_what_each_square_is_to_hold(backbone, plans, edits):
    _, told = trained(section(60, plans=plans, edits=edits, **ON_TOY), backbone=backbone, world=ToyWorld())
    first, last = told[0][1], told[-1][1]
    assert last["sketch/loss"] < 0.7 * first["sketch/loss"]
    assert last["sketch/right"] > first["sketch/right"] + 0.2, (first, last)


@pytest.mark.parametrize("backbone", [BAGEL, SHARED])
def test_it_sees_the_plan_and_nothing_of_the_image(backbone):
    policy = new_policy(backbone, section(1), SHAPES, seed=0)
    rng = np.random.default_rng(0)
    (prompt,) = SHAPES.prompts(1, split="train", seed=rng)
    scene = SHAPES.scene(prompt, rng)
    images = torch.from_numpy(SHAPES.draw([scene, SHAPES.wrong_scene(prompt, rng)]))
    plan, other = SHAPES.plan_text(scene), SHAPES.plan_text(scene[:-1])

    def held(image, text):
        example = Example(context=(TextPiece(text=prompt.text),), answer=text, image=image)
        return backbone.sketch(policy, [example], torch.Generator().manual_seed(0))

    one = held(images[0], plan)
    assert one.shape[:2] == (1, 9)
    assert torch.equal(one, held(images[1], plan)) and not torch.equal(one, held(images[0], other))
    one.square().sum().backward()
    moved = {name.split(".")[0] for name, p in policy.module.named_parameters() if p.grad is not None}
    assert "decoder" in moved or "language_model" in moved, moved
    assert not moved & {"vit_model", "connector", "llm2vae"}


def test_an_edit_is_named_from_the_image_before_it_and_the_words():
    policy = new_policy(SHARED, section(1), SHAPES, seed=0)
    edits = SHAPES.examples(section(1), seed=0)("edit", 2)
    source, words = edits[0].context

    def held(*context, image=edits[0].image):
        return SHARED.sketch(policy, [Example(context=context, image=image)], torch.Generator().manual_seed(0))

    one = held(source, words)
    assert torch.equal(one, held(source, words, image=edits[1].image))
    assert not torch.equal(one, held(edits[1].context[0], words))
    assert not torch.equal(one, held(source, edits[1].context[1]))


def test_an_update_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="sketch_plans: an update of neither plans nor edits"):
        section(1, plans=0)
    assert section(0, plans=0).sketch_plans == 0 and section(1, plans=0, edits=1).sketch_edits == 1


def test_the_same_seed_moves_the_weights_the_same_way():
    (one, rows), (other, _) = trained(section(2)), trained(section(2))
    assert len(rows) == 2
    again = dict(other.module.named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in one.module.named_parameters())
    assert trained(section(0))[1] == []


@pytest.mark.parametrize(
    ("backbone", "world", "model", "words"),
    [
        (TOY, ToyWorld(), {}, "no painter that can be trained alone"),
        (SHARED, Plain(), ON_TOY, "'toy' are not made of squares"),
        (
            SHARED,
            ToyWorld(),
            {"vit_patch_size": 8, "latent_patch_size": 4},
            "painter has 16 latents, the world has 4 squares",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused_in_one_line(backbone, world, model, words):
    settings = section(1)
    if backbone is TOY:
        policy = TOY.new(TOY.size_section(), world.tokenizer(), image_size=world.image_size, background=0.0, seed=0)
    else:
        policy = new_policy(backbone, section(1, **model), world, seed=0)
    with pytest.raises(InputError, match=words):
        next(train_sketch(policy, backbone, world, settings, seed=0))
