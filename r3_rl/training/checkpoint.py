"""What a checkpoint holds: the trained weights, the optimiser, and every process's node pool and random state."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_callback import TrainerState

from r3_rl import ranks
from r3_rl.errors import CheckpointError, RunError
from r3_rl.policy.adapters import adapted_layers, load_adapter, save_adapter
from r3_rl.rollout.pool import NodePool
from r3_rl.training.parallel import Learner

WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"
"""Written last: a checkpoint without it, or with half of it, was cut off by a crash."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = {}
    for state in folder.glob(f"checkpoint-*/{STATE}"):
        try:
            found[int(json.loads(state.read_text(encoding="utf-8"))["global_step"])] = state.parent
        except (ValueError, KeyError, TypeError):
            continue
    return [found[step] for step in sorted(found)]


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    return next(reversed(checkpoints(folder)), None)


def save_checkpoint(
    folder: Path, *, module: nn.Module, fingerprint: str, pool: NodePool, learner: Learner, state: TrainerState
) -> None:
    """Write a checkpoint. Every process calls it, and the first one completes it when all have written theirs.

    Args:
        folder: created where it is missing.
        module: of the policy.
        fingerprint: of its base, kept beside an adapter.
        pool, learner: of this process.
        state: of the run.

    Raises:
        RunError: something could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        if ranks.rank() == 0:
            save_weights(module, folder, fingerprint=fingerprint)
        save_pool(pool, folder)
        save_random(folder)
        learner.save(folder)
        ranks.wait()
        if ranks.rank() == 0:
            state.save_to_json(str(folder / STATE))


def load_checkpoint(
    folder: Path, *, module: nn.Module, fingerprint: str, pool: NodePool, learner: Learner
) -> TrainerState:
    """Restore what `save_checkpoint` wrote; return the run's state. Raises CheckpointError for another kind of run."""
    load_weights(module, folder, fingerprint=fingerprint)
    load_pool(pool, folder)
    learner.load(folder)
    load_random(folder)
    return TrainerState.load_from_json(str(folder / STATE))


def keep_newest(folder: Path, count: int) -> None:
    """Remove all complete checkpoints of a run but the newest."""
    for old in checkpoints(folder)[:-count]:
        shutil.rmtree(old)


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


def save_random(folder: Path) -> None:
    """The random state of this process: nothing of ours draws from it, but a scorer may."""
    numpy: Any = np.random.get_state()
    kind, keys, *rest = numpy
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, _random_file(folder))


def load_random(folder: Path) -> None:
    """Restores what `save_random` wrote."""
    state = torch.load(_random_file(folder), weights_only=True)
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _random_file(folder: Path) -> Path:
    return folder / f"rng_state_{ranks.rank()}.pth"


def _pool_files(folder: Path, rank: int) -> tuple[Path, Path]:
    name = "node_pool" if rank == 0 else f"node_pool_{rank}"
    return folder / f"{name}.safetensors", folder / f"{name}.json"
