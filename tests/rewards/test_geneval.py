"""The scorer `geneval` from image to score, with real classes of tiny, random weights."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from r3_rl.errors import CheckpointError, DataError, InputError, MissingPackageError
from r3_rl.rewards.geneval import GenEval
from r3_rl.rewards.geneval_detector import Geometry, found_in, geometry_of
from r3_rl.rewards.geneval_request import COLOURS
from r3_rl.scoring.registry import check_scorer, load_scorer
from r3_rl.torchvision_guard import guard

guard()  # before anything imports torchvision

SCORER = "r3_rl.rewards.geneval:GenEval"
RECORDED = Path(__file__).parents[1] / "golden" / "geneval_verdicts.json"
COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    """A Mask2Former that sees nothing but clocks: random features, the class head's bias turned to them."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    names = [COCO_NAMES.get(name, name) for name in json.loads(RECORDED.read_text())["classnames"]]
    swin = SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=8,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.bias.fill_(-20)
        model.class_predictor.bias[names.index("clock")] = 20
        for weight in model.model.transformer_module.decoder.mask_predictor.mask_embedder.parameters():
            weight.mul_(5)
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    # As the published weights have it: the settings squash images to a square.
    Mask2FormerImageProcessor(size={"height": 384, "width": 384}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of one layer for each tower, in open_clip's own folder format."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    built = open_clip.create_model(f"local-dir:{folder}")
    save_file(built.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def params(detector_folder, clip_folder):
    return {
        "detector": str(detector_folder),
        "clip": f"local-dir:{clip_folder}",
        "device": "cpu",
        "short_side": 64,
        "long_side": 128,
    }


@pytest.fixture(scope="module")
def scorer(params):
    return load_scorer(SCORER, params)


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    sizes = [(64, 64), (40, 90), (64, 64), (100, 60)]
    return [
        np.kron(draw.integers(0, 256, (h // 10 + 1, w // 10 + 1, 3)), np.ones((10, 10, 1)))[:h, :w].astype(np.uint8)
        for h, w in sizes
    ]


def clocks(count=1, **more):
    return [{"class": "clock", "count": count, **more}]


def asked(scorer, images, include, tags=None, excludes=None):
    """Scores, with the words and the numbers that the scorer logs."""
    extras, metrics = {}, {}
    scores = scorer(
        images,
        include,
        tag=tags or ["colors"] * len(images),
        exclude=excludes,
        log_extra=extras.__setitem__,
        log_metric=metrics.__setitem__,
    )
    return scores, extras, metrics


def test_an_image_goes_in_and_a_score_and_a_reason_come_out(scorer, images):
    include = [clocks(), [{"class": "dog", "count": 1}], clocks(), [*clocks(), {"class": "dog", "count": 1}]]
    scores, extras, metrics = asked(scorer, images, include)
    assert scores == [1.0, 0.0, 1.0, 0.0]
    assert extras["reason"] == ["", "expected dog>=1, found 0", "", "expected dog>=1, found 0"]
    assert extras["cause"] == [""] * 4
    assert metrics == {"strict": 0.5, "partial": 0.625}


def test_partial_and_strict_share_weights_and_mix(scorer, params, images):
    half = [[*clocks(), {"class": "dog", "count": 1}]]
    partial = load_scorer(SCORER, {**params, "strict_weight": 0.0})
    mixed = load_scorer(SCORER, {**params, "strict_weight": 0.5})
    assert [asked(s, images[:1], half)[0] for s in (scorer, partial, mixed)] == [[0.0], [0.5], [0.25]]
    assert asked(mixed, images[:1], [clocks()])[0] == [1.0]
    assert partial._detector is scorer._detector
    assert partial._colours is scorer._colours


def test_a_batch_gives_what_its_images_give_alone(scorer, images):
    include = [clocks(color="red"), clocks(color="black"), clocks(color="white"), clocks(2)]
    together, extras, _ = asked(scorer, images, include)
    for index, image in enumerate(images):
        alone, words, _ = asked(scorer, [image], [include[index]])
        assert alone == [together[index]]
        assert words["reason"] == [extras["reason"][index]]
    batch = scorer._detector.detect(images, 0.3)
    for image, seen in zip(images, batch, strict=True):
        (single,) = scorer._detector.detect([image], 0.3)
        assert single.keys() == seen.keys() == {"clock"}
        for one, other in zip(single["clock"], seen["clock"], strict=True):
            assert one.box == other.box
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert np.array_equal(one.mask, other.mask)


def test_masks_and_boxes_lie_in_their_image(scorer, images):
    for image, seen in zip(images, scorer._detector.detect(images, 0.3), strict=True):
        for found in seen["clock"]:
            assert found.mask.shape == image.shape[:2]
            x1, y1, x2, y2 = (int(side) for side in found.box)
            assert found.mask[y1:y2, x1:x2].sum() == found.mask.sum() > 0
            assert 0.3 < found.score <= 1


def test_what_is_seen_depends_on_the_image(scorer, images):
    first, _, second, _ = scorer._detector.detect(images, 0.3)
    pairs = zip(first["clock"], second["clock"], strict=False)
    assert any(not np.array_equal(one.mask, other.mask) for one, other in pairs)


def test_an_object_has_exactly_one_of_the_ten_colours(scorer, images):
    include = [clocks(color=colour) for colour in COLOURS]
    scores, extras, _ = asked(scorer, [images[1]] * len(COLOURS), include)
    assert sorted(scores) == [0.0] * 9 + [1.0]
    colour = COLOURS[scores.index(1.0)]
    for wanted, reason in zip(COLOURS, extras["reason"], strict=True):
        expected = "" if wanted == colour else f"expected {wanted} clock>=1, found 0 {wanted}; and 1 {colour}"
        assert reason == expected


def test_published_rows(scorer, images):
    # Rows of GenEval's prompts (MIT).
    counting = {"include": clocks(2), "exclude": clocks(3), "tag": "counting"}
    position = {
        "include": [
            {"class": "toilet", "count": 1},
            {"class": "hair drier", "count": 1, "position": ["left of", 0]},
        ],
        "tag": "position",
    }
    colours = {
        "include": [
            {"class": "wine glass", "count": 1, "color": "purple"},
            {"class": "apple", "count": 1, "color": "black"},
        ],
        "tag": "color_attr",
    }
    rows = [counting, position, colours]
    tags, excludes = [row["tag"] for row in rows], [row.get("exclude") for row in rows]
    scores, extras, _ = asked(scorer, images[:3], [row["include"] for row in rows], tags, excludes)
    (seen,) = scorer._detector.detect(images[:1], 0.9)
    found = len(seen.get("clock", ()))
    counted = (
        "" if found == 2 else f"expected clock>=2, found {found}" if found < 2 else f"expected clock<3, found {found}"
    )
    assert scores == [float(found == 2), 0.0, 0.0]
    assert extras["reason"] == [
        counted,
        "expected toilet>=1, found 0\nexpected hair drier>=1, found 0",
        "expected wine glass>=1, found 0\nexpected apple>=1, found 0",
    ]


def test_rows_that_cannot_be_judged_have_no_score_and_say_why(scorer, images):
    include = [clocks(), [{"class": "clocks", "count": 1}], clocks(region="left"), []]
    scores, extras, metrics = asked(scorer, images, include)
    assert scores == [1.0, None, None, None]
    assert "does not know the class 'clocks'; did you mean 'clock'?" in extras["cause"][1]
    assert "include[0] has 'region'" in extras["cause"][2]
    assert "include is empty" in extras["cause"][3]
    assert metrics["strict"] == 1.0
    untagged, extras, metrics = asked(scorer, images[:1], [clocks()], tags=[None])
    assert untagged == [None]
    assert "tag is None" in extras["cause"][0]
    assert metrics == {}


def test_labels_are_read_in_geneval_words(scorer):
    assert scorer._detector.classes == set(json.loads(RECORDED.read_text())["classnames"])


def test_an_image_of_another_kind_is_refused(scorer, images):
    with pytest.raises(DataError, match="cannot read an image of float64"):
        scorer([images[0] / 255], [clocks()], tag=["colors"])


def test_half_precision_computes_and_keeps_the_weights(params, images):
    scorer = load_scorer(SCORER, {**params, "dtype": "bfloat16"})
    scores, extras, _ = asked(scorer, images, [clocks(color="red"), clocks(), clocks(), clocks()])
    assert scores[1:] == [1.0, 1.0, 1.0]
    assert scores[0] in (0.0, 1.0)
    assert extras["cause"] == [""] * 4
    dtypes = {p.dtype for part in (scorer._detector, scorer._colours) for p in part._model.parameters()}
    assert dtypes == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_device_that_is_not_there_is_named(params):
    with pytest.raises(InputError, match="torch sees no GPU; write device: cpu"):
        GenEval(**{**params, "device": "cuda"})


def test_wrong_parameters_are_found_before_anything_loads(params):
    with pytest.raises(InputError, match="device 'gpu' is none"):
        GenEval(**{**params, "device": "gpu"})
    assert check_scorer(SCORER, params) == []
    (problem,) = check_scorer(SCORER, {"strict_weight": 1.5})
    assert "strict_weight = 1.5 must lie between 0 and 1" in problem
    (problem,) = check_scorer(SCORER, {"dtype": "float8"})
    assert "'float32', 'bfloat16' or 'float16'" in problem
    with pytest.raises(InputError, match="batch_size = 0 must be 1 or more"):
        GenEval(**{**params, "batch_size": 0})


@pytest.mark.parametrize("package", ["open_clip", "transformers", "torchvision"])
def test_a_missing_package_names_the_line_that_installs_it(params, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"needs {package}; pip install 'r3-rl\[train,clip\]'"):
        GenEval(**{**params, "revision": "another", "clip_pretrained": "another"})


def test_no_weights_no_scorer(params, detector_folder, clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(CheckpointError, match="no detector in"):
        GenEval(**{**params, "detector": str(tmp_path / "nowhere")})

    torn = tmp_path / "torn"
    torn.mkdir()
    for file in detector_folder.glob("*.json"):
        (torn / file.name).write_bytes(file.read_bytes())
    weights = load_file(detector_folder / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "class_predictor" not in n}, torn / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(CheckpointError, match=r"lacks 2 of the detector's weights, first class_predictor\.bias"):
        GenEval(**{**params, "detector": str(torn)})

    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "open_clip_config.json").write_bytes((clip_folder / "open_clip_config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no CLIP weights for"):
        GenEval(**{**params, "clip": f"local-dir:{bare}"})
    with pytest.raises(CheckpointError, match="write `clip: local-dir:"):
        GenEval(**{**params, "clip": str(clip_folder)})


def test_openai_weights_get_the_activation_they_were_trained_with():
    from r3_rl.rewards.geneval_colours import wants_quick_gelu

    assert wants_quick_gelu("ViT-L-14", "openai")
    assert not wants_quick_gelu("ViT-L-14", "laion2b_s32b_b82k")


@pytest.mark.parametrize(
    ("geometry", "box"),
    [
        # The mask's 16 x 32 cells are 4 pixels wide each; its object fills rows 4 to 8 and columns 10 to 20.
        (geometry_of(32, 64, 64, 128), (20.0, 8.0, 40.0, 16.0)),  # seen at twice its size
        (Geometry(image=(50, 100), resized=(50, 100), padded=(64, 128)), (40.0, 16.0, 80.0, 32.0)),  # padded
    ],
)
def test_a_mask_comes_back_where_it_is_in_the_image(geometry, box):
    masks = torch.full((2, 16, 32), -10.0)
    masks[0, 4:8, 10:20] = 10.0
    classes = torch.tensor([[0.0, 0.0, 8.0, 0.0], [8.0, 0.0, 0.0, 0.0]])  # the second object has no pixels
    ((label, found),) = found_in(classes, masks, geometry, 0.3)
    assert (label, found.box) == (2, box)
    probability = float(classes[0].softmax(0)[2])
    assert 0.9 * probability < found.score < probability
    assert found_in(classes, masks, geometry, found.score) == []


def test_one_object_may_be_of_two_classes():
    masks = torch.full((1, 8, 8), 10.0)
    found = found_in(torch.tensor([[5.0, 5.0, -9.0, -9.0]]), masks, geometry_of(32, 32, 32, 64), 0.3)
    assert sorted(label for label, _ in found) == [0, 1]
    assert all(detection.score == pytest.approx(0.5, abs=1e-3) for _, detection in found)
