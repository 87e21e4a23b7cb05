"""VQA accuracy, worked out by hand."""

from __future__ import annotations

import pytest

from r3_rl.stages.vqa_words import accuracy, contractions, normalised, without_punctuation


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("Yes.", "yes"),
        ("A red  umbrella", "red umbrella"),
        ("the", ""),
        ("Seven", "7"),
        ("none", "0"),
        ("eleven", "eleven"),  # only up to ten
        ("dont know", "don't know"),
        ("don't know", "don t know"),  # an apostrophe inside a word becomes a space, as in the official tool
        ("oclock", "o'clock"),
        ("were", "were"),
        ("red/white", "red white"),
        ("red, white", "red white"),
        ("1,000", "1000"),
        ("1,000/2", "10002"),  # a number with a comma: every mark goes without a space
        ("3.5", "3.5"),
        ("st. john", "st john"),
        ("t-shirt!", "t-shirt!"),  # hyphens and exclamation marks stay
        ("two\ndogs\t", "2 dogs"),
        ("What? (maybe)", "what maybe"),
    ],
)
def test_answers_are_compared_in_one_form(said, compared):
    assert normalised(said) == compared


@pytest.mark.parametrize(("matching", "accuracy_"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_so_many_of_ten_people_agree(matching, accuracy_):
    # 1: the one who agrees is left out once, nine times 1/3; 3: three times 2/3 and seven times 1
    humans = ["red"] * matching + [f"other{i}" for i in range(10 - matching)]
    assert accuracy("Red.", humans) == pytest.approx(accuracy_)


def test_peoples_punctuation_goes_only_if_they_differ():
    assert accuracy("t shirt", ["t/shirt"] * 10) == 0
    assert accuracy("t shirt", ["t/shirt"] * 9 + ["shirt"]) == 1


def test_people_are_taken_as_published():
    assert accuracy("two", ["2"] * 10) == 1
    assert accuracy("2", ["two"] * 10) == 0, "the official tool changes number words in answers, not in the labels"


def test_contractions_are_no_other_words():
    words = contractions()
    assert len(words) == 73
    assert not {"were", "well", "shell", "ill", "id", "wed", "shed", "lets", "its"} & set(words)
    assert all(without_punctuation(full.replace("'", "")) == short for short, full in words.items())
