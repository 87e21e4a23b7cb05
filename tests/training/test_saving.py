"""Checkpoints of full weights are written while training goes on, and hold what was there when they were begun."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from transformers import TrainerCallback

from r3_rl.errors import RunError
from r3_rl.training import parallel, parts
from r3_rl.training.manifest import checked, newest_whole, numbered
from tests.training.processes import whole_policy
from tests.training.test_trainer import make, run, untimed

FULL = {"lora": None, "schedule": "draft_only", "save_steps": 2, "max_steps": 5}


@pytest.fixture
def disk(monkeypatch):
    """A disk on which parts are written once `disk.free` is set, as far as `disk.error` lets them."""
    found = SimpleNamespace(free=Event(), error=None)

    class Slow(dcp.FileSystemWriter):
        def write_data(self, plan, planner):
            assert found.free.wait(60)
            if found.error is not None:
                raise found.error
            return super().write_data(plan, planner)

    monkeypatch.setattr(parts.dcp, "FileSystemWriter", Slow)
    yield found
    found.free.set()


def made(folder, **options):
    return make(folder, policy=whole_policy("float32"), **{**FULL, **options})


class Told(TrainerCallback):
    """When a run says that a checkpoint is saved: its step, the run's step, and what is there."""

    def __init__(self, trainer, folder):
        self.trainer, self.folder, self.saved = trainer, folder, []
        trainer.add_callback(self)

    def on_save(self, args, state, control, **kwargs):
        there = [path.name for path in numbered(self.folder)]
        self.saved.append((state.global_step, self.trainer.state.global_step, there[-1]))
        assert len(state.log_history) == state.global_step


def begun(trainer, step, act):
    """Call `act` when a step, counted from 0, has been rolled out."""
    trainer.on_collected = lambda number, collected: act() if number == step else None


def test_training_goes_on_meanwhile_and_the_checkpoint_is_of_the_step_that_it_names(tmp_path, disk):
    background, waiting = made(tmp_path / "background"), made(tmp_path / "waiting", async_save=False)
    told, seen = Told(background, tmp_path / "background"), []

    def act():
        seen.append(numbered(tmp_path / "background"))
        disk.free.set()
        background.savings._pending.wait(60)

    begun(background, 2, act)
    rows = untimed(run(background))
    assert seen == [[]], "the third step began while the second one's checkpoint was being written"
    # the fourth step saves again, and waits for the first checkpoint; the last one is saved when the run ends
    assert told.saved == [(2, 3, "checkpoint-2"), (4, 4, "checkpoint-4"), (5, 5, "checkpoint-5")]
    assert rows == untimed(run(waiting))
    for step in (2, 4, 5):
        two = [tmp_path / name / f"checkpoint-{step}" for name in ("background", "waiting")]
        assert [checked(folder).step for folder in two] == [step, step]
        assert differing(*two) == []


def differing(one, other):
    """Parts of two checkpoints that are not bit-equal."""
    a, b = (stored(folder) for folder in (one, other))
    assert a.keys() == b.keys() and len(a) > 100
    return [name for name in a if not torch.equal(a[name], b[name])]


def stored(folder):
    reader = dcp.FileSystemReader(folder / parts.FOLDER)
    found = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in reader.read_metadata().state_dict_metadata.items()
    }
    dcp.load(found, storage_reader=dcp.FileSystemReader(folder / parts.FOLDER), no_dist=True)
    return found


def test_a_run_that_fails_leaves_the_checkpoint_that_was_on_its_way(tmp_path, disk):
    trainer = made(tmp_path)

    def act():
        disk.free.set()
        raise ValueError("planted")

    begun(trainer, 2, act)
    with pytest.raises(ValueError, match="planted"):
        run(trainer)
    last, problems = newest_whole(tmp_path)
    assert last is not None and last.step == 2 and not problems


@pytest.mark.parametrize("steps", [5, 2])
def test_what_could_not_be_written_is_said_at_the_next_step_that_saves_or_at_the_end(tmp_path, disk, steps):
    trainer = made(tmp_path, max_steps=steps)
    disk.error = OSError(28, "No space left on device")
    disk.free.set()
    with pytest.raises(RunError, match=r"the checkpoint could not be written: .*No space left") as caught:
        run(trainer)
    assert "--resume" in caught.value.hint and trainer.state.global_step in (2, 3)
    assert list(tmp_path.glob(".checkpoint-*")) == [] == numbered(tmp_path), "its room is free again"


def test_without_memory_for_copies_the_run_waits(tmp_path, disk, monkeypatch):
    disk.free.set()
    trainer = made(tmp_path)
    told = Told(trainer, tmp_path)
    needed = 2 * 3 * 4 * sum(p.numel() for p in trainer.learner.names)
    for free, background in ((0.9 * needed, False), (1.1 * needed, True)):
        monkeypatch.setattr(parallel, "free_bytes", lambda free=free: free)
        trainer.learner.prepare(lambda: 0.0, trainer.schedule.progressive)
        trainer.step(0)
        folder = tmp_path / str(background)
        folder.mkdir()
        rest = trainer.learner.save(folder)
        assert (rest is not None) is background
        if rest is not None:
            rest()
        assert len(stored(folder)) > 100
    assert told.saved == []
