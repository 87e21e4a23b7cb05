"""Processes that wait for one that never comes: they end, and say which; those that have joined wait longer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from r3_rl import joining
from r3_rl.errors import InputError

pytestmark = [pytest.mark.processes, pytest.mark.slow]

LINES = """
import sys, time
from r3_rl import joining, ranks
from r3_rl.errors import RunError
try:
    joining.join(within_s=float(sys.argv[1]))
except RunError as error:
    sys.exit(str(error))
if ranks.rank() == 1:
    time.sleep(float(sys.argv[2]))
print(ranks.total(1.0))
joining.leave()
"""


def start(everybody, *present, within_s, asleep_s=0.0):
    """(exit code, standard output, last line of standard error) of the processes that come, started by nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(everybody)}
    command = [sys.executable, "-c", LINES, str(within_s), str(asleep_s)]
    started = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in present
    ]
    ends = [process.communicate(timeout=120) for process in started]
    return [
        (process.returncode, out.strip(), ["", *err.strip().splitlines()][-1])
        for process, (out, err) in zip(started, ends, strict=True)
    ]


def test_who_did_not_join_is_named():
    ((code, _, said),) = start(3, 0, within_s=2)
    assert code == 1
    assert said.startswith("rank 0: ranks 1, 2 of 3 processes did not join within 2 s; ")


def test_a_rank_0_that_did_not_join_is_named():
    ((code, _, said),) = start(2, 1, within_s=2)
    assert code == 1
    assert said.startswith("rank 1: nobody within 2 s, rank 0 or the launcher, at 127.0.0.1:")


def test_the_bound_is_for_joining_alone():
    within_s = 20.0
    both = start(2, 0, 1, within_s=within_s, asleep_s=within_s + 2)
    assert [(code, out) for code, out, _ in both] == [(0, "(2.0,)")] * 2


@pytest.mark.parametrize("address", [{}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "many"}])
def test_an_environment_that_does_not_say_where_they_meet_is_refused(monkeypatch, address):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **address}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="MASTER_ADDR and MASTER_PORT do not say where they meet"):
        joining.join()


AGAIN = """
import os
from r3_rl import joining, ranks
joining.join()
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
print(f"attempt {attempt}: {ranks.total(1.0)}", flush=True)
if attempt == "0":
    raise SystemExit("the first attempt fails")
joining.leave()
"""


def test_processes_that_a_launcher_starts_again_meet_anew(tmp_path):
    script = tmp_path / "again.py"
    script.write_text(AGAIN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("attempt 1: (2.0,)") == 2
