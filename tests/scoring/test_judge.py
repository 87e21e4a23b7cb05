"""The judge against real servers on loopback: what it sends, what it reads, and what it does when they misbehave."""

import asyncio
import base64
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from r3_rl.errors import InputError, ScorerError
from r3_rl.scoring.judge import Judge, JudgeSettings, Question

FAST = {"model": "m", "timeout_s": 5.0, "deadline_s": 20.0, "backoff_s": 0.01, "num_retries": 3}


@pytest.fixture
def judge():
    judges = []

    def build(*urls, **settings):
        judges.append(Judge({**FAST, "base_urls": list(urls), **settings}))
        return judges[-1]

    yield build
    for one in judges:
        one.close()


def ask(judge, *texts, **fields):
    return asyncio.run(judge.ask([Question(text=text, **fields) for text in texts]))


def echo(request):
    return request["messages"][0]["content"][-1]["text"].upper()


def test_what_is_sent(chat_server, judge, monkeypatch):
    monkeypatch.setenv("R3_JUDGE_KEY", "secret-1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "secret-3")
    monkeypatch.setenv("OPENAI_ORG_ID", "secret-4")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "secret-5")
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    server = chat_server(echo)
    settings = {"seed": 7, "max_tokens": 9, "options": {"top_k": 1}}
    assert ask(judge(server.url, **settings), "hello", image=picture)[0].text == "HELLO"
    (request,), (headers,) = server.requests, server.headers
    image, text = request.pop("messages")[0]["content"]
    assert request == {"model": "m", "temperature": 0.0, "seed": 7, "max_completion_tokens": 9, "top_k": 1}
    assert text == {"type": "text", "text": "hello"}
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), picture)
    assert headers["authorization"] == "Bearer secret-1"
    assert not [value for value in headers.values() if any(f"secret-{n}" in value for n in (2, 3, 4, 5))]


def test_settings_for_servers_that_refuse_what_is_sent(chat_server, judge):
    server = chat_server(echo)
    settings = {"max_tokens_key": "max_tokens", "send_seed": False, "temperature": None, "top_logprobs": 5}
    ask(judge(server.url, **settings), "hello")
    server.requests[0].pop("messages")
    assert server.requests[0] == {"model": "m", "max_tokens": 1024}
    ask(judge(server.url, **settings), "hello", first_token=True)
    assert (server.requests[1]["top_logprobs"], server.requests[1]["max_tokens"]) == (5, 1)


@pytest.mark.parametrize(
    ("refused", "setting"),
    [
        ("Unknown field max_completion_tokens", "max_tokens_key: max_tokens"),
        ("Unsupported parameter: 'seed'", "send_seed: false"),
        ("temperature must be 1", "temperature: null"),
        ("top_logprobs must be <= 5", "a lower top_logprobs"),
    ],
)
def test_what_a_server_refuses_names_the_setting(chat_server, judge, refused, setting):
    body = json.dumps({"error": {"message": refused}}).encode()
    (reply,) = ask(judge(chat_server(lambda request: (400, {}, body)).url), "a")
    assert reply.cause.endswith(f"status 400, {refused} (set {setting} under `judge`)")


def test_an_error_with_status_200_is_tried_again_and_said_without_the_key(chat_server, judge, monkeypatch):
    monkeypatch.setenv("R3_JUDGE_KEY", "sk-very-secret")
    body = b'{"error": {"message": "overloaded, sk-very-secret"}}'
    answers = iter([(200, {}, body), "yes"])
    (reply,) = ask(judge(chat_server(lambda request: next(answers)).url), "a")
    assert (reply.text, reply.num_retries) == ("yes", 1)
    with pytest.raises(ScorerError, match=r"status 200 with an error: overloaded, \*\*\*; no server of this judge"):
        ask(judge(chat_server(lambda request: (200, {}, body)).url, num_retries=0), "a")


def test_without_a_key_none_is_sent(chat_server, judge, monkeypatch):
    monkeypatch.delenv("R3_JUDGE_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = chat_server(echo)
    ask(judge(server.url), "hello")
    assert "authorization" not in server.headers[0]


def test_answers_keep_the_order_of_the_questions_and_the_limit_holds(chat_server, judge):
    three_at_once = threading.Barrier(3, timeout=20)
    under_way, most, lock = 0, 0, threading.Lock()

    def respond(request):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        three_at_once.wait()
        with lock:
            under_way -= 1
        return echo(request)

    first, second = chat_server(respond), chat_server(respond)
    one = judge(first.url, second.url, num_concurrent=3, timeout_s=20.0)
    assert [reply.text for reply in ask(one, *map(str, range(12)))] == [str(number) for number in range(12)]
    assert most == 3
    assert min(len(first.requests), len(second.requests)) >= 3, "the load is spread"


def test_it_serves_one_event_loop_after_another_and_can_be_reopened(chat_server, judge):
    one = judge(chat_server(echo).url)
    assert [ask(one, "a")[0].text, ask(one, "b")[0].text] == ["A", "B"]
    one.close()
    assert ask(one, "c")[0].text == "C"


def test_usage_and_money(chat_server, judge):
    one = judge(chat_server(echo).url, usd_per_million_prompt_tokens=2.0, usd_per_million_completion_tokens=10.0)
    for _ in range(2):
        metrics = {}
        one.log_usage(ask(one, "a", "b", "c", "d"), 2, metrics.__setitem__)
    assert metrics == {
        "retries_per_sample": 0.0,
        "prompt_tokens_per_sample": 200.0,
        "completion_tokens_per_sample": 20.0,
        "usd_per_sample": pytest.approx(2 * (100 * 2e-6 + 10 * 10e-6)),
        "usd_so_far": pytest.approx(8 * (100 * 2e-6 + 10 * 10e-6)),
    }


def test_tokens_that_nobody_counted_are_no_metric(chat_server, judge):
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    one = judge(chat_server(lambda request: {"choices": [choice]}).url, usd_per_million_prompt_tokens=2.0)
    metrics = {}
    one.log_usage(ask(one, "a"), 1, metrics.__setitem__)
    assert metrics == {"retries_per_sample": 0.0}


def test_500_then_200(chat_server, judge):
    answers = iter([(500, {}, b"oops"), (503, {}, b""), "yes"])
    (reply,) = ask(judge(chat_server(lambda request: next(answers)).url), "a")
    assert (reply.text, reply.num_retries) == ("yes", 2)


def test_429_waits_as_long_as_it_is_told(chat_server, judge):
    asked_at = []

    def limited(request):
        asked_at.append(time.monotonic())
        return (429, {"Retry-After": "0.3"}, b"slow down") if len(asked_at) == 1 else "yes"

    assert ask(judge(chat_server(limited).url), "a")[0].text == "yes"
    assert asked_at[1] - asked_at[0] >= 0.3


def test_429_for_longer_than_the_deadline_is_given_up_at_once(chat_server, judge):
    server = chat_server(lambda request: (429, {"Retry-After": "3600"}, b"quota"))
    first, second = ask(judge(server.url, num_concurrent=1), "a", "b")
    assert first.text is second.text is None
    assert "status 429, quota; a further attempt would pass deadline_s, 20 s" in first.cause
    assert first.cause == second.cause
    assert len(server.requests) == 1


def test_a_dead_server_is_replaced_by_a_live_one(chat_server, judge):
    dead, alive = chat_server(echo), chat_server(echo)
    dead.close()
    replies = ask(judge(dead.url, alive.url), *"abcdefgh")
    assert [reply.text for reply in replies] == list("ABCDEFGH")
    assert len(alive.requests) == 8


def test_all_dead_is_one_clear_line(chat_server, judge):
    dead = chat_server(echo)
    dead.close()
    with pytest.raises(ScorerError) as raised:
        ask(judge(dead.url, num_concurrent=2), *"abcdefgh")
    assert f"judge {dead.url}: no connection (Connection refused); " in str(raised.value)
    assert "no server of this judge gives an answer" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_questions_side_by_side_do_not_lengthen_the_wait_for_a_dead_server(chat_server, judge):
    dead = chat_server(echo)
    dead.close()
    start = time.monotonic()
    with pytest.raises(ScorerError, match="no server of this judge gives an answer"):
        ask(judge(dead.url, num_retries=5, backoff_s=0.05), *"abcdefgh")
    assert time.monotonic() - start < 6  # rests of 0.05 (1 + 2 + 4 + 8 + 16) = 1.6 s, half as much again at most


def test_a_slow_server_runs_into_the_limit(chat_server, judge):
    released = threading.Event()

    def hang(request):
        released.wait(30)
        return "yes"

    with pytest.raises(ScorerError, match=r"no answer within 0\.1 s; no server"):
        ask(judge(chat_server(hang).url, timeout_s=0.1, num_retries=1), "a")
    released.set()


def test_a_server_that_drips_runs_into_the_limit_too(chat_server, judge):
    def drip(connection):
        connection.send_response(200)
        connection.send_header("Content-Length", "1000")
        connection.end_headers()
        for _ in range(1000):
            connection.wfile.write(b" ")
            time.sleep(0.02)

    with pytest.raises(ScorerError, match=r"no answer within 0\.3 s"):
        ask(judge(chat_server(lambda request: drip).url, timeout_s=0.3, num_retries=0), "a")


def test_the_deadline_ends_a_question_that_is_always_retried(chat_server, judge):
    calm = chat_server(lambda request: (500, {"Retry-After": "0.2"}, b"busy"))
    (reply,) = ask(judge(calm.url, deadline_s=0.5, num_retries=1000), "a")
    assert reply.text is None
    assert "deadline_s, 0.5 s" in reply.cause
    assert len(calm.requests) <= 3


HUGE = b'{"choices": [{"message": {"content": "' + b"y" * 50_000_000 + b'"}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize("status", [200, 500])
def test_50_megabytes_are_not_read(chat_server, judge, status):
    written = []

    def flood(connection):
        connection.send_response(status)
        connection.end_headers()  # no length: the body ends with the connection
        for start in range(0, len(HUGE), 1_000_000):
            connection.wfile.write(HUGE[start : start + 1_000_000])
            written.append(1)

    with pytest.raises(ScorerError, match=r"its response is longer than 1,000,000 bytes"):
        ask(judge(chat_server(lambda request: flood).url, num_retries=0), "a")
    assert len(written) < 45


def test_a_compressed_response_is_refused(chat_server, judge):
    import gzip

    bomb = gzip.compress(b"[" * 20_000_000)
    server = chat_server(lambda request: (200, {"Content-Encoding": "gzip"}, bomb))
    with pytest.raises(ScorerError, match="compressed"):
        ask(judge(server.url, num_retries=0), "a")


def test_a_response_that_breaks_off_is_no_answer(chat_server, judge):
    whole = completion(message={"content": "yes"}, finish_reason="stop")
    server = chat_server(lambda request: (200, {"Content-Length": str(len(whole) + 1)}, whole))
    with pytest.raises(ScorerError, match="no server of this judge gives an answer"):
        ask(judge(server.url, num_retries=0), "a")


def completion(**choice):
    return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502 Bad Gateway</html>",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"choices": []}',
        b'{"choices": [7]}',
        b'{"choices": {"0": 1}}',
        b'{"choices": [{"message": {"content": NaN}, "finish_reason": "stop"}]}',
        completion(finish_reason="stop"),
        completion(message={"content": ["yes"]}, finish_reason="stop"),
        completion(message={"content": 1}, finish_reason="stop"),
    ],
)
def test_garbage_is_no_answer(chat_server, judge, body):
    with pytest.raises(ScorerError, match="its response is no chat completion"):
        ask(judge(chat_server(lambda request: (200, {}, body)).url, num_retries=0), "a")


@pytest.mark.parametrize(
    ("content", "finish", "cause"),
    [
        ("yes", "length", "cut off; raise max_tokens"),
        ("yes", "content_filter", "withheld"),
        ("yes", "abort", "finish_reason 'abort'"),
        ("  ", "stop", "empty"),
        (None, "stop", "empty"),
    ],
)
def test_half_an_answer_is_none(chat_server, judge, content, finish, cause):
    body = completion(message={"content": content}, finish_reason=finish)
    (reply,) = ask(judge(chat_server(lambda request: (200, {}, body)).url), "a")
    assert reply.text is None
    assert cause in reply.cause


def test_a_question_that_the_server_refuses_fails_alone(chat_server, judge):
    def picky(request):
        refusal = {"error": {"message": "context\nlength " + "x" * 5000}}
        return (400, {}, json.dumps(refusal).encode()) if echo(request) == "B" else echo(request)

    a, b, c = ask(judge(chat_server(picky).url), "a", "b", "c")
    assert (a.text, b.text, c.text) == ("A", None, "C")
    assert "status 400, context length x" in b.cause
    assert len(b.cause) < 300


def test_a_question_that_breaks_the_server_does_not_stop_the_others(chat_server, judge):
    def fragile(request):
        return (500, {}, b"crash") if echo(request) == "POISON" else echo(request)

    texts = ["poison", *(f"q{number}" for number in range(30))]
    replies = ask(judge(chat_server(fragile).url, num_concurrent=2, num_retries=2), *texts)
    assert [reply.text for reply in replies] == [None, *(text.upper() for text in texts[1:])]
    assert replies[0].cause.endswith("status 500, crash")


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "environment variable R3_JUDGE_KEY"), (404, "is the model called 'm'"), (307, "base_urls")],
)
def test_what_no_retry_mends_is_raised_at_once_and_never_shows_the_key(chat_server, judge, monkeypatch, status, words):
    monkeypatch.setenv("R3_JUDGE_KEY", "sk-very-secret")
    body = json.dumps({"error": {"message": "Incorrect API key provided: sk-very-secret"}}).encode()
    server = chat_server(lambda request: (status, {"Location": "http://127.0.0.1:1/"}, body))
    one = judge(server.url)
    with pytest.raises(ScorerError, match=words) as raised:
        ask(one, "a")
    assert "very-secret" not in str(raised.value) + repr(one.settings) + repr(raised.value.__cause__)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_urls": []}, "takes a list"),
        ({"base_urls": "http://a"}, "takes a list"),
        ({"base_urls": ["127.0.0.1:8000"]}, "no address"),
        ({"base_urls": ["http://[::1"]}, "no address"),
        ({"base_urls": ["http://me:sk-1@a/v1"]}, "user name or password"),
        ({"model": ""}, "model is empty"),
        ({"num_retries": -1}, "num_retries"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"usd_per_million_prompt_tokens": -1.0}, "usd_per_million_prompt_tokens"),
        ({"options": {"temperature": 1}}, "may not hold temperature"),
        ({"options": {"max_tokens": 1}}, "may not hold max_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens_key": "tokens"}, "max_tokens_key"),
        ({"time_out": 1}, "time_out"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(InputError, match=words) as raised:
        JudgeSettings.read({"base_urls": ["http://127.0.0.1:1/v1"], "model": "m", **settings})
    assert "sk-1" not in str(raised.value)


def test_a_key_that_is_none_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("R3_JUDGE_KEY", "sk-1\nsecret")
    with pytest.raises(InputError, match="R3_JUDGE_KEY") as raised:
        Judge({"base_urls": ["http://127.0.0.1:1/v1"], "model": "m"})
    assert "secret" not in str(raised.value)
