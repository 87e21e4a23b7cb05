"""What a checkpoint holds beside Trainer's own files: the trained weights and every process's node pool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from r3_rl import ranks
from r3_rl.errors import CheckpointError, RunError
from r3_rl.policy.adapters import adapted_layers, load_adapter, save_adapter
from r3_rl.rollout.pool import NodePool

WEIGHTS = "model.safetensors"


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint among those of a folder; None where there is none. Trainer writes its state last, so a
    checkpoint without it, or with half of it, was cut off by a crash."""
    whole = {}
    for state in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}"):
        try:
            whole[int(json.loads(state.read_text(encoding="utf-8"))["global_step"])] = state.parent
        except (ValueError, KeyError, TypeError):
            continue
    return whole[max(whole)] if whole else None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while a checkpoint is written into one line: of a full disk torch says `unexpected pos`.

    Raises RunError.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        free = shutil.disk_usage(folder).free / 2**30
        raise RunError(
            f"the checkpoint could not be written: {error} ({free:.1f} GiB are free at {folder})",
            hint="make room, then --resume goes on from the last whole checkpoint",
        ) from error


def save_weights(module: nn.Module, folder: Path, *, fingerprint: str) -> None:
    """The adapter in PEFT's layout, or the whole module where full weights are trained."""
    folder.mkdir(parents=True, exist_ok=True)
    if adapted_layers(module):
        save_adapter(module, folder, fingerprint=fingerprint)
    else:
        save_file({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, folder / WEIGHTS)


def load_weights(module: nn.Module, folder: Path, *, fingerprint: str) -> None:
    """Restores what `save_weights` wrote. Raises CheckpointError for a checkpoint of another kind of run."""
    if adapted_layers(module):
        load_adapter(module, folder, fingerprint=fingerprint or None)
    elif (folder / WEIGHTS).is_file():
        module.load_state_dict(load_file(folder / WEIGHTS))
    else:
        raise CheckpointError(f"{folder} holds no {WEIGHTS}", hint="was this run trained with an adapter?")


def save_pool(pool: NodePool, folder: Path) -> None:
    """The node pool of this process: images and what is known of them."""
    folder.mkdir(parents=True, exist_ok=True)
    state, (tensors, nodes) = pool.state(), _pool_files(folder, ranks.rank())
    save_file({str(i): images for i, images in enumerate(state["images"])}, tensors)
    nodes.write_text(json.dumps(state["nodes"]), encoding="utf-8")


def load_pool(pool: NodePool, folder: Path) -> None:
    """Restores what `save_pool` wrote. Raises CheckpointError when the run had another number of processes."""
    saved = len(list(folder.glob("node_pool*.json")))
    if saved != ranks.count():
        raise CheckpointError(
            f"{folder} was saved by {saved} processes and is to be resumed by {ranks.count()}",
            hint=f"start it with {saved}: every process goes on with its own node pool and random state",
        )
    tensors, nodes = _pool_files(folder, ranks.rank())
    images, rows = load_file(tensors), json.loads(nodes.read_text(encoding="utf-8"))
    pool.load({"images": [images[str(i)] for i in range(len(rows))], "nodes": rows})


def _pool_files(folder: Path, rank: int) -> tuple[Path, Path]:
    name = "node_pool" if rank == 0 else f"node_pool_{rank}"
    return folder / f"{name}.safetensors", folder / f"{name}.json"
