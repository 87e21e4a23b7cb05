import numpy as np

from r3_rl.observe.strip import strip
from r3_rl.observe.trajectories import SeenRound, SeenTrajectory
from tests.observe.runs import trajectory


def test_images_are_enlarged_with_hard_pixels_and_stand_in_order():
    shown = np.asarray(strip(trajectory([0.3, 0.6, 1.0]), image_px=128))
    middles = [shown[100, x] for x in (16 + 64, 16 + 64 + 280, 16 + 64 + 560)]
    assert [tuple(int(value) for value in middle) for middle in middles] == [
        (60, 110, 230),
        (60, 190, 90),
        (222, 60, 50),
    ]


def test_words_are_drawn():
    plain = strip(trajectory([0.3, 1.0], prompt="a"))
    longer = strip(trajectory([0.3, 1.0], prompt="a " * 200))
    assert longer.width == plain.width and longer.height >= plain.height + 40


def test_a_long_word_is_broken_rather_than_cut():
    assert strip(trajectory([0.3], prompt="x" * 400)).height > strip(trajectory([0.3], prompt="x")).height


def test_a_missing_image_is_said():
    seen = SeenTrajectory(prompt="p", tag="", rounds=(SeenRound(pixels=None),))
    assert len(strip(seen).getcolors()) > 3
