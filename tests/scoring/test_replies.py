"""What a judge wrote is read in one way or not at all."""

import pytest

from r3_rl.scoring.chat import MalformedResponse, Question, read_response
from r3_rl.scoring.replies import read_json, read_json_answers, read_lines, read_score, read_yes_no, shown


@pytest.mark.parametrize(
    "text", ["yes", "Yes.", " YES!\n", '"yes"', "`yes`", "**Yes**, it is", "yes - it is", "yes: two"]
)
def test_yes(text):
    assert read_yes_no(text) is True


@pytest.mark.parametrize("text", ["no", "No.", "no, there is one", "<think>yes?</think> no", "No (it is blue)"])
def test_no(text):
    assert read_yes_no(text) is False


@pytest.mark.parametrize(
    "text",
    ["", "maybe", "yes no", "yes/no", "yes, no", "No. Yes.", "yesterday", "no doubt, yes", "The answer is yes",
     "not yes", "<think>yes", "1", "true", "nope", "yes and no"],
)  # fmt: skip
def test_neither(text):
    assert read_yes_no(text) is None


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("yes\nno", [True, False]),
        ("\n1. Yes, there is a cup\n\n2. No\n", [True, False]),
        ("Q1: yes\nQ2: no", [True, False]),
        ("- 1) yes\n- 2) no", [True, False]),
        ("yes", None),
        ("yes\nno\nno", None),
        ("Here are my answers:\n1. yes", None),
        ("1. yes\n1. no", None),
        ("2. yes\n1. no", None),
        ("1. yes\nno", None),
        ("yes\nunclear", None),
        ("yes, no", None),
        ("", None),
    ],
)
def test_lines(text, answers):
    assert read_lines(text, 2) == answers


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('["yes", "no"]', [True, False]),
        ("[true, false]", [True, False]),
        ('```json\n["Yes.", "no"]\n```', [True, False]),
        ('{"1": {"answer": "yes"}, "2": "no"}', [True, False]),
        ('[{"item": 1, "answer": "yes"}, {"item": "2", "answer": false}]', [True, False]),
        ('[{"item": 2, "answer": "yes"}, {"item": 1, "answer": "no"}]', None),
        ('[{"item": 1}, {"item": 2, "answer": "no"}]', None),
        ('["yes"]', None),
        ('["yes", "no", "no"]', None),
        ("[1, 0]", None),
        ('["yes", null]', None),
        ('{"1": "yes", "3": "no"}', None),
        ('{"1": "yes", "2": "no", "2": "yes"}', None),
        ('["yes", "no"', None),
        ('```\n["yes", "no"]\n```\nor\n```\n["no", "no"]\n```', None),
        ('The answers are ["yes", "no"]', None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_json_answers(text, answers):
    assert read_json_answers(text, 2) == answers


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": 1, "a": 1}', "nothing"])
def test_json_that_says_nothing(text):
    assert read_json(text) is None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0", 0.0),
        ("5.0", 5.0),
        ("**4**", 4.0),
        ("Score: 3/5", 3.0),
        ("rating = 2", 2.0),
        ('{"score": 1.5, "reason": "10/10"}', 1.5),
        ("5.1", None),
        ("-1", None),
        ("3/10", None),
        ("3 or 4", None),
        ("three", None),
        ("true", None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ('{"score": 1e999}', None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_scores_on_a_scale_of_five(text, score):
    assert read_score(text, low=0, high=5) == score


def test_a_long_text_is_shown_by_its_beginning():
    assert len(shown("x" * 1_000_000)) < 100


def top(*pairs):
    entries = ", ".join(f'{{"token": "{token}", "logprob": {logprob}}}' for token, logprob in pairs)
    return f'{{"choices": [{{"logprobs": {{"content": [{{"top_logprobs": [{entries}]}}]}}}}]}}'.encode()


FIRST = Question(text="?", first_token=True)


def test_first_tokens():
    reply = read_response(top(("Yes", -0.1), (" no", -9999), ("No", "-1" + "0" * 400)), FIRST)
    assert [(chance.token, round(chance.probability, 4)) for chance in reply.first] == [
        ("Yes", 0.9048),
        (" no", 0.0),
        ("No", 0.0),
    ]


@pytest.mark.parametrize("body", [top(("Yes", 0.5)), top(("Yes", "true")), top(("Yes", "NaN")), top(("Yes", '"-1"')),
                                  top(("Yes", -0.1), ("No", -0.1)), top(), top(("Yes", "1e999"))])  # fmt: skip
def test_first_tokens_that_are_no_probabilities(body):
    with pytest.raises(MalformedResponse):
        read_response(body, FIRST)
