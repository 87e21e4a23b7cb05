"""A tiny run that benchmarks start, kill and resume: random weights in BAGEL's layout, two prompts, a one-line scorer.

Every start is a fork of this process, which has imported everything, so that a start takes a moment and a kill hits the
run and not Python's imports.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from r3_rl.errors import R3Error
from r3_rl.evaluate.run import train
from r3_rl.observe.recorder import read_lines
from r3_rl.policy.bagel.tiny import write_tiny_checkpoint
from r3_rl.recipe import Recipe
from r3_rl.recipe_io import load_recipe
from r3_rl.training.parts import FOLDER as PARTS

SCORER = """def red(images, **columns):
    return [float(image[..., 0].mean()) / 255 for image in images]
"""
RECIPE = """extends: bagel_smoke
model: {path: tiny}
data: {kind: jsonl, path: prompts.jsonl}
rewards: [{scorer: "./red.py:red"}]
eval_rewards: []
rollout: {num_prompts: 2}
algorithm: {schedule: tree}
observe: {gallery: 0}
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a start ended."""

    code: int
    """0 ok, 1 and 2 as those of `r3`, -9 killed; of several processes the first that is not 0."""
    said: str

    @property
    def traceback(self) -> bool:
        """Whether something unforeseen was raised."""
        return "Traceback (most recent call last)" in self.said


class TinyRun:
    """A recipe and its files in an empty folder; runs lie in `runs`. processes: of each run."""

    def __init__(
        self, place: Path, *, steps: int, save_steps: int, processes: int = 1, settings: Sequence[str] = ()
    ) -> None:
        self.place, self.steps, self.save_steps = place, steps, save_steps
        self.processes, self.settings = processes, settings
        torch.set_num_threads(1)
        write_tiny_checkpoint(place / "tiny")
        (place / "red.py").write_text(SCORER)
        (place / "recipe.yaml").write_text(RECIPE)
        (place / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "two blue squares"}\n')

    def recipe(self, steps: int) -> Recipe:
        """Of a run of so many steps."""
        changes = [f"training.max_steps={steps}", f"training.save_steps={self.save_steps}"]
        changes += [f"training.output_dir={self.place / 'runs'}", "training.learning_rate=0.01"]
        return load_recipe(self.place / "recipe.yaml", [*changes, *self.settings])

    def start(self, folder: Path, *, resume: bool, steps: int | None = None) -> list[int]:
        """Fork the processes that train into the folder; returns their ids. What they say goes to `said.txt` beside it.

        steps: where it ends; None takes those of the run.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        said, port = folder.with_suffix(".said.txt"), _free_port()
        said.unlink(missing_ok=True)
        return [self._fork(rank, port, folder, said, resume, steps or self.steps) for rank in range(self.processes)]

    def _fork(self, rank: int, port: int, folder: Path, said: Path, resume: bool, steps: int) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes, "MASTER_PORT": port}
                os.environ.update({**{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1"})
                stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(stream, 1)
                os.dup2(stream, 2)
                code = _train(self.recipe(steps), folder, resume=resume)
                sys.stdout.flush()
            finally:
                os._exit(code)
        return pid

    def wait(self, folder: Path, pids: list[int]) -> Ended:
        """Until they end."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = folder.with_suffix(".said.txt").read_text(errors="replace")
        return Ended(code=next(filter(None, codes), 0), said=said)

    def run(self, folder: Path, *, resume: bool = False, steps: int | None = None) -> Ended:
        """Start and wait."""
        return self.wait(folder, self.start(folder, resume=resume, steps=steps))


def _train(recipe: Recipe, folder: Path, *, resume: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        train(recipe, resume=str(folder) if resume else None, folder=folder)
    except R3Error as error:
        print(error)
        return error.exit_code
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        return 1
    return 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def difference(one: Path, other: Path) -> str:
    """What is not the same bit for bit: the weights, the newest checkpoint's optimiser, or a logged number but seconds;
    empty where all of it is."""
    parts = {"weights": _same_weights, "optimiser": _same_optimisers, "metrics": _same_lines}
    return ", ".join(name for name, same in parts.items() if not same(one, other))


def _same_weights(one: Path, other: Path) -> bool:
    a, b = (_weights(run) for run in (one, other))
    return len(a) > 0 and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _same_optimisers(one: Path, other: Path) -> bool:
    a, b = (_moments(_newest(run)) for run in (one, other))
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    """Of an adapter, or of all files of a model."""
    files = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def _moments(checkpoint: Path) -> list[torch.Tensor]:
    if not (checkpoint / PARTS).is_dir():
        return _tensors(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    stored = dcp.FileSystemReader(checkpoint / PARTS).read_metadata().state_dict_metadata
    found = {
        n: torch.empty(meta.size, dtype=meta.properties.dtype) for n, meta in stored.items() if hasattr(meta, "size")
    }
    dcp.load(found, storage_reader=dcp.FileSystemReader(checkpoint / PARTS), no_dist=True)
    return [found[name] for name in sorted(found)]


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inner for tensor in _tensors(item)]


def _same_lines(one: Path, other: Path) -> bool:
    a, b = ([_untimed(row) for row in read_lines(run / "metrics.jsonl").rows] for run in (one, other))
    return a == b and len(a) > 0


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("memory/") and not k.endswith("_s")}
