"""Checklists and labelled questions: what is asked, how it is counted, and that nothing unclear is counted."""

import asyncio
import json

import numpy as np
import pytest

from r3_rl.errors import DataError, ScorerError
from r3_rl.rewards.geneval_plus import GenevalPlus, checklist
from r3_rl.rewards.tiif import Tiif
from r3_rl.rewards.vqa_questions import VqaQuestions
from r3_rl.scoring.panel import Panel, ScoreBatch, ScorerSpec
from r3_rl.types import Prompt

PICTURE = np.full((8, 8, 3), 200, dtype=np.uint8)


@pytest.fixture
def scorer(chat_server):
    made = []

    def build(kind, respond, **params):
        server = chat_server(respond)
        judge = {"base_urls": [server.url], "model": "m", "timeout_s": 10.0, "backoff_s": 0.01, "num_retries": 1}
        made.append(kind(judge=judge, **params))
        return made[-1], server

    yield build
    for one in made:
        one.judge.close()


def score(one, count=1, **columns):
    extras, metrics = {}, {}
    call = one(images=[PICTURE] * count, log_extra=extras.__setitem__, log_metric=metrics.__setitem__, **columns)
    return asyncio.run(call), extras, metrics


def words_of(request):
    return request["messages"][0]["content"][-1]["text"]


QUESTIONS = ["Is there a cat?  ", "Is there a\nmicrowave?", "Is the cat red?"]


def test_right_answers_over_questions_asked(scorer):
    one, server = scorer(VqaQuestions, lambda request: '["yes", "no", "no"]')
    scores, extras, metrics = score(one, questions=[QUESTIONS], answers=[["yes", "Yes", "no "]])
    assert scores == [pytest.approx(2 / 3)]
    assert extras == {"reason": ["Is there a microwave? (no)"], "cause": [""]}
    assert metrics["prompt_tokens_per_sample"] == 100
    assert "1. Is there a cat?\n2. Is there a microwave?\n3. Is the cat red?" in words_of(server.requests[0])


@pytest.mark.parametrize(
    "reply",
    ["[]", '["yes"]', '["yes", "yes", "yes", "yes"]', '["yes", "yes", "unsure"]', "yes\nyes\nyes", "All yes.", "null"],
)
def test_a_reply_that_does_not_answer_each_question_is_no_score(scorer, reply):
    one, _ = scorer(VqaQuestions, lambda request: reply)
    scores, extras, _ = score(one, questions=[QUESTIONS], answers=[["yes"] * 3])
    assert scores == [None]
    assert extras["cause"][0].startswith("the judge's reply is not 3 answers of yes or no: ")


def test_rows_that_cannot_be_asked_are_not_sent(scorer):
    one, server = scorer(VqaQuestions, lambda request: '["yes"]')
    rows = {"questions": [["a?"], [], ["a?", "b?"], ["a?"]], "answers": [["yes"], [], ["yes"], ["perhaps"]]}
    scores, extras, _ = score(one, 4, **rows)
    assert scores == [1.0, None, None, None]
    assert extras["cause"] == [
        "",
        "the column 'questions' holds no question",
        "1 labels in 'answers' for 2 in 'questions'",
        "'answers' holds 'perhaps', which is neither yes nor no",
    ]
    assert len(server.requests) == 1


def test_columns_and_labels_of_ones_own(scorer):
    one, _ = scorer(VqaQuestions, lambda request: "1. yes\n2. no", questions="mine", answers=None, form="lines")
    assert one.info.needs == ("images", "mine")
    assert score(one, mine=[["a?", "b?"]])[0] == [0.5]


def test_tiif_by_its_own_columns_in_lines(scorer):
    one, server = scorer(Tiif, lambda request: "1. yes, a cup\n2. No, there is none")
    rows = {"yn_question_list": [["Is there a cup?  ", "Is there a pig?"]], "yn_answer_list": [["yes", "no"]]}
    assert score(one, **rows)[0] == [1.0]
    assert "Reply with 2 lines" in words_of(server.requests[0])


def item(name, count=1, **more):
    return {"class": name, "count": count, **more}


@pytest.mark.parametrize(
    ("include", "exclude", "statements"),
    [
        ([item("clock", 6)], [item("clock", 7)], ["The picture shows exactly 6 of this: clock."]),
        (
            [item("boat", 3, color="white"), item("cat")],
            [item("dog")],
            [
                "The picture shows exactly 3 of this: boat.",
                "The picture shows exactly 1 of this: cat.",
                "Each boat is white.",
                "The picture shows no dog.",
            ],
        ),
        (
            [item("bench", size="larger", region="above"), item("spoon", size="smaller", region="below")],
            None,
            [
                "The picture shows exactly 1 of this: bench.",
                "The picture shows exactly 1 of this: spoon.",
                "Each bench is above each spoon.",
                "The bench looks larger than the spoon.",
            ],
        ),
        (
            [item("cup", 2, color="red"), item("cup", color="blue"), item("dog", position=["left of", 1])],
            None,
            [
                "The picture shows exactly 2 of this: red cup.",
                "The picture shows exactly 1 of this: blue cup.",
                "The picture shows exactly 1 of this: dog.",
                "The dog is left of the blue cup.",
            ],
        ),
        ([item("cat", region="left")], None,
         ["The picture shows exactly 1 of this: cat.", "Each cat is in the left half of the picture."]),
    ],
)  # fmt: skip
def test_checklists(include, exclude, statements):
    assert checklist(include, exclude) == statements


@pytest.mark.parametrize(
    ("include", "words"),
    [
        ([], "empty"),
        ([item("cat", texture="fluffy")], "'texture', which no statement covers"),
        ([{"class": "cat"}], "no class or no count"),
        (["cat"], "no object"),
        ([item("cat", region="middle")], "region 'middle'"),
        ([item("cat", size="larger")], "size 'larger' of 'cat'"),
        ([item("cat"), item("cat", 2)], "names 'cat' twice"),
    ],
)
def test_what_would_go_unchecked_is_refused(include, words):
    with pytest.raises(DataError, match=words):
        checklist(include)


def verdicts(*answers):
    return json.dumps([{"item": n, "seen": "s", "answer": answer} for n, answer in enumerate(answers, start=1)])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (verdicts("yes", "yes", "yes", "yes"), 1.0),
        (verdicts("yes", "no", "yes", "yes"), 0.3 * 0.75),
        (verdicts("no", "no", "no", "no"), 0.0),
        (verdicts("yes", "yes", "yes"), None),
        (verdicts("yes", "yes", "yes", "partly"), None),
    ],
)
def test_strict_and_partial(scorer, reply, expected):
    one, _ = scorer(GenevalPlus, lambda request: reply)
    include = [item("bus", color="brown"), item("truck", color="green")]
    scores, extras, _ = score(one, include=[include])
    assert scores == [expected if expected is None else pytest.approx(expected)]
    assert bool(extras["reason"][0]) == (expected is not None and expected < 1)
    assert bool(extras["cause"][0]) == (expected is None)


def test_the_strict_verdict_alone(scorer):
    one, _ = scorer(GenevalPlus, lambda request: verdicts("yes", "no"), strict_weight=1.0)
    assert score(one, include=[[item("bus", color="brown")]])[0] == [0.0]


def panel_line(one, num_samples=4):
    spec = ScorerSpec(name="judged", scorer=one, params={})
    columns = {"questions": ["a?"], "answers": ["yes"]}
    prompts = [Prompt(text="a cup", columns=columns)] * num_samples
    with Panel([spec], max_failed_fraction=0.25) as panel:
        verdict = panel.score(ScoreBatch(prompts=prompts, images=[PICTURE] * num_samples))
        assert [one.total for one in verdict] == [None] * num_samples
        with pytest.raises(ScorerError) as raised:
            panel.metrics()
    return str(raised.value)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((500, {}, b"crash"), "status 500, crash; no server of this judge gives an answer"),
        ((401, {}, b"who are you"), "R3_JUDGE_KEY"),
        ("I would rather not", "the judge's reply is not 1 answers of yes or no: 'I would rather not'"),
        ((400, {}, b"too large"), "status 400, too large"),
    ],
)
def test_a_judge_that_fails_ends_the_run_with_one_line(scorer, reply, words):
    line = panel_line(scorer(VqaQuestions, lambda request: reply)[0])
    assert line.startswith("scorer 'judged': 4 of 4 scores are missing (100%, allowed 25%); ")
    assert words in line
    assert line.endswith("first at sample 0 (prompt 'a cup')")
    assert "\n" not in line
