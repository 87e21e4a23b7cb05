"""What the machine under a benchmark can do, and how a benchmark shows what it measured.

The scripts of this folder import their neighbours by name: Python puts a script's own folder first on its path.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Measured speed of square matrix products with the threads of this process, 1e9 operations a second."""

    float32: float
    bfloat16: float

    @property
    def best(self) -> float:
        """The faster of the two."""
        return max(self.float32, self.bfloat16)

    def __str__(self) -> str:
        return f"float32 {self.float32:.0f}, bfloat16 {self.bfloat16:.0f} GFLOP/s"


def measure_peak(*, rounds: int = 3) -> Peak:
    """Best of some short measurements, so that a neighbour's burst of work does not lower the bar."""
    from r3_rl.doctor import matmul_gflops

    best = {name: max(matmul_gflops(name) for _ in range(rounds)) for name in ("float32", "bfloat16")}
    return Peak(**best)


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Smallest .. largest."""
    return f"{min(values):.3g} .. {max(values):.3g}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A table and what stands around it; printed, and written only where a file is named."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers: dict[str, Any]
    """What a program would want to read."""

    def text(self) -> str:
        """Title, table, notes."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

        def join(cells: Sequence[str]) -> str:
            first, *others = zip(cells, widths, strict=True)
            return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

        rule = "-" * len(join(["-" * width for width in widths]))
        return "\n".join([self.title, "", join(self.columns), rule, *map(join, self.rows), "", *self.notes])

    def show(self, out: str | None) -> None:
        """Prints; `out` is a file for the numbers as JSON, with the printed text in it."""
        text = self.text()
        print(text, flush=True)
        if out:
            content = {"title": self.title, "numbers": self.numbers, "text": text.splitlines()}
            Path(out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
