"""Mutants of the shipped recipes: what `r3 check` says of each, and whether what it passes starts.

    python benchmarks/recipe_fuzz.py                          # 1,000 mutants, a minute
    python benchmarks/recipe_fuzz.py --mutants 0 --starts 100 # of those that pass: assemble, self-check, one step

A start takes two seconds on an idle core; `--seed 1 --starts 25` and so on does it in pieces.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=1000, help="recipes that are checked")
    parser.add_argument("--starts", type=int, default=0, help="recipes that pass the check and are started")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="no further start after these")
    return parser.parse_args()


def check_mutants(count: int, seed: int) -> int:
    """Print a table of answers; return how many were wrong."""
    from tests import recipe_mutants

    settings, rng = recipe_mutants.leaves(), random.Random(seed)
    recipe_mutants.checked(recipe_mutants.Mutant(base="", text="extends: bagel_geneval"))  # imports are not counted
    codes: Counter[int | None] = Counter()
    slowest, longest, faults = 0.0, 0, 0
    for number in range(count):
        mutant = recipe_mutants.mild(rng, settings) if number % 2 else recipe_mutants.wild(rng, sorted(settings))
        answer = recipe_mutants.checked(mutant)
        codes[answer.code] += 1
        slowest = max(slowest, answer.cpu_s)
        longest = max([longest, *map(len, answer.lines)])
        if answer.fault:
            faults += 1
            print(f"{mutant}\n  {answer.fault}")
    print(
        f"{count} mutants: {codes[0]} pass, {codes[2]} refused, {codes[None]} tracebacks; slowest {slowest:.2f} CPU s, "
        f"longest line {longest} letters; {faults} faults"
    )
    return faults


def start_mutants(count: int, seed: int, minutes: float) -> int:
    """Start what passes the check; return how many did not."""
    from tests import recipe_mutants

    begin, started, failed, tried = time.monotonic(), 0, 0, 0
    for mutant in recipe_mutants.startable(random.Random(seed)):
        if started + failed >= count or time.monotonic() - begin > 60 * minutes:
            break
        tried += 1
        if recipe_mutants.checked(mutant).code != 0:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                recipe_mutants.start(recipe_mutants.tiny(mutant))
            started += 1
        except Exception as error:  # whatever stops a start is a fault of the check
            failed += 1
            print(f"{mutant}\n  {type(error).__name__}: {error}")
    print(f"{tried} mutants tried: {started + failed} pass the check, {started} start, {failed} do not")
    return failed


def main() -> None:
    args = arguments()
    from r3_rl.process import prepare_process
    from tests import recipe_mutants

    prepare_process(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        recipe_mutants.prepare(Path(folder))
        faults = check_mutants(args.mutants, args.seed) if args.mutants else 0
        faults += start_mutants(args.starts, args.seed, args.minutes) if args.starts else 0
        os.chdir("/")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
