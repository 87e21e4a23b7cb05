"""Questions about images in files: read, refused by line, and asked."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from r3_rl.errors import DataError
from r3_rl.evaluate.build import nodes_about, nodes_of_file
from r3_rl.nodes import given_image
from r3_rl.stages.answer_rules import worth
from r3_rl.types import Prompt
from r3_rl.worlds.base import find_world
from r3_rl.worlds.files.questions import load_questions
from r3_rl.worlds.shapes.language import cell_words


def _lines(folder, *rows):
    Image.new("RGB", (8, 6), (200, 0, 0)).save(folder / "a.png")
    path = folder / "q.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


GOOD = {"image": "a.png", "question": "how many cats?", "answer": "two"}


def test_lines_are_read_with_their_rule_and_their_other_columns(tmp_path):
    path = _lines(tmp_path, GOOD, {**GOOD, "answer": 3, "match": "number", "within": 1, "source": "mine"})
    first, second = load_questions(path)
    assert (first.image, first.text, dict(first.columns)) == (tmp_path / "a.png", "how many cats?", {"answer": "two"})
    assert second.columns == {"answer": 3, "match": "number", "within": 1, "source": "mine"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**GOOD, "image": "b.png"}, r"q\.jsonl:2: image: no file .*b\.png"),
        ({"question": "a", "answer": "b"}, r"q\.jsonl:2: image: missing"),
        ({**GOOD, "question": " "}, r"q\.jsonl:2: question: no text"),
        ({**GOOD, "answer": None}, "answer: write a text, a number, or a list"),
        ({**GOOD, "answer": []}, "answer: write a text, a number, or a list"),
        ({**GOOD, "answer": ["", "x"]}, "answer: a right answer is empty"),
        ({**GOOD, "match": "fuzzy"}, 'match: "fuzzy"; use one of exact, yes_no, number, vqa'),
        ({**GOOD, "match": "vqa"}, "'vqa' compares with what several people answered"),
        ({**GOOD, "within": -1}, "within: write a number, 0 or more"),
        ({**GOOD, "within": 1}, "within: only match 'number' has it"),
    ],
)
def test_what_is_wrong_is_told_by_line(tmp_path, row, said):
    path = _lines(tmp_path, GOOD, row)
    with pytest.raises(DataError, match=said):
        load_questions(path)


def test_words_that_the_model_does_not_know_are_told(tmp_path):
    with pytest.raises(DataError, match="question: the model does not know 'cats'"):
        load_questions(_lines(tmp_path, GOOD), unknown_words=lambda text: ["cats"] if "cats" in text else [])


def _challenge(folder, *, image_id=7, answers=("2", "2", "3")):
    folder.mkdir()
    (folder / "val2014").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "val2014" / "COCO_val2014_000000000007.jpg")
    asked = [{"question_id": 5, "image_id": image_id, "question": "how many dogs?"}]
    people = [{"question_id": 5, "answers": [{"answer": answer} for answer in answers]}]
    (folder / "v2_questions.json").write_text(json.dumps({"questions": asked}))
    (folder / "v2_annotations.json").write_text(json.dumps({"annotations": people}))
    return folder


def test_the_files_of_a_challenge_are_read_and_their_answers_graded(tmp_path):
    (found,) = load_questions(_challenge(tmp_path / "vqa"))
    assert found.image.name == "COCO_val2014_000000000007.jpg"
    assert found.columns == {"answer": ["2", "2", "3"], "match": "vqa", "id": 5}
    assert worth("two", found.columns) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)


def test_a_challenge_that_does_not_fit_together_is_told(tmp_path):
    with pytest.raises(DataError, match="a question whose image is not in the folder"):
        load_questions(_challenge(tmp_path / "a", image_id=8))
    with pytest.raises(DataError, match="a question that nobody answered"):
        load_questions(_challenge(tmp_path / "b", answers=()))
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"one file \*\[qQ\]uestions\*\.json is wanted, there is none"):
        load_questions(tmp_path / "c")


def test_each_question_is_asked_once_before_one_comes_again(tmp_path):
    asked = load_questions(_lines(tmp_path, *({**GOOD, "question": f"how many {i}?"} for i in range(3))))
    nodes = nodes_of_file(asked, 5, seed=1)
    texts = [node.prompt.text for node in nodes]
    assert len(set(texts[:3])) == 3
    assert texts == [node.prompt.text for node in nodes_of_file(asked, 5, seed=1)]
    assert {tuple(map(tuple, texts))} != {tuple(map(tuple, [n.prompt.text for n in nodes_of_file(asked, 5, seed=2)]))}
    assert nodes[0].image.shape == (3, 6, 8)
    assert nodes[0].prompt.columns["answer"] == "two"


def test_the_world_asks_about_drawn_images_what_they_show():
    world = find_world("shapes")
    drawn = world.questions(24, seed=3)
    images = [given_image(Prompt(text="x"), torch.from_numpy(q.image)) for q in drawn]
    asked = nodes_about(world, images, seed=1)
    assert len(asked) > 12
    assert {node.prompt.columns["kind"] for node in asked} == set(world.question_kinds)
    seen = world.inspect(torch.stack([node.image for node in asked]).numpy())
    checked = 0
    for node, scene in zip(asked, seen, strict=True):
        if node.prompt.columns["kind"] == "color":
            there = [o.color for o in scene if f"the {o.shape} {cell_words(*o.cell)}" in node.prompt.text]
            assert node.prompt.columns["answer"] == (there[0] if there else "none")
            checked += 1
    assert checked > 1
