"""How simple the house is, counted: every row of the redesign's table that a script can count, next to its goal.

Functions and files are those of `functions_entered.py`, encodes those of `shared_prefixes.py`, repeated defaults and
names of worlds those of the tests that allow none.

    python benchmarks/design_goals.py
"""

from __future__ import annotations

import argparse
import re
import sys
from argparse import Namespace
from pathlib import Path

from functions_entered import HOUSE, entered
from machine import Report
from shared_prefixes import cases, counted, tiny_policy

ROOT = Path(__file__).resolve().parents[1]
COUNTED_LINES = ("training/*.py", "rollout/*.py", "evaluate/rehears*.py", "assemble.py")
"""Training with its self-check, rollout, rehearsal, assemble."""


def lines() -> int:
    """Lines of the rooms that the goal counts, docstrings and blank lines included."""
    files = [file for pattern in COUNTED_LINES for file in HOUSE.glob(pattern)]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def sequences() -> list[Path]:
    """The files that run stages: those outside `stages/` that name their objects."""
    named = re.compile(r"\b(PLAN|DRAFT|CRITIQUE|REFINEMENT)\b")
    found = [file for file in HOUSE.rglob("*.py") if "r3_rl.stages import" in file.read_text(encoding="utf-8")]
    return [f for f in found if f.parent.name != "stages" and named.search(f.read_text(encoding="utf-8"))]


def naming(word: str, own: Path) -> list[Path]:
    """Files outside a backbone's folder and the registry that import from it."""
    files = [f for f in HOUSE.rglob("*.py") if own not in f.parents and f.name != "registered.py"]
    return [f for f in files if re.search(rf"^\s*(from|import) .*\b{word}\b", f.read_text(encoding="utf-8"), re.M)]


def asking() -> list[Path]:
    """Files outside of backbones that ask whether they hold an image: one more modality has to look at each of them."""
    asked = re.compile(r"isinstance\([^)]*\b(Image|Flow|ImageToken)(Piece|Segment)\b")
    files = [file for file in HOUSE.rglob("*.py") if HOUSE / "policy" / "bagel" not in file.parents]
    return [f for f in files if f.name != "modalities.py" and asked.search(f.read_text(encoding="utf-8"))]


def encodes() -> dict[str, int]:
    """What a guided draw of 16 peers at one image sends through the towers and the decoder."""
    args = Namespace(backend="matmul", side=64)
    policy = tiny_policy(args)
    return counted(policy, cases(policy, args, (16,))["draw, guided"])


def repeated_defaults() -> int:
    """Defaults outside the recipe's sections that repeat a key's."""
    from tests import test_defaults as told

    keys: dict[str, list[object]] = {}
    for section in told.sections():
        for key, field in section.model_fields.items():
            keys.setdefault(key, []).append(field.default)
    files = [file for file in HOUSE.rglob("*.py") if told.ROOM not in file.parents]
    written = [default for file in files for default in told.defaults_in(file.read_text(encoding="utf-8"))]
    return len({(d.owner, d.name) for d in written if told.repeated(d, keys)} - told.OTHER_THINGS.keys())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    files = entered()
    functions, guided = sum(map(len, files.values())), encodes()
    rows = [
        ("functions entered by one reason and one refine step", functions, "under 90"),
        ("files entered by them", len(files), "under 20"),
        ("files that run the sequence of stages", len(sequences()), "1"),
        ("files that ask whether they hold an image", len(asking()), "0"),
        ("files outside its folder that import a backbone", len(naming("bagel", HOUSE / "policy" / "bagel")), "0"),
        ("guided draw of 16 peers: images through the autoencoder", guided["autoencoder"], "1"),
        ("guided draw of 16 peers: images through the vision tower", guided["vision"], "1"),
        ("lines of training, rollout, rehearsal, self-check, assemble", lines(), "under 1,800"),
        ("defaults written more than once", repeated_defaults(), "0"),
    ]
    Report(
        title="the goals of the redesign that a script can count",
        columns=["row", "today", "goal"],
        rows=[[name, f"{value:,}", goal] for name, value, goal in rows],
        notes=["How many files a new world, modality, loss or bench touches is shown by the tests that add one."],
        numbers={name: value for name, value, _ in rows},
    ).show(args.out)


if __name__ == "__main__":
    main()
