"""The files of an adapter: PEFT's own two, beside them what they belong to and how tasks are routed."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from r3_rl.errors import CheckpointError
from r3_rl.policy.adapter_config import config_problem
from r3_rl.policy.routing import Routing
from r3_rl.policy.unreadable import unreadable

BASE_FILE = "base.json"
"""Beside an adapter's weights: which base it belongs to."""
RECIPE_FILE = "recipe.resolved.yaml"
ROUTING_FILE = "routing.json"
"""Beside an adapter that is routed by task: how. Its weights have a name of their own, so that nobody takes one part of
them for the adapter."""
ROUTED_WEIGHTS_NAME = "routed_model.safetensors"

PREFIX = "base_model.model."
"""What PEFT's own model puts before a module's names in the file."""


def write_adapter(
    folder: Path,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    *,
    fingerprint: str,
    recipe_text: str | None,
    how: Routing | None = None,
) -> Path:
    """Writes the files of an adapter whose configuration and tensors are these; arguments as in `save_adapter`. how: of
    an adapter that is routed, whose tensors are all its parts and gates."""
    config = copy.copy(config)
    config.inference_mode = True  # so that whoever loads it gets frozen weights, as PEFT's own saving does
    aside = folder / ".partial"
    shutil.rmtree(aside, ignore_errors=True)  # what a crash left behind must not be renamed into place
    aside.mkdir(parents=True)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, aside / _weights_name(how), metadata={"format": "pt"})
    config.save_pretrained(str(aside))
    if how is not None:
        (aside / ROUTING_FILE).write_text(json.dumps(asdict(how), indent=1) + "\n", encoding="utf-8")
    (aside / BASE_FILE).write_text(json.dumps({"fingerprint": fingerprint}, indent=1) + "\n", encoding="utf-8")
    if recipe_text is not None:
        (aside / RECIPE_FILE).write_text(recipe_text, encoding="utf-8")
    for path in sorted(aside.iterdir()):
        os.replace(path, folder / path.name)
    aside.rmdir()
    for other in (SAFETENSORS_WEIGHTS_NAME,) if how else (ROUTED_WEIGHTS_NAME, ROUTING_FILE):
        (folder / other).unlink(missing_ok=True)  # of an adapter of the other kind that lay there
    return folder


def weights_file(folder: Path) -> Path:
    """The file that holds the weights of the adapter in a folder."""
    return folder / (ROUTED_WEIGHTS_NAME if (folder / ROUTING_FILE).is_file() else SAFETENSORS_WEIGHTS_NAME)


def read_routing(folder: Path) -> Routing | None:
    """How the adapter in a folder is routed; None for plain LoRA. Raises CheckpointError for a broken file."""
    path = folder / ROUTING_FILE
    if not path.is_file():
        return None
    try:
        return Routing(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: does not say how tasks are routed ({error})", hint="save it again") from error


def base_fingerprint(folder: str | Path) -> str | None:
    """The fingerprint of the base that the adapter in `folder` remembers; None when nobody wrote one down."""
    path = Path(folder) / BASE_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"]) or None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: names no base ({error!r})", hint="save the adapter again") from error


def read_config(folder: Path) -> LoraConfig:
    """PEFT's configuration in a folder. Raises CheckpointError unless it is one of plain LoRA that PEFT can use."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG_NAME}", hint="give the folder of an adapter")
    try:
        if problem := config_problem(json.loads(path.read_text(encoding="utf-8"))):
            raise CheckpointError(f"{path}: {problem}", hint="what is not plain LoRA, peft loads onto the base")
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise unreadable(path, f"not an adapter's configuration ({error})", hint="save it again") from error
    assert isinstance(config, LoraConfig), "its type was looked at"
    return config


def _weights_name(routing: Routing | None) -> str:
    return SAFETENSORS_WEIGHTS_NAME if routing is None else ROUTED_WEIGHTS_NAME


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises CheckpointError where it is missing or broken."""
    try:
        return load_file(path)  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", hint="only safetensors are read") from None
    except (SafetensorError, OSError) as error:
        raise unreadable(path, f"not a whole safetensors file ({error})", hint="save it again") from error


def refuse_other_base(folder: Path, fingerprint: str) -> None:
    """Raises CheckpointError for an adapter that remembers no base, or another one."""
    remembered = base_fingerprint(folder)
    if remembered is None:
        raise CheckpointError(
            f"{folder}: {BASE_FILE} is missing, nothing says which base the adapter belongs to",
            hint=f"if you know that it fits, merge it: `r3 export {folder} --base BASE --out FOLDER`",
        )
    if remembered != fingerprint:
        raise CheckpointError(
            f"{folder}: trained on another base (weights {remembered[:12]}, these are {fingerprint[:12]})",
            hint="load the base that the adapter was trained on",
        )
