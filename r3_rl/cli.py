"""The verbs of `r3`. A verb imports its room when it runs, so that help and checks answer at once and load no torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError

from r3_rl import __version__
from r3_rl.errors import InputError, R3Error

app = App(
    name="r3",
    help="Reinforcement learning for models that draw, look at what they drew, and draw again.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    print_error=False,
    exit_on_error=False,
)
recipes = App(name="recipes", help="The shipped recipes: ls, show, copy.")
rewards = App(name="rewards", help="The scorers: ls, new, test, serve.")
prompts = App(name="prompts", help="Training prompts: geneval.")
app.command(recipes)
app.command(rewards)
app.command(prompts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and leave with its exit code: 0 ok, 1 the run failed, 2 the input was wrong, 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a verb and return its exit code; an error becomes lines on stderr."""
    try:
        result = app(list(arguments))
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except R3Error as error:
        return _say(str(error), error.exit_code)
    except CycloptsError as error:
        return _say(f"r3: {' '.join(str(error).split())}", 2)
    except KeyboardInterrupt:
        return _say("r3: interrupted", 130)
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this Python complains once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


@app.command
def demo(*, out: str = "runs/demo", seed: int = 0, minutes: float = 5.0) -> None:
    """Train the embedded model with R3 for a few minutes and show before and after.

    Args:
        out: folder of the run: pictures, adapter, report.html, summary.json.
        seed: seed of the run.
        minutes: time for training and evaluation.
    """
    from r3_rl.process import prepare_process

    prepare_process()
    from r3_rl.evaluate.demo import demo as run_demo

    run_demo(out=out, seed=seed, minutes=minutes)


@app.command
def train(
    recipe: str,
    /,
    *overrides: str,
    resume: str | None = None,
    dry_run: bool = False,
    rehearse: bool = False,
    processes: int = 1,
) -> int:
    """Fine-tune a policy by a recipe.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        overrides: settings to change, such as training.seed=1.
        resume: folder of an interrupted run to go on with.
        dry_run: write the resolved recipe and stop.
        rehearse: run one step of every kind, say what memory and time the run takes, and stop; nothing is kept.
        processes: with --rehearse, how many the run will have: one of them is rehearsed.
    """
    from r3_rl.recipe_io import dump_resolved, find_recipe, load_recipe

    checked = load_recipe(recipe, overrides)
    if dry_run:
        print(dump_resolved(checked), end="")
        return 0
    from r3_rl.process import prepare_process
    from r3_rl.ranks import launched

    prepare_process(checked.training.num_threads)
    rank, num_processes = launched()
    if processes < 1 or (processes > 1 and not rehearse):
        raise InputError("--processes belongs to --rehearse and is at least 1", hint="start several with torchrun")
    if rehearse:
        if num_processes > 1:
            raise InputError("--rehearse measures one process", hint="run it without torchrun")
        from r3_rl.evaluate.rehearse import rehearse as run_rehearsal

        rehearsal = run_rehearsal(checked, processes=processes)
        print(rehearsal)
        return 0 if rehearsal.fits else 1
    from r3_rl.evaluate.run import train as run_training

    source = "".join(f"# override: {override}\n" for override in overrides)
    source += find_recipe(recipe).read_text(encoding="utf-8")
    with redirect_stdout(io.StringIO()) if rank else nullcontext():  # the first process speaks for all
        done = run_training(checked, name=Path(recipe).stem, resume=resume, source=source)
    return 130 if done.interrupted else 0


@app.command
def pretrain(recipe: str, /, *overrides: str) -> None:
    """Make the embedded model: supervised pretraining by a recipe with a `pretrain` section.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        overrides: settings to change, such as pretrain.steps=100.
    """
    from r3_rl.recipe_io import load_recipe

    checked = load_recipe(recipe, overrides)
    if checked.pretrain is None:
        raise InputError(
            f"{recipe}: no section 'pretrain'", hint="run it with `r3 train`, or start from shapes_pretrain"
        )
    from r3_rl.process import prepare_process

    prepare_process(checked.training.num_threads)
    from r3_rl.evaluate.pretrain import pretrain as run_pretraining

    run_pretraining(checked)


@app.command
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
        model: folder of a policy; without it the embedded model.
        adapter: folder of an adapter.
        rounds: refinements at most.
        out: the picture, a PNG file.
        seed: seed of texts and noise.
    """
    from r3_rl.evaluate.refiner import refine_command

    refine_command(prompt=prompt, model=model, adapter=adapter, rounds=rounds, out=out, seed=seed)


@app.command
def export(run: str, /, *, out: str | None = None, merge: bool = False, base: str | None = None) -> None:
    """Write the adapter of a run with its model card, reload it and compare the outputs.

    Args:
        run: folder of a run, or of an adapter.
        out: folder to write; without it the adapter is completed where it lies.
        merge: write full weights with the adapter merged in.
        base: folder of the base, where the recipe's has moved.
    """
    from r3_rl.export import export as run_export

    run_export(run, out, merge=merge, base=base)


@app.command
def report(run: str, /) -> None:
    """Write report.html of a run: curves, table, gallery; one file that needs no network.

    Args:
        run: folder of a run.
    """
    from r3_rl.observe.report import write_report

    print(write_report(run))


@app.command
def compare(*runs: str) -> None:
    """Show two or more runs side by side: settings that differ, figures before and after, changes with intervals.

    Args:
        runs: folders of runs that were measured on the same held-out prompts.
    """
    from r3_rl.observe.compare import compare as compare_runs

    print(compare_runs(runs))


@app.command
def check(recipe: str, /, *overrides: str, processes: int = 1) -> None:
    """Check a recipe and say what a step of it is made of; nothing is loaded.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        overrides: settings to change, such as training.seed=1.
        processes: number of processes it will run on.
    """
    from r3_rl.recipe import geometry
    from r3_rl.recipe_io import load_recipe

    if processes < 1:
        raise InputError(f"--processes {processes}: at least 1")
    print(geometry(load_recipe(recipe, overrides), processes))
    print("ok")


@app.command
def schema() -> None:
    """Print the recipe's JSON schema, for editors that complete and check YAML."""
    import json

    from r3_rl.recipe_io import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command
def doctor() -> None:
    """Say what this machine and installation can do: versions, speed, optional packages."""
    from r3_rl.doctor import doctor as examine

    examine()


@recipes.command
def ls() -> None:
    """List the shipped recipes."""
    from r3_rl.recipe_io import headline, shipped_recipes

    files = shipped_recipes()
    width = max(map(len, files), default=0)
    for name, file in files.items():
        print(f"{name:{width}}  {headline(file)}")


@recipes.command
def show(recipe: str, /, *, resolved: bool = False) -> None:
    """Print a recipe as written, or with every default.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        resolved: print every setting, inherited and default ones too.
    """
    from r3_rl.recipe_io import dump_resolved, find_recipe, load_recipe

    print(dump_resolved(load_recipe(recipe)) if resolved else find_recipe(recipe).read_text(encoding="utf-8"), end="")


@recipes.command
def copy(recipe: str, /, to: str = ".") -> None:
    """Copy a shipped recipe, to change it.

    Args:
        recipe: name of a shipped recipe.
        to: file or folder.
    """
    from r3_rl.recipe_io import find_recipe

    source, target = find_recipe(recipe), Path(to)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise InputError(f"{target}: already there", hint="name another file")
    if not target.parent.is_dir():
        raise InputError(f"{target}: no such folder '{target.parent}'")
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{target}: run it with `r3 train {target}`")


@rewards.command(name="ls")
def rewards_ls() -> None:
    """List the installed scorers: range, needs, licence of their weights, origin."""
    from r3_rl.scoring.commands import ls as list_installed

    list_installed()


@rewards.command
def new(name: str, /, *, folder: str = ".") -> None:
    """Write a scorer that works and a test that passes, to build yours from.

    Args:
        name: name of the scorer, such as my_score.
        folder: where to write NAME.py and test_NAME.py.
    """
    from r3_rl.scoring.commands import new as write_new

    write_new(name, folder)


@rewards.command(name="test")
def rewards_test(
    scorer: str, /, *images: str, prompt: str = "", text: str | None = None, params: str = "", columns: str = ""
) -> None:
    """Score images or a text and print scores and time; of two images the first is the draft of the second.

    Args:
        scorer: installed name, package.module:name or ./file.py:name.
        images: image files or folders.
        prompt: the prompt that the images were drawn for.
        text: a text to score.
        params: parameters of the scorer as YAML, such as "{half: 0.02}".
        columns: columns of the data set as YAML.
    """
    from r3_rl.scoring.commands import test as score_files

    score_files(scorer, images, prompt=prompt, text=text, params=_mapping(params), columns=_mapping(columns))


@rewards.command
def serve(
    *scorers: str,
    port: int = 8500,
    host: str = "127.0.0.1",
    token_env: str | None = None,
    params: str = "",
    workers: int = 2,
    max_waiting: int = 8,
    timeout_s: float = 300.0,
) -> None:
    """Serve scorers to runs in other processes or on other machines; a recipe asks them with `scorer: remote`.

    Args:
        scorers: installed name, package.module:name or ./file.py:name; one or more.
        port: where to listen; 0 takes a free port and prints it.
        host: this machine alone unless another address is named, which takes a token.
        token_env: environment variable with the token that a request has to carry.
        params: parameters of the scorer as YAML, where one is served.
        workers: calls that run at once.
        max_waiting: requests inside at once; further ones are told when to come again.
        timeout_s: seconds that one call may take.
    """
    from r3_rl.process import prepare_process

    if workers < 1 or max_waiting < 1 or timeout_s <= 0:
        raise InputError("--workers, --max-waiting and --timeout-s are above 0")
    prepare_process()
    from r3_rl.scoring.server import ServerSettings
    from r3_rl.scoring.server import serve as serve_scorers

    serve_scorers(
        scorers,
        port=port,
        host=host,
        token_env=token_env,
        params=_mapping(params),
        settings=ServerSettings(num_workers=workers, max_waiting=max_waiting),
        timeout_s=timeout_s,
    )


@prompts.command
def geneval(
    *, num: int, seed: int = 0, plus: bool = False, tags: list[str] | None = None, exclude: list[str] | None = None
) -> None:
    """Print training prompts in GenEval's columns as JSON lines; never one of GenEval's or GenEval++'s test prompts.

    Args:
        num: how many.
        seed: the same seed gives the same prompts.
        plus: prompts in the style of GenEval++.
        tags: a kind of prompts, such as position; once for each kind.
        exclude: JSON lines whose prompts are not made either; once for each file.
    """
    import json

    from r3_rl.rollout.geneval_prompts import geneval_prompts

    style = "geneval_plus" if plus else "geneval"
    for row in geneval_prompts(num, seed=seed, style=style, tags=tags or (), exclude=exclude or ()):
        print(json.dumps(row))


def _mapping(text: str) -> dict[str, Any]:
    from r3_rl.recipe.tree import parse_value

    try:
        value = parse_value(text) if text else {}
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(value, dict):
        raise InputError(f"{text!r} is no YAML mapping", hint="write {name: value}")
    return value
