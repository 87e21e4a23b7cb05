"""How much code a reader must enter to follow one reason step and one refine step: functions and files, by room.

Counted while both steps run for real, the backbone's own folder left out: it is one model's business. Functions that
Python makes on its way (comprehensions, generated dataclass methods) are not counted.

    python benchmarks/functions_entered.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from machine import Report

import r3_rl

HOUSE = Path(r3_rl.__file__).resolve().parent
BACKBONE = HOUSE / "policy" / "bagel"


class Entered:
    """Notes the functions of the toolkit that are called while it is on."""

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()

    def __enter__(self) -> Entered:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(HOUSE)) and not code.co_name.startswith("<"):
            self.codes.add(code)

    def by_file(self) -> dict[Path, set[str]]:
        """Names of functions by file, without the backbone's."""
        found: dict[Path, set[str]] = {}
        for code in self.codes:
            path = Path(code.co_filename)
            if BACKBONE not in path.parents:
                found.setdefault(path, set()).add(code.co_qualname)
        return found


def entered() -> dict[Path, set[str]]:
    """What one reason step and one refine step enter: names of functions by file."""
    from r3_rl.assemble import load_policy
    from r3_rl.evaluate.build import build_trainer
    from r3_rl.recipe_io import load_recipe

    recipe = load_recipe("shapes_r3", [
        "rollout.num_prompts=4", "rollout.branch={plan: 4, draft: 2, critique: 8}",
        "algorithm.tree.node_choice=uniform",
        "algorithm.tree.reason_steps=1", "training.max_steps=2", "training.save_steps=99", "training.num_threads=1",
        "eval_rewards=[]",
    ])  # fmt: skip
    loaded = load_policy(recipe.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(recipe, loaded, Path(folder))
        trainer.prepare()
        with Entered() as found:
            for step in range(2):
                trainer.step(step)
        trainer.close()
    return found.by_file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="also print every function")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args()
    files = entered()
    rooms: Counter[str] = Counter()
    for path, names in files.items():
        rooms[path.relative_to(HOUSE).parts[0]] += len(names)
    functions = sum(map(len, files.values()))
    if args.list:
        for path, names in sorted(files.items()):
            print(path.relative_to(HOUSE), *sorted(names), sep="\n    ")
    Report(
        title=f"one reason step and one refine step enter {functions} functions in {len(files)} files",
        columns=["room", "functions"],
        rows=[[room, str(count)] for room, count in rooms.most_common()],
        notes=["Of the main thread; scorers' threads and the backbone's folder are left out."],
        numbers={"functions": functions, "files": len(files), **rooms},
    ).show(args.out)


if __name__ == "__main__":
    main()
