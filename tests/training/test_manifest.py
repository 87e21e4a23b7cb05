"""A damaged checkpoint is found, in one line, and the one before it is used (traps 18 and 30)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from r3_rl.errors import CheckpointError
from r3_rl.training.manifest import MANIFEST, aside, checked, complete, newest_whole
from tests.training.test_trainer import make, run

FILES = (
    "adapter_config.json", "adapter_model.safetensors", "base.json", MANIFEST, "node_pool.json",
    "node_pool.safetensors", "optimizer.pt", "rng_state_0.pth", "trainer_state.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run(make(folder, max_steps=2, save_steps=1))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "flipped": flip,
    "flipped at its end": lambda path: flip(path, 0.999999),
    "cut": cut,
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "deleted": Path.unlink,
    "a folder": lambda path: [path.unlink(), path.mkdir()],
    "a pipe": lambda path: [path.unlink(), os.mkfifo(path)],
    "a link to nowhere": lambda path: [path.unlink(), path.symlink_to("nowhere")],
}


def test_these_are_all_files_of_a_checkpoint(saved):
    assert {path.name for path in (saved / "checkpoint-2").iterdir()} == set(FILES)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_damage_of_any_file_is_found_and_the_checkpoint_before_is_used(folder, file, kind):
    DAMAGE[kind](folder / "checkpoint-2" / file)
    if (file, kind) == (MANIFEST, "longer"):  # a blank after it says nothing else
        assert checked(folder / "checkpoint-2").step == 2
        return
    found, problems = newest_whole(folder)
    assert found is not None and found.step == 1
    (line,) = map(str, problems)
    assert "checkpoint-2" in line and file in line and "\n" not in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: (c / "model.safetensors").write_bytes(b"x"),
            "model.safetensors was not saved with it; take it away",
        ),
        (lambda c: os.mkfifo(c / "pipe"), "pipe was not saved with it"),
        (lambda c: rewrite(c, step=3), "manifest.json has changed since it was saved"),
        (lambda c: rewrite(c, files={}), "manifest.json has changed since it was saved"),
        (lambda c: (c / MANIFEST).write_text("[" * 100_000), "manifest.json has changed since it was saved"),
        (lambda c: shutil.rmtree(c) or c.mkdir(), "no whole checkpoint: it has no manifest.json"),
        (lambda c: swap(c, c.parent / "checkpoint-1"), "has"),
    ],
)
def test_other_damage_is_found(folder, change, said):
    change(folder / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is .*" + said):
        checked(folder / "checkpoint-2")


def rewrite(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def swap(folder, other):
    """The optimiser of another step: whole by itself, and of the same size."""
    shutil.copy(other / "optimizer.pt", folder / "optimizer.pt")


def test_a_checkpoint_under_the_name_of_another_step_is_found(folder):
    (folder / "checkpoint-2").rename(folder / "checkpoint-20")
    with pytest.raises(CheckpointError, match="saved at step 2 and renamed since"):
        checked(folder / "checkpoint-20")
    (folder / "checkpoint-20").rename(folder / "best")
    assert checked(folder / "best").step == 2, "a name of its own says no step"


def test_the_trainer_loads_nothing_that_is_damaged(folder, tmp_path):
    flip(folder / "checkpoint-2" / "optimizer.pt")
    again = make(tmp_path / "again", max_steps=3)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is damaged: optimizer\.pt has changed since it was saved"):
        again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    again.close()


def test_the_newest_is_the_one_of_most_steps(tmp_path):
    assert newest_whole(tmp_path) == (None, [])
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        partial = aside(folder)
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("text")
        complete(partial, folder, step=step, num_processes=2)
    found, problems = newest_whole(tmp_path)
    assert found is not None and (found.step, found.num_processes, problems) == (10, 2, [])
    flip(found.folder / "inner" / "file")
    found, problems = newest_whole(tmp_path)
    assert found is not None and found.step == 9 and "inner/file has changed" in str(problems[0])
    assert newest_whole(tmp_path, below=9) == (None, [])
