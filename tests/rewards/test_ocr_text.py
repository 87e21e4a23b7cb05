"""Reading what is written in a picture: real pictures of text, and the real reader, whose models its wheel brings."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from r3_rl.rewards.ocr_text import OcrText, likeness, quoted
from r3_rl.scoring.base import info_of


def written(text):
    picture = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(picture).text((16, 20), text, fill=(180, 0, 0), font=ImageFont.load_default(44))
    return np.asarray(picture)


@pytest.fixture(scope="module")
def reader():
    return OcrText(num_threads=1)


def test_written_words_are_read(reader):
    said = {}
    blank = np.full((96, 96, 3), 255, dtype=np.uint8)
    prompts = ['a sign that says "OPEN"', 'a sign that says "OPEN"', "a mug with “tea” on it", "a cat"]
    scores = reader(prompts, [written("OPEN"), written("OVEN"), blank, blank], log_extra=said.__setitem__)
    assert scores == [1.0, 0.75, 0.0, None]
    assert said["reason"] == ["reads 'OPEN'", "reads 'OVEN'", "reads ''", ""]
    assert said["cause"] == ["", "", "", "no text is asked for"]


def test_a_column_says_what_is_asked_for(reader):
    assert info_of(reader).needs == ("images",)
    by_column = OcrText(column="text", match="exact", num_threads=1)
    assert info_of(by_column).needs == ("images", "text")
    assert by_column(["a", "b"], [written("Tea 4 2")] * 2, text=[["tea", "42"], "tea"]) == [1.0, pytest.approx(3 / 5)]


def test_a_script_without_letters_in_the_model_has_no_score(reader):
    said = {}
    prompts = [f"a sign that says “{text}”" for text in ("Привет мир", "مرحبا", "OPEN Да", "Straße é", "OPEN!")]
    scores = reader(prompts, [written("OPEN")] * 5, log_extra=said.__setitem__)
    assert scores[:3] == [None, None, None]
    assert [score is None for score in scores[3:]] == [False, False]
    assert said["cause"][:2] == [
        "the reader has no Cyrillic letters, such as 'п'",
        "the reader has no Arabic letters, such as 'م'",
    ]
    assert said["cause"][3:] == ["", ""]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "OPEN" and a mug "HI"', ["OPEN", "HI"]),
        ("a sign that says 'don't walk'", ["don't walk"]),
        ("the dog's bowl and the cats' bed", []),
        ("„Hallo“, «salut» and 「道」", ["Hallo", "salut", "道"]),
        ('"" and " "', []),
        ('one " alone', []),
        ('a 12" pizza box that says "HOT"', ["HOT"]),
        ('a 5" by 7" card and a 9" one', []),
        ('a sign that says "ROUTE 66" and "9"', ["ROUTE 66", "9"]),
        ("the '90s neon sign 'RETRO'", ["RETRO"]),
        ("'Tis the season card that says 'JOY'", ["JOY"]),
        ("a shirt that says '90s'", ["90s"]),
        ("rock 'n' roll poster with the word 'LIVE'", ["LIVE"]),
        ("get 'em at the shop 'TIL FIVE' 'til five", ["TIL FIVE"]),
        ("says ＂FULL＂ and ‹half›", ["FULL", "half"]),
    ],
)
def test_quotes(prompt, texts):
    assert quoted(prompt) == texts


@pytest.mark.parametrize(
    ("asked", "read", "anywhere", "exact"),
    [
        (["OPEN"], "open", 1.0, 1.0),
        (["OPEN"], "we are op en today", 1.0, 4 / 14),
        (["OPEN", "HI"], "hi open", 1.0, 1 - 4 / 6),
        (["OPEN", "HI"], "open", (1.0 + 0.0) / 2, 4 / 6),
        (["OPEN"], "", 0.0, 0.0),
        (["OPEN"], "op", 0.5, 0.5),
        (["ＯＰＥＮ"], "open", 1.0, 1.0),
    ],
)
def test_likeness_by_hand(asked, read, anywhere, exact):
    assert likeness(asked, read, "anywhere") == pytest.approx(anywhere)
    assert likeness(asked, read, "exact") == pytest.approx(exact)
