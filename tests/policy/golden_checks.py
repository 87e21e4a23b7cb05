"""Every recorded array beside ours: one function a file, used by the tests and by benchmarks/golden_table.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from r3_rl.flow import shifted_schedule
from r3_rl.pixels import to_uint8
from r3_rl.policy.bagel.autoencoder import latents_to_tokens, tokens_to_latents
from r3_rl.policy.bagel.config import ResizeRule
from r3_rl.policy.bagel.images import patchify, resample, resized_size
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import table_rows
from r3_rl.policy.bagel.vision import sincos_table
from tests.policy.golden_set import (
    Arrays,
    Past,
    arrays,
    autoencoder,
    denormalise,
    look,
    normalise,
    recorded_image,
    run,
    text,
)

FORWARD, SAMPLING, EXACT, ONE_LEVEL = 2e-5, 1e-4, 0.0, 1.0
"""Largest absolute error allowed in float32: one forward pass, a whole drawing, integers, 8-bit images."""
ROUNDINGS = 6e-7
"""Five roundings of float32: no float tolerance is tighter than this times the largest recorded value, so that squares
and another set's larger numbers are judged as float32 can be."""
GRADIENT = 1e-5
"""Largest error of a gradient, relative to the norm recorded."""

BFLOAT16 = {"velocity": 0.018, "logits": 0.022}
"""Largest relative L2 error of one array with bfloat16 weights: twice what the reference is off by over all arrays, as
single arrays scatter around that. The mildest mistake in the layout moves them by 0.45."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One array compared."""

    name: str
    error: float
    """Largest absolute error; for gradients relative to the norm."""
    tolerance: float
    relative: float
    """|ours - recorded| / |recorded| in L2."""
    kind: str = ""
    """`velocity` or `logits` where a bfloat16 tolerance is known."""

    @property
    def fits(self) -> bool:
        """Whether float32 is within the tolerance; an error that is no number never is."""
        return self.error <= self.tolerance


def compare(name: str, ours: Tensor, recorded: Tensor, tolerance: float = FORWARD, *, kind: str = "") -> Row:
    """The row of one array; shapes must be equal."""
    assert ours.shape == recorded.shape, f"{name}: shape {list(ours.shape)}, recorded {list(recorded.shape)}"
    a, b = ours.detach().double(), recorded.double()
    gap = (a - b).abs()
    if tolerance != EXACT:
        tolerance = max(tolerance, ROUNDINGS * float(b.abs().max()))
    return Row(
        name=name,
        error=float(gap.max()) if gap.numel() else 0.0,
        tolerance=tolerance,
        relative=float(gap.norm() / b.norm().clamp(min=1e-30)),
        kind=kind,
    )


# ---- 00 primitives ---------------------------------------------------------------------------------------------


def primitives(bagel: Bagel) -> Iterator[Row]:
    """Schedules, time embedding, position tables, the resize rule."""
    g = arrays("00_primitives")
    yield compare("t_sinusoid256", bagel.time_embedder.sinusoids(g["t"]), g["t_sinusoid256"])
    yield compare("t_embed", bagel.time_embedder(g["t"]), g["t_embed"])
    for m in g.match(r"sched_n(\d+)_s([\d.]+)"):
        yield compare(m[0], shifted_schedule(int(m[1]), float(m[2])), g[m[0]])
    for m in g.match(r"(?:\w+_pos_embed|sincos)_(\d+)x\1_d(\d+)"):
        yield compare(m[0], sincos_table(int(m[1]), int(m[2])), g[m[0]])
    for m in g.match(r"pos_ids_(\d+)x(\d+)_(?:ds|p)(\d+)_max(\d+)"):
        grid = (int(m[1]) // int(m[3]), int(m[2]) // int(m[3]))
        yield compare(m[0], torch.from_numpy(table_rows(grid, int(m[4]))), g[m[0]], EXACT)
    for m in g.match(r"resize_\w+?_(\d+)_(\d+)_(\d+)_hw"):
        rule = ResizeRule(longest=int(m[1]), shortest=int(m[2]), stride=int(m[3]))
        sizes = [resized_size(h, w, rule) for h, w in g["resize_in_hw"].tolist()]
        yield compare(m[0], torch.tensor(sizes), g[m[0]], EXACT)


# ---- 01 text, 02 understanding ---------------------------------------------------------------------------------


def text_only(bagel: Bagel) -> Iterator[Row]:
    """A text, a second one on its cache, greedy decoding."""
    g = arrays("01_text")
    a = run(bagel, [text(g.ids("ids_a"))])
    yield compare("pos_a", a.packed.layout.position, g["pos_a"], EXACT)
    yield compare("embed_a", a.inputs, g["embed_a"])
    yield compare("layer_out_a", a.layers, g["layer_out_a"])
    yield compare("hidden_a", a.hidden, g["hidden_a"])
    yield compare("logits_a", a.logits, g["logits_a"], kind="logits")
    yield compare("key_cache_a", a.past.stacked("keys"), g["key_cache_a"])
    yield compare("value_cache_a", a.past.stacked("values"), g["value_cache_a"])
    b = run(bagel, [text(g.ids("ids_b"))], a.past)
    yield compare("pos_b", b.packed.layout.position, g["pos_b"], EXACT)
    yield compare("hidden_b", b.hidden, g["hidden_b"])
    yield compare("logits_b", b.logits, g["logits_b"], kind="logits")
    yield compare("key_cache_ab", b.past.stacked("keys"), g["key_cache_ab"])
    yield compare("value_cache_ab", b.past.stacked("values"), g["value_cache_ab"])
    yield from _greedy(bagel, g, b.past)


def _greedy(bagel: Bagel, g: Arrays, past: Past) -> Iterator[Row]:
    """Feeds the recorded tokens one by one: the logits, and the likeliest token after each, must come out."""
    yield compare("greedy_first_pos", torch.tensor(past.position), g["greedy_first_pos"], EXACT)
    logits = []
    for token in g.ids("greedy_tokens"):
        step = run(bagel, [text([token])], past)
        past = step.past
        logits.append(step.logits[-1])
    ours = torch.stack(logits)
    yield compare("greedy_tokens", ours.argmax(-1)[:-1], g["greedy_tokens"][1:], EXACT)
    yield compare("greedy_logits", ours, g["greedy_logits"], kind="logits")


def understanding(bagel: Bagel) -> Iterator[Row]:
    """An image looked at, the text after it, greedy decoding."""
    g = arrays("02_understanding")
    config = bagel.config
    pixels = g["pixel_values"]
    image = recorded_image("02_understanding")
    sized = image if image.shape == pixels.shape else resample(image, *pixels.shape[1:])
    yield compare("pixel_values", normalise(sized), pixels)
    yield compare("vit_tokens", patchify(pixels, config.vit.patch_size), g["vit_tokens"])
    block = look(pixels, config)
    rows = torch.from_numpy(table_rows(block.grid, config.vit_max_num_patch_per_side))
    yield compare("vit_position_ids", rows, g["vit_position_ids"], EXACT)
    with torch.no_grad():
        out = bagel.vit_model(block.patches[None].to(bagel.connector.fc1.weight.dtype), rows)
        yield compare("vit_out", out[0], g["vit_out"])
        yield compare("connector_out", bagel.connector(out)[0], g["connector_out"])
        yield compare("vit_token_embed", bagel.embed_look([block]), g["vit_token_embed"])
    seen = run(bagel, [block])
    yield compare("block_pos", seen.packed.layout.position, g["block_pos"], EXACT)
    yield compare("block_input", seen.inputs, g["block_input"])
    yield compare("block_hidden", seen.hidden, g["block_hidden"])
    yield compare("key_cache_img", seen.past.stacked("keys"), g["key_cache_img"])
    yield compare("value_cache_img", seen.past.stacked("values"), g["value_cache_img"])
    said = run(bagel, [text(g.ids("text_ids"))], seen.past)
    yield compare("text_pos", said.packed.layout.position, g["text_pos"], EXACT)
    yield compare("text_logits", said.logits, g["text_logits"], kind="logits")
    yield from _greedy(bagel, g, said.past)


# ---- 05 autoencoder --------------------------------------------------------------------------------------------


@torch.no_grad()
def vae() -> Iterator[Row]:
    """Moments, mean and sampled latent, tokens, the decoded image."""
    g = arrays("05_vae")
    ae = autoencoder()
    image = recorded_image("05_vae")
    pixels = g["pixel_values"]
    yield compare("pixel_values", normalise(image)[None], pixels)
    yield compare("moments", ae.moments(pixels), g["moments"])
    yield compare("latent_mean", ae.encode(pixels), g["latent_mean"])
    mean = g["latent_mean"]
    patch = round((mean[0].numel() / g["packed_latent"].shape[0] / mean.shape[1]) ** 0.5)
    yield compare("packed_latent", latents_to_tokens(mean, patch)[0], g["packed_latent"])
    yield compare("unpacked", tokens_to_latents(g["packed_latent"][None], mean.shape[2:], patch), mean, EXACT)
    probe = torch.arange(mean[0].numel()).view(1, *mean.shape[1:])
    yield compare("packed_probe", latents_to_tokens(probe, patch)[0], g["packed_probe"], EXACT)
    decoded = ae.decode(mean)
    yield compare("decoded", decoded, g["decoded"])
    yield compare("decoded_u8", torch.from_numpy(to_uint8(denormalise(decoded))[0]).int(), g["decoded_u8"], ONE_LEVEL)
