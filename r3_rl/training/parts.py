"""Full weights and moments in a checkpoint, by torch's distributed checkpoints: every process writes what it holds, and
any number of processes reads it back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from r3_rl import ranks
from r3_rl.errors import CheckpointError

FOLDER = "parts"
"""Of a checkpoint."""
Rest = Callable[[], None] | None
"""What waits for files that a thread still writes, and raises if they could not be written; None if there are none."""


def save_parts(
    folder: Path,
    names: Mapping[nn.Parameter, str],
    optimizer: torch.optim.Optimizer,
    *,
    background: bool = False,
    group: Any = None,
) -> Rest:
    """Write the weights and what the optimiser knows of each. Every process calls it, in one as in several.

    Args:
        folder: of the checkpoint.
        names: what is trained, whole or as a DTensor, and the names of the weights.
        optimizer: of these parameters.
        background: copy all of it to the host's memory, and let a thread write the copies.
        group: in which the threads of the processes agree, and nobody else meanwhile; None in a single process.

    Returns:
        What waits until all processes have written, and raises PartsError in all when one of them could not; None where
        all is written.
    """
    writer, state = dcp.FileSystemWriter(folder / FOLDER), _state(names, optimizer)
    with _alone():
        if not background:
            dcp.save(state, storage_writer=writer)
            return None
        written = dcp.async_save(state, storage_writer=writer, process_group=group)

    def wait() -> None:
        with _alone():
            written.result()

    return wait


def parts_bytes(names: Mapping[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> int:
    """How large this process's part is, and a copy of it."""
    tensors = [ranks.part(value) for value in _state(names, optimizer).values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def _state(names: Mapping[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[str, Any] = {f"weight/{name}": p.detach() for p, name in names.items()}
    for p, name in names.items():
        state |= {f"moment/{key}/{name}": value for key, value in optimizer.state.get(p, {}).items()}
    return state


def load_parts(folder: Path, names: Mapping[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> None:
    """Restore what `save_parts` wrote, whatever number of processes did. Every process calls it.

    Raises CheckpointError for other weights than these.
    """
    reader = dcp.FileSystemReader(folder / FOLDER)
    stored = reader.read_metadata().state_dict_metadata if (folder / FOLDER).is_dir() else {}
    own = {f"weight/{name}": p for p, name in names.items()}
    shapes = {key: meta.size for key, meta in stored.items() if key.startswith("weight/")}
    if shapes != {key: p.shape for key, p in own.items()}:
        raise CheckpointError(f"{folder} does not hold the weights that this run trains", hint="was it trained whole?")
    state: dict[str, Any] = {key: p.detach() for key, p in own.items()}
    moments = [(key, *key.split("/", 2)[1:]) for key in stored if key.startswith("moment/")]
    for key, _, name in moments:
        state[key] = _room(stored[key], own[f"weight/{name}"])
    with _alone():
        dcp.load(state, storage_reader=reader)
    parameters = {name: p for p, name in names.items()}
    optimizer.state.clear()
    for key, kind, name in moments:
        optimizer.state[parameters[name]][kind] = state[key]


def _room(meta: Any, parameter: nn.Parameter) -> Tensor | None:
    """Where a value is read to: like its parameter, if it is as large."""
    if not isinstance(meta, TensorStorageMetadata):
        return None
    dtype = meta.properties.dtype
    if meta.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    return torch.zeros(meta.size, dtype=dtype)


class PartsError(RuntimeError):
    """A process could not write or read its part; all raise it."""

    def __init__(self, cause: BaseException, *, rank: int) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.rank = rank


@contextmanager
def _alone() -> Iterator[None]:
    """Without torch's remark that a single process is one, from its threads too, and with its exception as one that can
    be caught."""
    warnings.filterwarnings("ignore", message="torch.distributed is (unavailable|disabled)")
    try:
        yield
    except CheckpointException as error:
        rank = ranks.rank() if ranks.rank() in error.failures else min(error.failures)
        raise PartsError(error.failures[rank][0], rank=rank) from error
