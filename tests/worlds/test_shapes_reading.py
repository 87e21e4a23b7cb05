"""Typed prompts: what the world's own prompts ask for is read back from their words, and nonsense is not."""

from __future__ import annotations

import pytest

from r3_rl.worlds.shapes.prompts import TAGS, all_prompts
from r3_rl.worlds.shapes.reading import read_prompt


@pytest.mark.parametrize("tag", TAGS)
def test_every_prompt_of_the_world_is_read_as_what_it_asks_for(tag):
    for prompt in all_prompts(tag):
        read = read_prompt(prompt.text)
        assert read is not None and read.text == prompt.text
        assert {**read.columns, "tag": prompt.columns["tag"]} == prompt.columns
    same_kind = read.columns["tag"] == tag
    assert same_kind or tag == "single_object", "a single object with a colour is a prompt of two kinds"


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("Circle", [("circle", 1, None)]),
        ("  three  Red Circles, and  a cross ", [("circle", 3, "red"), ("cross", 1, None)]),
        ("a circle , two squares , a green cross", [("circle", 1, None), ("square", 2, None), ("cross", 1, "green")]),
        ("the circle below a blue square", [("square", 1, "blue"), ("circle", 1, None)]),
    ],
)
def test_what_people_type_is_read(typed, asked):
    include = read_prompt(typed).columns["include"]
    assert [(item["class"], item["count"], item.get("color")) for item in include] == asked


@pytest.mark.parametrize(
    "typed",
    ["", "nice", "a circle circle", "circle and", "two circles above a cross", "above a cross", "a red blue cross"],
)
def test_what_cannot_be_checked_is_none(typed):
    assert read_prompt(typed) is None
