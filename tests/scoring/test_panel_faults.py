"""Every way a scorer goes wrong: nothing hangs, nothing becomes a 0, and one line says what happened."""

import asyncio
import itertools
import math
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from r3_rl.errors import ScorerError
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.panel import Panel
from r3_rl.scoring.seat import ScorerSpec

UNIT = ScorerInfo(range=(0.0, 1.0))


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no text")

    def __bool__(self):
        raise RuntimeError("no truth")

    def tolist(self):
        raise RuntimeError("no list")


class UnshowableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def answering(answer):
    return ScorerSpec(name="faulty", scorer=lambda completions: answer, info=UNIT)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([0.5], "it returned 1 scores for 2 samples; first at sample 0 (prompt 'prompt 0')"),
        ([0.5] * 3, "it returned 3 scores for 2 samples"),
        ([], "it returned 0 scores for 2 samples"),
        (None, "it returned None instead of a list"),
        (0.5, "it returned float 0.5 instead of a list"),
        ("ab", "it returned str 'ab' instead of a list"),
        ({"a": 1, "b": 2}, "it returned dict {'a': 1, 'b': 2} instead of a list"),
        (["0.5", 0.5], "it returned str '0.5' where a number or None belongs; first at sample 0"),
        ([0.5, [0.5]], "it returned list [0.5] where a number or None belongs; first at sample 1"),
        ([0.5, 1j], "it returned complex 1j where a number"),
        (np.zeros((2, 2)), "it returned list [0.0, 0.0] where a number"),
        ([0.5, 1.5], "it returned 1.5, outside its declared range 0 to 1; first at sample 1 (prompt 'prompt 1')"),
        ([Unshowable()] * 2, "it returned Unshowable where a number or None belongs"),
        (Unshowable(), "its answer cannot be read: RuntimeError: no list"),
        ([-0.01, 0.5], "it returned -0.01, outside its declared range 0 to 1; first at sample 0"),
    ],
)
def test_an_answer_against_the_contract_stops_at_once(text_batch, answer, said):
    with Panel([answering(answer)]) as panel:
        with pytest.raises(ScorerError) as raised:
            panel.score(text_batch("a", "b"))
        assert str(raised.value).startswith("scorer 'faulty': ")
        assert said in str(raised.value)
        with pytest.raises(ScorerError):  # whoever dropped the future still hears of it
            panel.metrics()


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ([True, False], [1.0, 0.0]),
        ((1, 0), [1.0, 0.0]),
        (np.array([0.5, 1.0], dtype=np.float32), [0.5, 1.0]),
        ([np.float32(0.5), np.bool_(True)], [0.5, 1.0]),
        ([torch.tensor(0.5), torch.tensor(1.0, requires_grad=True)], [0.5, 1.0]),
        ([1.0000001, -1e-9], [1.0, 0.0]),
    ],
)
def test_numbers_in_other_clothes_are_taken(text_batch, answer, scores):
    with Panel([answering(answer)]) as panel:
        assert [verdict.total for verdict in panel.score(text_batch("a", "b"))] == scores


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (None, "None"),
        (10**400, "inf"),
        (-(10**400), "-inf"),
        (1e308, "1e+308"),
        (Fraction(10**37), "1e+37"),
    ],
    ids=["nan", "inf", "-inf", "None", "10**400", "-10**400", "1e308", "1e37"],
)
def test_a_value_that_is_no_score_is_missing_and_too_many_stop_the_run(text_batch, value, said):
    with Panel([answering([0.5, value])], max_failed_fraction=0.4) as panel:
        assert [verdict.total for verdict in panel.score(text_batch("a", "b"))] == [0.5, None]
        with pytest.raises(ScorerError) as raised:
            panel.metrics()
    assert str(raised.value) == (
        f"scorer 'faulty': 1 of 2 scores are missing (50%, allowed 40%); it returned {said}; "
        "first at sample 1 (prompt 'prompt 1')"
    )


def test_a_share_of_the_total_that_no_reward_can_hold_is_missing(text_batch):
    with Panel([ScorerSpec(name="huge", scorer=lambda completions: [1e30, 0.5], weight=1e10)]) as panel:
        assert [verdict.total for verdict in panel.score(text_batch("a", "b"))] == [None, 5e9]
        with pytest.raises(
            ScorerError, match=r"weight 1e\+10 x score 1e\+30 is too large a share of a total; first at s"
        ):
            panel.metrics()


@pytest.mark.parametrize("make", [iter, lambda values: map(float, values), lambda values: (v for v in values)])
def test_values_that_come_one_by_one_are_read_within_the_call(text_batch, make):
    with Panel([ScorerSpec(name="lazy", scorer=lambda completions: make([0.5, 1.0]))]) as panel:
        assert [verdict.total for verdict in panel.score(text_batch("a", "b"))] == [0.5, 1.0]


def test_values_without_end_are_too_many(text_batch):
    with (
        Panel([ScorerSpec(name="endless", scorer=lambda completions: itertools.count())]) as panel,
        pytest.raises(ScorerError, match="it returned 3 scores for 2 samples"),
    ):
        panel.score(text_batch("a", "b"))


def test_a_cause_of_any_length_is_one_short_line(text_batch):
    def talks(completions):
        raise ValueError("x" * 5000)

    with Panel([ScorerSpec(name="talks", scorer=talks)]) as panel:
        panel.score(text_batch("a"))
        with pytest.raises(ScorerError) as raised:
            panel.metrics()
    assert len(str(raised.value)) < 700
    assert "xxx...; first at sample 0" in str(raised.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UnshowableError(), "UnshowableError: (its message raises RuntimeError)"),
        (ValueError("\udc00 \x1b[31m \0"), r"ValueError: \udc00 \x1b[31m \x00"),
    ],
)
def test_a_cause_that_cannot_be_shown_is_a_line_too(text_batch, error, said):
    def fails(completions):
        raise error

    with Panel([ScorerSpec(name="fails", scorer=fails)]) as panel:
        panel.score(text_batch("a"))
        with pytest.raises(ScorerError) as raised:
            panel.metrics()
    assert said in str(raised.value)
    str(raised.value).encode()


def test_words_can_be_written_to_a_file(text_batch):
    def talks(completions, log_extra):
        log_extra("reason", ["\udc00 and \0"])
        return [1.0]

    with Panel([ScorerSpec(name="talks", scorer=talks)]) as panel:
        assert panel.score(text_batch("a"))[0].words == "\ufffd and \ufffd"


def test_logged_numbers_that_do_not_add_up_are_no_number(text_batch):
    def logs(completions, log_metric):
        for name, values in {"huge": (1e308, 1e308), "both": (math.inf, -math.inf)}.items():
            for value in values:
                log_metric(name, value)
        return [1.0]

    with Panel([ScorerSpec(name="logs", scorer=logs)]) as panel:
        panel.score(text_batch("a"))
        metrics = panel.metrics()
    assert math.isnan(metrics["rewards/logs/huge"]) and math.isnan(metrics["rewards/logs/both"])


def test_an_exception_is_missing_and_keeps_its_cause(text_batch):
    def fails_on_b(completions):
        if "b" in completions:
            raise KeyError("no such colour")
        return [1.0] * len(completions)

    with Panel([ScorerSpec(name="faulty", scorer=fails_on_b)], max_failed_fraction=0.5) as panel:
        assert panel.score(text_batch("a", "a"))[0].total == 1.0
        assert [verdict.total for verdict in panel.score(text_batch("b", "a"))] == [None, None]
        assert panel.metrics()["rewards/faulty/missing_fraction"] == 0.5
        panel.score(text_batch("a"))
        panel.score(text_batch("b", "b"))
        with pytest.raises(ScorerError, match=r"2 of 3 .* KeyError: 'no such colour'; first at sample 1 ") as raised:
            panel.metrics()
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_failing_scorer_of_weight_zero_is_a_line_and_not_the_end(text_batch, caplog):
    def fails(completions):
        raise OSError("server gone")

    with Panel([ScorerSpec(name="logged", scorer=fails, weight=0.0), answering([0.5])]) as panel:
        for _ in range(2):
            assert panel.score(text_batch("a"))[0].total == 0.5
            assert panel.metrics()["rewards/logged/missing_fraction"] == 1.0
    assert [record.message for record in caplog.records if "server gone" in record.message] == [
        "scorer 'logged': 1 of 1 scores are missing (100%, allowed 25%); OSError: server gone; "
        "first at sample 0 (prompt 'prompt 0')"
    ]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()])
def test_no_exception_of_a_scorer_ends_the_panel(text_batch, error):
    def raises(completions):
        raise error

    with Panel([ScorerSpec(name="faulty", scorer=raises)]) as panel:
        assert panel.score(text_batch("a"))[0].total is None
        with pytest.raises(ScorerError, match=type(error).__name__):
            panel.metrics()


def test_a_slow_scorer_times_out_and_its_late_answer_is_dropped(text_batch):
    release = threading.Event()

    def slow(completions):
        release.wait(5)
        return [1.0]

    with Panel([ScorerSpec(name="slow", scorer=slow, timeout_s=0.1)]) as panel:
        start = time.perf_counter()
        assert panel.score(text_batch("a"))[0].total is None
        assert time.perf_counter() - start < 2
        release.set()
        with pytest.raises(ScorerError, match=r"TimeoutError: no answer within 0\.1 s"):
            panel.metrics()


def test_slow_calls_do_not_use_up_the_workers(text_batch):
    release = threading.Event()

    def slow(completions):
        if completions == ["slow"]:
            release.wait(5)
        return [1.0]

    with Panel([ScorerSpec(name="slow", scorer=slow, timeout_s=0.05)], num_workers=1) as panel:
        totals = [panel.score(text_batch(text))[0].total for text in ("slow", "slow", "fast")]
        release.set()
    assert totals == [None, None, 1.0]


def test_a_hung_call_keeps_others_out_of_a_scorer_that_is_not_thread_safe(text_batch):
    release = threading.Event()

    def slow(completions):
        release.wait(5)
        return [1.0]

    spec = ScorerSpec(name="slow", scorer=slow, timeout_s=0.05, info=ScorerInfo(thread_safe=False))
    with Panel([spec]) as panel:
        panel.score(text_batch("a"))
        with pytest.raises(ScorerError, match=r"2 of 2"):
            panel.score(text_batch("a"))
            panel.metrics()
        release.set()
        time.sleep(0.05)
        assert panel.score(text_batch("a"))[0].total == 1.0


@pytest.mark.parametrize("blocking", [False, True])
def test_a_slow_async_scorer_times_out_even_when_it_blocks_its_loop(text_batch, blocking):
    async def slow(completions):
        if blocking:
            time.sleep(0.5)
        await asyncio.sleep(5)
        return [1.0]

    with Panel([ScorerSpec(name="slow", scorer=slow, timeout_s=0.1)]) as panel:
        start = time.perf_counter()
        assert panel.score(text_batch("a"))[0].total is None
        assert time.perf_counter() - start < 0.45


def test_an_async_scorer_that_raises(text_batch):
    async def fails(completions):
        await asyncio.sleep(0)
        raise ConnectionError("refused")

    with Panel([ScorerSpec(name="judge", scorer=fails)]) as panel:
        panel.score(text_batch("a"))
        with pytest.raises(ScorerError, match="ConnectionError: refused"):
            panel.metrics()


def test_a_missing_column_is_named(text_batch):
    def accuracy(completions, solution):
        return [1.0]

    said = r"demands the column 'solution', .* lacks \(it has: none\)"
    with Panel([ScorerSpec(name="accuracy", scorer=accuracy)]) as panel, pytest.raises(ScorerError, match=said):
        panel.score(text_batch("a"))


def test_a_reward_that_reads_messages_gets_a_hint(text_batch):
    def reads_messages(completions):
        return [float(len(completion[0]["content"])) for completion in completions]

    with Panel([ScorerSpec(name="messages", scorer=reads_messages)]) as panel:
        panel.score(text_batch("a"))
        with pytest.raises(ScorerError, match="conversational=True"):
            panel.metrics()
    info = ScorerInfo(conversational=True)
    with Panel([ScorerSpec(name="messages", scorer=reads_messages, info=info)]) as panel:
        assert panel.score(text_batch("abc"))[0].total == 3.0


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (lambda metric, extra: metric("mean", 1.0), "takes the name of a metric"),
        (lambda metric, extra: metric("a\nb", 1.0), "a name has at most 80 printable letters"),
        (lambda metric, extra: [metric(f"m{i}", 1.0) for i in range(101)], "more than 100 different names"),
        (lambda metric, extra: extra("reason", [Unshowable()]), "its answer cannot be read: RuntimeError: no truth"),
        (lambda metric, extra: extra("reason", "bad"), "one value for each of 1 samples"),
        (lambda metric, extra: extra("reason", ["a", "b"]), "one value for each of 1 samples"),
    ],
)
def test_what_is_logged_is_checked(text_batch, log, said):
    def logs(completions, log_metric, log_extra):
        log(log_metric, log_extra)
        return [1.0]

    with Panel([ScorerSpec(name="logs", scorer=logs)]) as panel, pytest.raises(ScorerError, match=said):
        panel.score(text_batch("a"))


def test_a_process_ends_although_a_scorer_hangs(tmp_path):
    import subprocess

    script = tmp_path / "hang.py"
    script.write_text(
        "import threading\n"
        "from r3_rl.scoring.batch import ScoreBatch\n"
        "from r3_rl.scoring.panel import Panel\n"
        "from r3_rl.scoring.seat import ScorerSpec\n"
        "from r3_rl.types import Prompt\n"
        "def hang(completions): threading.Event().wait()\n"
        "panel = Panel([ScorerSpec(name='hang', scorer=hang, timeout_s=0.1)])\n"
        "print(panel.score(ScoreBatch(prompts=[Prompt(text='a')], texts=['a']))[0].total)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout.strip(), done.stderr) == ("None", "")
