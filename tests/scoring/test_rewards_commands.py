"""`r3 rewards ls`, `new` and `test`: what they print and write."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from r3_rl.errors import DataError, InputError, ScorerError
from r3_rl.scoring import commands
from r3_rl.scoring.registry import check_scorer


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in {"a.png": (255, 0, 0), "b.PNG": (0, 0, 255)}.items():
        Image.new("RGB", (8, 4), colour).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_ls_shows_what_is_installed(capsys, installed):
    installed("broken_scores", "import no_such_package_at_all\n", "broken = broken_scores:score")
    commands.ls()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "version", "range", "needs", "weights", "from"]
    jpeg = next(line for line in lines if line.startswith("jpeg_size"))
    assert jpeg.split() == ["jpeg_size", "1", "0", "to", "1", "images", "none", "r3-rl", "0.1.0"]
    assert any("broken (from broken_scores 2.5) fails to import" in line for line in lines)


def test_ls_and_check_load_nothing_heavy():
    code = (
        "import sys\n"
        "from r3_rl.scoring import commands, registry\n"
        "commands.ls()\n"
        "assert not registry.check_scorer('jpeg_size', {'quality': 90})\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'numpy'} & set(sys.modules)\n"
        "own = [m for m in ('format', 'length', 'jpeg_size', 'sharpness') if 'r3_rl.rewards.' + m in sys.modules]\n"
        "print(len(own), heavy & {'torch', 'transformers', 'peft', 'trl'} or 'light')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "4 light"


def test_new_writes_a_scorer_that_works_and_a_test_that_passes(tmp_path, capsys):
    written = commands.new("my_score", tmp_path / "mine")
    assert [path.name for path in written] == ["my_score.py", "test_my_score.py"]
    assert check_scorer("./my_score.py:my_score", {"threshold": 0.4}, tmp_path / "mine") == []
    arguments = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(written[1])]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert "2 passed" in done.stdout
    assert "scorer: ./my_score.py:my_score" in capsys.readouterr().out


def test_the_written_test_can_fail(tmp_path):
    scorer, test = commands.new("my_score", tmp_path)
    scorer.write_text(scorer.read_text().replace("float(is_red.mean())", "0.0"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(test)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1


def test_new_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(InputError, match="'my-score' cannot be the name"):
        commands.new("my-score", tmp_path)
    (tmp_path / "test_my_score.py").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        commands.new("my_score", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["test_my_score.py"]


def test_a_folder_of_images(pictures, tmp_path, capsys):
    commands.new("redness", tmp_path)
    verdicts = commands.test("./redness.py:redness", [pictures], prompt="a red circle", base_folder=tmp_path)
    assert [verdict.total for verdict in verdicts] == [1.0, 0.0]
    out = capsys.readouterr().out
    assert "a.png  1  100 % red" in out
    assert "gain" in out
    assert "scored 2 in" in out


def test_two_images_show_the_gain(pictures, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "noise.png")
    verdicts = commands.test("sharpness", [pictures / "a.png", pictures / "noise.png"])
    draft, refined = (verdict.total for verdict in verdicts)
    assert refined > 0.9 > draft
    assert f"{refined - draft:+.6g}" in capsys.readouterr().out


def test_a_text(capsys):
    (verdict,) = commands.test("length", text="three short words", params={"max_words": 4, "soft_words": 2})
    assert verdict.total == 0.5


@pytest.mark.parametrize(
    ("scorer", "options", "error", "said"),
    [
        ("sharpnes", {"text": "a"}, InputError, "did you mean 'sharpness'"),
        ("sharpness", {"text": "a"}, ScorerError, "'sharpness' needs images"),
        ("sharpness", {}, InputError, "nothing to score"),
        (
            "shapes",
            {"paths": ["a.png"]},
            InputError,
            r"needs the column include; .* --columns '{include: ...}'",
        ),
        ("sharpness", {"paths": ["nowhere.png"]}, DataError, "nowhere.png: no such file"),
        ("sharpness", {"paths": ["notes.txt"]}, DataError, "notes.txt: not an image"),
        ("sharpness", {"paths": ["empty"]}, DataError, "empty: no image in this folder"),
        ("sharpness", {"paths": ["a.png"], "params": {"half": -1.0}}, ScorerError, "half must be above 0"),
    ],
)
def test_what_the_user_reads(pictures, monkeypatch, scorer, options, error, said):
    monkeypatch.chdir(pictures)
    (pictures / "empty").mkdir()
    with pytest.raises(error, match=said):
        commands.test(scorer, **options)


def test_a_picture_that_claims_too_many_pixels_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (20, 10)).save(tmp_path / "large.png")
    monkeypatch.setattr(commands, "_MAX_PIXELS", 100)
    with pytest.raises(DataError, match="20 x 10 pixels"):
        commands.read_image(tmp_path / "large.png")


def test_an_image_is_seen_as_a_viewer_shows_it(tmp_path):
    red, alpha = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 1), 255, np.uint8)
    red[..., 0], alpha[:, :3] = 200, 0
    Image.fromarray(np.dstack([red, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(red).save(tmp_path / "trns.png", transparency=(200, 0, 0))
    Image.new("LA", (6, 4), (9, 0)).save(tmp_path / "la.png")
    seen = commands.read_image(tmp_path / "rgba.png")
    assert (seen[:, :3] == 255).all() and (seen[:, 3:] == (200, 0, 0)).all()
    assert (commands.read_image(tmp_path / "trns.png") == 255).all()
    assert (commands.read_image(tmp_path / "la.png") == 255).all()
    upright = Image.new("RGB", (60, 40))
    turned = upright.getexif()
    turned[0x0112] = 6
    upright.save(tmp_path / "photo.jpg", exif=turned)
    assert commands.read_image(tmp_path / "photo.jpg").shape == (60, 40, 3)


def test_files_that_a_mac_leaves_are_passed_over_and_large_ones_named(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"Mac OS X")
    assert len(commands.test("jpeg_size", [tmp_path])) == 1
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow raises at twice its limit
    with pytest.raises(DataError, match=r"b\.png: more than 64,000,000 pixels in all"):
        commands.read_image(tmp_path / "b.png")


def test_sixteen_bits_a_channel_keep_their_grey(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 117, np.uint16)).save(tmp_path / "deep.png")
    assert np.unique(commands.read_image(tmp_path / "deep.png")).tolist() == [117]
