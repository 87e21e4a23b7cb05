"""Packed training with its gradients and the supervised losses beside the recorded ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from r3_rl.policy.bagel.autoencoder import latents_to_tokens
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import Block, LookBlock, TextBlock, pack
from tests.policy.golden_checks import EXACT, GRADIENT, Row, compare
from tests.policy.golden_set import (
    Arrays,
    arrays,
    grid_from_ids,
    in_order,
    latents,
    nearest_grid,
    noisy,
)

# ---- 06 training -----------------------------------------------------------------------------------------------


def recorded_rows(g: Arrays, bagel: Bagel) -> list[list[Block]]:
    """The blocks of a recorded packed sequence, read off its token ids: one row a sample."""
    config = bagel.config
    assert config.special_token_ids is not None
    opening, closing = config.special_token_ids["start_of_image"], config.special_token_ids["end_of_image"]
    ids, kinds = g.ids("token_ids"), g.ids("kind")
    vit_tokens, vit_ids = g["vit_tokens"], g["vit_position_ids"]
    num_vit = num_latent = place = 0
    rows: list[list[Block]] = []
    for length in g.ids("sample_lens"):
        row: list[Block] = []
        stop = place + length
        while place < stop:
            if ids[place] == opening and kinds[place + 1] != 0:
                end = ids.index(closing, place)
                count = end - place - 1
                if kinds[place + 1] == 1:
                    part = slice(num_vit, num_vit + count)
                    grid = grid_from_ids(vit_ids[part], config.vit_max_num_patch_per_side)
                    row.append(LookBlock(patches=vit_tokens[part], grid=grid))
                    num_vit += count
                else:
                    part = slice(num_latent, num_latent + count)
                    time = float(g["latent_timesteps"][part][0])
                    grid = grid_from_ids(g["latent_position_ids"][part], config.max_latent_size)
                    row.append(latents(g["noisy_latents"][part], grid, time, noisy=time > 0))
                    num_latent += count
                place = end + 1
            else:
                end = place
                while end < stop and ids[end] != opening:
                    end += 1
                row.append(TextBlock(ids=ids[place:end]))
                place = end
        rows.append(row)
    return rows


def packed_train(bagel: Bagel) -> Iterator[Row]:
    """Two packed samples: layout, mask, velocities, logits, and the gradient of every parameter."""
    g = arrays("06_packed_train")
    rows = recorded_rows(g, bagel)
    packed = pack(rows, bagel.config)
    layout = packed.layout
    valid = packed.valid if packed.valid is not None else torch.ones(layout.num_rows, layout.num_columns).bool()
    yield compare("position_ids", in_order(layout, layout.position), g["position_ids"], EXACT)
    assert layout.mask is not None
    mask = torch.block_diag(*(m[v][:, v].int() for m, v in zip(layout.mask, valid, strict=True)))
    yield compare("attend", mask, g["attend"], EXACT)
    bagel.zero_grad(set_to_none=True)
    output = bagel(packed)
    hidden = in_order(layout, output.decoded.hidden)
    yield compare("velocity", output.velocity, g["velocity"], kind="velocity")
    logits = bagel.language_model.lm_head(hidden[g["logits_rows"]])
    yield compare("logits", logits, g["logits"], kind="logits")
    loss = (output.velocity * g["probe_weight"]).sum() / g["probe_weight"].numel()
    yield compare("probe_loss", loss, g["probe_loss"])
    loss.backward()
    yield from _gradients(bagel, g)
    bagel.zero_grad(set_to_none=True)


def _gradients(bagel: Bagel, g: Arrays) -> Iterator[Row]:
    own = dict(bagel.named_parameters())
    names, norms = [str(name) for name in g.content["grad_names"]], g["grad_norms"]
    # keys of the tower have biases without effect: their gradient is rounding noise around an exact 0
    floor = float(norms.max()) * 1e-4
    for name, recorded in zip(names, norms.tolist(), strict=True):
        gradient = own[name].grad
        assert gradient is not None, f"{name} got no gradient"
        error = abs(float(gradient.double().norm()) - recorded) / max(recorded, floor)
        yield Row(name=f"gradient of {name}", error=error, tolerance=GRADIENT, relative=error, kind="gradient")
    for m in g.match(r"grad_(\w+)_(und|gen)_l(\d+)"):
        suffix = {"und": "", "gen": "_moe_gen"}[m[2]]
        name = f"language_model.model.layers.{m[3]}.self_attn.{m[1]}{suffix}.weight"
        row = compare(m[0], own[name].grad, g[m[0]])
        yield Row(name=row.name, error=row.relative, tolerance=GRADIENT, relative=row.relative, kind="gradient")


@torch.no_grad()
def sft_loss(bagel: Bagel) -> Iterator[Row]:
    """The supervised losses: squared velocity error of a target image, cross entropy of the text before it."""
    g = arrays("06_sft_loss")
    p = bagel.config.latent_patch_size
    u, s = torch.sigmoid(g["raw_timestep"]), g["timestep_shift"]
    time = float(s * u / (1 + (s - 1) * u))
    target = latents_to_tokens(g["target_latent"], p)[0]
    noise = g["noise"]
    x_t = (1 - time) * target + time * noise
    height, width = g["target_latent"].shape[2:]
    cond = g["cond_latent"]
    ids = g.ids("text_ids")
    num_scored = len(g["ce_rows"])
    seen = LookBlock(patches=g["vit_tokens"], grid=nearest_grid(len(g["vit_tokens"]), cond.shape[2] / cond.shape[3]))
    row: list[Block] = [
        latents(latents_to_tokens(cond, p)[0], (cond.shape[2] // p, cond.shape[3] // p)),
        seen,
        TextBlock(ids=ids, num_scored=num_scored),
        noisy(x_t, (height // p, width // p), time),
    ]
    packed = pack([row], bagel.config)
    layout = packed.layout
    yield compare("position_ids", in_order(layout, layout.position), g["position_ids"], EXACT)
    assert layout.mask is not None
    yield compare("attend", layout.mask[0], g["attend"], EXACT)
    yield compare("ce_labels", packed.targets, g["ce_labels"], EXACT)
    output = bagel(packed)
    ce = F.cross_entropy(output.logits.float(), packed.targets, reduction="none")
    yield compare("ce", ce, g["ce"], kind="loss")
    yield compare("mse", (output.velocity - (noise - target)).square(), g["mse"], kind="loss")
