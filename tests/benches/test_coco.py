"""COCO's captions, and distances between sets of images on known distributions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from r3_rl.benches.base import Request
from r3_rl.benches.coco import CAPTIONS, NOT_MEASURED, CocoBench, coco
from r3_rl.benches.distances import clip_embedder, cmmd, frechet_and_kernel
from r3_rl.benches.made import write_sets
from r3_rl.benches.run import EvalSettings, check_benches, evaluate
from r3_rl.errors import InputError

SHARP = {"coco": {"scorer": "sharpness"}}


def request(path: Path, **options) -> Request:
    return Request(name="coco", path=path, tags=None, world=None, rounds=[0], scorers=SHARP, **options)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"), count=5)


def test_the_first_caption_of_each_image_is_drawn(tmp_path, sets):
    document = json.loads((sets / "coco" / CAPTIONS).read_text())
    document["annotations"].insert(1, {"id": 99, "image_id": 1, "caption": "another one"})
    (tmp_path / CAPTIONS).write_text(json.dumps(document))
    (tmp_path / "val2014").symlink_to(sets / "coco" / "val2014")
    (bench,) = coco(request(tmp_path, limit=3))
    assert list(bench.items) == [a["caption"] for a in document["annotations"] if a["id"] != 99][:3]
    assert [path.name for path in bench.real] == [f"COCO_val2014_{n:012d}.jpg" for n in (1, 2, 3)]
    assert bench.facts["FID and KID"] == bench.facts["CMMD"] == NOT_MEASURED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": []}, "annotations[0]: image 1 is not among the images"),
        ({"annotations": []}, "0 captions; a distance takes two images or more"),
        ({"annotations": [{"image_id": 1}]}, "annotations[0]: no field 'caption'"),
        ({"images": [{"id": "x", "file_name": "a"}]}, 'images[0]: id is "x", not a whole number'),
    ],
)
def test_a_broken_caption_file_is_one_line(tmp_path, sets, change, said):
    document = json.loads((sets / "coco" / CAPTIONS).read_text())
    (tmp_path / CAPTIONS).write_text(json.dumps({**document, **change}))
    with pytest.raises(InputError) as caught:
        coco(request(tmp_path))
    assert said in str(caught.value)


@pytest.mark.slow
def test_captions_run_end_to_end_and_images_keep_their_size(sets, tmp_path):
    (tmp_path / "s.yaml").write_text(json.dumps(SHARP))
    settings = EvalSettings(benches=[f"coco={sets / 'coco'}"], rounds=[0, 1], limit=3, scorers=tmp_path / "s.yaml")
    (result,) = evaluate("shipped", tmp_path / "out", settings)
    rows = {row.figure.name: row.cells["greedy"] for row in result.rows}
    assert {"score_0", "score_1"} <= set(rows) and "draft" not in rows, "nothing is right or wrong about a caption"
    drawn = list((tmp_path / "out" / "images" / "coco").rglob("*round_0.png"))
    assert len(drawn) == 6
    for path in drawn:
        with Image.open(path) as image:
            assert image.size == (36, 36)


def test_cmmd_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    one, other = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rng.normal(size=(7, 5)), rng.normal(size=(9, 5)))
    )

    def kernel(xs, ys):
        return np.mean([[np.exp(-((x - y) ** 2).sum() / 200) for y in ys] for x in xs])

    expected = 1000 * (kernel(one, one) + kernel(other, other) - 2 * kernel(one, other))
    assert cmmd(one, other) == pytest.approx(expected, rel=1e-9) and cmmd(one, one) == 0


class FirstPixels(torch.nn.Module):
    """Four features of an image: the first pixels of its first row, red, in units of 16."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :4].double() / 16


def pictures(folder: Path, mean: float, count: int, seed: int) -> list[Path]:
    """Images whose features are Gaussian: mean `mean`, variance 1."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    files = []
    for number, features in enumerate(rng.normal(mean, 1, size=(count, 4))):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[0, :4, 0] = np.clip(np.round(16 * features), 0, 255)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        files.append(folder / f"{number}.png")
    return files


def test_distances_of_known_gaussians(tmp_path):
    pytest.importorskip("torchmetrics", reason="the extra 'eval' is not installed")
    real, near = pictures(tmp_path / "r", 6, 400, 0), pictures(tmp_path / "n", 6, 400, 1)
    far = pictures(tmp_path / "f", 8, 400, 2)
    same, other = (frechet_and_kernel(real, drawn, FirstPixels()) for drawn in (near, far))
    # equal covariances: FID = |m - m'|^2 = 4 features x 2^2
    assert other.fid == pytest.approx(16, rel=0.06) and same.fid < 0.2
    assert abs(same.kid) < 0.05 * other.kid

    def features(files):
        found = []
        for file in files:
            with Image.open(file) as image:
                found.append(np.asarray(image)[0, :4, 0] / 16)
        return np.stack(found)

    def kernel(x, y):
        return (x @ y.T / 4 + 1) ** 3

    x, y = features(real), features(far)
    n = len(x)
    unbiased = sum((kernel(v, v).sum() - np.trace(kernel(v, v))) / (n * (n - 1)) for v in (x, y))
    assert other.kid == pytest.approx(unbiased - 2 * kernel(x, y).mean(), rel=1e-6), "one subset holds all images"
    assert frechet_and_kernel(real, far, FirstPixels()) == other, "the same images, the same distance"


def test_distances_are_rows_without_intervals(tmp_path, sets, monkeypatch):
    pytest.importorskip("torchmetrics", reason="the extra 'eval' is not installed")
    from r3_rl.benches import coco as module

    monkeypatch.setattr(module, "inception", lambda path: FirstPixels())
    monkeypatch.setattr(module, "check_weights", lambda weights, place: None)
    scorers = {"coco": {**SHARP["coco"], "distances": {"inception": "weights.pth"}}}
    (tmp_path / "s.yaml").write_text(json.dumps(scorers))
    settings = EvalSettings(benches=[f"coco={sets / 'coco'}"], rounds=[0, 1], limit=4, scorers=tmp_path / "s.yaml")
    (result,) = evaluate("shipped", tmp_path / "out", settings)
    assert isinstance(result.bench, CocoBench)
    rows = {row.figure.name: row.cells["greedy"] for row in result.rows}
    assert {"fid_draft", "kid_draft", "fid_final", "kid_final"} <= set(rows)
    assert rows["fid_draft"].models["trained"].over_items.count == 4
    line = next(line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if "FID, drafts" in line)
    assert "[" not in line


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            {"inception": "no.pth"},
            "coco.distances.inception: no such file: 'no.pth'; fetch weights-inception-2015-12-05",
        ),
        ({"clip": "ViT-L-14-336:no/clip.pt"}, "coco.distances.clip: no such file: 'no/clip.pt'; fetch CLIP's weights"),
        ({"clip": "ViT-L-14-336"}, "'ViT-L-14-336' names no weights; fetch CLIP's weights"),
        ({"inceptoin": "a.pth"}, "nothing is called 'inceptoin'; did you mean 'inception'?"),
    ],
)
def test_weights_that_are_not_there_are_told_before_a_model_is_loaded(sets, tmp_path, weights, said):
    (tmp_path / "s.yaml").write_text(json.dumps({"coco": {**SHARP["coco"], "distances": weights}}))
    settings = EvalSettings(benches=[f"coco={sets / 'coco'}"], scorers=tmp_path / "s.yaml")
    with pytest.raises(InputError) as caught:
        check_benches(settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_broken_clip_weights_are_one_line(tmp_path):
    pytest.importorskip("open_clip", reason="the extra 'eval' is not installed")
    (tmp_path / "clip.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"CMMD: 'ViT-B-32:.*clip.pt' cannot be read \(.*\); fetch CLIP's weights"):
        clip_embedder(f"ViT-B-32:{tmp_path / 'clip.pt'}")


def test_a_scorer_without_its_weights_names_the_bench_and_where_to_put_them(sets, tmp_path):
    judge = {"coco": {"params": {"weights": str(tmp_path / "nowhere")}}}
    (bench,) = coco(Request(name="coco", path=sets / "coco", tags=None, world=None, rounds=[0], scorers=judge))
    with pytest.raises(InputError) as caught:
        bench.drawing.verdicts([])
    assert str(caught.value).startswith("bench 'coco': no such file or folder: ")
    assert str(caught.value).endswith("name it in the file of --scorers, under coco.params")
