"""What every test may use: a folder of its own to work in, and `r3` as a process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed prints that it found no other


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A verb that has run."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """A process that shards alone has a group of its own, which processes forked from it would take for theirs."""
    yield
    if "torch.distributed" in sys.modules:
        from r3_rl import joining

        joining.leave()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def r3(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs a verb in this process: `r3("check", "shapes_r3")`."""
    from r3_rl.cli import run

    def call(*arguments: str) -> Finished:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Finished(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], str]:
    """Runs lines of Python in a process of their own, outside the repository, and returns what they print."""

    def call(lines: str) -> str:
        done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


class ChatServer:
    """A server of chat completions on loopback that answers, or misbehaves, as a test wants it.

    `respond(request)` gets the JSON of a request and returns the text of an answer, a whole JSON object, `(status,
    headers, body)`, or a function that is handed the connection.
    """

    def __init__(self, respond: Callable[[dict[str, Any]], Any]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(request)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                answer = respond(request)
                with contextlib.suppress(OSError):  # a client that has given up is the point of some tests
                    if callable(answer):
                        answer(self)
                    else:
                        self.send(*_as_response(answer))

            def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *values: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; the port refuses from then on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _as_response(answer: Any) -> tuple[int, dict[str, str], bytes]:
    if isinstance(answer, tuple):
        return answer
    if isinstance(answer, str):
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        answer = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


@pytest.fixture
def chat_server() -> Iterator[Callable[[Callable[[dict[str, Any]], Any]], ChatServer]]:
    """Starts servers of chat completions: `chat_server(lambda request: "yes")`."""
    servers: list[ChatServer] = []

    def start(respond: Callable[[dict[str, Any]], Any]) -> ChatServer:
        servers.append(ChatServer(respond))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
