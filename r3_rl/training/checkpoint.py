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
from r3_rl.training.manifest import Checkpoint, aside, complete, numbered, step_of
from r3_rl.training.parallel import Learner

WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"


def save_checkpoint(
    folder: Path, *, module: nn.Module, fingerprint: str, pool: NodePool, learner: Learner, state: TrainerState
) -> None:
    """Write a checkpoint. Every process calls it; the folder has its name once all have written their parts.

    Args:
        folder: `checkpoint-STEP` in the folder of the run's checkpoints.
        module: of the policy.
        fingerprint: of its base, kept beside an adapter.
        pool, learner: of this process.
        state: of the run.

    Raises:
        RunError: a process could not write; what was written is removed, and the checkpoints before it stay.
    """
    with writing(folder.parent):
        partial = ranks.of_first(lambda: aside(folder))

    def write() -> None:
        with writing(folder.parent):
            if ranks.rank() == 0:
                save_weights(module, partial, fingerprint=fingerprint)
                state.save_to_json(str(partial / STATE))
            save_pool(pool, partial)
            save_random(partial)
            learner.save(partial)

    def finish() -> None:
        with writing(folder.parent):
            complete(partial, folder, step=state.global_step, num_processes=ranks.count())

    try:
        ranks.together(write)
        ranks.of_first(finish)
    except RunError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk gets its room back
        raise


def load_checkpoint(
    found: Checkpoint, *, module: nn.Module, fingerprint: str, pool: NodePool, learner: Learner
) -> None:
    """Restore what `save_checkpoint` wrote but for `read_state`. Raises CheckpointError for another kind of run."""
    if found.num_processes != ranks.count():
        raise CheckpointError(
            f"{found.folder} was saved by {found.num_processes} processes and is to be resumed by {ranks.count()}",
            hint=f"start it with {found.num_processes}: every process goes on with its own node pool and random state",
        )
    load_weights(module, found.folder, fingerprint=fingerprint)
    load_pool(pool, found.folder)
    learner.load(found.folder)
    load_random(found.folder)


def read_state(found: Checkpoint) -> TrainerState:
    """The run's state as a checkpoint has it."""
    return TrainerState.load_from_json(str(found.folder / STATE))


def keep_newest(newest: Path, count: int | None) -> None:
    """Remove the checkpoints of a run but the newest, and what a crash left of one that was being saved.

    Args:
        newest: the checkpoint that was just saved; those of later steps are not this run's, and stay.
        count: how many to keep; None keeps all.
    """
    earlier = [folder for folder in numbered(newest.parent) if step_of(folder) <= step_of(newest)]
    old = earlier[:-count] if count is not None else []
    for folder in [*old, *newest.parent.glob(".checkpoint-*.partial")]:
        shutil.rmtree(folder)


def pass_over(found: Checkpoint, run: Path) -> None:
    """Rename the checkpoints of later steps in a run's folder of checkpoints, if the run goes on from an earlier one.

    They are damaged, or of a course that was given up; a run that is resumed once more must not go on from them.
    """
    if found.folder.resolve().parent != run.resolve():
        return
    for folder in numbered(run):
        if step_of(folder) > found.step:
            kept = folder.with_name(f"passed-over-{folder.name}")
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
            print(f"{folder} is later, and kept as {kept.name} until you remove it")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while a checkpoint is written into one line: of a full disk torch says `unexpected pos`.

    Raises RunError.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(there).free / 2**30
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
    """Restores what `save_pool` wrote."""
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
