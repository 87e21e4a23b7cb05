"""A scorer that changes the process for everybody: what it changed is put back, and it is named once."""

import asyncio
import os
import random
import signal

import numpy as np
import pytest
import torch

from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.panel import Panel
from r3_rl.scoring.seat import ScorerSpec
from r3_rl.types import Prompt

CHANGES = {
    "the working folder (to /)": lambda: os.chdir("/"),
    "torch's default type (to float64)": lambda: torch.set_default_dtype(torch.float64),
    "torch's float32 precision (to medium)": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's deterministic algorithms (to True)": lambda: torch.use_deterministic_algorithms(True),
    "torch's use of oneDNN (to False)": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "torch's search for fast convolutions (to True)": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "the rights of new files (umask to 077)": lambda: os.umask(0o077),
    "the process's alarm": lambda: signal.alarm(60),
    "the seed of Python's random numbers": lambda: random.seed(90210),  # which nobody else chose
    "the seed of numpy's random numbers": lambda: np.random.seed(90210),  # which nobody else chose
}


def of_the_process():
    python, numpy = random.getstate(), np.random.get_state()
    flags = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    flags += torch.backends.mkldnn.enabled, torch.backends.cudnn.benchmark
    umask = os.umask(0o022)
    os.umask(umask)
    alarm = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    return os.getcwd(), torch.get_default_dtype(), python, tuple(numpy[1]), numpy[2:], flags, umask, alarm


@pytest.mark.parametrize("changed", CHANGES)
def test_what_a_scorer_changes_is_put_back_and_said_once(changed, caplog):
    def careless(completions):
        CHANGES[changed]()
        return [1.0] * len(completions)

    async def careless_later(completions):
        await asyncio.sleep(0)
        return careless(completions)

    before = of_the_process()
    for scorer in (careless, careless_later):
        caplog.clear()
        with Panel([ScorerSpec(name="careless", scorer=scorer)]) as panel:
            for _ in range(2):
                assert panel.score(ScoreBatch(prompts=[Prompt(text="p")], texts=["a"]))[0].total == 1.0
        assert of_the_process() == before
        assert [record.message for record in caplog.records] == [
            f"scorer 'careless' changed {changed}; it was put back, as other code of this process relies on it "
            "(`isolate: true` gives a scorer a process)"
        ]


def test_a_scorer_that_raises_or_hangs_is_looked_at_too(caplog):
    def falls(completions):
        os.chdir("/")
        raise OSError("gone")

    before = os.getcwd()
    with Panel([ScorerSpec(name="falls", scorer=falls, weight=0.0)]) as panel:
        panel.score(ScoreBatch(prompts=[Prompt(text="p")], texts=["a"]))
    assert os.getcwd() == before
    assert "scorer 'falls' changed the working folder (to /)" in caplog.text


@pytest.mark.parametrize("count", [1, 700, 100_000])
def test_drawing_random_numbers_is_no_change(count, caplog):
    def random_reward(completions):
        return [sum(random.random() for _ in range(count)) / count + np.random.rand(count).mean()] * len(completions)

    drawn = []
    with Panel([ScorerSpec(name="coin", scorer=random_reward)]) as panel:
        for _ in range(2):
            drawn.append(panel.score(ScoreBatch(prompts=[Prompt(text="p")], texts=["a"]))[0].total)
    assert drawn[0] != drawn[1]
    assert caplog.records == []


def test_two_that_change_it_at_the_same_time(caplog):
    def careless(completions):
        os.chdir("/")
        return [1.0]

    specs = [ScorerSpec(name=name, scorer=careless) for name in ("a", "b")]
    before = os.getcwd()
    with Panel(specs, num_workers=2) as panel:
        panel.score(ScoreBatch(prompts=[Prompt(text="p")], texts=["a"]))
    assert os.getcwd() == before
    assert "changed the working folder" in caplog.text
