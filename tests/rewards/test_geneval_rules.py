"""GenEval's rules against recorded verdicts of its own code; `R3_GENEVAL_VERDICTS=FILE` takes other cases."""

import json
import os
from functools import cache
from pathlib import Path

import pytest

from r3_rl.errors import DataError
from r3_rl.rewards.geneval_request import COLOURS, RELATIONS, read_request
from r3_rl.rewards.geneval_rules import Detection, Rules, colour_questions, judge, keep, overlap, relations

RECORDED = Path(__file__).parents[1] / "golden" / "geneval_verdicts.json"


@cache
def recorded():
    return json.loads(Path(os.environ.get("R3_GENEVAL_VERDICTS", RECORDED)).read_text(encoding="utf-8"))


def judged(case):
    """What our rules say about a recorded case, in the recording's words."""
    rules = Rules(**case["options"])
    asked = case["metadata"]
    request = read_request(asked.get("include"), asked.get("exclude"), asked["tag"])
    seen = {
        name: [Detection(box=tuple(row[:4]), score=row[4]) for row in rows] for name, rows in case["detections"].items()
    }
    kept = keep(seen, request, rules)
    questions = colour_questions(request, kept)
    colours = {q.clause: [case["colors"][q.name][index] for index in q.objects] for q in questions}
    judgement = judge(request, seen, kept, colours, rules)
    calls = [[question.name, len(question.objects)] for question in questions]
    return judgement, {
        "kept": kept,
        "color_calls": calls,
        "correct": judgement.correct,
        "reason": judgement.reason,
    }


def test_every_recorded_verdict_is_reproduced():
    cases = recorded()["cases"]
    wrong = []
    for case in cases:
        _, ours = judged(case)
        wrong += [(case.get("id"), name, case[name], ours[name]) for name in ours if ours[name] != case[name]]
    assert cases
    assert not wrong, f"{len({row[0] for row in wrong})} of {len(cases)} cases differ, first: {wrong[0]}"


def test_partial_is_whole_exactly_when_the_verdict_is_right():
    for case in recorded()["cases"]:
        judgement, _ = judged(case)
        assert 0 <= judgement.partial <= 1
        assert (judgement.partial == 1) == judgement.correct == (judgement.reason == ""), case


def test_every_recorded_pair_of_boxes():
    data = recorded()
    assert list(COLOURS) == data["colors"]
    for pair in data["box_pairs"]:
        assert overlap(pair["a"], pair["b"]) == pytest.approx(pair["iou"], abs=1e-12)
        assert relations(pair["a"], pair["b"], 0.1) == sorted(pair["relations"])


def boxes(count, score=0.95):
    return [Detection(box=(100 * i, 0, 100 * i + 50, 50), score=score - i / 1000) for i in range(count)]


@pytest.mark.parametrize(
    ("found", "partial"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 2 / 3), (5, 1 / 3), (7, 0.0)]
)
def test_partial_of_a_count_falls_on_both_sides(found, partial):
    request = read_request([{"class": "bird", "count": 3}], [{"class": "bird", "count": 4}], "counting")
    seen = {"bird": boxes(found)}
    judgement = judge(request, seen, keep(seen, request, Rules()), {}, Rules())
    assert judgement.partial == pytest.approx(partial)


@pytest.mark.parametrize(
    ("cats", "dogs", "colours", "partial"),
    [
        # cat: count; dog: count, colour, position: four shares.
        (1, 1, {1: ["red"]}, 1.0),
        (1, 1, {1: ["blue"]}, 2 / 4),  # a wrong colour leaves the position unlooked at
        (0, 1, {1: ["red"]}, 2 / 4),
        (1, 0, {}, 1 / 4),
        (0, 0, {}, 0.0),
    ],
)
def test_partial_by_hand(cats, dogs, colours, partial):
    request = read_request(
        [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "color": "red", "position": ["right of", 0]}]
    )
    dog = [Detection(box=(500, 0, 550, 50), score=0.8)] * dogs
    seen = {"cat": boxes(cats), "dog": dog}
    assert judge(request, seen, keep(seen, request, Rules()), colours, Rules()).partial == partial


def test_an_excluded_stranger_costs_its_share():
    request = read_request([{"class": "cat", "count": 1}], [{"class": "dog", "count": 1}])
    seen = {"cat": boxes(1), "dog": boxes(2)}
    judgement = judge(request, seen, keep(seen, request, Rules()), {}, Rules())
    assert (judgement.correct, judgement.partial) == (False, 0.5)
    assert judgement.reason == "expected dog<1, found 2"


def test_of_equal_scores_the_later_comes_first():
    pair = [Detection(box=(0, 0, 9, 9), score=0.5), Detection(box=(50, 0, 59, 9), score=0.5)]
    assert keep({"dog": pair}, read_request([]), Rules()) == {"dog": [1, 0]}


@pytest.mark.parametrize(
    ("include", "words"),
    [
        (["dog"], r"include\[0\] is a str"),
        ([{"count": 1}], r"include\[0\] names no class"),
        ([{"class": "dog"}], r"include\[0\].count is None"),
        ([{"class": "dog", "count": 0}], r"count is 0"),
        ([{"class": "dog", "count": True}], r"count is True"),
        ([{"class": "dog", "count": 1, "region": "top"}], r"include\[0\] has 'region', which GenEval's rules"),
        ([{"class": "dog", "count": 1, "color": "beige"}], r"include\[0\].color is 'beige'; the colours are red"),
        ([{"class": "dog", "count": 1, "position": ["left of", 0]}], r"index of an earlier entry"),
        ([{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["behind", 0]}], r"include\[1\]"),
        ([{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["above", -1]}], r"position is"),
    ],
)
def test_what_the_rules_cannot_judge_is_named(include, words):
    with pytest.raises(DataError, match=words):
        read_request(include)


def test_real_rows_are_read():
    # Three rows of GenEval's published prompts (MIT).
    rows = [
        {
            "tag": "counting",
            "include": [{"class": "clock", "count": 2}],
            "exclude": [{"class": "clock", "count": 3}],
            "prompt": "a photo of two clocks",
        },
        {
            "tag": "position",
            "include": [
                {"class": "toilet", "count": 1},
                {"class": "hair drier", "count": 1, "position": ["left of", 0]},
            ],
            "prompt": "a photo of a hair drier left of a toilet",
        },
        {
            "tag": "color_attr",
            "include": [
                {"class": "wine glass", "count": 1, "color": "purple"},
                {"class": "apple", "count": 1, "color": "black"},
            ],
            "prompt": "a photo of a purple wine glass and a black apple",
        },
    ]
    requests = [read_request(row["include"], row.get("exclude"), row["tag"]) for row in rows]
    assert [request.counting for request in requests] == [True, False, False]
    assert requests[0].exclude == (("clock", 3),)
    assert (requests[1].include[1].relation, requests[1].include[1].target) == ("left of", 0)
    assert [clause.colour for clause in requests[2].include] == ["purple", "black"]
    assert {clause.relation for request in requests for clause in request.include} - {None} <= set(RELATIONS)
