"""BAGEL as a backbone: how its folders are recognised, loaded and saved. Loads torch when it is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from r3_rl.policy.backbone import ATTENTION, BackboneSpec, Branch, ImageSizes, Templates
from r3_rl.policy.bagel.config import BagelConfig, shares_experts
from r3_rl.policy.bagel.size import SizeSection
from r3_rl.recipe.base import Problem

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from r3_rl.policy.bagel.policy import BagelPolicy
    from r3_rl.policy.base import Example, Policy

_LAYERS = r"language_model\.model\.layers\.\d+\."
_ADAPTED = _LAYERS + r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_SPEC = BackboneSpec(
    name="bagel",
    title="BAGEL",
    licence="Apache-2.0",
    branches={
        "understanding": Branch(adapted=_ADAPTED),
        "generation": Branch(
            adapted=_LAYERS + r"(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)",
            marks=("_moe_gen", "vae2llm", "llm2vae", "time_embedder"),
        ),
    },
    layers=_LAYERS + ".*",
    matrices=(".layers.", "patch_embedding", "vae2llm"),
    refines="edit",
    can_recompute=True,
    can_shard=True,
    can_route=True,
    released=("ByteDance-Seed/BAGEL-7B-MoT",),
    templates=Templates(
        reason_system=(
            "You should first think about the planning process in the mind and then generate the image. "
            "The planning process is enclosed within <think> </think> tags."
        ),
        reflect=(
            "The image above was drawn for this prompt: {prompt}\n"
            "Compare them. Inside <think> </think> say what is wrong with the image, if anything. Then write one "
            "concrete edit instruction that brings the image closer to the prompt, or exactly: No further edit needed."
        ),
    ),
    # how R3 evaluates BAGEL; source: R3's released evaluation settings
    rollout={
        "protocol": "bagel",
        "plan": {"max_new_tokens": 196},
        "critique": {"max_new_tokens": 384},
        "draft": {
            "num_steps": 49,
            "timestep_shift": 3.0,
            "size": [512, 512],
            "guidance": {"text": 4.0, "renorm": "global"},
        },
        "refine": {
            "num_steps": 49,
            "timestep_shift": 3.0,
            "guidance": {"text": 4.0, "image": 1.5, "renorm": "text_channel"},
        },
    },
)


_SHARED_SPEC = replace(
    _SPEC,
    name="bagel_shared",
    title="shared BAGEL",
    branches={"shared": Branch(adapted=_ADAPTED)},
    released=(),
    templates=None,
    rollout={},
)


class BagelBackbone:
    """The `Backbone` protocol for BAGEL's release and for the small models of its architecture, with two experts."""

    spec = _SPEC
    size_section = SizeSection
    shared_experts = False

    def refusal(self, folder: Path) -> str:
        """A folder of BAGEL's has a `llm_config.json`, which says whether the experts are shared."""
        if not (folder / "llm_config.json").is_file():
            return "it has no llm_config.json"
        if shares_experts(folder) != self.shared_experts:
            return "its experts are " + ("not shared" if self.shared_experts else "shared")
        return ""

    def sizes(self, folder: Path | None) -> ImageSizes:
        """From the JSON files beside the weights."""
        config = BagelConfig() if folder is None else BagelConfig.from_folder(folder)
        return ImageSizes(
            stride=config.latent_stride,
            largest=config.latent_stride * config.max_latent_size,
            look_tokens=(config.vit_resize.shortest // config.vit.patch_size) ** 2 + 2,
        )

    def load(
        self, folder: Path, *, dtype: torch.dtype, device: str, random_init: bool = False, attention: str = ATTENTION
    ) -> BagelPolicy:
        """The autoencoder stays float32, whatever the decoder's type."""
        from r3_rl.policy.bagel.checkpoint import load_autoencoder, load_bagel
        from r3_rl.policy.bagel.policy import BagelPolicy
        from r3_rl.policy.bagel.reader import Reader
        from r3_rl.policy.weights import read_tokenizer

        tokenizer = read_tokenizer(folder)  # first: a damaged one would be seen after minutes of reading weights
        model = load_bagel(folder, dtype=dtype, device=device, random_init=random_init)
        autoencoder = load_autoencoder(folder, device=device, random_init=random_init)
        model.requires_grad_(False)
        autoencoder.requires_grad_(False)
        model.decoder.backend = ("matmul" if device == "cpu" else "sdpa") if attention == "auto" else attention
        return BagelPolicy(model, Reader(config=model.config, tokenizer=tokenizer, autoencoder=autoencoder))

    def new(
        self, size: SizeSection, tokenizer: Tokenizer, *, image_size: int, background: float, seed: int
    ) -> BagelPolicy:
        """Pixels are the latents, and nothing is resized."""
        from r3_rl.policy.bagel.autoencoder import Autoencoder
        from r3_rl.policy.bagel.embedded import embedded_config
        from r3_rl.policy.bagel.model import Bagel, init_weights
        from r3_rl.policy.bagel.policy import BagelPolicy
        from r3_rl.policy.bagel.reader import Reader

        config = embedded_config(
            size, tokenizer, image_size=image_size, background=background, shared_experts=self.shared_experts
        )
        model = init_weights(Bagel(config), seed=seed)
        reader = Reader(config=config, tokenizer=tokenizer, autoencoder=Autoencoder(config.autoencoder))
        return BagelPolicy(model, reader)

    def misfits(self, size: SizeSection, image_size: int) -> Iterator[Problem]:
        """Patches of both towers divide the images."""
        return size.misfits(image_size)

    def describe(self, size: SizeSection) -> str:
        """The experts and the understanding tower."""
        experts = "one expert for both kinds of token" if self.shared_experts else "two experts"
        return (
            f"BAGEL's architecture in small ({size.num_layers} layers of width {size.hidden_size}, {experts}, "
            f"{size.num_heads} query and {size.num_kv_heads} key-value heads, feed-forward {size.intermediate_size}; "
            f"understanding tower of {size.vit_num_layers} layers of width {size.vit_hidden_size}; "
            f"patches of {size.vit_patch_size} x {size.vit_patch_size} pixels)"
        )

    def fingerprint(self, folder: Path) -> str:
        """Of decoder, understanding tower and autoencoder."""
        from r3_rl.policy.bagel.checkpoint import fingerprint

        return fingerprint(folder)

    def save(self, policy: Policy, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        """Under the released file names."""
        from r3_rl.policy.bagel.checkpoint import save_bagel

        ours = _ours(policy)
        save_bagel(ours.model, ours.reader.autoencoder, ours.reader.tokenizer, folder, dtype=dtype)

    def look(self, policy: Policy, images: torch.Tensor) -> torch.Tensor:
        """After the connector, before the table of places."""
        import torch

        ours = _ours(policy)
        blocks = [ours.reader.look_block(image) for image in images]
        return ours.model.tower(torch.stack([block.patches for block in blocks]), blocks[0].grid)

    def sketch(self, policy: Policy, examples: Sequence[Example], generator: torch.Generator) -> torch.Tensor:
        """After the decoder, before its velocity head."""
        from r3_rl.policy.bagel.supervised import sketched

        ours = _ours(policy)
        return sketched(ours.model, ours.reader, examples, generator)

    def probe(self, policy: Policy, task: str = "") -> torch.Tensor:
        """Logits and velocities of one row with every kind of token in it: texts, a looked-at image, latents."""
        from r3_rl.policy.bagel.probe import outputs

        return outputs(_ours(policy).model, task)

    def write_tiny(self, folder: Path, *, seed: int = 0) -> Path:
        """Every tensor name, file name and code path is that of the release."""
        from r3_rl.policy.bagel.tiny import write_tiny_checkpoint

        return write_tiny_checkpoint(folder, seed=seed, shared_experts=self.shared_experts)


def _ours(policy: Policy) -> BagelPolicy:
    from r3_rl.policy.bagel.policy import BagelPolicy

    assert isinstance(policy, BagelPolicy), f"a {type(policy).__name__} is not of this backbone"
    return policy


class SharedBackbone(BagelBackbone):
    """The same architecture with one expert, whose weights both kinds of token share: no released model has it."""

    spec = _SHARED_SPEC
    shared_experts = True


BAGEL = BagelBackbone()
SHARED = SharedBackbone()
