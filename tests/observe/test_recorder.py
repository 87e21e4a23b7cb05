import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from r3_rl.errors import InputError, RunError
from r3_rl.observe.environment import environment
from r3_rl.observe.recorder import Recorder, new_run_folder, read_lines, write_document
from r3_rl.observe.trajectories import load_trajectory, pick_trajectories, see, to_pixels
from r3_rl.types import Trajectory
from tests.observe.runs import HOSTILE, critique, picture, trajectory


@pytest.fixture
def recorder(tmp_path):
    return Recorder(new_run_folder(tmp_path, "run"))


def test_a_run_folder_is_never_overwritten(tmp_path):
    folders = [new_run_folder(tmp_path / "runs", "shapes_r3") for _ in range(3)]
    assert [folder.name for folder in folders] == ["shapes_r3", "shapes_r3-2", "shapes_r3-3"]
    assert all((folder / "images").is_dir() for folder in folders)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_a_run_name_is_a_folder_name(tmp_path, name):
    with pytest.raises(InputError, match="not a folder name"):
        new_run_folder(tmp_path, name)


def test_a_base_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        new_run_folder(tmp_path / "file", "run")


def test_metrics_are_strict_json_and_what_is_not_finite_is_named(recorder):
    recorder.metrics(1, {"reward": torch.tensor(0.5), "kl": float("nan"), "grad_norm": np.float32("inf"), "loss": None})
    recorder.metrics(2, {"reward": 1})
    lines = (recorder.run_folder / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0], parse_constant=pytest.fail)
    assert first == {"step": 1, "reward": 0.5, "kl": None, "grad_norm": None, "not_finite": ["grad_norm", "kl"]}
    assert json.loads(lines[1]) == {"step": 2, "reward": 1}


def test_a_trajectory_comes_back_as_it_was(recorder):
    rolled = trajectory([0.3, 0.6, 1.0], prompt=HOSTILE)
    recorder.trajectory(4, rolled, phase="after", kept_as="best")
    (row,) = read_lines(recorder.run_folder / "trajectories.jsonl").rows
    assert (row["step"], row["phase"], row["kept_as"], row["prompt"]) == (4, "after", "best", HOSTILE)
    back, there = load_trajectory(row, recorder.run_folder / "images"), see(rolled)
    for ours, theirs in zip(back.rounds, there.rounds, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert (ours.score, ours.scores, ours.words) == (theirs.score, theirs.scores, theirs.words)
        assert (ours.critique, ours.instruction, ours.stop) == (theirs.critique, theirs.instruction, theirs.stop)
    assert back.rounds[0].plan == "red circle center"


def test_a_critique_stands_with_the_image_it_was_written_about():
    rolled = trajectory([0.3, 1.0])
    draft, refined = see(rolled).rounds
    assert draft.critique == rolled.rounds[1].critique.segment.text
    assert draft.instruction == "change the circle at center to red" and not draft.stop
    assert refined.critique == rolled.last_critique.segment.text and refined.stop


def test_a_malformed_critique_and_missing_words_are_kept(recorder):
    base = trajectory([0.3])
    broken = Trajectory(prompt=base.prompt, rounds=base.rounds, last_critique=critique("<think>", well_formed=False))
    recorder.trajectory(1, broken)
    recorder.trajectory(1, trajectory([None]))
    first, second = read_lines(recorder.run_folder / "trajectories.jsonl").rows
    assert first["rounds"][0]["well_formed"] is False and first["rounds"][0]["stop"] is False
    assert second["rounds"][0]["score"] is None and "critique" not in second["rounds"][0]


def test_equal_images_share_a_file_and_large_ones_are_made_small(recorder):
    for _ in range(3):
        recorder.trajectory(1, trajectory([0.3]))
    recorder.trajectory(2, trajectory([0.3], side=800))
    sides = []
    for file in (recorder.run_folder / "images").iterdir():
        with Image.open(file) as image:
            sides.append(max(image.size))
    assert sorted(sides) == [32, 384]


def test_pixels_are_rounded_and_survive_a_policy_gone_wrong():
    image = torch.full((3, 2, 2), 0.5)
    image[0, 0] = torch.tensor([float("nan"), float("inf")])
    pixels = to_pixels(image.bfloat16())
    assert pixels[1, 1, 0] == 128 and pixels[0, 0, 0] == 0 and pixels[0, 1, 0] == 255
    assert (to_pixels(picture("red")) == np.round(picture("red").permute(1, 2, 0).numpy() * 255)).all()


def test_best_worst_and_random_are_kept_and_none_twice():
    scores = [[0.1 * k] for k in range(10)] + [[None], [0.2, 1.0], [1.0]]
    picks = pick_trajectories([trajectory(this) for this in scores], keep=9)
    kept = {kind: [scores[p.index] for p in picks if p.kept_as == kind] for kind in ("best", "worst", "random")}
    assert len({pick.index for pick in picks}) == 9 and {len(these) for these in kept.values()} == {3}
    ranked = [[0.2, 1.0], [1.0], *([0.1 * k] for k in range(9, -1, -1))]
    assert kept["best"] == [this for this in ranked if this not in kept["random"]][:3]
    assert kept["worst"] == [this for this in ranked[::-1] if this not in kept["random"]][:3]


def test_random_picks_are_the_same_prompts_before_and_after():
    def random_places(scores):
        picks = pick_trajectories([trajectory([score]) for score in scores], keep=6)
        return [pick.index for pick in picks if pick.kept_as == "random"]

    assert random_places([0.0] * 20) == random_places([1.0] * 20)


@pytest.mark.parametrize(("count", "keep"), [(0, 6), (2, 6), (30, 1), (30, 0)])
def test_fewer_trajectories_or_places_are_fine(count, keep):
    assert len(pick_trajectories([trajectory([0.5])] * count, keep=keep)) == min(count, keep)


def test_a_document_is_whole_or_absent(tmp_path):
    path = tmp_path / "summary.json"
    write_document(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_gives_one_clear_line(recorder):
    (recorder.run_folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"the disk is full, metrics.jsonl could not be written; free some space"):
        recorder.metrics(1, {"reward": 0.5})


def test_resuming_drops_half_a_line_and_later_steps(recorder):
    for step in range(1, 6):
        recorder.metrics(step, {"reward": step})
    path = recorder.run_folder / "metrics.jsonl"
    with path.open("a") as stream:
        stream.write('{"step": 6, "rew')
    again = Recorder(recorder.run_folder, resume_step=3)
    again.metrics(4, {"reward": 40})
    assert [(row["step"], row["reward"]) for row in read_lines(path).rows] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert read_lines(path).num_broken == 0


def test_reopening_without_damage_leaves_the_bytes(recorder):
    recorder.metrics(1, {"reward": 0.1})
    recorder.trajectory(1, trajectory([0.3], prompt="ein größerer Kreis"))
    before = {path: path.read_bytes() for path in recorder.run_folder.glob("*.jsonl")}
    Recorder(recorder.run_folder)
    assert {path: path.read_bytes() for path in recorder.run_folder.glob("*.jsonl")} == before


def test_a_missing_run_folder_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no run folder at"):
        Recorder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "0" * 32 + ".png"])
def test_images_outside_the_run_folder_are_not_read(recorder, tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    row = {"prompt": "", "tag": "", "rounds": [{"image": name, "score": 1, "scores": {}, "words": "", "stop": False}]}
    assert load_trajectory(row, recorder.run_folder / "images").rounds[0].pixels is None


def test_the_environment_names_versions_but_no_host_and_no_path():
    described = environment(dtype="float32")
    text = json.dumps(described)
    assert described["packages"]["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads() and described["dtype"] == "float32"
    assert socket.gethostname() not in text and os.getcwd() not in text and "/" not in text.replace("n/a", "")


def test_a_text_with_line_separators_is_one_row_and_survives_a_resume(recorder):
    """`str.splitlines` cuts at them: half a row was no JSON, and the next resume deleted it."""
    prompt = "a red\u2028circle\u2029and\x85a\x0bblue\x0csquare\x1c"
    recorder.trajectory(1, trajectory([0.3], prompt=prompt))
    path = recorder.run_folder / "trajectories.jsonl"
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1, "other readers find one row too"
    row = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")  # as earlier versions wrote it
    Recorder(recorder.run_folder, resume_step=1)
    lines = read_lines(path)
    assert [row["prompt"] for row in lines.rows] == [prompt] and lines.num_broken == 0


def test_half_of_a_surrogate_pair_is_one_row_too(recorder):
    recorder.trajectory(1, trajectory([0.3], prompt="a \ud83d cat"))
    (row,) = read_lines(recorder.run_folder / "trajectories.jsonl").rows
    assert row["prompt"] == "a \ud83d cat"


def test_a_run_folder_that_is_gone_is_one_line(recorder):
    shutil.rmtree(recorder.run_folder)
    with pytest.raises(RunError, match="could not be written: No such file or directory"):
        recorder.metrics(1, {"loss": 0.5})
