"""A policy as people name it, a folder and an adapter, with the loop that it was trained for."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r3_rl import registered
from r3_rl.assemble import LoadedPolicy, load_policy, loop_settings
from r3_rl.errors import InputError
from r3_rl.policy.adapter_files import RECIPE_FILE, weights_file
from r3_rl.policy.adapters import adapted_layers, adds_nothing, load_adapter
from r3_rl.policy.base import Policy
from r3_rl.policy.hub import is_hub_id
from r3_rl.recipe.sampling import ModelSection, RolloutSection, world_named_in
from r3_rl.recipe.yaml_text import parse_tree
from r3_rl.stages.settings import LoopSettings
from r3_rl.training.manifest import MANIFEST, checked
from r3_rl.worlds.base import find_world, world_speaking

SHIPPED = "shipped"
"""What the adapter that ships with the embedded world is called where a folder could be named."""
_READ = ("protocol", "plan", "draft", "critique", "refine", "history")
"""Keys of `rollout` that say how a policy writes and draws."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A policy with the loop that it was trained for."""

    policy: Policy
    loop: LoopSettings
    adapted: bool
    """Whether it has an adapter, so that `policy.reference()` is another model."""
    marks: str = ""
    """Of its weights: the base's fingerprint and, after a `+`, that of the adapter."""
    sections: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe that was found beside it, unchecked; empty without one."""


def load(
    model: str | Path | None, adapter: str | Path | None, *, device: str | None = None, dtype: str | None = None
) -> Loaded:
    """Load what `Refiner.from_pretrained` runs; arguments and errors are those."""
    if model is not None:
        model = _shipped(model)
    adapter_folder = None if adapter is None else _adapter_folder(Path(adapter))
    sections = _recipe_beside(adapter_folder, None if model is None else Path(model))
    section = _model_section(sections.get("model"), model, dtype)
    loaded = load_policy(section, world=world_named_in(sections), device=device)
    tokenizer = loaded.policy.tokenizer
    marks = loaded.fingerprint
    if adapter_folder is not None:
        load_adapter(loaded.policy.module, adapter_folder, fingerprint=loaded.fingerprint)
        marks += f"+{_digest(adapter_folder)}"
        if adds_nothing(loaded.policy.module):
            words = "the adapter changes nothing, so this is the base; was its run stopped before its first step?"
            print(f"{adapter_folder}: {words}", file=sys.stderr)
    speaks = world_speaking(tokenizer.get_vocab())
    stored = sections.get("rollout") or (loaded.policy.spec if speaks is None else speaks).rollout
    # how a policy was trained is not asked: an adapter may be older than a key's name
    rollout = {key: value for key, value in stored.items() if key in _READ}
    loop = loop_settings(_checked(RolloutSection, rollout))
    return Loaded(policy=loaded.policy, loop=loop, adapted=adapter_folder is not None, marks=marks, sections=sections)


def _shipped(model: str | Path) -> str | Path:
    """Return the folder of the model that ships with a world if `model` is the world's name and not a folder of it,
    else `model` unchanged: `./mosaic` is a path."""
    if model in registered.names(registered.WORLDS) and not Path(model).exists():
        return find_world(str(model)).weights_folder()
    return model


def load_base_of(trained: Loaded) -> Loaded:
    """Load what a run that trained full weights started from, with the loop of what came of it.

    Args:
        trained: the run's `model/`, loaded.

    Raises:
        InputError: the weights that the run's recipe names are not there.
    """
    section = _model_section(trained.sections.get("model"), None, None)
    base = load_policy(section, world=world_named_in(trained.sections))
    return replace(trained, policy=base.policy, adapted=False, marks=base.fingerprint)


def start_from(loaded: LoadedPolicy, folder: Path) -> None:
    """Put an adapter into a policy that has none, to be trained on.

    Args:
        loaded: the base that the adapter was trained on.
        folder: as `find_adapter` takes it.

    Raises:
        InputError, CheckpointError: there is none, or it does not fit the base.
    """
    place, module = _adapter_folder(folder), loaded.policy.module
    load_adapter(module, place, fingerprint=loaded.fingerprint)
    layers = adapted_layers(module).values()
    for layer in layers:
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
    ranks = sorted({part.weight.shape[0] for layer in layers for part in layer.lora_A.values()})
    print(f"begins from the adapter {place}: rank {', '.join(map(str, ranks))}")


def find_adapter(folder: Path) -> Path | None:
    """Return the folder of an adapter: a run's, an adapter's own, or the one that ships; None if there is none."""
    if str(folder) == SHIPPED and not folder.exists():
        return find_world().adapter_folder()
    places = (folder, folder / "adapter")
    return next((place for place in places if (place / "adapter_config.json").is_file()), None)


def _digest(adapter: Path) -> str:
    """Of the adapter's weights."""
    with weights_file(adapter).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _adapter_folder(folder: Path) -> Path:
    if (folder / MANIFEST).is_file():
        checked(folder)  # a checkpoint: what has changed since it was saved is not loaded
    if found := find_adapter(folder):
        return found
    what = "holds no adapter" if folder.is_dir() else "no such folder"
    raise InputError(f"{folder}: {what}", hint=f"give the adapter/ folder of a run, or '{SHIPPED}'")


def _recipe_beside(adapter: Path | None, model: Path | None) -> Mapping[str, Any]:
    """The sections of the first recipe found; its scorers may not be installed here, so only what is needed is read."""
    places = [*([adapter, adapter.parent] if adapter else []), *([model, model.parent] if model else [])]
    file = next((place / RECIPE_FILE for place in places if (place / RECIPE_FILE).is_file()), None)
    if file is None:
        return {}
    tree = parse_tree(file.read_text(encoding="utf-8"), str(file))
    if tree.mistakes:
        raise InputError(str(tree.mistakes[0]))
    return tree.values


def _model_section(stored: Any, model: str | Path | None, dtype: str | None) -> ModelSection:
    wanted = dict(stored) if isinstance(stored, Mapping) else {"dtype": "auto"}
    wanted |= {"random_init": False} | ({} if dtype is None else {"dtype": dtype})
    if model is not None:
        if not (Path(model).is_dir() or is_hub_id(str(model))):
            worlds = ", ".join(registered.names(registered.WORLDS))
            raise InputError(
                f"{model}: no such folder",
                hint=f"give a folder of weights, their name on the hub, or a world: {worlds}",
            )
        wanted |= {"kind": "auto", "path": str(model), "base": None}
    return _checked(ModelSection, wanted)


def _checked(section: Any, values: Any) -> Any:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{RECIPE_FILE} or an argument: {place}: {first['msg']}") from error
