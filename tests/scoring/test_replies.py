"""What a judge wrote is read in one way or not at all."""

import json
import time
from email.utils import formatdate

import pytest

from r3_rl.scoring import exchange, judge
from r3_rl.scoring.chat import MalformedResponse, Question, read_response
from r3_rl.scoring.replies import read_json, read_json_answers, read_lines, read_score, read_yes_no, shown
from r3_rl.scoring.retry_after import retry_after_s


@pytest.mark.parametrize(
    "text",
    ["yes", "Yes.", " YES!\n", '"yes"', "`yes`", "**Yes**, it is", "yes - it is", "yes: two",
     "yes。", "Yes！", "ＹＥＳ", "“yes”", "Answer: yes", "**Final answer:** Yes."],
)  # fmt: skip
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
        ("(1) yes\n(2) no", [True, False]),
        ("1、yes\n２．no", [True, False]),
        ("```\n1. yes\n2. no\n```", [True, False]),
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
        ('~~~json\n["yes", "no"]\n~~~', [True, False]),
        ('````json5\n["yes", "no"]\n````', [True, False]),
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


AROUND = [
    "It is red.\n</think>\n\n{}",
    "<think>maybe ['no']</think>{}",
    "◁think▷ hm ◁/think▷{}",
    "</think>{}",
    "<|begin_of_box|>{}<|end_of_box|>",
    "I see two.</think> <answer>\n{}\n</answer>",
    "{}<|im_end|>",
    "{}\n<|im_end|>\n<|endoftext|>",
    "\ufeff{}",
    "\u200b{}\u200b",
    "<answer>{}</answer></s>",
    "<Thinking>hm</Thinking>\n{}",
    "<thought>a</thought> <think>b</think>{}",
    "hm</reasoning>{}",
    "<seed:think>hm</seed:think>{}",
    "[THINK]hm[/THINK]{}",
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "so <ANSWER>{}</ANSWER>",
    "it is \\boxed{{{}}}",
    "<|im_start|>assistant\n{}<|im_end|>",
    "<s>{}<｜end▁of▁sentence｜>",
    "\u200e{}\xad\u2060",
]


@pytest.mark.parametrize("around", AROUND)
def test_what_reasoning_models_put_around_an_answer(around):
    assert read_yes_no(around.format("yes")) is True
    assert read_lines(around.format("1. yes\r\n2. no"), 2) == [True, False]
    assert read_json_answers(around.format('["yes","no"]'), 2) == [True, False]
    assert read_json_answers(around.format('```json\r\n["yes","no"]\r\n```'), 2) == [True, False]
    assert read_json_answers(around.format('```["yes","no"]```'), 2) == [True, False]
    assert read_score(around.format("7"), low=0, high=10) == 7


@pytest.mark.parametrize(
    "text",
    ["no <think>hm</think> yes", "<think>a</think> yes <think>b</think> no", "<answer>yes</answer><answer>no</answer>",
     "<answer>yes</answer> no", "<think>yes", "yes</think>", "<answer>yes", "<think>a</think>yes</think>no"],
)  # fmt: skip
def test_marks_that_leave_two_answers_or_none(text):
    assert read_yes_no(text) is None


def test_long_thoughts_are_read_in_no_time():
    start = time.perf_counter()
    assert read_yes_no("hm <answer " * 50_000 + "</think> yes") is True
    assert read_yes_no("<answer>" * 50_000) is None
    assert read_json_answers("``` " * 50_000, 2) is None
    assert read_json_answers("`" * 100_000, 2) is None
    assert read_yes_no("x" + " " * 100_000 + "x") is None
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": 1, "a": 1}', "nothing"])
def test_json_that_says_nothing(text):
    assert read_json(text) is None


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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", None), ("nan", None), ("1e9", None), ("", None), ("soon", None),
     ("Thu, 01 Jan 1970 00:00:10 GMT", None), ("Sun, 99 Foo 999999 99:99:99 GMT", None)],
)  # fmt: skip
def test_retry_after_is_read_in_one_way(text, seconds):
    assert retry_after_s(text) == seconds


def test_retry_after_may_be_a_date():
    wait_s = retry_after_s(formatdate(time.time() + 60, usegmt=True))
    assert wait_s is not None and 55 < wait_s <= 60
    assert judge.retry_after_s is exchange.retry_after_s is retry_after_s


def response(content="yes", finish="stop", **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize(
    "finish",
    ["stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "FINISH_REASON_STOP", "complete", "", 2, None],
)
def test_words_for_an_answer_that_ended(finish):
    assert read_response(response(finish=finish), Question(text="?")).text == "yes"
    unsaid = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()
    assert read_response(unsaid, Question(text="?")).text == "yes"


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (response(finish="length"), "cut off; raise max_tokens"),
        (response(finish="MAX_TOKENS"), "cut off; raise max_tokens"),
        (response(finish="content_filter"), "withheld"),
        (response(finish="model_length"), "cut off; raise max_tokens"),
        (response(finish="tool_calls"), "did not end by itself (finish_reason 'tool_calls')"),
        (response(finish="abort"), "did not end by itself (finish_reason 'abort')"),
        (response(None, reasoning_content="it is red"), "only reasoning came, no answer; start the server with"),
        (response("", reasoning="it is red"), "only reasoning came"),
        (response(None, refusal="I cannot"), "the model refuses: 'I cannot'"),
        (response(None, reasoning_details=[{"text": "it is red"}]), "only reasoning came"),
        (response([{"type": "thinking", "thinking": "hm"}]), "only reasoning came"),
        (response([{"type": "refusal", "refusal": "I cannot"}]), "the model refuses: 'I cannot'"),
        (response([]), "the answer is empty"),
    ],
)
def test_why_there_is_no_answer(body, cause):
    reply = read_response(body, Question(text="?"))
    assert reply.text is None and cause in reply.cause


def test_an_answer_in_parts():
    parts = [{"type": "thinking", "thinking": "no?"}, {"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]
    assert read_response(response(parts), Question(text="?")).text == "yes"
    assert read_response(response([{"text": "yes"}]), Question(text="?")).text == "yes"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b'{"error": {"message": "Provider returned\\n error: overloaded"}}',
            "200 with an error: Provider returned error",
        ),
        (b'{"error": "busy"}', "status 200 with an error: busy"),
        (b'[{"error": {"message": "no quota"}}]', "status 200 with an error: no quota"),
        (b'{"error": {"message": "", "code": 7}}', "code"),
        (b'{"detail": "Not found"}', """no 'choices' in it: '{"detail": "Not found"}'"""),
        (b'{"choices": [], "message": "busy"}', "busy"),
        (b'data: {"choices": []}\n\ndata: [DONE]\n', "a stream of events"),
        (b": OPENROUTER PROCESSING\n", "a stream of events"),
        (b"<!doctype html><title>Sign in</title>", "a web page, '<!doctype html><title>Sign in</title>'"),
        (b"Bad gateway", "no JSON, 'Bad gateway'"),
        (b"", "nothing at all"),
        (response({"text": "yes"}), "no text but dict"),
        (response(["yes"]), "no text but list"),
        (response([{"type": "text", "text": 1}]), "a part of its content is no text"),
    ],
)
def test_what_came_instead_of_a_completion_is_said(body, words):
    with pytest.raises(MalformedResponse) as raised:
        read_response(body, Question(text="?"))
    assert words in str(raised.value) and "\n" not in str(raised.value)
