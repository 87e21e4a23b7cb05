"""The scorers with CLIP towers: real classes of both libraries, tiny and random, against the formulas by hand."""

import json
import string

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from r3_rl.errors import CheckpointError, InputError
from r3_rl.rewards.aesthetic import Aesthetic
from r3_rl.rewards.clip_score import ClipScore
from r3_rl.rewards.clip_towers import load_towers
from r3_rl.rewards.convert_weights import convert, main
from r3_rl.rewards.hpsv2 import HpsV2
from r3_rl.rewards.pickscore import PickScore
from r3_rl.rewards.unit_scale import UnitScale
from r3_rl.scoring.registry import check_scorer

PROMPTS = ["a red circle", "two blue dogs and a cat", "a red circle"]
WIDE = {"low": -100.0, "high": 100.0}


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).integers(0, 256, (3, 20, 28, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP model in transformers' format: weights, tokenizer, preprocessing."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    place = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", *string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "<|endoftext|>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(place)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **ends, "vocab_size": len(words), "max_position_embeddings": 24},
            vision_config={**sizes, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )
    model.logit_scale.data.fill_(np.log(100))
    model.save_pretrained(place)
    side = {"shortest_edge": 16}
    kind = {"image_processor_type": "CLIPImageProcessor", "size": side, "crop_size": {"height": 16, "width": 16}}
    (place / "preprocessor_config.json").write_text(json.dumps(kind))
    return place


@pytest.fixture(scope="module")
def cosines(folder, images):
    """By transformers' own forward pass, one pair at a time."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")
    found = []
    for prompt, image in zip(PROMPTS, images, strict=True):
        words = tokenizer([prompt], truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            seen = model(**words, **pixels(images=[Image.fromarray(image)], return_tensors="pt"))
        found.append(seen.logits_per_image.item() / 100)
    return found


TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory):
    """A random model of open_clip's factory, registered as `r3-tiny`, and a folder in open_clip's format."""
    import open_clip

    place = tmp_path_factory.mktemp("open_clip")
    (place / "r3-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(place / "r3-tiny.json")
    torch.manual_seed(1)
    model = open_clip.create_model("r3-tiny").eval()
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    save_file(model.state_dict(), place / "open_clip_model.safetensors")
    return model, place


def test_scores_are_the_published_formulas(folder, images, cosines):
    logged, extra = {}, {}
    clip = ClipScore(weights=str(folder), batch_size=2)
    scores = clip(PROMPTS, images, log_metric=logged.__setitem__, log_extra=extra.__setitem__)
    assert scores == pytest.approx([max(cosine, 0.0) for cosine in cosines], abs=1e-5)
    assert logged["published"] == pytest.approx(100 * sum(scores) / 3)
    assert extra["reason"][0] == f"CLIPScore {100 * scores[0]:.4g}"
    picks = PickScore(weights=str(folder), **WIDE)(PROMPTS, images)
    assert picks == pytest.approx([(100 * cosine + 100) / 200 for cosine in cosines], abs=1e-5)
    assert np.argsort(picks).tolist() == np.argsort(cosines).tolist()
    assert len({round(cosine, 4) for cosine in cosines}) == 3  # else the order says nothing


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_gives_what_its_rows_give(folder, open_clip_model, images, batch_size):
    for weights in (folder, open_clip_model[1]):
        towers = load_towers(str(weights), batch_size=3)
        apart = load_towers(str(weights), batch_size=batch_size)
        assert apart.cosines(images, PROMPTS) == pytest.approx(towers.cosines(images, PROMPTS), abs=1e-6)
        assert towers.cosines([], []) == []


def test_half_precision_runs_in_it_and_stays_near(folder, open_clip_model, images):
    for weights in (folder, open_clip_model[1]):
        exact = load_towers(str(weights))
        half = load_towers(str(weights), dtype="bfloat16")
        assert half.encode_texts(["a dog"]).dtype == half.encode_images([Image.fromarray(images[0])]).dtype
        assert half.encode_texts(["a dog"]).dtype == torch.bfloat16
        assert half.images(images).dtype == torch.float32
        assert half.cosines(images, PROMPTS) == pytest.approx(exact.cosines(images, PROMPTS), abs=0.05)
        assert half.logit_scale == pytest.approx(exact.logit_scale, rel=1e-4)


def test_a_long_prompt_is_cut_off(folder, images):
    towers = load_towers(str(folder))
    assert towers.texts(["dog " * 300]).shape == (1, 8)


def test_hpsv2_reads_a_file_and_keeps_the_whole_picture(open_clip_model, images):
    import open_clip

    model, place = open_clip_model
    scorer = HpsV2(weights=str(place / "open_clip_model.safetensors"), architecture="r3-tiny", **WIDE)
    wide = np.random.default_rng(1).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    bars = Image.new("RGB", (16, 16))
    bars.paste(Image.fromarray(wide).resize((16, 8), Image.Resampling.BICUBIC), (0, 4))
    # By hand: CLIP's mean and standard deviation, then open_clip's own forward pass.
    pixels = torch.from_numpy(np.array(bars)).permute(2, 0, 1).float()[None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        picture, words, _ = model((pixels - mean) / std, open_clip.get_tokenizer("r3-tiny")(PROMPTS[:1]))
    cosine = (picture @ words.T).item()
    assert scorer(PROMPTS[:1], [wide]) == pytest.approx([(100 * cosine + 100) / 200], abs=1e-5)
    assert scorer(PROMPTS[:1], [np.asarray(bars)]) == pytest.approx(scorer(PROMPTS[:1], [wide]), abs=1e-6)


def head(width=8):
    torch.manual_seed(2)
    sizes = {0: (width, 6), 2: (6, 5), 4: (5, 4), 6: (4, 3), 7: (3, 1)}
    layers = {number: torch.nn.Linear(*size) for number, size in sizes.items()}
    return {f"layers.{n}.{kind}": value for n, layer in layers.items() for kind, value in layer.state_dict().items()}


def test_aesthetic_is_a_stack_of_linear_layers_on_the_unit_vector(folder, images, tmp_path):
    torch.save(head(), tmp_path / "head.pth")
    assert main([str(tmp_path / "head.pth"), str(tmp_path / "head.safetensors")]) == 0
    scorer = Aesthetic(head=str(tmp_path / "head.safetensors"), weights=str(folder), low=-1, high=1)
    values = load_towers(str(folder)).images(images)
    assert values.norm(dim=-1).tolist() == pytest.approx([1.0] * 3)
    for number in (0, 2, 4, 6, 7):
        values = values @ head()[f"layers.{number}.weight"].T + head()[f"layers.{number}.bias"]
    assert scorer(images) == pytest.approx([(value + 1) / 2 for value in values[:, 0].tolist()], abs=1e-6)
    assert scorer([]) == []


def test_a_head_that_does_not_fit_is_refused(folder, tmp_path):
    save_file(head(width=7), tmp_path / "narrow.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0 is \[6, 7\] and takes no vectors of 8"):
        Aesthetic(head=str(tmp_path / "narrow.safetensors"), weights=str(folder))
    save_file({**head(), "layers.3.weight": torch.zeros(1)}, tmp_path / "relu.safetensors")
    with pytest.raises(CheckpointError, match="not a head of the kind 'linearMSE'"):
        Aesthetic(head=str(tmp_path / "relu.safetensors"), weights=str(folder))


class Planted:
    """What a stranger's pickle may do."""

    def __reduce__(self):
        return (print, ("code of the pickle has run",))


def test_converting_runs_no_code_and_takes_the_state_dict(tmp_path, capsys):
    shared = torch.arange(6.0)
    torch.save({"state_dict": {"a": shared, "b": shared[:3]}, "epoch": 3}, tmp_path / "good.pt")
    assert convert(tmp_path / "good.pt", tmp_path / "good.safetensors") == 2
    assert load_file(tmp_path / "good.safetensors")["b"].tolist() == [0.0, 1.0, 2.0]
    torch.save({"a": Planted()}, tmp_path / "bad.pt")
    assert main([str(tmp_path / "bad.pt"), str(tmp_path / "bad.safetensors")]) == 2
    said = capsys.readouterr()
    assert "code of the pickle has run" not in said.out and "holds more than tensors" in said.err
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
        convert(tmp_path / "list.pt", tmp_path / "list.safetensors")
    with pytest.raises(InputError, match="cannot write"):
        convert(tmp_path / "good.pt", tmp_path / "good.safetensors")


def test_weights_that_cannot_be_read_say_so_in_one_line(folder, open_clip_model, tmp_path):
    (tmp_path / "hps.pt").write_bytes(b"pickled")
    with pytest.raises(CheckpointError, match="convert it once: python -m"):
        HpsV2(weights=str(tmp_path / "hps.pt"))
    with pytest.raises(CheckpointError, match="holds no CLIP model; it needs"):
        load_towers(str(tmp_path))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_towers("./nowhere")
    with pytest.raises(InputError, match="revision 'main' is for weights from the hub"):
        load_towers(str(folder), revision="main")
    with pytest.raises(InputError, match="say which of open_clip's architectures"):
        load_towers(str(open_clip_model[1] / "open_clip_model.safetensors"))
    with pytest.raises(InputError, match="no architecture 'ViT-Z'"):
        load_towers(str(open_clip_model[1] / "open_clip_model.safetensors"), architecture="ViT-Z")
    with pytest.raises(InputError, match="low must lie below high"):
        ClipScore(weights=str(folder), low=2, high=1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="of the kind 'bert', not 'clip'"):
        load_towers(str(tmp_path))


def test_weights_that_lack_a_tensor_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of CLIP, the first is visual_projection\.weight"):
        load_towers(str(tmp_path))


def test_models_of_the_hub_come_at_their_revision(folder, open_clip_model, images, tmp_path, monkeypatch):
    """The hub's cache as a download leaves it, and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, source in (("clip", folder), ("open", open_clip_model[1])):
        snapshot = tmp_path / f"models--r3--{name}" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in source.iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())
    for weights, source in (("r3/clip", folder), ("hf-hub:r3/open", open_clip_model[1])):
        fetched = load_towers(weights, revision=commit)
        assert fetched.cosines(images, PROMPTS) == load_towers(str(source)).cosines(images, PROMPTS)
        with pytest.raises(CheckpointError, match="cannot read CLIP weights"):
            load_towers(weights, revision="f" * 40)


def test_a_figure_that_is_no_number_is_no_score():
    said = {}
    scale = UnitScale(name="x", low=0, high=10)
    assert scale.scores([float("nan"), float("inf"), 5.0, 11.0], log_extra=said.__setitem__) == [None, None, 0.5, 1.0]
    assert said["cause"] == ["x is nan", "x is inf", "", ""]


@pytest.mark.parametrize("scorer", ["clip_score", "pickscore", "hpsv2", "aesthetic"])
def test_parameters_that_all_of_them_take_are_checked_alike(scorer):
    own = {"hpsv2": {"weights": "w.safetensors"}, "aesthetic": {"head": "h.safetensors"}}.get(scorer, {})
    shared = {"revision": "main", "device": "cpu", "dtype": "bfloat16", "batch_size": 4, "low": 1.0, "high": 9.0}
    assert check_scorer(scorer, {**own, **shared}) == []
    (problem,) = check_scorer(scorer, {**own, "dtype": "int8"})
    assert "parameter 'dtype' = 'int8'" in problem
    (problem,) = check_scorer(scorer, {**own, "batchsize": 4})
    assert "did you mean 'batch_size'?" in problem
    assert len(check_scorer(scorer, {})) == len(own), "what has no default is demanded"
