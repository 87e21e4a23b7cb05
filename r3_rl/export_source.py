"""Where an adapter lies with everything that belongs to it: its run, its recipe, the base that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r3_rl.errors import InputError, RunError
from r3_rl.policy.adapter_files import RECIPE_FILE, read_routing
from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Policy
from r3_rl.policy.hub import fetch, is_hub_id
from r3_rl.policy.registry import backbone_of
from r3_rl.recipe.sampling import world_named_in
from r3_rl.training.manifest import MANIFEST, checked, newest_whole
from r3_rl.worlds.base import find_world

_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an adapter and everything that belongs to it lies; `find_source` looks."""

    adapter: Path
    run: Path | None
    recipe_text: str
    recipe: Mapping[str, Any]
    base: Path
    backbone: Backbone
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return (self.run or self.adapter).resolve().name

    @property
    def routed(self) -> bool:
        """Whether the adapter amounts to another one for each task."""
        return read_routing(self.adapter) is not None

    def policy(self, folder: Path) -> Policy:
        """Loaded from the base's folder or from another one of its backbone's."""
        return self.backbone.load(folder, dtype=self.dtype, device="cpu")

    def outputs(self, policy: Policy, task: str = "") -> Tensor:
        """What the policy gives for a fixed input, by the adapter of a task where it has one for each."""
        found = self.backbone.probe(policy, task)
        if not bool(found.isfinite().all()):
            raise RunError("the policy's outputs are not finite numbers", hint="export an earlier checkpoint")
        return found


def find_source(folder: Path, base: Path | None) -> Source:
    """The adapter of a run, or in a folder. base: of the weights; None takes the recipe's.

    Raises InputError where there is none, or nothing says which base it belongs to.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", hint="give the folder of a run or of an adapter")
    if (folder / MANIFEST).is_file():
        checked(folder)  # what has changed since it was saved is not exported
    if (folder / _ADAPTER).is_file():
        adapter, run = folder, folder.parent if (folder.parent / RECIPE_FILE).is_file() else None
    else:
        adapter, run = _adapter_of_run(folder), folder
    near = [place / RECIPE_FILE for place in (adapter, run) if place is not None]
    recipe_file = next((path for path in near if path.is_file()), None)
    text = recipe_file.read_text(encoding="utf-8") if recipe_file else ""
    recipe = _parsed(text)
    model = recipe.get("model")
    model = model if isinstance(model, Mapping) else {}
    dtype = torch.float32 if model.get("dtype", "float32") == "float32" else torch.bfloat16
    base = base or _base_folder(recipe, folder)
    return Source(
        adapter=adapter,
        run=run,
        recipe_text=text,
        recipe=recipe,
        base=base,
        backbone=backbone_of(base),
        dtype=dtype,
    )


def _adapter_of_run(run: Path) -> Path:
    """The final adapter, or that of the last checkpoint of a run that was cut off."""
    if (run / "adapter" / _ADAPTER).is_file():
        return run / "adapter"
    found, problems = newest_whole(run / "checkpoints")
    for problem in problems:
        print(problem)
    if found is None or not (found.folder / _ADAPTER).is_file():
        raise InputError(
            f"{run}: neither adapter/ nor a whole checkpoint with an adapter in it",
            hint="a run with `lora.enabled: false` has full weights already",
        )
    print(f"no adapter/ yet: taking the checkpoint of step {found.step}")
    return found.folder


def _parsed(text: str) -> Mapping[str, Any]:
    from ruamel.yaml import YAML, YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"{RECIPE_FILE} is not YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, Mapping) else {}


def _base_folder(recipe: Mapping[str, Any], folder: Path) -> Path:
    model = recipe.get("model")
    model = model if isinstance(model, Mapping) else {}
    if model.get("path") is not None:
        path = str(model["path"])
        return fetch(path, revision=model.get("revision")) if is_hub_id(path) else Path(path)
    if model.get("kind", "embedded") == "embedded" and model:
        return find_world(world_named_in(recipe)).weights_folder(model.get("base"))
    raise InputError(
        f"{folder}: no {RECIPE_FILE} says which base the adapter belongs to", hint="name it by base=FOLDER"
    )


def _shipped_words(world: str, name: str | None) -> str:
    return f"the model {f'`{name}` ' if name else ''}that ships with the world {world}"


def base_words(source: Source) -> str:
    """The base as a card names it."""
    model = source.recipe.get("model") or {}
    if source.recipe and model.get("kind", "embedded") == "embedded" and model.get("path") is None:
        return _shipped_words(find_world(world_named_in(source.recipe)).name, model.get("base"))
    spec = source.backbone.spec
    return f"{source.base.resolve().name}, {spec.title}'s layout (its release: {spec.licence})"
