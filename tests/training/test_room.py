"""Room on the disk is looked at before the step that needs it (trap 18)."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from r3_rl.errors import RunError
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.training import room
from r3_rl.training.room import refuse_without_room, weights_bytes
from tests.training.test_trainer import make, run

REAL = shutil.disk_usage


@pytest.fixture
def free(monkeypatch):
    """The disk of this test: `free.left` gives how much is left by the name of a step."""
    disk = SimpleNamespace(left=lambda: 1 << 40)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: REAL(path)._replace(free=disk.left()))
    return disk


@pytest.mark.parametrize("lora", [AdapterSettings(rank=2), None])
def test_the_estimate_is_near_what_a_checkpoint_takes(tmp_path, lora):
    trainer = make(tmp_path, max_steps=1, lora=lora, beta=0.1)
    run(trainer)
    folder = tmp_path / "checkpoint-1"
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    of_names = sum(len(name) for name, _ in trainer.policy.module.named_parameters()) * 4
    whole, expected = sum(files.values()), trainer._checkpoint_bytes()
    # each weight and each moment of full weights has a header of its own in a distributed checkpoint
    headers = 0 if lora else 4 * 2_500 * len(list(trainer.policy.module.parameters()))
    assert expected <= whole <= 1.1 * expected + of_names + headers + 50_000, files
    if lora:
        weights = files["adapter_model.safetensors"]
        assert weights_bytes(trainer.policy.module) <= weights <= weights_bytes(trainer.policy.module) + of_names


def test_a_run_that_could_not_save_does_not_begin(tmp_path, free):
    trainer = make(tmp_path, max_steps=3)
    free.left = lambda: room.REST_BYTES
    begun = []
    trainer.on_collected = lambda step, collected: begun.append(step)
    said = r"a checkpoint needs .* MiB on the disk and 16\.0 MiB are free at .*; make room, or"
    with pytest.raises(RunError, match=said):
        trainer.train()
    trainer.close()
    assert not begun and not list(tmp_path.iterdir())


def test_the_step_that_ends_with_a_checkpoint_is_not_begun(tmp_path, free, capsys):
    """It was said before, once, so that there was time to make room."""
    trainer = make(tmp_path, max_steps=9, save_steps=4, schedule="draft_only")
    free.left = lambda: 1 << (40 if trainer.state.global_step < 1 else 20)
    with pytest.raises(RunError, match=r"checkpoint-4 needs .* and 1\.0 MiB are free at "):
        trainer.train()
    trainer.close()
    assert trainer.state.global_step == 3
    assert capsys.readouterr().out.count("the next checkpoint needs") == 1


def test_a_run_that_saves_nothing_needs_no_room(tmp_path, free):
    free.left = lambda: 0
    run(make(tmp_path, max_steps=1, save_strategy="no", schedule="draft_only"))


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_the_one_above(tmp_path):
    refuse_without_room(tmp_path / "a" / "b", 1000, "a file")
    with pytest.raises(RunError, match=r"a tape needs 1073741824\.02 GiB on the disk and .* are free at .*/a/b"):
        refuse_without_room(tmp_path / "a" / "b", 1 << 60, "a tape")
