"""CLIP's two towers, read by transformers or by open_clip: what the scorers that look through CLIP share.

`load_towers` sees by what it is given which library reads the weights:

* `openai/clip-vit-large-patch14`      a model on the hub in transformers' format
* `hf-hub:laion/CLIP-ViT-B-32-...`     a model on the hub in open_clip's format
* `ViT-B-32:laion2b_s34b_b79k`         open_clip's own name and tag; the tag says where on the hub it is
* a folder                             either format, by the files in it
* a file, and `architecture`           weights for one of open_clip's architectures

Only safetensors are read: other formats are pickles, which run whatever code they bring. `convert_weights.py` turns one
into safetensors without running it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r3_rl.errors import CheckpointError, InputError, MissingPackageError
from r3_rl.rewards.hub_files import hub_folder

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]

INSTALL = "pip install 'r3-rl[clip]'"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
# The names under which open_clip itself stores safetensors. It would also read a pickle, hence we look first.
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Pictures and words as vectors of unit length in one space."""

    encode_images: Callable[[list[Any]], torch.Tensor]
    """PIL images -> [N, width], any length."""
    encode_texts: Callable[[list[str]], torch.Tensor]
    """Texts -> [N, width], any length; what does not fit the text tower is cut off."""
    width: int
    """Of the common space."""
    logit_scale: float
    """What the model was trained to multiply cosines by, 100 in most."""
    batch_size: int
    """Pictures, or texts, that go through a tower at once."""

    def images(self, images: Sequence[Any]) -> torch.Tensor:
        """Return float32 [N, width] of unit length on the CPU; `images` are uint8 [H, W, 3]."""
        from PIL import Image

        return self._rows(self.encode_images, [Image.fromarray(image) for image in images])

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return float32 [N, width] of unit length on the CPU; peers have one prompt, which is read once."""
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        return self._rows(self.encode_texts, list(distinct))[[distinct[text] for text in texts]]

    def cosines(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """Return the cosine of each image with its own text, from -1 to 1."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images for {len(texts)} texts")
        return (self.images(images) * self.texts(texts)).sum(-1).tolist() if len(images) else []

    def _rows(self, encode: Callable[[list[Any]], torch.Tensor], samples: list[Any]) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            parts = [encode(samples[i : i + self.batch_size]) for i in range(0, len(samples), self.batch_size)]
            # Half precision loses the third digit of a cosine, and scores differ in the third digit.
            return torch.nn.functional.normalize(torch.cat([part.float() for part in parts]), dim=-1).cpu()


def load_towers(
    weights: str,
    *,
    revision: str = "",
    architecture: str = "",
    processor: str = "",
    resize: Literal["", "shortest", "longest", "squash"] = "",
    device: str = "auto",
    dtype: Dtype = "float32",
    batch_size: int = 16,
) -> Towers:
    """Return the towers of a CLIP model.

    Args:
        weights: see the module's first lines; a path is relative to the working directory.
        revision: branch, tag or commit on the hub; empty is the newest.
        architecture: open_clip's name, for weights in one file.
        processor: hub id or folder of tokenizer and preprocessing in transformers' format; empty is `weights`.
        resize: what open_clip does with pictures that are not square; empty is as the model says.
        device: `auto` takes an accelerator where there is one.
        dtype: of the weights and of what goes through them; vectors are float32 in any case.
        batch_size: pictures at once, at least 1.

    Raises `CheckpointError` for weights that are missing, incomplete or pickled, `MissingPackageError`, `InputError`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    path = Path(weights).expanduser()
    if revision and path.exists():
        raise InputError(f"revision '{revision}' is for weights from the hub, and {path} is here")
    place = _Runs(device=_device(device), dtype=dtype, batch_size=batch_size)
    if path.is_file():
        return _from_open_clip(_architecture(architecture, path), str(_safetensors(path)), resize, place)
    if path.is_dir():
        if read_by_open_clip(weights):
            return _from_open_clip(f"local-dir:{path}", None, resize, place)
        if (path / "config.json").is_file():
            return _from_transformers(str(path), revision, processor, place)
        raise CheckpointError(
            f"{path} holds no CLIP model",
            hint=f"it needs config.json and model.safetensors (transformers) or {_OPEN_CLIP_CONFIG} and "
            f"{_OPEN_CLIP_WEIGHTS[0]} (open_clip)",
        )
    if weights.startswith((".", "/", "~")) or path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise CheckpointError(f"no such file or folder: {path}")
    if ":" in weights:
        return _from_open_clip(f"local-dir:{_download(weights, revision)}", None, resize, place)
    return _from_transformers(weights, revision, processor, place)


def read_by_open_clip(weights: str) -> bool:
    """Whether open_clip reads these weights, and not transformers; what is not here is told by its name.

    >>> read_by_open_clip("openai/clip-vit-large-patch14"), read_by_open_clip("ViT-B-32:laion2b_s34b_b79k")
    (False, True)
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return any((path / name).is_file() for name in _OPEN_CLIP_WEIGHTS)
    return path.is_file() or ":" in weights or path.suffix == ".safetensors"


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """Where and how the towers run."""

    device: torch.device
    dtype: Dtype
    batch_size: int


def _from_transformers(weights: str, revision: str, processor: str, place: _Runs) -> Towers:
    torch = _torch()
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel
    except ImportError as error:
        raise MissingPackageError(f"CLIP weights '{weights}' need transformers", hint=INSTALL) from error
    try:
        folder = hub_folder(weights, revision or None)
        source = hub_folder(processor) if processor else folder
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "clip":  # transformers would fill a CLIP model with random numbers
            raise CheckpointError(f"'{weights}' is a model of the kind '{config.model_type}', not 'clip'")
        # Loaded in float32 whatever it runs in: rounded to bfloat16, a logit scale of 100 would be 99.
        model, found = CLIPModel.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
        # Pillow resizes as the published scores were made; torchvision's result differs in the last digits.
        pixels = AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read CLIP weights '{weights}': {_one_line(error)}", hint=_WHERE) from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise CheckpointError(f"'{weights}' lacks {len(missing)} tensors of CLIP, the first is {missing[0]}")
    logit_scale = model.logit_scale.exp().item()
    half = getattr(torch, place.dtype)
    model = model.to(place.device, half).eval().requires_grad_(False)
    length = config.text_config.max_position_embeddings

    def encode_images(images: list[Any]) -> torch.Tensor:
        batch = pixels(images=images, return_tensors="pt")["pixel_values"].to(place.device, half)
        return model.visual_projection(model.vision_model(pixel_values=batch).pooler_output)

    def encode_texts(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(place.device)
        hidden = model.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return model.text_projection(hidden.pooler_output)

    return Towers(
        encode_images=encode_images,
        encode_texts=encode_texts,
        width=config.projection_dim,
        logit_scale=logit_scale,
        batch_size=place.batch_size,
    )


def _from_open_clip(name: str, file: str | None, resize: str, place: _Runs) -> Towers:
    torch, open_clip = _torch(), _open_clip()
    config = open_clip.get_model_config(name)
    if config is None:
        raise InputError(f"open_clip has no architecture '{name}'", hint="one is ViT-H-14; see open_clip.list_models()")
    model, preprocess = open_clip.create_model_from_pretrained(
        name,
        pretrained=file,
        precision=_PRECISIONS[place.dtype],
        device=place.device,
        image_resize_mode=resize or None,
    )
    model.eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(name)
    half = getattr(torch, place.dtype)

    def encode_images(images: list[Any]) -> torch.Tensor:
        return model.encode_image(torch.stack([preprocess(image) for image in images]).to(place.device, half))

    def encode_texts(texts: list[str]) -> torch.Tensor:
        return model.encode_text(tokenizer(texts).to(place.device))

    return Towers(
        encode_images=encode_images,
        encode_texts=encode_texts,
        width=config["embed_dim"],
        logit_scale=model.logit_scale.exp().item(),
        batch_size=place.batch_size,
    )


_WHERE = "give the hub id of a CLIP model with safetensors, or a folder that holds one"


def _download(weights: str, revision: str) -> str:
    """Fetch what open_clip needs of a model on the hub, or find it in the cache; return its folder."""
    name, _, tag = weights.partition(":")
    if name == "hf-hub":
        repository = tag
    else:
        found = _open_clip().pretrained.get_pretrained_cfg(name, tag)
        repository = found.get("hf_hub", "").strip("/")
        if not repository:
            raise InputError(f"open_clip has no weights '{weights}' on the hub", hint="see open_clip.list_pretrained()")
    import huggingface_hub

    tokenizer = ["tokenizer*", "vocab*", "merges*", "special_tokens_map.json"]
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[_OPEN_CLIP_CONFIG, *_OPEN_CLIP_WEIGHTS, *tokenizer],
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read CLIP weights '{weights}': {_one_line(error)}", hint=_WHERE) from error
    if not any((Path(folder) / name).is_file() for name in _OPEN_CLIP_WEIGHTS):
        raise CheckpointError(f"'{repository}' on the hub has no {_OPEN_CLIP_WEIGHTS[0]}", hint=_WHERE)
    return folder


def _architecture(architecture: str, path: Path) -> str:
    if not architecture:
        raise InputError(f"{path} is weights alone", hint="say which of open_clip's architectures they are for")
    return architecture


def _safetensors(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no safetensors file, and others may run code when they are read",
            hint=f"convert it once: python -m r3_rl.rewards.convert_weights {path} {path.with_suffix('.safetensors')}",
        )
    return path


def _device(name: str) -> torch.device:
    torch = _torch()
    if name != "auto":
        return torch.device(name)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("CLIP needs torch", hint=INSTALL) from error
    from r3_rl.torchvision_guard import guard

    guard()  # both libraries import torchvision
    return torch


def _open_clip() -> Any:
    _torch()
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError("these CLIP weights need open_clip", hint=INSTALL) from error
    return open_clip


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
