"""The numbers that matter while a run goes on: a live line on a terminal, plain lines off one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

PLAIN_LINE_EVERY_S = 10.0
"""Off a terminal (a log file, CI) a line at most this often, so that a long run's log stays readable."""
SMOOTHING = 0.8
"""Weight of the past in the running mean of the seconds per step."""

SHOWN: tuple[tuple[str, str, str], ...] = (
    ("refine/draft_score", "draft", "{:.3f}"),
    ("refine/gain_mean", "gain", "{:+.3f}"),
    ("refine/frac_stopped", "stopped", "{:.0%}"),
    ("reward", "reward", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
    ("tower/right", "correct", "{:.1%}"),
    ("sketch/right", "correct", "{:.1%}"),
)
"""Metric, its label and its format, in the order in which they are shown; a metric that never came is left out."""


def fields(
    metrics: Mapping[str, Any], *, seconds_per_step: float | None, left_s: float, unit: str = "step"
) -> dict[str, str]:
    """The label -> text pairs that both the live line and the plain line are made of.

    Args:
        metrics: the latest value of each metric.
        seconds_per_step: running mean; None before the first step is done.
        left_s: seconds still to go.
        unit: what a step is called.

    >>> fields({"refine/draft_score": 0.5, "refine/gain_mean": 0.1}, seconds_per_step=1.5, left_s=150)
    {'draft': '0.500', 'gain': '+0.100', 's/step': '1.50', 'left': '2 min 30 s'}
    """
    shown = {}
    for name, label, how in SHOWN:
        value = metrics.get(name)
        if value is not None:
            shown[label] = how.format(float(value)) if math.isfinite(float(value)) else "not finite"
    if seconds_per_step is not None:
        shown[f"s/{unit}"] = f"{seconds_per_step:.2f}"
        shown["left"] = duration(left_s)
    return shown


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42.4), duration(150), duration(7500)
    ('42 s', '2 min 30 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class RunProgress:
    """Shows how a run goes; used as a context manager around the loop.

    Args:
        title: what runs, such as the recipe's name.
        total_steps: steps of the whole run.
        unit: what a step is called.
        console: where to print; None prints to standard output.
        clock: seconds that only rise.

    >>> import io
    >>> with RunProgress("shapes_r3", total_steps=2, console=Console(file=io.StringIO())) as progress:
    ...     progress.update(1, {"refine/draft_score": 0.5})
    >>> "step 1/2" in progress.console.file.getvalue()
    True
    """

    def __init__(
        self,
        title: str,
        *,
        total_steps: int,
        unit: str = "step",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total_steps, self.unit = title, total_steps, unit
        self.console = console or Console()
        self._clock = clock
        self._latest: dict[str, Any] = {}
        self._step, self._step_began = 0, clock()
        self._seconds_per_step: float | None = None
        self._ends_at = math.inf
        self._printed_at = -math.inf
        self._bar: Progress | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar.add_task(self.title, total=self.total_steps, completed=self._step)
            self._live = Live(Group(self._bar, Text("")), console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, step: int, *, limit_s: float | None = None) -> None:
        """Training begins, after `step` steps that a resumed run has done: the clock of the next step starts here, and
        that of a limit of time."""
        self._step, self._step_began = step, self._clock()
        self._ends_at = math.inf if limit_s is None else self._step_began + limit_s
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the numbers of a step that is done; a metric absent from this step keeps its last value."""
        now = self._clock()
        if step > self._step:
            latest = (now - self._step_began) / (step - self._step)
            past = self._seconds_per_step
            self._seconds_per_step = latest if past is None else SMOOTHING * past + (1 - SMOOTHING) * latest
            self._step, self._step_began = step, now
        self._latest.update({name: value for name, value in metrics.items() if value is not None})
        by_steps = (self._seconds_per_step or 0.0) * max(0, self.total_steps - step)
        left_s = min(by_steps, max(0.0, self._ends_at - now))
        shown = fields(self._latest, seconds_per_step=self._seconds_per_step, left_s=left_s, unit=self.unit)
        if self._bar is not None and self._live is not None:
            numbers = Text("   ").join(Text.assemble((label, "dim"), " ", text) for label, text in shown.items())
            self._bar.update(self._bar.task_ids[0], completed=step)
            self._live.update(Group(self._bar, numbers))
        elif now - self._printed_at >= PLAIN_LINE_EVERY_S or step == self.total_steps:
            self._printed_at = now
            words = "  ".join(f"{label} {text}" for label, text in shown.items())
            self._plain(f"{self.title}  {self.unit} {step}/{self.total_steps}  {words}")

    def note(self, text: str) -> None:
        """Print a line that stays, such as what a guard says, above the live line."""
        self._plain(text)

    def _plain(self, text: str) -> None:
        # Metric names and prompts may hold [brackets]; nothing in them is markup.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
