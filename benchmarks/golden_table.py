"""The golden table: file by file, the largest error against the tolerance in float32, and the error in bfloat16.

python benchmarks/golden_table.py            the recorded set of the repository
R3_GOLDENS=FOLDER python benchmarks/golden_table.py     another set of the same format
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from rich.console import Console
from rich.table import Table

from tests.policy import golden_checks, golden_drawing, golden_policy, golden_steps, golden_training
from tests.policy.golden_checks import BFLOAT16, Row
from tests.policy.golden_set import golden_folder, model


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: a file, or one part of it."""

    file: str
    part: str
    float32: Callable[[], Iterable[Row]]
    bfloat16: Callable[[], Iterable[Row]] | None = None


def lines() -> list[Line]:
    """Every file of the set with what is compared in it."""

    def plain() -> torch.nn.Module:
        return model(torch.float32)

    def both(file: str, part: str, check: Callable[..., Iterable[Row]], *args: str) -> Line:
        return Line(
            file=file,
            part=part,
            float32=lambda: check(plain(), *args),
            bfloat16=lambda: check(model(torch.bfloat16), *args),
        )

    out = [
        Line(file="00_primitives", part="schedules, tables, resize", float32=lambda: golden_checks.primitives(plain())),
        both("01_text", "logits, layers, cache, greedy", golden_checks.text_only),
        Line(file="01_text", part="the writer", float32=lambda: golden_policy.written(plain(), "01_text")),
        both("02_understanding", "tower, block, logits, greedy", golden_checks.understanding),
        Line(
            file="02_understanding",
            part="the writer",
            float32=lambda: golden_policy.written(plain(), "02_understanding"),
        ),
        both("03_velocity", "with and without the prompt", golden_drawing.velocity),
        both("04_edit_velocity", "blocks, cache, three branches", golden_drawing.edit_velocity),
    ]
    for file in ("03_generate_t2i", "04_generate_edit"):
        for case in _or_none(lambda file=file: golden_drawing.cases(file)):
            out.append(both(file, case, golden_drawing.generate, file, case))
            out.append(
                Line(
                    file=file,
                    part=f"{case}, the sampler",
                    float32=lambda file=file, case=case: golden_policy.drawn(plain(), file, case),
                )
            )
    out += [
        Line(file="05_vae", part="moments, latents, decoded", float32=golden_checks.vae),
        both("06_packed_train", "mask, outputs, gradients", golden_training.packed_train),
        both("06_sft_loss", "flow and next-token losses", golden_training.sft_loss),
        both("07_r3_rollout", "two prompts in a batch", golden_drawing.batched_rollout),
        Line(file="07_r3_rollout", part="the same, the sampler", float32=lambda: golden_policy.batched(plain())),
    ]
    for mode in _or_none(golden_drawing.rollout_modes):
        out.append(both("07_r3_rollout", f"mixed steps, {mode}", golden_drawing.mixed_rollout, mode))
        out.append(
            Line(
                file="07_r3_rollout",
                part=f"{mode}, sampler and replay",
                float32=lambda mode=mode: golden_policy.mixed(plain(), mode),
            )
        )
    out.append(Line(file="10_sde_steps", part="R3, flow_grpo, MixGRPO", float32=golden_steps.steps))
    out.append(Line(file="11_advantages", part="advantages, losses", float32=golden_steps.advantages))
    return out


def _or_none(discover: Callable[[], list[str]]) -> list[str]:
    try:
        return discover()
    except pytest.skip.Exception:
        return ["absent"]


def main() -> int:
    """Prints the table; exit status 1 when any float32 array is outside its tolerance."""
    table = Table(title=f"Recorded numbers in {golden_folder()}", title_justify="left")
    for heading in ("file", "part"):
        table.add_column(heading)
    for heading in ("arrays", "float32 worst", "error", "tolerance", "bf16 velocity", "bf16 logits"):
        table.add_column(heading, justify="left" if heading == "float32 worst" else "right")
    failed = 0
    for line in lines():
        try:
            rows = list(line.float32())
        except pytest.skip.Exception as reason:
            table.add_row(line.file, line.part, "-", f"skipped: {reason}")
            continue
        worst = max(rows, key=lambda r: r.error / max(r.tolerance, 1e-12) if not math.isnan(r.error) else math.inf)
        fits = all(r.fits for r in rows)
        failed += not fits
        style = "" if fits else "bold red"
        table.add_row(
            line.file, line.part, str(len(rows)), worst.name.split(" of ")[0], f"{worst.error:.1e}",
            f"{worst.tolerance:.2g}", *_bfloat16(line), style=style,
        )  # fmt: skip
    console = Console(width=150)
    console.print(table)
    console.print(
        "error: largest absolute difference (8-bit images: levels; gradients: relative to the norm). "
        f"bf16: relative L2 with bfloat16 weights, at most {BFLOAT16['velocity']:.1%} and {BFLOAT16['logits']:.1%}."
    )
    return min(failed, 1)


def _bfloat16(line: Line) -> list[str]:
    if line.bfloat16 is None:
        return ["", ""]
    rows = list(line.bfloat16())
    found = {kind: [r.relative for r in rows if r.kind == kind] for kind in BFLOAT16}
    return [f"{max(values):.2%}" if values else "" for values in found.values()]


if __name__ == "__main__":
    sys.exit(main())
