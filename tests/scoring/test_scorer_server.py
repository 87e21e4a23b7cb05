"""The server of scorers over real HTTP: its scores are those beside the trainer, and strangers get errors."""

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from r3_rl.errors import InputError, ScorerError
from r3_rl.scoring.base import ScorerInfo, scorer_info
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.panel import Panel
from r3_rl.scoring.registry import check_scorer, load_scorer
from r3_rl.scoring.remote import RemoteScorer
from r3_rl.scoring.seat import ScorerSpec
from r3_rl.scoring.server import ServerSettings, running, serve
from r3_rl.scoring.wire import Limits, Request, pack_request, unpack_answer
from r3_rl.types import Prompt
from r3_rl.web.listening import listen

RANDOM_BODIES = int(os.environ.get("R3_RANDOM_BODIES", "2000"))


def spec(scorer, name="served", **fields):
    return ScorerSpec(name=name, scorer=scorer, params={}, **fields)


def post(url, body, **headers):
    """Status, headers and body of a request to `/score`."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request("POST", "/score", body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def said(body):
    return json.loads(body)["error"]["message"]


def asking(*texts, scorer=None):
    return pack_request(Request(scorer=scorer, samples=[{"completions": text} for text in texts], images=[]))


def score(scorer, batch, **fields):
    with Panel([ScorerSpec(name="r", scorer=scorer, params={}, **fields)], max_failed_fraction=1.0) as panel:
        return panel.score(batch), panel.metrics()


def lengths(completions):
    return [float(len(text)) for text in completions]


def pictures(*sizes):
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in sizes]
    return ScoreBatch(prompts=[Prompt(text=f"picture {i}") for i in range(len(sizes))], images=images)


def test_scores_are_those_of_the_scorer_in_this_process():
    batch = pictures(8, 9, 12, 8, 20)
    here, _ = score(load_scorer("sharpness", {"half": 0.1}), batch)
    with running([spec(load_scorer("sharpness", {"half": 0.1}))]) as url:
        there, _ = score(load_scorer("remote", {"url": url, "batch_size": 2}), batch)
    assert [verdict.total for verdict in there] == [verdict.total for verdict in here]


@scorer_info(range=(-2.0, 2.0), needs=("completions",), version="7", group_wise=False)
def talkative(prompts, completions, images, weight, *, draft_images=None, log_metric=None, log_extra=None):
    log_metric("calls", 1)
    log_extra("reason", [f"{text} {None if images is None else images.shape}" for text in completions])
    log_extra("cause", ["it is empty" if not text else "" for text in completions])
    return [w if text else None for text, w in zip(completions, weight, strict=True)]


def test_range_needs_words_causes_metrics_and_columns_come_through():
    prompts = [Prompt(text="p", columns={"weight": weight}) for weight in (1, -2.0, 0.5)]
    with running([spec(talkative)]) as url:
        scorer = RemoteScorer(url)
        assert (scorer.info.range, scorer.info.needs) == ((-2.0, 2.0), ("completions",))
        assert scorer.info.version.startswith("7+")
        verdicts, metrics = score(scorer, ScoreBatch(prompts=prompts, texts=["a", "b", ""]))
        assert [verdict.total for verdict in verdicts] == [1.0, -2.0, None]
        assert [verdict.words for verdict in verdicts][:2] == ["a None", "b None"]
        assert metrics["rewards/r/calls"] == 1
        with (
            Panel([ScorerSpec(name="r", scorer=scorer, params={})]) as panel,
            pytest.raises(ScorerError, match=r"1 of 3 scores are missing .* it is empty; first at sample 2"),
        ):
            panel.score(ScoreBatch(prompts=prompts, texts=["a", "b", ""]))
            panel.metrics()
        with pytest.raises(ScorerError, match="it demands the column 'weight', which the data set lacks"):
            score(scorer, ScoreBatch(prompts=[Prompt(text="p")], texts=["a"]))


def test_one_bad_sample_does_not_take_the_others_with_it():
    batch = pictures(8, 2, 8)
    with running([spec(load_scorer("sharpness"))]) as url:
        verdicts, _ = score(RemoteScorer(url), batch)
        assert [verdict.total is None for verdict in verdicts] == [False, True, False]
        samples = [{"images": 0}, {"images": 1}, {}]
        request = Request(scorer=None, samples=samples, images=[b"no image", _png(batch.images[0])])
        answer = unpack_answer(post(url, pack_request(request))[2])
    assert answer.scores == [None, verdicts[0].total, None]
    assert answer.causes == {"0": "images: 8 bytes are no PNG image", "2": "the sample lacks images"}


def _png(image):
    from r3_rl.scoring.png import encode_png

    return encode_png(image)


def test_a_failure_shows_its_message_and_no_stack_trace():
    def fails(completions):
        raise KeyError("no such colour")

    with running([spec(fails)]) as url:
        answer = post(url, asking("a"))[2]
        assert unpack_answer(answer).causes == {"0": "KeyError: 'no such colour'"}
        assert b"Traceback" not in answer and b".py" not in answer


def test_an_answer_against_the_contract_stops_the_run():
    with running([spec(lambda completions: [0.5])]) as url, pytest.raises(ScorerError) as raised:
        score(RemoteScorer(url), ScoreBatch(prompts=[Prompt(text="p")] * 2, texts=["a", "b"]))
    assert str(raised.value).startswith("scorer 'r': it returned 1 scores for 2 samples; first at sample 0")


def test_a_call_without_end_is_given_up():
    release = threading.Event()

    def hangs(completions):
        release.wait(20)
        return [1.0]

    with running([spec(hangs, timeout_s=0.2)]) as url:
        assert unpack_answer(post(url, asking("a"))[2]).causes == {"0": "TimeoutError: no answer within 0.2 s"}
        release.set()


def test_async_scorers_and_several_at_one_address():
    async def later(completions):
        await asyncio.sleep(0)
        return [0.5] * len(completions)

    with running([spec(later, "later"), spec(lengths, "lengths")]) as url:
        assert unpack_answer(post(url, asking("abc", scorer="later"))[2]).scores == [0.5]
        assert unpack_answer(post(url, asking("abc", scorer="lengths"))[2]).scores == [3.0]
        assert RemoteScorer(url, name="lengths").info.range is None
        for name, problem in ((None, "no scorer is named"), ("x", "no scorer is called 'x'")):
            status, _, body = post(url, asking("a", scorer=name))
            assert (status, said(body)) == (404, f"{problem}; there are: later, lengths")
        with pytest.raises(InputError, match="the parameter 'name' is missing; it serves later, lengths"):
            RemoteScorer(url)
        with pytest.raises(InputError, match="no scorer is called 'x' there"):
            RemoteScorer(url, name="x")


def test_groups_stay_whole():
    seen = []

    def rank(completions):
        seen.append(sorted(completions))
        return [float(sorted(completions).index(text)) for text in completions]

    batch = ScoreBatch(prompts=[Prompt(text="p")] * 5, texts=["b", "a", "z", "y", "c"], groups=[0, 0, 1, 1, 0])
    with running([spec(rank, info=ScorerInfo(group_wise=True))]) as url:
        verdicts, _ = score(RemoteScorer(url, batch_size=1), batch)
    assert [verdict.total for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, 2.0]
    assert sorted(seen) == [["a", "b", "c"], ["y", "z"]]


def test_a_deterministic_scorer_is_asked_once_about_the_same():
    calls = []

    @scorer_info(deterministic=True)
    def counted(completions, log_extra):
        calls.append(list(completions))
        log_extra("reason", completions)
        return [1.0] * len(completions)

    with running([spec(counted)]) as url:
        first = unpack_answer(post(url, asking("a", "b"))[2])
        assert unpack_answer(post(url, asking("b", "c"))[2]).reasons == ["b", "c"]
    assert first.reasons == ["a", "b"]
    assert calls == [["a", "b"], ["c"]]


class Counting:
    """Notes how many calls were inside at once."""

    def __init__(self):
        self.inside = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, completions):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.05)
        with self.lock:
            self.inside -= 1
        return [1.0] * len(completions)


@pytest.mark.parametrize("thread_safe", [True, False])
def test_a_scorer_that_is_not_thread_safe_has_one_call_at_a_time(thread_safe):
    scorer = Counting()
    with running([spec(scorer, info=ScorerInfo(thread_safe=thread_safe))]) as url, ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda text: post(url, asking(text))[0], "abcdef"))
    assert statuses == [200] * 6
    assert scorer.most == (2 if thread_safe else 1)


def test_a_full_queue_sends_away_and_says_when_to_come_again():
    entered, release = threading.Event(), threading.Event()

    def waits(completions):
        entered.set()
        release.wait(20)
        return [1.0] * len(completions)

    with running([spec(waits)], settings=ServerSettings(max_waiting=1)) as url, ThreadPoolExecutor(2) as pool:
        patient = RemoteScorer(url, attempts=1)
        first = pool.submit(post, url, asking("a"))
        entered.wait(20)
        status, headers, body = post(url, asking("b"))
        assert (status, said(body)) == (503, "1 requests are waiting")
        assert int(headers["retry-after"]) >= 1
        second = pool.submit(score, patient, ScoreBatch(prompts=[Prompt(text="p")], texts=["b"]))
        time.sleep(0.3)  # long enough for it to be sent away
        release.set()
        assert first.result()[0] == 200
        assert second.result()[0][0].total == 1.0


def test_a_token_is_demanded_and_never_told(monkeypatch, caplog):
    with running([spec(lengths)], token="secret-7") as url:
        for headers in ({}, {"Authorization": "Bearer secret-8"}, {"Authorization": "secret-7"}):
            status, answered, body = post(url, asking("abc"), **headers)
            assert (status, said(body)) == (401, "the token is missing or wrong")
            assert answered["www-authenticate"] == "Bearer"
        assert post(url, asking("abc"), Authorization="Bearer secret-7")[0] == 200
        with pytest.raises(ScorerError, match=r"HTTP 401 \(the token is missing or wrong\)$"):
            RemoteScorer(url)
        monkeypatch.setenv("MY_TOKEN", "secret-7")
        remote = RemoteScorer(url, token_env="MY_TOKEN")
        verdicts, _ = score(remote, ScoreBatch(prompts=[Prompt(text="p")], texts=["abc"]))
        assert verdicts[0].total == 3.0
    assert "secret-7" not in caplog.text + repr(remote) + repr(remote._exchange)


def test_a_body_that_is_too_large_is_refused_unread():
    small = ServerSettings(limits=Limits(body_bytes=1000), body_timeout_s=0.3)
    with running([spec(lengths)], settings=small) as url:
        status, _, body = post(url, b"", **{"Content-Length": "1001"})
        assert (status, said(body)) == (413, "a body of 1001 bytes; at most 1000 are taken")
        status, _, body = post(url, iter([b"x" * 600] * 2))
        assert (status, said(body)) == (413, "a body of more than 1000 bytes")
        status, _, body = post(url, b"", **{"Content-Length": "999"})
        assert (status, said(body)) == (408, "the body did not arrive within 0.3 s")
        assert post(url, asking("a"))[0] == 200


def test_random_bodies_neither_end_the_server_nor_show_its_inside():
    dice = random.Random(0)
    sound = asking("a dog", "a cat")
    with running([spec(lengths)]) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        statuses = set()
        for _ in range(RANDOM_BODIES):
            if dice.random() < 0.5:
                body = dice.randbytes(dice.randrange(200))
            else:
                body = bytearray(sound)
                for _ in range(dice.randrange(1, 4)):
                    body[dice.randrange(len(body))] = dice.randrange(256)
            connection.request("POST", "/score", body=bytes(body))
            answer = connection.getresponse()
            text = answer.read()
            statuses.add(answer.status)
            assert b"Traceback" not in text and b".py" not in text
            if answer.status != 200:
                assert said(text)
        connection.close()
        assert {400, 413} <= statuses <= {200, 400, 404, 413}
        assert unpack_answer(post(url, sound)[2]).scores == [5.0, 5.0]


def test_other_paths_and_methods_are_errors_in_json():
    with running([spec(lengths)]) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        for method, path, status in (("GET", "/score", 405), ("GET", "/docs", 404), ("POST", "/health", 405)):
            connection.request(method, path)
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["status"]) == (status, status)
        connection.close()


def test_other_machines_are_let_in_with_a_token_only():
    with pytest.raises(InputError, match=r"--host 0\.0\.0\.0 lets other machines in, and there is no token; set one"):
        listen("0.0.0.0", 0, token="")
    with listen("0.0.0.0", 0, token="t"), listen("localhost", 0, token=""):
        pass


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "no scorer to serve"),
        (("sharpness", "length", "--params", "{half: 1.0}"), "parameters for several scorers"),
        (("sharpnes",), "did you mean 'sharpness'"),
        (("sharpness", "--params", "{hlf: 1.0}"), "takes no parameter 'hlf'; did you mean 'half'"),
        (
            ("sharpness", "--token-env", "NO_SUCH_TOKEN"),
            "--token-env NO_SUCH_TOKEN: this environment variable is not set",
        ),
        (("sharpness", "--host", "0.0.0.0"), "there is no token"),
        (("sharpness", "--port", "99999"), "cannot listen on 127.0.0.1 port 99999"),
        (("sharpness", "--workers", "0"), "above 0"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_listens(r3, monkeypatch, arguments, problem):
    monkeypatch.setattr("r3_rl.process.prepare_process", lambda **how: None)  # it would replace this process
    done = r3("rewards", "serve", *arguments, *([] if "--port" in arguments else ["--port", "0"]))
    assert done.code == 2
    assert problem in done.err
    assert done.err.count("\n") == 1


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another --port"):
        options = {"token_env": None, "params": {}, "settings": ServerSettings(), "timeout_s": 1.0}
        serve(["sharpness"], port=taken.getsockname()[1], host="127.0.0.1", **options)


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({}, "needs the parameter 'url'"),
        ({"url": "localhost:8500"}, "url 'localhost:8500' is no address; write http://HOST:PORT"),
        ({"url": "http://host:port"}, "is no address"),
        ({"url": "ftp://host"}, "is no address"),
        ({"url": "http://me:secret@host"}, "url holds a password"),
        ({"url": "http://host/?a=1"}, "ends in a query"),
        ({"url": "http://host", "nme": "a"}, "did you mean 'name'"),
        ({"url": "http://host", "timeout_s": "9"}, "Input should be a valid number"),
        ({"url": "http://host", "attempts": 0}, "attempts must be above 0, not 0"),
        ({"url": "http://host", "token_env": "NO_SUCH_TOKEN"}, "the environment variable NO_SUCH_TOKEN is not set"),
    ],
)
def test_parameters_are_checked_before_anything_is_asked(params, problem):
    (line,) = check_scorer("remote", params)
    assert problem in line
    assert "secret" not in line


@pytest.mark.processes
def test_serving_from_the_command_line_ends_in_order(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def slow(completions):\n"
        "    print('entered', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    command = [sys.executable, "-m", "r3_rl", "rewards", "serve", "./slow.py:slow", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            first, second = process.stdout.readline(), process.stdout.readline()
            url = first.split(" at ")[1].split()[0]
            assert first == f"serving slow at {url} without a token\n"
            assert second == f"recipe:  - {{scorer: remote, params: {{url: '{url}'}}}}\n"
            scorer = RemoteScorer(url)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(score, scorer, ScoreBatch(prompts=[Prompt(text="p")], texts=["abc"]))
                assert process.stdout.readline() == "entered\n"
                process.send_signal(signal.SIGINT)
                assert asked.result()[0][0].total == 3.0, "what was being scored is finished"
            assert process.stdout.read() == "stopped\n"
            assert process.wait(20) == 0
        finally:
            process.kill()
