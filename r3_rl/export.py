"""What a run leaves to others: an adapter (or merged weights) with its base's fingerprint, recipe and model card.

Nothing counts as exported before it was read back: the files are loaded onto a base that was loaded anew, the adapter
by plain peft, and must give the outputs of the policy that was trained.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from r3_rl.errors import InputError, RunError
from r3_rl.export_source import Source, base_words, find_source
from r3_rl.observe.course import kept_words, read_best
from r3_rl.observe.lock import sole_writer
from r3_rl.observe.model_card import CardFacts, write_model_card
from r3_rl.observe.run_files import read_run
from r3_rl.policy import adapters
from r3_rl.policy.adapter_files import RECIPE_FILE, base_fingerprint
from r3_rl.policy.base import Policy
from r3_rl.policy.task_adapters import save_task_adapter
from r3_rl.recipe.sampling import world_named_in
from r3_rl.training.manifest import MANIFEST
from r3_rl.training.room import refuse_without_room, weights_bytes
from r3_rl.types import STAGES
from r3_rl.worlds.base import find_world

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
                    "added_tokens.json", "generation_config.json")  # fmt: skip
_CLOSE = 1e-4
_ONE_OF_SEVERAL = (
    " The run's adapter is routed by task (`balance.routing`); this plain one is what it amounts to for {task}s, the "
    "ranks of its parts side by side. The adapters of the other tasks lie beside this folder."
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written and how it compares."""

    folder: Path
    difference: float
    """Largest difference of an output between what was read back and the policy that was trained."""
    change: float
    """Largest difference of an output between the policy and its base."""


def export(
    run: str | Path, out: str | Path | None = None, *, merge: bool = False, base: str | Path | None = None
) -> Exported:
    """Writes a run's adapter with its model card, reads it back and compares the outputs.

    Args:
        run: folder of a run, of an adapter, or of a checkpoint.
        out: folder to write; None completes the adapter where it lies, with `merge` it is `merged` beside it. Of an
            adapter that is routed by task it is `tasks` beside it, with a plain adapter in a folder for each task. A
            checkpoint is left as it was saved, and needs one.
        merge: write full weights with the adapter added, which load without peft.
        base: folder of the base; None takes the recipe's.

    Raises InputError when the folder holds no adapter, the base is not its base or the output would go into a
    checkpoint, and RunError when the adapter changes nothing or what was read back differs from the policy.
    """
    source = find_source(Path(run), Path(base) if base is not None else None)
    if merge and source.routed:
        raise InputError(
            f"{source.adapter}: routed by task, so it adds something else to the weights for each task",
            hint="leave --merge out: a plain adapter is written for each task",
        )
    folder = Path(out) if out is not None else _default_folder(source, merged=merge)
    if (folder / MANIFEST).is_file():  # a card in it would be a file that its manifest does not know
        raise InputError(f"{folder}: a checkpoint is left as it was saved", hint="name another folder with --out")
    if merge and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: already there and not empty", hint="name another folder")
    what = "merged weights" if merge else "plain adapters, one a task," if source.routed else "adapter"
    print(f"{what} of {source.adapter} -> {folder}")
    inside = source.run is not None and source.run.resolve() in folder.resolve().parents
    with sole_writer(source.run) if source.run is not None and inside else nullcontext():
        return _export(source, folder, merge=merge)


def _export(source: Source, folder: Path, *, merge: bool) -> Exported:
    """Into a folder that nobody else writes."""
    marks = source.backbone.fingerprint(source.base)
    remembered = base_fingerprint(source.adapter)
    if remembered is None:
        print(f"the adapter names no base; taking {source.base} as given")
    policy = source.policy(source.base)
    before = source.outputs(policy)
    adapters.load_adapter(policy.module, source.adapter, fingerprint=marks if remembered else None)
    if source.routed:
        return _export_tasks(policy, source, folder, marks, before)
    after = source.outputs(policy)
    change = _largest(before, after)
    if change == 0:
        raise _changes_nothing(source)
    if merge:
        _write_merged(policy, source, folder)
    else:
        adapters.save_adapter(policy.module, folder, fingerprint=marks, recipe_text=source.recipe_text or None)
    del policy
    done = _compared(folder, source, after, change, merged=merge)
    _write_card(done, source, marks, merged=merge)
    print(
        f"read back: largest difference from the policy {done.difference:.3g}; the adapter moves outputs by "
        f"{change:.3g}"
    )
    return done


def _export_tasks(policy: Policy, source: Source, folder: Path, marks: str, before: Tensor) -> Exported:
    """A plain adapter for every task whose outputs are not the base's."""
    after = {task: source.outputs(policy, task) for task in STAGES}
    changes = {task: _largest(before, found) for task, found in after.items()}
    if not any(changes.values()):
        raise _changes_nothing(source)
    written = []
    for task, change in changes.items():
        if change == 0:
            print(f"{task:12} left out: the base draws and writes the same, nothing was trained for it")
            continue
        text = source.recipe_text or None
        save_task_adapter(policy.module, task, folder / task, fingerprint=marks, recipe_text=text)
        done = _compared(folder / task, source, after[task], change, merged=False)
        _write_card(done, source, marks, merged=False, task=task)
        print(
            f"{task:12} read back: largest difference from the policy {done.difference:.3g}; the adapter moves "
            f"outputs by {change:.3g}"
        )
        written.append(done)
    return Exported(folder=folder, difference=max(d.difference for d in written), change=max(d.change for d in written))


def _changes_nothing(source: Source) -> RunError:
    return RunError(f"{source.adapter}: the adapter changes nothing", hint="was the run stopped before its first step?")


def _compared(folder: Path, source: Source, after: Tensor, change: float, *, merged: bool) -> Exported:
    """Reads back what was written. Raises RunError where it does not give `after`, which is `change` from the base."""
    difference = _largest(after, _read_back(folder, source, merged=merged))
    # sums in another order differ by rounding; merging in bfloat16 rounds each weight, then what was read back must at
    # least be nearer to the policy than to the base
    rounding = merged and source.dtype != torch.float32
    allowed = 0.5 * change if rounding else _CLOSE * max(1.0, float(after.abs().max()))
    if not difference <= allowed:
        raise RunError(
            f"{folder}: what was read back differs from the policy by {difference:.3g}, allowed {allowed:.3g}",
            hint="bfloat16 rounds the adapter away; keep it apart from the weights" if rounding else "",
        )
    return Exported(folder=folder, difference=difference, change=change)


def _default_folder(source: Source, *, merged: bool) -> Path:
    beside = "merged" if merged else "tasks" if source.routed else ""
    if source.run is not None and not read_best(source.adapter):
        return source.run / (beside or "adapter")
    return source.adapter.with_name(f"{source.adapter.name}-{beside}") if beside else source.adapter


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _write_merged(policy: Policy, source: Source, folder: Path) -> None:
    adapters.merge(policy.module)
    refuse_without_room(folder, weights_bytes(policy.module), "the merged model")
    source.backbone.save(policy, folder)
    for name in _TOKENIZER_FILES:
        if (source.base / name).is_file():
            shutil.copyfile(source.base / name, folder / name)
    if source.recipe_text:
        (folder / RECIPE_FILE).write_text(source.recipe_text, encoding="utf-8")


def _read_back(folder: Path, source: Source, *, merged: bool) -> Tensor:
    if merged:
        return source.outputs(source.policy(folder))
    from peft import PeftModel

    policy = source.policy(source.base)
    PeftModel.from_pretrained(policy.module, str(folder))  # puts its layers into the policy's own module
    return source.outputs(policy)


def _write_card(done: Exported, source: Source, marks: str, *, merged: bool, task: str = "") -> None:
    """task: that the adapter is for, if every task has its own."""
    model = source.recipe.get("model") or {}
    shipped = bool(source.recipe) and model.get("kind", "embedded") == "embedded" and model.get("path") is None
    world = find_world(world_named_in(source.recipe)).name if shipped else None
    facts = CardFacts(
        title=f"{source.name}: {'merged weights' if merged else f'adapter for {task}s' if task else 'adapter'}",
        base=base_words(source),
        base_fingerprint=marks,
        loading=_loading(world, model.get("base"), merged=merged, folder=task or "adapter"),
        proof=(
            f"Read back on export: outputs differ from the trained policy's by at most {done.difference:.3g}; the "
            f"adapter moves them by up to {done.change:.3g}." + (_ONE_OF_SEVERAL.format(task=task) if task else "")
        ),
        merged=merged,
        kept=kept_words(source.adapter),
    )
    write_model_card(done.folder, facts, read_run(source.run) if source.run is not None else None, source.recipe)


def _loading(world: str | None, name: str | None, *, merged: bool, folder: str = "adapter") -> str:
    """Python that loads what was exported; `world` is the one whose shipped model, of that name, is the base."""
    imports = ["from r3_rl.policy.registry import load"]
    if merged:
        return "\n".join([*imports, "", 'model = load("merged").module  # this folder'])
    base = '"base"'
    if world is not None:
        imports.append("from r3_rl.worlds.base import find_world")
        called = "" if name is None else f'"{name}"'
        base = f'find_world("{world}").weights_folder({called})'
    lines = [f"base = load({base}).module", f'model = PeftModel.from_pretrained(base, "{folder}")  # this folder']
    # ours first: it keeps a torchvision made for another torch from breaking the import of peft
    return "\n".join([*imports, "from peft import PeftModel", "", *lines])
