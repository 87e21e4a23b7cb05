"""BAGEL folders: loading weights tensor by tensor, saving them, telling what does not fit.

A folder holds `llm_config.json`, `vit_config.json`, the weights (`ema.safetensors` as released, or
`model.safetensors`, or either in shards with an index), `ae.safetensors` and the tokenizer's files; ours also
`bagel_config.json` and `ae_config.json`, without which the release's fixed values hold. Only safetensors are read: a
pickled file can run code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from r3_rl.errors import CheckpointError
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.policy.bagel.model import Bagel, PositionTable
from r3_rl.policy.bagel.reader import special_token_ids
from r3_rl.policy.bagel.vision import sincos_table
from r3_rl.policy.mismatch import refuse_infinite, refuse_mismatch
from r3_rl.policy.weights import WeightFiles, digest, find_weights, read_tokenizer

__all__ = ["fingerprint", "load_autoencoder", "load_bagel", "random_bagel", "save_bagel"]

MODEL_FILES = ("ema.safetensors", "model.safetensors", "bagel_tiny.safetensors")
"""Where the weights may lie, the released name first."""
AUTOENCODER_FILES = ("ae.safetensors", "ae_tiny.safetensors")
QWEN_TOKEN_IDS = {"bos_token_id": 151644, "eos_token_id": 151645, "start_of_image": 151652, "end_of_image": 151653}
"""Special token ids of the released vocabulary, for random weights: they know no words and need no tokenizer."""


def load_bagel(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    random_init: bool = False,
    seed: int = 0,
) -> Bagel:
    """Builds a BAGEL model from a folder and fills it tensor by tensor, so that no second copy is ever held.

    Args:
        folder: a released folder as it is, or one that `save_bagel` wrote.
        dtype: type of all weights.
        device: where they go; the host holds one tensor at a time.
        random_init: random weights of the folder's sizes instead of its weight files.
        seed: of the random weights.

    The position tables may be absent from the file; then they are computed. Raises CheckpointError naming every
    missing, surplus or misshapen tensor at once.
    """
    folder = Path(folder)
    config = _with_special_tokens(BagelConfig.from_folder(folder), folder, required=not random_init)
    if random_init:
        return random_bagel(config, dtype=dtype, device=device, seed=seed)
    source = find_weights(folder, MODEL_FILES)
    model = _on_meta(Bagel, config)
    slots = {name: (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    tables = {f"{name}.pos_embed": m for name, m in model.named_modules() if isinstance(m, PositionTable)}
    stored = source.shapes()
    refuse_mismatch(source, {name: shape for name, (_, shape) in slots.items()}, stored, optional=tables)
    for name, table in tables.items():
        if name not in stored:
            side, dim = table.side, config.llm.hidden_size
            _assign(model, name, sincos_table(side, dim).to(device=device, dtype=dtype))
    _fill(model, source, slots, dtype, torch.device(device))
    return model.eval()


def load_autoencoder(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    random_init: bool = False,
    seed: int = 0,
) -> Autoencoder:
    """Builds the autoencoder of a BAGEL folder; an identity autoencoder has no file. Errors as in `load_bagel`."""
    folder = Path(folder)
    config = BagelConfig.from_folder(folder).autoencoder
    model = _on_meta(Autoencoder, config)
    if random_init:
        return _randomise(model, dtype, torch.device(device), seed)
    slots = {name: (slot.key, slot.shape) for name, slot in model.stored_slots().items()}
    if slots:
        source = find_weights(folder, AUTOENCODER_FILES)
        refuse_mismatch(source, {name: shape for name, (_, shape) in slots.items()}, source.shapes())
        _fill(model, source, slots, dtype, torch.device(device))
    return model.eval()


def random_bagel(
    config: BagelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Bagel:
    """A model of exactly these sizes with random weights, made on the device: for benchmarks and rehearsals.

    Every part has an effect (no zero head), so that speed, memory and gradients are those of a real model. On the
    device `meta` there are sizes and nothing else.
    """
    if config.special_token_ids is None:
        config = replace(config, special_token_ids=dict(QWEN_TOKEN_IDS))
    _check_special_tokens(config, "the configuration")
    model = _randomise(_on_meta(Bagel, config), dtype, torch.device(device), seed)
    for name, module in model.named_modules():
        if isinstance(module, PositionTable):
            table = sincos_table(module.side, config.llm.hidden_size)
            _assign(model, f"{name}.pos_embed", table.to(device=device, dtype=dtype))
    return model


def fingerprint(folder: str | Path) -> str:
    """`digest` of the weights of a folder, the autoencoder's included where it has a file."""
    folder = Path(folder)
    sources = {"": find_weights(folder, MODEL_FILES)}
    if any((folder / name).is_file() for name in AUTOENCODER_FILES):
        sources["autoencoder."] = find_weights(folder, AUTOENCODER_FILES)
    return digest(sources)


def save_bagel(
    model: Bagel,
    autoencoder: Autoencoder,
    tokenizer: Any,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a folder that `load_bagel` and `load_autoencoder` read back bit for bit, under the released file names.

    Args:
        model, autoencoder: their weights are written in the type they have.
        tokenizer: a transformers tokenizer or a `tokenizers.Tokenizer`; None writes none.
        folder: created when missing. Weights are written aside and renamed, so a crash leaves the old ones whole.
        dtype: that the model's weights are written in; None keeps theirs.
    """
    folder = Path(folder)
    expected = set(_on_meta(Bagel, model.config).state_dict())
    # not its state dict: whoever shards the model has hooks there, which change what it holds
    own = {name: p.detach() for name, p in model.named_parameters()}
    surplus = sorted(set(own) - expected)
    if surplus:
        raise CheckpointError(
            f"the model carries {len(surplus)} tensors that BAGEL does not have, such as {surplus[0]}",
            hint="merge or remove the adapter before saving",
        )
    # the model knows the sizes of the autoencoder it was built for; what is saved beside it must be the same
    if model.config.autoencoder != autoencoder.config:
        raise CheckpointError("this autoencoder is not the one that the model's configuration describes")
    model.config.to_folder(folder)
    _write_weights({n: t.to(dtype or t.dtype) for n, t in own.items()}, folder / MODEL_FILES[0])
    if state := autoencoder.stored_state():
        _write_weights(state, folder / AUTOENCODER_FILES[0])
    if tokenizer is None:
        return
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    else:
        tokenizer.save(str(folder / "tokenizer.json"))


def _on_meta(kind: Callable[..., Any], config: Any) -> Any:
    with torch.device("meta"):
        return kind(config)


def _fill(
    model: nn.Module,
    source: WeightFiles,
    slots: Mapping[str, tuple[str, tuple[int, ...]]],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in source.tensors():
        key, _ = slots[name]
        moved = tensor.to(device).to(dtype)
        if device.type == "cpu" and moved.data_ptr() == tensor.data_ptr():
            moved = tensor.clone()  # what the file handle gives is a view of the mapped file
        refuse_infinite(source.files[0].parent, name, moved)
        _assign(model, key, moved.view(shapes[key]))
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, f"tensors were never filled: {left}"


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = module.get_parameter(leaf)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))


def _randomise(model: Any, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """Norms 1, biases 0, everything else normal with the deviation that keeps a layer's output at its input's size."""
    model = model.to(dtype).to_empty(device=device).eval()
    if device.type == "meta":
        return model
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                fan_in = parameter[0].numel()
                parameter.normal_(std=0.02 if "embed" in name else fan_in**-0.5, generator=generator)
    return model


def _write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    aside = path.with_name(path.name + ".partial")
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, aside, metadata={"format": "pt"})
    os.replace(aside, path)


def _with_special_tokens(config: BagelConfig, folder: Path, *, required: bool) -> BagelConfig:
    tokenizer = folder / "tokenizer.json"
    if config.special_token_ids is None and tokenizer.is_file():
        config = replace(config, special_token_ids=special_token_ids(read_tokenizer(folder)))
    if config.special_token_ids is None:
        if not required:
            return config
        raise CheckpointError(
            f"{folder}: nothing names the special tokens",
            hint="put tokenizer.json beside the weights, or special_token_ids into bagel_config.json",
        )
    _check_special_tokens(config, str(folder))
    return config


def _check_special_tokens(config: BagelConfig, place: str) -> None:
    ids = config.special_token_ids or {}
    missing = sorted(set(QWEN_TOKEN_IDS) - set(ids))
    if missing:
        raise CheckpointError(f"{place}: special_token_ids lacks {', '.join(missing)}")
    beyond = {role: i for role, i in ids.items() if not 0 <= i < config.llm.vocab_size}
    if beyond:
        raise CheckpointError(
            f"{place}: special tokens {beyond} lie outside the vocabulary of {config.llm.vocab_size}",
            hint="set special_token_ids in bagel_config.json",
        )
