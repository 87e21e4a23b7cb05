"""Drawing and inspecting: clean shapes are read right under noise, malformed ones are never let pass as clean."""

from __future__ import annotations

import numpy as np
import pytest

from r3_rl.errors import InputError
from r3_rl.worlds.shapes.drawing import BACKGROUND, PALETTE, render, roughen_pixels
from r3_rl.worlds.shapes.inspector import inspect, same_objects
from r3_rl.worlds.shapes.scene import COLORS, ROUGH_KINDS, SHAPES, Obj, random_scene
from r3_rl.worlds.shapes.validation import share_malformed, share_right


def test_every_object_lies_inside_its_cell():
    for corner in (-1.3, 1.3):
        scenes = [(Obj("yellow", shape, 1, 1, corner, corner, 4.4),) for shape in SHAPES]
        image = render(scenes)
        image[:, :, 12:24, 12:24] = BACKGROUND
        assert np.ptp(image) == 0
        inner = render(scenes)[:, :, 12:24, 12:24]
        border = np.concatenate([inner[..., 0, :], inner[..., -1, :], inner[..., 0], inner[..., -1]], axis=-1)
        # The outermost pixel begins 5 px from the middle and a shape ends at 5.7: it is covered by 0.7 at most.
        assert border.max() <= BACKGROUND + 0.71 * (PALETTE[3].max() - BACKGROUND)


@pytest.mark.parametrize("color", COLORS)
def test_shapes_have_the_colours_of_the_palette(color):
    image = render([(Obj(color, "square", 0, 0),)])[0]
    assert image[:, 6, 6] == pytest.approx(PALETTE[COLORS.index(color)])


@pytest.mark.parametrize(
    ("condition", "least"), [("clean", 0.995), ("noise 0.05", 0.97), ("blur", 0.97), ("brightness 0.8", 0.97)]
)
def test_clean_shapes_are_read_right(condition, least):
    assert share_right(400, condition, seed=101) >= least


@pytest.mark.parametrize("rough", ROUGH_KINDS)
@pytest.mark.parametrize("condition", ["clean", "noise 0.05"])
def test_malformed_shapes_are_called_malformed(rough, condition):
    assert share_malformed(250, rough, seed=102, condition=condition) >= 0.9


@pytest.mark.parametrize("amount", [0.3, 0.4, 0.5])
def test_faded_shapes_are_malformed(amount):
    assert share_right(100, f"brightness {amount}", seed=103) < 0.2


def test_a_shape_on_the_border_of_two_cells_is_not_a_clean_object():
    whole = render([(Obj(color, shape, 1, 0),) for color in COLORS for shape in SHAPES])
    for shift in (5, 6, 7):
        seen = inspect(np.roll(whole, shift, axis=-1))
        assert all(any(o.malformed for o in s) for s in seen)


def test_two_colours_in_one_shape_are_malformed():
    images = render([(Obj("red", "circle", 1, 1),)])
    images[:, :, 18:24] = render([(Obj("blue", "circle", 1, 1),)])[:, :, 18:24]
    assert inspect(images)[0][0].malformed


def test_an_empty_picture_shows_nothing_even_under_noise():
    rng = np.random.default_rng(105)
    noise = BACKGROUND + 0.08 * rng.standard_normal((50, 3, 36, 36), np.float32)
    assert not any(inspect(noise))


def test_slight_flaws_of_a_model_are_forgiven():
    rng = np.random.default_rng(106)
    scenes = [random_scene(3, rng) for _ in range(200)]
    seen = inspect(roughen_pixels(render(scenes), rng))
    assert np.mean([same_objects(s, scene) for s, scene in zip(seen, scenes, strict=True)]) >= 0.98


def test_other_images_are_refused():
    with pytest.raises(InputError, match="are not pictures of the shapes world"):
        inspect(np.zeros((1, 3, 32, 32), np.float32))
