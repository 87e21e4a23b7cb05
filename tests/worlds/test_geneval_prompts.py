"""Training prompts in GenEval's style: their columns, their seed, and that no test prompt is among them."""

from __future__ import annotations

import json
import random

import pytest

from r3_rl.errors import InputError
from r3_rl.worlds.files import held_out
from r3_rl.worlds.files.geneval_prompts import KINDS, geneval_prompts
from r3_rl.worlds.files.geneval_test_keys import TEST_KEYS
from r3_rl.worlds.files.geneval_words import CLASSES
from r3_rl.worlds.files.held_out import KEY_DIGITS, keys_of
from r3_rl.worlds.files.load import load_prompts


def cup(**described):
    return {"class": "cup", "count": 1, **described}


def bus(**described):
    return {"class": "bus", "count": 1, **described}


ALL = [(style, tag) for style in KINDS for tag in KINDS[style]]


@pytest.mark.parametrize(("style", "tag"), ALL)
def test_every_kind_is_readable_and_says_what_it_asks_for(style, tag, tmp_path):
    rows = list(geneval_prompts(25, style=style, tags=[tag]))
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [p.text for p in load_prompts("geneval", file)] == [row["prompt"] for row in rows]
    for row in rows:
        assert row["tag"] == tag
        for item in row["include"]:
            stem = {"knife": "kni", "person": "p"}.get(item["class"], item["class"])
            assert stem in row["prompt"] and item["class"] in CLASSES
            assert item.get("color", "") in row["prompt"] and item.get("size", "") in row["prompt"]
        if tag == "counting":
            (asked,), (too_many,) = row["include"], row["exclude"]
            assert too_many == {"class": asked["class"], "count": asked["count"] + 1}


def test_a_seed_gives_the_same_prompts_and_more_of_them_go_on():
    ten = list(geneval_prompts(10, seed=3))
    assert list(geneval_prompts(30, seed=3))[:10] == ten
    assert list(geneval_prompts(10, seed=4)) != ten


@pytest.mark.parametrize("style", KINDS)
def test_no_prompt_has_a_key_of_the_test_or_of_another(style):
    keys = [keys_of(row["prompt"], row) for row in geneval_prompts(400, style=style)]
    assert not frozenset.union(*keys) & TEST_KEYS
    assert sum(map(len, keys)) == len(frozenset.union(*keys))


@pytest.mark.parametrize(
    ("prompt", "include"),
    [
        ("A photo of a bench.", [{"class": "bench", "count": 1}]),
        ("two cars", [{"class": "car", "count": 2}]),
        (
            "a photo of a sports ball and a bench",
            [{"class": "sports ball", "count": 1}, {"class": "bench", "count": 1}],
        ),
        (
            "a teddy bear left of a dog",
            [{"class": "dog", "count": 1}, {"class": "teddy bear", "count": 1, "position": ["left of", 0]}],
        ),
        ("a photo of six clocks", [{"class": "clock", "count": 6}]),
    ],
)
def test_the_committed_keys_know_test_prompts_in_other_words(prompt, include):
    """The first four ask for what GenEval's test asks, two of them the other way round, the last for GenEval++'s."""
    assert keys_of("in quite other words", {"include": include}) & TEST_KEYS
    assert all(len(key) == KEY_DIGITS for key in TEST_KEYS)


def num_counting(**options) -> int:
    """How many prompts that count exist beside the excluded ones."""
    with pytest.raises(InputError, match=r"only \d+ prompts of these kinds exist") as caught:
        list(geneval_prompts(200, tags=["counting"], **options))
    return int(str(caught.value).split()[1])


def test_what_is_used_up_is_said_and_a_callers_files_are_left_out_by_words_and_by_content(tmp_path):
    first = list(geneval_prompts(9, tags=["counting"]))
    with_columns, words_alone = tmp_path / "columns.jsonl", tmp_path / "words.jsonl"
    with_columns.write_text("\n".join(json.dumps({**row, "prompt": "other words"}) for row in first[:5]))
    words_alone.write_text("\n".join(json.dumps({"prompt": row["prompt"].upper()}) for row in first[5:]))
    beside_the_test = num_counting()
    assert 140 <= beside_the_test <= 3 * len(CLASSES) - 80
    assert num_counting(exclude=[with_columns]) == beside_the_test - 5
    assert num_counting(exclude=[with_columns, words_alone]) == beside_the_test - 9


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([cup(), bus()], [bus(), cup()], True),
        ([cup(), bus(position=["left of", 0])], [bus(), cup(position=["right of", 0])], True),
        ([cup(), bus(position=["left of", 0])], [cup(), bus(position=["right of", 0])], False),
        ([cup(region="left"), bus(region="right")], [cup(), bus(position=["right of", 0])], True),
        ([cup(color="red"), bus()], [cup(), bus(color="red")], False),
        ([cup()], [{"class": "cup", "count": 2}], False),
        ([cup(region="left")], [cup(region="right")], False),
    ],
)
def test_content_is_compared_whatever_its_order(one, other, same):
    assert (held_out.content_of(one) == held_out.content_of(other)) is same


def test_a_list_of_keys_is_written_from_files(tmp_path, capsys):
    rows = list(geneval_prompts(12, seed=9))
    random.Random(0).shuffle(rows)
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held_out.main([str(tmp_path / "mine.jsonl")])
    namespace: dict[str, frozenset[str]] = {}
    exec(capsys.readouterr().out, namespace)
    assert namespace["TEST_KEYS"] == frozenset().union(*(keys_of(row["prompt"], row) for row in rows))


def test_the_verb_prints_json_lines_and_names_what_is_wrong(r3, workplace):
    done = r3("prompts", "geneval", "--num", "3", "--seed", "5", "--tags", "colors", "--tags", "position")
    assert done.code == 0
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert rows == list(geneval_prompts(3, seed=5, tags=["colors", "position"]))
    plus = json.loads(r3("prompts", "geneval", "--num", "1", "--plus").out)
    assert plus["tag"] in KINDS["geneval_plus"]
    for arguments, said in (
        (("--num", "0"), "--num 0: at least 1"),
        (("--num", "1", "--tags", "single_object"), "geneval has no kind 'single_object'; it has two_object"),
        (("--num", "1", "--exclude", "no.jsonl"), "no.jsonl: no such file"),
    ):
        done = r3("prompts", "geneval", *arguments)
        assert (done.code, done.out) == (2, "") and said in done.err
