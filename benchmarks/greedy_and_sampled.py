"""A base, and adapters trained on it, with greedy and with sampled texts: what is skill, and what is the temperature.

Everything that runs of the embedded world are measured on, each figure with its 95 % interval. Sampled: at the
temperature of `shapes_r3`. A figure of the base's greedy texts needs no training; an adapter has learned something if
its greedy figures rise.

    python benchmarks/greedy_and_sampled.py --adapter runs/demo/adapter
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedded import load_embedded
from machine import Report

from r3_rl.assemble import world_tags
from r3_rl.evaluate.fixed_sets import Sizes
from r3_rl.evaluate.loop_bench import LoopBench
from r3_rl.evaluate.measured import Measured, differences, entropies
from r3_rl.nodes import prompt_roots
from r3_rl.observe.evaluation import Evaluation, Figure, Row, grouped_rows
from r3_rl.observe.measures import greedy
from r3_rl.observe.text_table import figure
from r3_rl.policy.adapters import adapter_merged, load_adapter
from r3_rl.policy.base import Policy
from r3_rl.recipe_io import load_recipe
from r3_rl.rollout.engine import Engine
from r3_rl.stages import PLAN
from r3_rl.stages.settings import LoopSettings
from r3_rl.worlds.base import find_world

COLUMNS = ("greedy", "sampled", "n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="folder of the base's weights; default the shipped ones")
    parser.add_argument("--adapter", action="append", default=[], help="folder of an adapter on it; repeatable")
    parser.add_argument("--prompts", type=int, default=320, help="held-out prompts; other sets grow with them")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tags", nargs="+", help="kinds of prompts, or `all`; default those of shapes_r3")
    parser.add_argument(
        "--match-entropy",
        action="store_true",
        help="also the base at the temperature at which its plans have the first adapter's entropy",
    )
    parser.add_argument("--kinds", action="store_true", help="also by kind of prompt and of question")
    parser.add_argument("--out", help="also write all numbers to this JSON file")
    return parser.parse_args()


def bench_of(settings: LoopSettings, prompts: int, rounds: int, tags: Sequence[str] | None) -> LoopBench:
    """The demo's sets where `prompts` is 320."""
    if not tags:
        tags = world_tags(load_recipe("shapes_r3").data)
    share = prompts / 320
    return LoopBench(
        world=find_world("shapes"),
        settings=settings,
        sizes=Sizes(
            num_prompts=prompts,
            num_fixed=round(300 * share),
            num_right=round(160 * share),
            num_questions=round(300 * share),
            num_swap=round(150 * share),
            num_pairs=round(120 * share),
            num_plans=round(160 * share),
            num_edits=round(160 * share),
            num_own_questions=round(150 * share),
        ),
        rounds=rounds,
        tags=None if "all" in tags else tuple(tags),
    )


def measure(args: argparse.Namespace) -> dict[str, Measured]:
    """The base first, since it fixes what all are measured on; then each adapter, by its folder."""
    loaded = load_embedded(args.model)
    bench = bench_of(loaded.settings, args.prompts, args.rounds, args.tags)
    found = {"base": bench.run(loaded.policy, bench.items())}
    items = found["base"].items
    for folder in args.adapter:
        loaded = load_embedded(args.model)
        load_adapter(loaded.policy.module, folder)
        with adapter_merged(loaded.policy.module):
            found[_name(folder)] = bench.run(loaded.policy, items)
    if args.match_entropy and args.adapter:
        wanted = found[_name(args.adapter[0])].intervals()["entropy_plan"].mean
        loaded = load_embedded(args.model)
        cooler = replace(bench, settings=at_entropy(loaded.policy, bench, wanted))
        assert cooler.settings.plan is not None
        found[f"base at T = {cooler.settings.plan.temperature:.2g}"] = cooler.run(loaded.policy, items)
    return found


def at_entropy(policy: Policy, bench: LoopBench, wanted: float) -> LoopSettings:
    """The settings at the temperature, of plans and critiques alike, at which plans have `wanted` nats a token: what a
    gain in sampled figures is to be compared with. Found by halving between 0.001 and 2 in the logarithm: choices that
    the base finds equally good (cells, free colours) keep their entropy down to temperatures near 0."""
    low, high, settings = 0.001, 2.0, bench.settings
    prompts = bench.items().prompts
    for _ in range(10):
        middle = math.sqrt(low * high)
        assert settings.plan is not None
        tried = replace(
            settings,
            plan=replace(settings.plan, temperature=middle),
            critique=replace(settings.critique, temperature=middle),
        )
        plans = Engine(policy=policy, settings=tried).write(PLAN, prompt_roots(prompts), tried.plan, seed=5)
        found = entropies([plan.sample for plan in plans if plan.sample])
        low, high = (middle, high) if sum(found) / len(found) < wanted else (low, middle)
    return tried


def _name(folder: str) -> str:
    path = Path(folder)
    return path.parent.name if path.name == "adapter" else path.name


def cells(row: Row | None) -> list[str]:
    """Greedy, sampled and n."""
    if row is None:
        return ["-", "-", "-"]
    once = row.decoding == "once"
    shown = [_cell(row, row.greedy), "the same" if once else _cell(row, row.sampled)]
    return [*shown, "/".join(map(str, row.counts))]


def _cell(row: Row, shown: Figure) -> str:
    return figure(row.name, shown.before).strip() if shown.before else "-"


def main() -> None:
    args = arguments()
    begin = time.perf_counter()
    found = measure(args)
    seconds = time.perf_counter() - begin
    tables = {}
    for name, measured in found.items():
        groups = grouped_rows(Evaluation(before=measured.intervals(), after={}, differences={}))
        tables[name] = {row.name: row for rows in groups.values() for row in rows}
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    rows = [
        [name, *(cell for table in tables.values() for cell in cells(table.get(name)))]
        for name in names
        if args.kinds or "/" not in name
    ]
    base = found["base"].intervals()
    numbers = {
        name: {
            "intervals": {n: i.as_dict() for n, i in measured.intervals().items()},
            "minus_base": {n: i.as_dict() for n, i in differences(found["base"].values, measured.values).items()},
        }
        for name, measured in found.items()
    }
    draft, final = (100 * base[greedy(name)].mean for name in ("draft", "final"))
    Report(
        title=f"Greedy and sampled texts, {args.prompts} held-out prompts; per cent, entropies in nats a token",
        columns=["", *(f"{name}: {what}" if what != "n" else "n" for name in found for what in COLUMNS)],
        rows=rows,
        notes=[
            f"With greedy texts the untrained base draws {draft:.1f} % right at first, {final:.1f} % after all rounds.",
            f"{seconds:.0f} s in all. Names: r3_rl/observe/measures.py.",
        ],
        numbers=numbers,
    ).show(args.out)


if __name__ == "__main__":
    main()
