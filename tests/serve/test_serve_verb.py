"""`r3 serve` from the command line: it ends in order, and says what is wrong before it listens."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys

import httpx
import pytest

from r3_rl.errors import InputError
from r3_rl.serve.command import adapter_name
from r3_rl.serve.studio import Studio, StudioSettings


@pytest.mark.slow
@pytest.mark.processes
def test_a_server_draws_and_ends_in_order(tmp_path):
    command = [sys.executable, "-m", "r3_rl", "serve", "--adapter", "shipped", "--port", "0", "--rounds", "1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            first = process.stdout.readline()
            url = first.split(" at ")[1].split()[0]
            assert first == f"serving shipped, base at {url} without a token\n" and url.endswith("/v1")
            connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
            connection.request("POST", "/v1/images/generations", json.dumps({"prompt": "a cross", "n": 8}))
            assert httpx.get(f"{url}/models").status_code == 200  # so the request before it is inside
            process.send_signal(signal.SIGINT)
            answer = connection.getresponse()
            assert answer.status == 200, "what was inside is finished"
            assert json.loads(answer.read())["r3"]["rounds"] == 1
            connection.close()
            assert process.stdout.read() == "stopped\n"
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 lets other machines in, and there is no token"),
        (("--port", "99999"), "cannot listen on 127.0.0.1 port 99999"),
        (("--rounds", "9"), "--rounds 9; 0 to 8"),
        (("--max-batch", "0"), "--max-batch and --max-waiting are at least 1"),
        (("--token-env", "NO_SUCH_TOKEN"), "--token-env NO_SUCH_TOKEN: this environment variable is not set"),
        (("--token", "a", "--token-env", "B"), "both --token and --token-env"),
        (("no-such-folder",), "no-such-folder: no such folder"),
        (("--adapter", "no-such-run"), "no-such-run: no such folder"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_listens(r3, monkeypatch, arguments, problem):
    monkeypatch.setattr("r3_rl.process.prepare_process", lambda: None)  # it would replace this process
    done = r3("serve", *arguments, *([] if "--port" in arguments else ["--port", "0"]))
    assert done.code == 2
    assert problem in done.err and done.err.count("\n") == 1


def test_an_adapter_is_called_after_its_run_and_not_like_the_base(loaded):
    assert [adapter_name(folder) for folder in ("runs/a/adapter", "runs/a", "b/")] == ["a", "a", "b"]
    with pytest.raises(InputError, match="the adapter cannot be called 'base'; rename its folder"):
        Studio(loaded, StudioSettings(adapter="base"))
