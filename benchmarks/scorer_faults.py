"""What a user reads when a server of scorers or a judge goes wrong, and how long it takes to say so.

For each fault a real HTTP server on loopback misbehaves, a panel asks it about two samples, and the line that would end
the run is printed with its seconds. The client's limits are short (`timeout_s: 2`, two attempts), so that what is
measured is the toolkit's and not the patience it is given.

    python benchmarks/scorer_faults.py --help
"""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from r3_rl.errors import InputError, ScorerError
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import load_scorer
from r3_rl.types import Prompt

INFO = {
    "schema_version": 1,
    "limits": {},
    "scorers": [
        {"name": "faulty", "version": "1", "fingerprint": "f", "range": [0, 1], "needs": [], "takes": None,
         "deterministic": False, "thread_safe": True, "group_wise": False, "conversational": False,
         "weights_licence": "", "memory": ""}
    ],
}  # fmt: skip
REMOTE = {"timeout_s": 2.0, "attempts": 2}
JUDGE = {"timeout_s": 2.0, "num_retries": 1, "deadline_s": 5.0, "model": "m"}


@dataclass(kw_only=True)
class Script:
    """What a server is asked and when it shall end."""

    calls: int = 0
    closing: threading.Event = field(default_factory=threading.Event)


Act = Callable[[BaseHTTPRequestHandler, Script], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to go wrong."""

    name: str
    act: Act | None
    """None: nobody listens on the port."""
    scorer: str = "remote"
    """`remote`, or a judged scorer."""
    at_start: bool = False
    """`/info` goes wrong already."""


def reply(status: int, body: bytes, **headers: str) -> Act:
    """Answers in one piece."""

    def act(handler: BaseHTTPRequestHandler, script: Script) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def first_then(first: Act, then: Act, *, times: int = 1) -> Act:
    """Goes wrong so many times."""
    return lambda handler, script: (first if script.calls <= times else then)(handler, script)


def silence(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """Says nothing."""
    script.closing.wait(60)


def drip(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """A byte now and then."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while not script.closing.wait(0.05):
        handler.wfile.write(b" ")


def hang_up(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """Closes the connection."""
    handler.connection.close()


def no_http(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """Talks something else."""
    handler.wfile.write(b"\x00\xff garbage \x00" * 50)
    handler.connection.close()


def flood(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """50 MB."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n")
    for _ in range(50):
        handler.wfile.write(b"\x90" * (1 << 20))


def scores(*values: Any, **fields: Any) -> Act:
    """The answer of a server of scorers."""
    return reply(200, msgpack.packb({"schema": 1, "fingerprint": "f", "scores": list(values), **fields}))


def said(content: str | None, finish: str = "stop", **choice: Any) -> Act:
    """A chat completion."""
    whole = {"message": {"role": "assistant", "content": content}, "finish_reason": finish, **choice}
    return reply(200, json.dumps({"choices": [whole]}).encode(), Content_Type="application/json")


def chances(logprob: float) -> Act:
    """A chat completion of one token with its log-prob."""
    return said("yes", logprobs={"content": [{"token": "yes", "top_logprobs": [{"token": "yes", "logprob": logprob}]}]})


GOOD = said('["yes", "no"]')
REFUSED = reply(401, b'{"error": {"message": "the token is missing or wrong"}}')
RETRY_SOON, RETRY_LATE = reply(503, b"", Retry_After="1"), reply(503, b"", Retry_After="9")
HTML = reply(200, b"<html>It works!</html>")
COMPRESSED = reply(200, b"x" * 100, Content_Encoding="gzip")

REMOTE_FAULTS = (
    Fault(name="answers nothing", act=silence),
    Fault(name="answers a byte now and then", act=drip),
    Fault(name="dead: the port refuses", act=None),
    Fault(name="hangs up", act=hang_up),
    Fault(name="speaks no HTTP", act=no_http),
    Fault(name="another web page", act=HTML),
    Fault(name="500 every time", act=reply(500, b"oops")),
    Fault(name="500, then 200", act=first_then(reply(500, b""), scores(0.25, 0.75))),
    Fault(name="busy for 1 s, then 200", act=first_then(RETRY_SOON, scores(0.25, 0.75))),
    Fault(name="busy for 9 s", act=RETRY_LATE),
    Fault(name="50 MB", act=flood),
    Fault(name="a compressed answer", act=COMPRESSED),
    Fault(name="a wrong token (at the start)", act=REFUSED, at_start=True),
    Fault(name="restarted with another scorer", act=scores(0.5, 0.5, fingerprint="g")),
    Fault(name="NaN", act=scores(float("nan"), float("nan"))),
    Fault(name="the scorer raises there", act=scores(None, None, causes={"0": "OSError: disk"})),
    Fault(name="too few scores", act=scores(0.5)),
    Fault(name="too many scores", act=scores(0.5, 0.5, 0.5)),
    Fault(name="a score that is a text", act=scores("0.5", "1")),
    Fault(name="a score out of range", act=scores(0.5, 1.5)),
)
VQA, P_YES = "vqa_questions", "p_yes"
JUDGE_FAULTS = (
    Fault(name="answers nothing", act=silence, scorer=VQA),
    Fault(name="answers a byte now and then", act=drip, scorer=VQA),
    Fault(name="dead: the port refuses", act=None, scorer=VQA),
    Fault(name="hangs up", act=hang_up, scorer=VQA),
    Fault(name="speaks no HTTP", act=no_http, scorer=VQA),
    Fault(name="another web page", act=HTML, scorer=VQA),
    Fault(name="500 every time", act=reply(500, b"oops"), scorer=VQA),
    Fault(name="500, then 200", act=first_then(reply(500, b""), GOOD, times=2), scorer=VQA),
    Fault(name="busy for 1 s, then 200", act=first_then(RETRY_SOON, GOOD, times=2), scorer=VQA),
    Fault(name="busy for 9 s", act=RETRY_LATE, scorer=VQA),
    Fault(name="50 MB", act=flood, scorer=VQA),
    Fault(name="a compressed answer", act=COMPRESSED, scorer=VQA),
    Fault(name="a wrong key", act=reply(401, b'{"error": {"message": "invalid key"}}'), scorer=VQA),
    Fault(name="another model", act=reply(404, b'{"error": {"message": "no model m"}}'), scorer=VQA),
    Fault(name="one answer to two questions", act=said('["yes"]'), scorer=VQA),
    Fault(name="neither yes nor no", act=said('["yes", "perhaps"]'), scorer=VQA),
    Fault(name="an answer that is cut off", act=said('["yes", "n', "length"), scorer=VQA),
    Fault(name="an empty answer", act=said(""), scorer=VQA),
    Fault(name="a log-prob of NaN", act=chances(float("nan")), scorer=P_YES),
    Fault(name="a log-prob above 0", act=chances(3.0), scorer=P_YES),
    Fault(name="no log-probs", act=said("yes"), scorer=P_YES),
)


@contextmanager
def serving(act: Act, *, at_start: bool) -> Iterator[str]:
    """A server whose POSTs do as told, and its GETs too with `at_start`."""
    script = Script()
    honest = reply(200, json.dumps(INFO).encode())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def run(self, act: Act) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client has had enough
                act(self, script)

        def do_GET(self) -> None:
            self.run(act if at_start else honest)

        def do_POST(self) -> None:
            script.calls += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self.run(act)

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format: str, *values: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        script.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def build(fault: Fault, url: str) -> Any:
    """The scorer that asks the server."""
    if fault.scorer == "remote":
        return load_scorer("remote", {"url": url, **REMOTE})
    return load_scorer(fault.scorer, {"judge": {"base_urls": [f"{url}/v1"], **JUDGE}})


def ask(scorer: Any) -> str:
    """The line that ends the step, or the totals."""
    image = np.zeros((36, 36, 3), np.uint8)
    columns = {"questions": ["Is it red?", "Is it round?"], "answers": ["yes", "no"]}
    prompts = [Prompt(text=text, columns=columns) for text in ("a dog", "a cat")]
    with Panel([ScorerSpec(name="r", scorer=scorer)]) as panel:
        try:
            totals = [verdict.total for verdict in panel.score(ScoreBatch(prompts=prompts, images=[image, image]))]
            panel.metrics()
        except ScorerError as error:
            return str(error)
    return f"nothing: the scores are {totals}"


def measure(fault: Fault) -> dict[str, Any]:
    """What is read and how long it takes, from the call to the line."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(fault.act or hang_up, at_start=fault.at_start))
        begin = time.perf_counter()
        try:
            scorer = build(fault, url)
            if fault.act is None:
                stack.close()
            begin = time.perf_counter()
            line = ask(scorer)
        except (InputError, ScorerError) as error:  # a server that is refused before anything is scored
            line = str(error)
        seconds = time.perf_counter() - begin
    return {"fault": fault.name, "scorer": fault.scorer, "line": line.replace(url, "URL"), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("remote", "judge"), help="one of the two tables")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args()
    tables: dict[str, Sequence[Fault]] = {"remote": REMOTE_FAULTS, "judge": JUDGE_FAULTS}
    rows = []
    for title, faults in tables.items():
        if args.only in (None, title):
            print(f"\nscorer {title}: {REMOTE if title == 'remote' else JUDGE}\n", flush=True)
            for fault in faults:
                row = measure(fault)
                rows.append(row)
                print(f"{row['seconds']:6.2f} s  {row['fault']}\n          {row['line']}", flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
