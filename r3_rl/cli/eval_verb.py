"""`r3 eval`: what training did to drawing and to understanding."""

from __future__ import annotations

import io
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from r3_rl.errors import InputError

MOST_ROUNDS = 16


def eval_(
    subject: str | None = None,
    /,
    *,
    bench: str,
    best: bool = False,
    rounds: str = "0,1,2,3",
    seeds: int = 1,
    limit: int | None = None,
    against: str | None = None,
    scorers: str | None = None,
    out: str | None = None,
) -> None:
    """Measure a model and the base that it was trained from: drawing at every edit budget, and understanding.

    Args:
        subject: a run, an adapter (`shipped` comes with the package) or a model (a folder, a name on the
            hub, or a world such as `mosaic`); without it the embedded model.
        best: measure the adapter of the run's best step (`eval.keep_best`), not that of its last one.
        bench: names of benches, with commas between; NAME=PATH for one that reads files. A world's name is its bench.
        rounds: edit budgets to report, with commas between; the largest one is run.
        seeds: how often everything is drawn and asked, with other noise.
        limit: most items of a set.
        against: another run, adapter or model, on the same items.
        scorers: YAML file with the scorers of drawing benches, by bench: `scorer` and `params` as in a recipe.
        out: folder of tables, samples, images and page; without it one below runs/eval. An unfinished one goes on.
    """
    from r3_rl.joining import launched
    from r3_rl.process import prepare_process

    budgets = _budgets(rounds)
    names = [name.strip() for name in bench.split(",") if name.strip()]
    if not names:
        raise InputError("--bench names no bench", hint="such as --bench vqav2=FOLDER,pope=FILE")
    if seeds < 1 or (limit is not None and limit < 1):
        raise InputError("--seeds and --limit are at least 1")
    if best:
        from r3_rl.observe.course import best_folder

        if subject is None:
            raise InputError("--best is that of a run", hint="give the folder of a run")
        subject = str(best_folder(subject))
    prepare_process()
    from r3_rl.benches.run import EvalSettings, evaluate

    folder = Path(out) if out else Path("runs") / "eval" / _folder_name(subject)
    settings = EvalSettings(
        benches=names, rounds=budgets, num_seeds=seeds, limit=limit, scorers=Path(scorers) if scorers else None
    )
    with redirect_stdout(io.StringIO()) if launched()[0] else nullcontext():  # the first process speaks for all
        evaluate(subject, folder, settings, against=against)


def _budgets(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 0 or found[-1] > MOST_ROUNDS:
        raise InputError(f"--rounds {text}: not numbers from 0 to {MOST_ROUNDS}", hint="write such as 0,1,2,3")
    return found


def _folder_name(subject: str | None) -> str:
    """After the run, not after the adapter/ folder in it; its best adapter has one of its own."""
    if subject is None:
        return "embedded"
    place = Path(subject).resolve()
    if place.name == "best":
        return f"{place.parent.name}-best"
    return place.parent.name if place.name in ("adapter", "model") else place.name
