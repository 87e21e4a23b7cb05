"""What a checkpoint holds: the trained weights, the optimiser, and every process's node pool and random state."""

from __future__ import annotations

import json
import random
import shutil
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.trainer_callback import TrainerState

from r3_rl import ranks
from r3_rl.errors import CheckpointError, InputError
from r3_rl.nodes import Node
from r3_rl.nodes_io import from_bytes, to_bytes
from r3_rl.policy.adapters import adapted_layers, load_adapter, save_adapter
from r3_rl.rollout.pool import NodePool
from r3_rl.training.manifest import Checkpoint, aside, numbered, step_of
from r3_rl.training.parallel import Learner
from r3_rl.training.parts import Rest
from r3_rl.training.saving import Saving, removed_if_not_written, writing

WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"


def save_checkpoint(
    folder: Path,
    *,
    module: nn.Module,
    fingerprint: str,
    pool: NodePool,
    learner: Learner,
    state: TrainerState,
    beside: Path | None = None,
) -> Saving:
    """Begin to write a checkpoint. Every process calls it; the folder has its name once all have written their parts,
    which `Saving.finish` waits for. What is saved may change as soon as this returns.

    Args:
        folder: `checkpoint-STEP` in the folder of the run's checkpoints.
        module: of the policy.
        fingerprint: of its base, kept beside an adapter.
        pool, learner: of this process.
        state: of the run.
        beside: a folder that belongs to the state and is copied under its own name, if it is there.

    Raises:
        RunError: a process could not write; what was written is removed, and the checkpoints before it stay.
    """
    with writing(folder.parent):
        partial = ranks.of_first(lambda: aside(folder))
    rest: list[Rest] = []

    def write() -> None:
        with writing(folder.parent):
            if ranks.rank() == 0:
                if learner.adapted:
                    save_weights(module, partial, fingerprint=fingerprint)
                state.save_to_json(str(partial / STATE))
                if beside is not None and beside.is_dir():
                    shutil.copytree(beside, partial / beside.name)
            save_pool(pool, partial)
            save_random(partial)

    def write_together() -> None:
        with writing(folder.parent):
            rest.append(learner.save(partial))

    with removed_if_not_written(partial):
        ranks.together(write)
        ranks.together(write_together)
    return Saving(partial, folder, rest=rest[0], state=state)


def load_checkpoint(
    found: Checkpoint, *, module: nn.Module, fingerprint: str, pool: NodePool, learner: Learner
) -> None:
    """Restore what `save_checkpoint` wrote but for `read_state`, in another number of processes too.

    Then node pools are dealt out anew, and what scorers draw from the global generators is what a new run's would.
    Raises CheckpointError for another kind of run, and for another number of processes with DeepSpeed.
    """
    same_count = found.num_processes == ranks.count()
    if not same_count and not learner.any_count:
        raise CheckpointError(
            f"{found.folder} was saved by {found.num_processes} processes and is to be resumed by {ranks.count()}",
            hint=f"start it with {found.num_processes}: DeepSpeed's shards are those of one number of processes",
        )
    if learner.adapted:
        load_adapter(module, found.folder, fingerprint=fingerprint or None)
    load_pool(pool, found.folder, saved_by=found.num_processes)
    learner.load(found.folder)
    if same_count:
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


def save_weights(module: nn.Module, folder: Path, *, fingerprint: str) -> None:
    """The adapter in PEFT's layout, or the whole module where full weights are trained."""
    folder.mkdir(parents=True, exist_ok=True)
    if adapted_layers(module):
        save_adapter(module, folder, fingerprint=fingerprint)
    else:
        save_file({n: p.detach().cpu().contiguous() for n, p in module.named_parameters()}, folder / WEIGHTS)


def save_pool(pool: NodePool, folder: Path) -> None:
    """The node pool of this process: images and what is known of them, and how many each group has."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes, sizes = _pool_files(folder, ranks.rank())
    nodes.write_bytes(to_bytes([node for group in pool.groups for node in group]))
    sizes.write_text(json.dumps([len(group) for group in pool.groups]), encoding="utf-8")


def load_pool(pool: NodePool, folder: Path, *, saved_by: int) -> None:
    """Restores what `save_pool` wrote. Pools of another number of processes are laid together, the oldest groups first,
    and dealt out one by one."""
    if saved_by == ranks.count():
        groups = _groups(folder, ranks.rank())
    else:
        pools = [_groups(folder, rank)[::-1] for rank in range(saved_by)]
        newest_first = [group for of_one_age in zip_longest(*pools) for group in of_one_age if group is not None]
        groups = newest_first[ranks.rank() :: ranks.count()][::-1]
    pool.groups.clear()
    pool.groups.extend(groups)


def _groups(folder: Path, rank: int) -> list[tuple[Node, ...]]:
    """Of one process's pool, the oldest first."""
    file, sizes = _pool_files(folder, rank)
    try:
        nodes = iter(from_bytes(file.read_bytes()))
    except InputError as error:
        raise CheckpointError(f"{file}: {error}", hint="it was saved by another version of r3-rl; begin anew") from None
    return [tuple(islice(nodes, size)) for size in json.loads(sizes.read_text(encoding="utf-8"))]


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
