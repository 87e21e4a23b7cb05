"""A server of scorers that goes wrong in every way: the run never hangs, learns from no wrong number, reads one line.

`pytest -s` prints the line and the seconds of each fault.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgpack
import pytest

from r3_rl.errors import ScorerError
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.panel import Panel
from r3_rl.scoring.remote import RemoteScorer
from r3_rl.scoring.seat import ScorerSpec
from r3_rl.types import Prompt

TIMEOUT_S, ATTEMPTS = 1.0, 2
INFO = {
    "schema_version": 1,
    "limits": {},
    "scorers": [
        {
            "name": "liar",
            "version": "1",
            "fingerprint": "f",
            "range": [0, 1],
            "needs": [],
            "takes": None,
            "deterministic": False,
            "thread_safe": True,
            "group_wise": False,
            "conversational": False,
            "weights_licence": "",
            "memory": "",
        }
    ],
}


@dataclass(kw_only=True)
class Script:
    """What a server does, and how often it was asked."""

    url: str = ""
    calls: int = 0
    closing: threading.Event = field(default_factory=threading.Event)


Act = Callable[[BaseHTTPRequestHandler, Script], None]


def reply(status, body, **headers):
    def act(handler, script):
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


HONEST = reply(200, json.dumps(INFO).encode())
RANGE_UPSIDE_DOWN = INFO | {"scorers": [INFO["scorers"][0] | {"range": [1, 0]}]}


def scores(*values, **fields):
    return reply(200, msgpack.packb({"schema": 1, "fingerprint": "f", "scores": list(values), **fields}))


def silence(handler, script):
    script.closing.wait(20)


def drip(handler, script):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while not script.closing.wait(0.05):
        handler.wfile.write(b"x")


def drip_head(handler, script):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not script.closing.wait(0.05):
        handler.wfile.write(b"x")


def hang_up(handler, script):
    handler.connection.close()


def no_http(handler, script):
    handler.wfile.write(b"\x00\xff garbage \x00" * 50)
    handler.connection.close()


def flood(handler, script):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n")
    for _ in range(50):
        handler.wfile.write(b"\x90" * (1 << 20))


def first_then(first, then):
    def act(handler, script):
        (first if script.calls == 1 else then)(handler, script)

    return act


@pytest.fixture
def faulty() -> Iterator[Callable[..., Script]]:
    """Starts a real HTTP server whose `/score` (and `/info`) does what it is told."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread, Script]] = []

    def start(act: Act, info: Act = HONEST) -> Script:
        script = Script()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def run(self, act):
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client has had enough
                    act(self, script)

            def do_GET(self):
                self.run(info)

            def do_POST(self):
                script.calls += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                self.run(act)

            def finish(self):
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, format, *values):
                """Keep quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        servers.append((server, thread, script))
        return script

    yield start
    for server, thread, script in servers:
        script.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def remote(script, **params):
    return RemoteScorer(script.url, **{"timeout_s": TIMEOUT_S, "attempts": ATTEMPTS, **params})


def ask(scorer):
    """The totals of two samples and the line that ends the step; no step takes longer than it may."""
    batch = ScoreBatch(prompts=[Prompt(text="a dog"), Prompt(text="a cat")])
    start = time.monotonic()
    totals, line = [], ""
    with Panel([ScorerSpec(name="r", scorer=scorer, params={}, timeout_s=60)]) as panel:
        try:
            totals = [verdict.total for verdict in panel.score(batch)]
            panel.metrics()
        except ScorerError as error:
            line = str(error)
    seconds = time.monotonic() - start
    print(f"\n{seconds:6.2f} s  {line or totals}")
    assert seconds < 30
    assert "\n" not in line and "ScorerError" not in line
    return totals, line


SLOW = f"no answer within {TIMEOUT_S:g} s"
FAULTS = {
    "slow": (silence, SLOW),
    "a byte now and then": (drip, SLOW),
    "a byte of its head now and then": (drip_head, SLOW),
    "hangs up": (
        hang_up,
        "the connection broke (RemoteProtocolError: Server disconnected without sending a response.) (2",
    ),
    "no HTTP": (no_http, "the connection broke (RemoteProtocolError: "),
    "garbage": (
        reply(200, b"<html>It works!</html>"),
        "not an answer of a server of scorers: the answer is no msgpack",
    ),
    "a mapping of something else": (reply(200, msgpack.packb({"score": 1})), "not an answer of a server of scorers"),
    "500 for ever": (reply(500, b"oops"), "HTTP 500 (2 attempts)"),
    "an error in words": (reply(413, b'{"error": {"message": "too\\nlarge"}}'), "HTTP 413 (too large)"),
    "an error without end": (reply(500, b"[" * 1_000_000), "HTTP 500 (2 attempts)"),
    "busy for longer than there is time": (reply(503, b"", Retry_After="9"), "HTTP 503; no time left of 1 s"),
    "a redirection": (reply(302, b"", Location="http://127.0.0.1:1/"), "HTTP 302"),
    "50 MB": (flood, "the answer has more than 1081344 bytes"),
    "compressed": (reply(200, b"x" * 100, Content_Encoding="gzip"), "the answer is compressed"),
    "another scorer than before": (scores(0.5, 0.5, fingerprint="g"), "the scorer 'liar' behind it has changed"),
    "NaN": (scores(float("nan"), float("inf")), "it returned nan"),
    "nothing": (scores(None, None, causes={"0": "OSError: disk"}), "OSError: disk; first at sample 0 (prompt 'a dog')"),
}
LIES = {
    "too few": (scores(0.5), "it returned 1 scores for 2 samples"),
    "too many": (scores(0.5, 0.5, 0.5), "it returned 3 scores for 2 samples"),
    "texts": (scores("0.5", "1"), "it returned str '0.5' where a number or None belongs"),
    "out of range": (scores(0.5, 1.5), "it returned 1.5, outside its declared range 0 to 1; first at sample"),
    "reasons for others": (scores(0.5, 0.5, reasons=["a"]), "it gave 1 reasons for 2 samples"),
    "its scorer broke the contract": (
        scores(fault="it returned None\ninstead"),
        "scorer 'r': it returned None instead",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_scores_missing_and_ends_in_one_line(faulty, name):
    act, said = FAULTS[name]
    script = faulty(act)
    totals, line = ask(remote(script))
    assert totals == [None, None]
    assert line.startswith("scorer 'r': 2 of 2 scores are missing (100%, allowed 25%); ")
    assert said in line


@pytest.mark.parametrize("name", LIES)
def test_an_answer_against_the_contract_stops_at_once(faulty, name):
    act, said = LIES[name]
    totals, line = ask(remote(faulty(act)))
    assert totals == []
    assert said in line


@pytest.mark.parametrize(
    "first",
    [reply(500, b""), reply(502, b""), hang_up, reply(503, b"", Retry_After="0")],
    ids=["500", "502", "hangs up", "503"],
)
def test_what_passes_is_tried_again(faulty, first):
    script = faulty(first_then(first, scores(0.25, 0.75)))
    totals, line = ask(remote(script, timeout_s=20))
    assert (totals, line, script.calls) == ([0.25, 0.75], "", 2)


def test_retry_after_is_honoured_and_is_no_failure(faulty):
    script = faulty(first_then(reply(503, b"", Retry_After="1"), scores(0.25, 0.75)))
    start = time.monotonic()
    assert ask(remote(script, attempts=1, timeout_s=20))[0] == [0.25, 0.75]
    assert time.monotonic() - start >= 1


def test_a_mistake_of_the_request_is_not_tried_again(faulty):
    script = faulty(reply(400, b""))
    ask(remote(script, attempts=5))
    assert script.calls == 1


def test_one_request_of_several_fails_alone(faulty):
    script = faulty(first_then(reply(400, b""), scores(0.5)))
    totals, line = ask(remote(script, batch_size=1, concurrency=1))
    assert totals == [None, 0.5]
    assert "1 of 2 scores are missing" in line
    assert "HTTP 400" in line


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (reply(200, b"<html>"), "its /info is not that of a server of scorers"),
        (reply(200, b"[" * 100_000), "its /info is not that of a server of scorers"),
        (reply(200, json.dumps(INFO | {"schema_version": 2}).encode()), "speaks schema 2 and this program 1"),
        (reply(200, json.dumps(RANGE_UPSIDE_DOWN).encode()), "its /info is not"),
        (reply(200, b"x" * (2 << 20)), "the answer has more than 1048576 bytes"),
        (reply(401, b'{"error": {"message": "no token"}}'), "HTTP 401 (no token)"),
        (silence, SLOW),
    ],
)  # fmt: skip
def test_a_server_that_is_none_is_found_before_anything_is_scored(faulty, act, said):
    script = faulty(silence, info=act)
    with pytest.raises(ScorerError) as raised:
        remote(script)
    assert str(raised.value).startswith(f"{script.url}: ")
    assert said in str(raised.value)


def test_a_server_that_dies(faulty):
    scorer = remote(faulty(silence))
    scorer._exchange = type(scorer._exchange)(**{**vars(scorer._exchange), "url": "http://127.0.0.1:1"})
    totals, line = ask(scorer)
    assert totals == [None, None]
    assert "http://127.0.0.1:1: no connection (Connection refused); is `r3 rewards serve` running there?" in line
