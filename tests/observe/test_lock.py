"""Two processes never write one run, and a dead one keeps nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r3_rl.errors import InputError, RunError
from r3_rl.observe.lock import LOCK, sole_writer

HOLD = """
import os, sys, time
from pathlib import Path
from r3_rl.observe.lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    child = os.fork()  # as a scorer may; it outlives its parent
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_writes_and_a_killed_one_keeps_nobody_out(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        try:
            with pytest.raises(RunError, match=rf"is being written by process {other.pid} on .* since .*; wait until"):
                sole_writer(tmp_path).__enter__()
            other.send_signal(signal.SIGKILL)
            other.wait()
            with sole_writer(tmp_path):
                assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
        finally:
            other.kill()
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_a_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot write to .*nowhere: No such file or directory; choose"):
        sole_writer(Path(tmp_path / "nowhere")).__enter__()
