"""A scorer in a process of its own: scores are the same, and however it goes wrong they are missing with the cause."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from r3_rl.errors import InputError, ScorerError
from r3_rl.scoring.base import RunProgress, info_of
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.isolated import load_isolated
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import load_scorer
from r3_rl.types import Prompt

pytestmark = pytest.mark.processes

SCORERS = """
import ctypes, os, signal, sys, time
from r3_rl.scoring.base import scorer_info

@scorer_info(range=(0.0, 255.0), needs=("images",), version="3", deterministic=True)
def mean(images, log_metric, log_extra, *, factor: float = 1.0, **columns):
    log_metric("calls", 1)
    log_extra("reason", [f"{image.shape}" for image in images])
    return [factor * float(image.mean()) for image in images]

async def later(completions):
    return [0.25] * len(completions)

def picky(completions, colour):
    return [1.0] * len(completions)

def curriculum(completions, trainer_state):
    return [float(trainer_state.global_step)] * len(completions)

def raises(completions):
    raise KeyError("no such colour")

def leaves(completions): os._exit(0)
def crashes(completions): ctypes.string_at(0)
def killed(completions): os.kill(os.getpid(), signal.SIGTERM)
def hangs(completions): time.sleep(600)
def hogs(completions):
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 20))

def changes(completions):
    import random
    os.chdir("/"); random.seed(0)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(1); signal.alarm(0)
    return [1.0]

def too_many(completions): return [1.0] * 3

"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("isolated")
    (place / "scorers.py").write_text(SCORERS)
    (place / "gone.py").write_text("import os\nos._exit(7)\n")
    return place


@pytest.fixture
def isolated(folder):
    built = []

    def build(name, params=None, *, timeout_s=30.0, memory_gb=None):
        built.append(load_isolated(f"./{name}", params or {}, folder, timeout_s=timeout_s, memory_gb=memory_gb))
        return built[-1]

    yield build
    for scorer in built:
        scorer.close()


def texts(*words):
    return ScoreBatch(prompts=[Prompt(text=f"prompt {i}") for i in range(len(words))], texts=words)


def line_of(scorer, batch):
    with Panel([ScorerSpec(name="s", scorer=scorer, params={})]) as panel:
        assert all(verdict.total is None for verdict in panel.score(batch))
        with pytest.raises(ScorerError) as raised:
            panel.metrics()
    return str(raised.value)


def test_scores_words_metrics_and_declaration_are_those_of_this_process(isolated, folder):
    images = [np.full((4, 6, 3), grey, np.uint8) for grey in (10, 20, 10)]
    batch = ScoreBatch(prompts=[Prompt(text="p", columns={"tag": "x"})] * 3, images=images)
    results = []
    for scorer in (
        isolated("scorers.py:mean", {"factor": 0.5}),
        load_scorer("./scorers.py:mean", {"factor": 0.5}, folder),
    ):
        with Panel([ScorerSpec(name="s", scorer=scorer, params={"factor": 0.5})], cache=ScoreCache()) as panel:
            panel.trainer_state = RunProgress(global_step=1)
            verdicts = panel.score(batch)
            assert panel.score(batch)[0].total == 5.0
            metrics = panel.metrics()
        assert info_of(scorer).range == (0.0, 255.0)
        same = {name: value for name, value in metrics.items() if name != "rewards/s/time_s"}
        results.append(([(verdict.total, verdict.words) for verdict in verdicts], same))
    assert results[0] == results[1]
    assert [total for total, _ in results[0][0]] == [5.0, 10.0, 5.0]


def test_asynchronous_scorers_columns_and_the_state_of_the_run(isolated):
    with Panel([ScorerSpec(name="s", scorer=isolated("scorers.py:later"))]) as panel:
        assert panel.score(texts("a"))[0].total == 0.25
    with Panel([ScorerSpec(name="s", scorer=isolated("scorers.py:curriculum"))]) as panel:
        panel.trainer_state = RunProgress(global_step=5, max_steps=9)
        assert panel.score(texts("a"))[0].total == 5.0
    with (
        Panel([ScorerSpec(name="s", scorer=isolated("scorers.py:picky"))]) as panel,
        pytest.raises(ScorerError, match="it demands the column 'colour', which the data set lacks"),
    ):
        panel.score(texts("a"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "KeyError: 'no such colour'"),
        ("leaves", "its process ended with exit code 0"),
        ("crashes", "its process was ended by SIGSEGV"),
        ("killed", "its process was ended by SIGTERM"),
    ],
)
def test_every_end_is_a_missing_score_with_its_cause_and_the_next_call_starts_again(isolated, name, said):
    scorer = isolated(f"scorers.py:{name}")
    for _ in range(2):
        assert f"scorer 's': 2 of 2 scores are missing (100%, allowed 25%); {said}; first at" in line_of(
            scorer, texts("a", "b")
        )


def test_a_hang_is_ended(isolated):
    scorer = isolated("scorers.py:hangs", timeout_s=1.0)
    start = time.monotonic()
    assert "TimeoutError: no answer within 1 s; its process was ended" in line_of(scorer, texts("a"))
    assert time.monotonic() - start < 30


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_beyond_the_limit_is_ended(isolated):
    scorer = isolated("scorers.py:hogs", memory_gb=0.5)
    said = line_of(scorer, texts("a"))
    assert "GB of memory, over memory_gb 0.5, and was ended" in said
    assert float(said.split("its process used ")[1].split()[0]) < 2


def test_what_it_does_to_its_process_stays_there(isolated, caplog):
    before = os.getcwd(), signal.getsignal(signal.SIGALRM)
    with Panel([ScorerSpec(name="s", scorer=isolated("scorers.py:changes"))]) as panel:
        assert panel.score(texts("a"))[0].total == 1.0
    assert (os.getcwd(), signal.getsignal(signal.SIGALRM)) == before
    assert caplog.records == []


def test_an_answer_against_the_contract_stops_at_once(isolated):
    with (
        Panel([ScorerSpec(name="s", scorer=isolated("scorers.py:too_many"))]) as panel,
        pytest.raises(ScorerError, match="scorer 's': it returned 3 scores for 1 samples; first at sample 0"),
    ):
        panel.score(texts("a"))


def test_what_cannot_be_built_is_said(isolated):
    with pytest.raises(InputError, match=r"no 'nothing' in it"):
        isolated("scorers.py:nothing")
    with pytest.raises(InputError, match="takes no parameter 'x'"):
        isolated("scorers.py:mean", {"x": 1})
    with pytest.raises(ScorerError, match=r"scorer './gone.py:s' cannot be built: its process ended with exit code 7"):
        isolated("gone.py:s")


def test_the_child_ends_with_its_parent(folder):
    script = (
        "import os, sys\n"
        "from r3_rl.scoring.isolated import load_isolated\n"
        f"scorer = load_isolated('./scorers.py:hangs', {{}}, {str(folder)!r}, timeout_s=600)\n"
        "print(scorer._child._process.pid, flush=True)\n"
        "scorer(completions=['a'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text()
