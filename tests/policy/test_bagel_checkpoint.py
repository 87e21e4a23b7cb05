"""Folders of weights: released layout, round trips, and what is said when something does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from r3_rl.errors import CheckpointError
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.bagel.checkpoint import fingerprint, load_autoencoder, load_bagel, random_bagel, save_bagel
from r3_rl.policy.bagel.config import AutoencoderConfig, BagelConfig, LanguageConfig, VisionConfig
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.vision import sincos_table

LAYOUT = Path(__file__).parents[1] / "golden" / "bagel" / "checkpoint_layout.json"
IDS = {"bos_token_id": 1, "eos_token_id": 2, "start_of_image": 3, "end_of_image": 4}
CONFIG = BagelConfig(
    llm=LanguageConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    ),
    vit=VisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=12, patch_size=4
    ),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=2, downsample=2),
    max_latent_size=4,
    vit_max_num_patch_per_side=3,
    special_token_ids=IDS,
)  # fmt: skip


def tokenizer():
    words = ["w", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w"))
    made.add_special_tokens(words[1:])
    return made


@pytest.fixture
def model():
    return random_bagel(CONFIG, seed=3)


@pytest.fixture
def folder(tmp_path, model):
    torch.manual_seed(1)
    save_bagel(model, Autoencoder(CONFIG.autoencoder), tokenizer(), tmp_path)
    return tmp_path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def rewrite(folder, change, name="ema.safetensors"):
    """Changes the tensors of a file in place."""
    state = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
    change(state)
    save_file(state, folder / name)


def test_the_released_checkpoint_fits_key_by_key():
    released = json.loads(LAYOUT.read_text())["bagel"]
    with torch.device("meta"):
        state = Bagel(BagelConfig()).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == released


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_round_trips_bit_for_bit(tmp_path, dtype):
    model = random_bagel(CONFIG, seed=5, dtype=dtype)
    autoencoder = Autoencoder(CONFIG.autoencoder)
    save_bagel(model, autoencoder, tokenizer(), tmp_path)
    again = load_bagel(tmp_path, dtype=dtype)
    assert same(again.state_dict(), model.state_dict())
    assert again.config == model.config
    assert same(load_autoencoder(tmp_path).state_dict(), autoencoder.state_dict())
    assert not (tmp_path / "ema.safetensors.partial").exists()


def test_only_the_position_tables_are_frozen(folder):
    frozen = {name for name, p in load_bagel(folder).named_parameters() if not p.requires_grad}
    assert frozen == {"latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"}
    assert not any(p.requires_grad for p in load_autoencoder(folder).parameters())


def test_loaded_weights_do_not_hang_on_the_file(folder):
    model = load_bagel(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = folder / "ema.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(model.state_dict(), before)


def test_absent_position_tables_are_computed(folder, model):
    rewrite(folder, lambda state: [state.pop(key) for key in list(state) if key.endswith("pos_embed")])
    again = load_bagel(folder, dtype=torch.bfloat16)
    assert torch.equal(again.latent_pos_embed.pos_embed, sincos_table(4, 16).bfloat16())
    assert not again.latent_pos_embed.pos_embed.requires_grad


def test_a_released_folder_needs_neither_of_our_files(folder, model):
    """Without bagel_config.json the release's fixed values hold and one vision layer fewer than written is built."""
    released = replace(CONFIG, max_latent_size=64, vit_max_num_patch_per_side=70, special_token_ids=None)
    state = model.state_dict() | {
        "latent_pos_embed.pos_embed": sincos_table(64, 16),
        "vit_pos_embed.pos_embed": sincos_table(70, 16),
    }
    save_file(state, folder / "ema.safetensors")
    (folder / "bagel_config.json").unlink()
    vit = json.loads((folder / "vit_config.json").read_text())
    (folder / "vit_config.json").write_text(json.dumps(vit | {"num_hidden_layers": vit["num_hidden_layers"] + 1}))
    again = load_bagel(folder)
    assert again.config == replace(released, special_token_ids=IDS)
    assert same(again.state_dict(), state)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_bagel(folder)


def test_every_misfit_is_named_at_once_with_its_nearest_name(folder):
    def spoil(state):
        state["llm2vae.wieght"] = state.pop("llm2vae.weight")
        state["connector.fc1.bias"] = torch.zeros(7)
        state["language_model.model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
        del state["vae2llm.bias"]

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError) as error:
        load_bagel(folder)
    words = str(error.value)
    assert "4 tensors of ema.safetensors do not fit" in words
    assert "missing llm2vae.weight (the file has 'llm2vae.wieght')" in words
    assert "missing vae2llm.bias" in words
    assert "connector.fc1.bias: shape [7] in the file, [16] in the model" in words
    surplus = "surplus language_model.model.layers.9.mlp.up_proj.weight"
    assert f"{surplus} (the model has 'language_model.model.layers.0.mlp.up_proj.weight')" in words


def test_the_autoencoder_says_what_does_not_fit_too(folder):
    rewrite(folder, lambda state: state.pop("encoder.mid.attn_1.q.weight"), "ae.safetensors")
    with pytest.raises(CheckpointError, match=r"missing encoder\.mid\.attn_1\.q\.weight"):
        load_autoencoder(folder)


def shard(folder, index_name="model.safetensors.index.json"):
    """Splits the weights over two files with an index; returns the two paths."""
    state = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    names, where = sorted(state), {}
    for i, part in enumerate((names[::2], names[1::2])):
        where.update(dict.fromkeys(part, f"model-{i}.safetensors"))
        save_file({name: state[name] for name in part}, folder / f"model-{i}.safetensors")
    (folder / index_name).write_text(json.dumps({"weight_map": where}))
    return [folder / f"model-{i}.safetensors" for i in (0, 1)]


def test_shards_are_one_checkpoint(folder, model):
    whole = fingerprint(folder)
    paths = shard(folder)
    assert same(load_bagel(folder).state_dict(), model.state_dict())
    assert fingerprint(folder) == whole
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors is missing"):
        load_bagel(folder)


def test_reopening_a_file_on_the_way_changes_nothing(folder, model, monkeypatch):
    whole = fingerprint(folder)
    monkeypatch.setattr("r3_rl.policy.weights._MAPPED_BYTES", 2000)
    assert fingerprint(folder) == whole
    assert same(load_bagel(folder).state_dict(), model.state_dict())


def test_an_index_cannot_point_outside_its_folder(folder):
    (folder / "ema.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside the folder"):
        load_bagel(folder)


def test_pickled_and_damaged_files_are_refused(folder):
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: not a whole safetensors file"):
        load_bagel(folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not read"):
        load_bagel(folder)
    with pytest.raises(CheckpointError, match=r"_config\.json is missing"):
        load_bagel(folder / "nowhere")


def test_the_fingerprint_sees_every_bit_and_only_weights(folder):
    first = fingerprint(folder)
    (folder / "notes.txt").write_text("x")
    (folder / "ema.safetensors").rename(folder / "model.safetensors")
    assert fingerprint(folder) == first
    rewrite(folder, lambda state: state["llm2vae.bias"][0].add_(1e-7), "model.safetensors")
    assert fingerprint(folder) != first


def test_an_identity_autoencoder_has_no_file(tmp_path):
    pixels = AutoencoderConfig(kind="identity", z_channels=3, downsample=1, scale_factor=1.0, shift_factor=0.0)
    config = replace(CONFIG, autoencoder=pixels)
    save_bagel(random_bagel(config), Autoencoder(pixels), None, tmp_path)
    assert not (tmp_path / "ae.safetensors").exists()
    assert load_autoencoder(tmp_path).config == pixels
    load_bagel(tmp_path)
    fingerprint(tmp_path)


def test_a_model_with_an_adapter_is_not_saved_as_a_base(tmp_path, model):
    model.connector.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="merge or remove the adapter"):
        save_bagel(model, Autoencoder(CONFIG.autoencoder), None, tmp_path)


def test_random_weights_need_no_files_and_are_repeatable(folder):
    (folder / "ema.safetensors").unlink()
    (folder / "ae.safetensors").unlink()
    first, second, other = (load_bagel(folder, random_init=True, seed=s, dtype=torch.bfloat16) for s in (1, 1, 2))
    assert same(first.state_dict(), second.state_dict())
    assert not torch.equal(first.vae2llm.weight, other.vae2llm.weight)
    assert torch.equal(first.latent_pos_embed.pos_embed, sincos_table(4, 16).bfloat16())
    images = load_autoencoder(folder, random_init=True).encode(torch.rand(1, 3, 8, 8))
    assert bool(images.isfinite().all()) and images.std() > 0


def test_special_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(CheckpointError, match="outside the vocabulary of 20"):
        random_bagel(replace(CONFIG, special_token_ids=None))
    with pytest.raises(CheckpointError, match="lacks eos_token_id"):
        random_bagel(replace(CONFIG, special_token_ids={k: v for k, v in IDS.items() if k != "eos_token_id"}))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "llm_config.json", "bagel_config.json", "ema.safetensors", "ae.safetensors"]
)
def test_a_pointer_of_git_lfs_is_called_so(folder, name):
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name}: a git-lfs pointer.*git lfs pull"):
        BAGEL.load(folder, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_tokenizer_is_refused_before_weights_are_read(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    (folder / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        BAGEL.load(folder, dtype=torch.float32, device="cpu")


def remade(folder, change, name="ema.safetensors"):
    save_file({k: v.contiguous() for k, v in change(load_file(folder / name)).items()}, folder / name)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_integers_are_no_weights(folder, kind):
    remade(folder, lambda state: {k: (v * 100).to(kind) if v.ndim == 2 else v for k, v in state.items()})
    with pytest.raises(CheckpointError, match=r"weight is of type \w+: a quantised checkpoint"):
        load_bagel(folder)


def test_integers_of_an_autoencoder_are_no_weights_either(folder):
    remade(folder, lambda state: {k: v.to(torch.int8) for k, v in state.items()}, "ae.safetensors")
    with pytest.raises(CheckpointError, match="a quantised checkpoint"):
        load_autoencoder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    def spoil(state):
        state["language_model.model.layers.0.self_attn.q_proj.weight"][0, 0] = value
        return state

    remade(folder, spoil)
    with pytest.raises(CheckpointError, match=r"not finite: language_model\.model\.layers\.0\..*q_proj\.weight"):
        load_bagel(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_prefix_that_is_all_that_differs_takes_one_line(folder, prefix):
    remade(folder, lambda state: {prefix + k: v for k, v in state.items()})
    with pytest.raises(CheckpointError, match="all that differs") as raised:
        load_bagel(folder)
    assert "\n" not in str(raised.value)
    assert all(part in str(raised.value) for part in prefix.split("."))


def test_a_wrapper_within_names_takes_one_line(folder):
    remade(folder, lambda state: {k.replace("layers.0.", "layers.0._orig_mod."): v for k, v in state.items()})
    with pytest.raises(CheckpointError, match=r"'_orig_mod\.' in them, which is all that differs"):
        load_bagel(folder)


def test_shards_without_their_index_are_seen(folder):
    (folder / "ema.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"download model\.safetensors\.index\.json too"):
        load_bagel(folder)


def test_weights_under_another_name_are_seen(folder):
    (folder / "ae.safetensors").unlink()
    (folder / "ema.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors has another name"):
        load_bagel(folder)


def said_of(folder, name, **changes):
    """What is said of a folder in one of whose JSON files keys are changed; `...` takes a key out."""
    path = folder / name
    values = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=str(path)) as raised:
        BAGEL.sizes(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llm_config.json", "hidden_size", "16"),
        ("llm_config.json", "hidden_size", True),
        ("llm_config.json", "hidden_size", -16),
        ("llm_config.json", "hidden_size", 10**12),
        ("llm_config.json", "num_key_value_heads", None),
        ("llm_config.json", "num_attention_heads", 0),
        ("llm_config.json", "num_hidden_layers", ...),
        ("llm_config.json", "rms_norm_eps", "1e-6"),
        ("llm_config.json", "rope_theta", float("nan")),
        ("llm_config.json", "head_dim", 4),
        ("vit_config.json", "num_hidden_layers", ...),
        ("vit_config.json", "patch_size", 0),
        ("vit_config.json", "image_std", 0),
        ("bagel_config.json", "vae_resize", [1024, 512, 16]),
        ("bagel_config.json", "vae_resize", {"longest": 16, "shortest": 16, "stride": 0}),
        ("bagel_config.json", "special_token_ids", {**IDS, "bos_token_id": "1"}),
        ("ae_config.json", "ch_mult", 5),
        # the same tensors, another architecture
        ("llm_config.json", "hidden_act", "gelu"),
        ("llm_config.json", "qk_norm", False),
        ("llm_config.json", "tie_word_embeddings", True),
        ("llm_config.json", "use_sliding_window", True),
        ("vit_config.json", "hidden_act", "relu"),
        ("bagel_config.json", "prediction", "noise"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_its_key(folder, name, key, value):
    assert key in said_of(folder, name, **{key: value})


def test_heads_that_do_not_divide_the_width_are_refused(folder):
    assert "width 16 with 3 heads" in said_of(folder, "llm_config.json", num_attention_heads=3)


def test_a_release_without_the_number_of_its_vision_layers_is_refused(folder):
    (folder / "bagel_config.json").unlink()
    assert "num_hidden_layers is missing" in said_of(folder, "vit_config.json", num_hidden_layers=...)


@pytest.mark.parametrize("scaling", [{"type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0}, [4]])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scaled_positions_are_refused(folder, key, scaling):
    assert "positions are scaled" in (said := said_of(folder, "llm_config.json", **{key: scaling})) or "[4]" in said


@pytest.mark.parametrize("layers", [False, True])
def test_the_base_of_positions_is_read_as_transformers_5_writes_it(folder, layers):
    rope = {"rope_theta": 10000.0, "rope_type": "default"}
    values = json.loads((folder / "llm_config.json").read_text())
    values["rope_parameters"] = {"full_attention": rope} if layers else rope
    (folder / "llm_config.json").write_text(json.dumps({k: v for k, v in values.items() if k != "rope_theta"}))
    assert BagelConfig.from_folder(folder).llm.rope_theta == 10000.0
    assert "10000.0" in said_of(folder, "llm_config.json", rope_theta=1e6)
