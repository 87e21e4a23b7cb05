"""Verbs that start a run or read one."""

from __future__ import annotations

import io
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from r3_rl.errors import InputError


def demo(*, world: str | None = None, out: str = "runs/demo", seed: int = 0, minutes: float = 6.0) -> int:
    """Train the model of a world with R3 for a few minutes and show before and after.

    Args:
        world: name of a world; without it the embedded one.
        out: folder of the run: pictures, adapter, report.html, summary.json.
        seed: seed of the run.
        minutes: time for training and evaluation.
    """
    from r3_rl.process import prepare_process

    prepare_process()
    from r3_rl.evaluate.demo import demo as run_demo

    return run_demo(world=world, out=out, seed=seed, minutes=minutes).exit_code


def train(
    recipe: str | None = None,
    /,
    *overrides: str,
    resume: str | None = None,
    allow_changes: bool = False,
    dry_run: bool = False,
    rehearse: bool = False,
    processes: int = 1,
    nodes: int = 1,
) -> int:
    """Fine-tune a policy by a recipe.

    Args:
        recipe: a YAML file or the name of a shipped recipe; with --resume it may be left out: the run's own is taken.
        overrides: settings to change, such as training.seed=1.
        resume: what to go on with: `latest`, a run's folder or name, or a checkpoint's (`checkpoint-50`).
        allow_changes: with --resume, take other data, rewards, model or seed than the run had.
        dry_run: write the resolved recipe and stop.
        rehearse: run one step of every kind, say what memory and time the run takes, and stop; nothing is kept.
        processes: with --rehearse, how many the run will have: one of them is rehearsed.
        nodes: with --rehearse, how many machines they will be on.
    """
    from r3_rl.cli.checked import checked_recipe
    from r3_rl.recipe_io import dump_resolved, find_recipe

    if resume is not None and (recipe is None or ("=" in recipe and not Path(recipe).is_file())):
        overrides = (*([recipe] if recipe else []), *overrides)
        recipe, resume = _recipe_of(resume)
    if recipe is None:
        raise InputError("no recipe", hint="give a YAML file, or a name that `r3 recipes ls` lists")
    checked = checked_recipe(recipe, overrides)
    if dry_run:
        print(dump_resolved(checked), end="")
        return 0
    from r3_rl.joining import launched
    from r3_rl.process import prepare_process

    prepare_process(checked.training.num_threads)
    rank, num_processes = launched()
    if min(processes, nodes) < 1 or (max(processes, nodes) > 1 and not rehearse):
        raise InputError(
            "--processes and --nodes belong to --rehearse and are at least 1", hint="start several with torchrun"
        )
    if rehearse:
        if num_processes > 1:
            raise InputError("--rehearse measures one process", hint="run it without torchrun")
        from r3_rl.evaluate.rehearse import rehearse as run_rehearsal

        rehearsal = run_rehearsal(checked, processes=processes, nodes=nodes)
        print(rehearsal)
        return 0 if rehearsal.fits else 1
    from r3_rl.evaluate.run import train as run_training

    further = None
    if checked.eval.benches:
        from r3_rl.benches.in_training import RunBenches, eval_settings
        from r3_rl.benches.run import check_benches

        # a broken file and an unknown figure are said before a model is loaded
        check_benches(eval_settings(checked))
        checked_recipe(recipe, overrides, figures=True)
        further = RunBenches

    source = "".join(f"# override: {override}\n" for override in overrides)
    source += find_recipe(recipe).read_text(encoding="utf-8")
    with redirect_stdout(io.StringIO()) if rank else nullcontext():  # the first process speaks for all
        done = run_training(
            checked,
            name=Path(recipe).stem,
            resume=resume,
            allow_changes=allow_changes,
            source=source,
            further=further,
        )
    return done.exit_code


def _recipe_of(resume: str) -> tuple[str, str]:
    """The file of the recipe that a run has, and the run or its checkpoint as a path."""
    from r3_rl.evaluate.resume import find_place, recorded
    from r3_rl.recipe.running import TrainingSection

    place = find_place(resume, runs=Path(TrainingSection.model_fields["output_dir"].default))
    return str(recorded(place.run)), str(place.checkpoint or place.run)


def pretrain(recipe: str, /, *overrides: str) -> None:
    """Make the model of a world: supervised pretraining by a recipe with a `pretrain` section.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        overrides: settings to change, such as pretrain.steps=100.
    """
    from r3_rl.recipe_io import load_recipe

    checked = load_recipe(recipe, overrides)
    if checked.pretrain is None:
        raise InputError(
            f"{recipe}: no section 'pretrain'", hint="run it with `r3 train`; `r3 recipes ls` lists those that have one"
        )
    from r3_rl.process import prepare_process

    prepare_process(checked.training.num_threads)
    from r3_rl.evaluate.pretrain import pretrain as run_pretraining

    run_pretraining(checked, name=Path(recipe).stem)


def refine(
    prompt: str,
    /,
    *,
    model: str | None = None,
    adapter: str | None = None,
    rounds: int = 2,
    out: str = "refine.png",
    seed: int = 0,
) -> None:
    """Draw a prompt, critique it and draw again; write draft, critiques and refinements as one picture.

    Args:
        prompt: what to draw.
        model: folder of a policy, or a world such as `mosaic`; without it the embedded model.
        adapter: folder of an adapter; `shipped` is the one that comes with the package.
        rounds: refinements at most.
        out: the picture, a PNG file.
        seed: seed of texts and noise.
    """
    from r3_rl.evaluate.refiner import refine_command

    refine_command(prompt=prompt, model=model, adapter=adapter, rounds=rounds, out=out, seed=seed)


def export(
    run: str, /, *, best: bool = False, out: str | None = None, merge: bool = False, base: str | None = None
) -> None:
    """Write the adapter of a run with its model card, reload it and compare the outputs.

    Args:
        run: folder of a run, of an adapter, or of a checkpoint.
        best: take the adapter of the run's best step (`eval.keep_best`), not that of its last one.
        out: folder to write; without it the adapter is completed where it lies. A checkpoint needs one.
        merge: write full weights with the adapter merged in.
        base: folder of the base, where the recipe's has moved.
    """
    from r3_rl.export import export as run_export
    from r3_rl.observe.course import best_folder

    run_export(best_folder(run) if best else run, out, merge=merge, base=base)


def merge(*parts: str, out: str, base: str | None = None) -> None:
    """Add up adapters that were trained apart on one base: `r3 merge runs/reading:0.5 runs/drawing:0.5 --out both`.

    Args:
        parts: two or more folders of runs or adapters, each with `:WEIGHT` behind it; without one it counts 1.
        out: folder to write.
        base: folder of the base, where the recipe's has moved.
    """
    from r3_rl.merging import Part, merge_adapters

    merge_adapters([Part.read(part) for part in parts], out, base=base)


def report(run: str, /) -> None:
    """Write report.html of a run: curves, table, gallery; one file that needs no network.

    Args:
        run: folder of a run.
    """
    from r3_rl.observe.report import write_report

    print(write_report(run))


def compare(*runs: str, out: Path | None = None) -> None:
    """Show two or more runs side by side: settings that differ, figures before and after, changes with intervals.

    Args:
        runs: folders of runs that were measured on the same held-out prompts.
        out: a file for the same figures, `.csv` or `.json`.
    """
    from r3_rl.observe.compare import compare as compare_runs
    from r3_rl.observe.compare_file import check_comparison, write_comparison

    if out is not None:
        check_comparison(out)
    print(compare_runs(runs))
    if out is not None:
        write_comparison(runs, out)
        print(f"figures in {out}")
