"""`r3 probe`: do the stages' gradients pull against each other?"""

from __future__ import annotations

from pathlib import Path

from r3_rl.errors import InputError


def probe(target: str, /, *overrides: str, steps: int = 6, out: str | None = None) -> None:
    """Measure the gradients of plans, drafts, critiques and refinements and compare them layer by layer; train nothing.

    Args:
        target: a recipe, or the folder of a run, whose trained weights are measured.
        overrides: settings to change, such as rollout.num_prompts=16; lora.enabled=false measures the full weights.
        steps: measurements on fresh rollouts, 3 or more.
        out: folder of table and page; without it one below runs/probe.
    """
    from r3_rl.process import prepare_process

    run = Path(target)
    adapter = run / "adapter" if (run / "adapter" / "adapter_config.json").is_file() else None
    recorded = run / "recipe.resolved.yaml"
    if run.is_dir() and not recorded.is_file():
        raise InputError(f"{target}: no run in this folder", hint="give a run, a recipe's file or its name")
    if run.is_dir() and adapter is None:
        raise InputError(f"{target}: the run has no adapter/", hint="it has not finished; give its recipe instead")
    from r3_rl.cli.checked import checked_recipe

    recipe = checked_recipe(str(recorded) if run.is_dir() else target, overrides)
    prepare_process(recipe.training.num_threads)
    from r3_rl.evaluate.probe import probe as measure
    from r3_rl.evaluate.probe_page import table_lines, write_probe

    title = run.resolve().name if run.is_dir() else run.stem
    found = measure(recipe, adapter=adapter, num_steps=steps)
    print(*table_lines(found), sep="\n")
    print(f"page: {write_probe(found, Path(out) if out else Path('runs') / 'probe' / title, title=title)}")
