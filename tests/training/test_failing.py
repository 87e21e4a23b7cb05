"""One process of several fails: all end soon, and one line names the rank and the cause."""

from __future__ import annotations

import signal

import pytest

from r3_rl.training.manifest import newest_whole
from tests.training.processes import fork_and_watch

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("loss", "rank 1: the loss is not finite; lower training.learning_rate or eta; the last checkpoint is good"),
        ("scorer", "rank 1: "),
        ("error", "rank 1: ValueError: planted"),
        ("disk", "rank 1: the checkpoint could not be written: [Errno 27] File too large ("),
        ("first disk", "rank 0: the checkpoint could not be written: "),
        ("disk meanwhile", "rank 1: the checkpoint could not be written: [Errno 27] File too large ("),
        ("killed", "rank 1: gone without a word, killed or out of memory; rank 0 met with RuntimeError: "),
    ],
)
def test_when_one_fails_all_end_and_one_line_says_why(tmp_path, capfd, how, said):
    codes = fork_and_watch(2, tmp_path, "fail", how)
    assert codes[0] == 1, "it did not have to be killed"
    assert codes[1] == (-signal.SIGKILL if how == "killed" else 1)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rank ")]
    assert len(lines) == 1 and lines[0].startswith(said), lines
    check_saved(tmp_path)


def test_when_the_first_is_killed_the_next_one_says_so(tmp_path, capfd):
    assert fork_and_watch(2, tmp_path, "fail", "first killed") == [-signal.SIGKILL, 1]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rank ")]
    assert len(lines) == 1 and lines[0].startswith("rank 0: gone without a word"), lines
    check_saved(tmp_path)


def check_saved(tmp_path):
    last, problems = newest_whole(tmp_path)
    assert last is not None and last.step == 1 and not problems, "what was saved before goes on"
