"""The scorers that need no weights, each against figures worked out by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from r3_rl.rewards.format import format as well_formed
from r3_rl.rewards.jpeg_size import jpeg_size
from r3_rl.rewards.length import length
from r3_rl.rewards.sharpness import sharpness


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>the dog is blue</think> make the dog red", 1.0),
        ("the dog is blue</think> make the dog red", 1.0),
        ("  <think>\nthe dog\n\nis blue\n</think>\n\nNo further edit needed\n", 1.0),
        ("<think></think> make the dog red", 1.0),
        ("make the dog red", 0.0),
        ("<think>the dog is blue", 0.0),
        ("<think>the dog is blue</think>", 0.0),
        ("<think>the dog is blue</think>  \n ", 0.0),
        ("<think>a</think> make it red</think>", 0.0),
        ("<think>a</think> make it red <think>b", 0.0),
        ("<think>a<think>b</think> make it red", 0.0),
        ("make it red <think>a</think> make it red", 0.0),
        ("<think>a</think> make it red\nand make it large", 0.0),
        ("", 0.0),
    ],
)
def test_format(text, score):
    reasons = {}
    assert well_formed(completions=[text], log_extra=reasons.__setitem__) == [score]
    assert bool(reasons["reason"][0]) == (score == 0.0)


def test_length_falls_in_a_straight_line():
    texts = [" ".join(["word"] * count) for count in (0, 80, 85, 90, 100, 1000)]
    assert length(completions=texts) == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("soft_words", [0, 11])
def test_length_refuses_a_slope_that_is_none(soft_words):
    with pytest.raises(ValueError, match="soft_words must lie between 1 and max_words"):
        length(completions=["a"], max_words=10, soft_words=soft_words)


def test_jpeg_size_is_the_size_of_the_file():
    gradient = np.linspace(0, 255, 64 * 48 * 3).astype(np.uint8).reshape(48, 64, 3)
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, format="JPEG", quality=80)
    logged = {}
    kept = len(file.getvalue()) / (3 * 48 * 64)
    assert jpeg_size([gradient], quality=80, prefer="large", log_metric=logged.__setitem__) == [kept]
    assert jpeg_size([gradient], quality=80) == [1 - kept]
    assert logged == {"kilobytes": len(file.getvalue()) / 1000}


def test_jpeg_size_of_a_tiny_image_stays_in_range():
    assert jpeg_size([np.zeros((2, 2, 3), dtype=np.uint8)]) == [0.0]


def test_sharpness_by_hand():
    # A grey of 0 with one white pixel: the Laplacian is -4 there, 1 at its four neighbours, 0 elsewhere inside.
    image = np.zeros((7, 9, 3), dtype=np.uint8)
    image[3, 4] = 255
    values = np.zeros(5 * 7)
    values[:5] = (-4, 1, 1, 1, 1)
    assert sharpness([image], half=0.5) == [pytest.approx(values.var() / (values.var() + 0.5))]


def test_sharpness_of_a_flat_image_is_zero_and_noise_is_near_one():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    flat, noisy = sharpness([np.full((32, 32, 3), 90, dtype=np.uint8), noise])
    assert flat == pytest.approx(0.0, abs=1e-12)
    assert 0.95 < noisy < 1.0


def test_sharpness_needs_an_inside():
    with pytest.raises(ValueError, match="3 x 3"):
        sharpness([np.zeros((2, 9, 3), dtype=np.uint8)])
