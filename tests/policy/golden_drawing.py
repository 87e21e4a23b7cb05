"""Velocities, guided drawings and stochastic rollouts beside the recorded ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from r3_rl.flow import Guidance, combine, euler_step, log_prob, sample, shifted_schedule, stochastic_step
from r3_rl.flow.sde import StepDistribution
from r3_rl.pixels import to_uint8
from r3_rl.policy.bagel.autoencoder import latents_to_tokens, tokens_to_latents
from r3_rl.policy.bagel.images import resample
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import LatentBlock, pack
from tests.policy.golden_checks import EXACT, ONE_LEVEL, SAMPLING, Row, compare
from tests.policy.golden_set import (
    Past,
    arrays,
    autoencoder,
    denormalise,
    grid_from_ids,
    image_grid,
    in_order,
    latents,
    look,
    nearest_grid,
    noisy,
    normalise,
    recorded_image,
    run,
    text,
    time_of,
    vit_pixels,
)

# ---- 03, 04 velocities -----------------------------------------------------------------------------------------


def velocity(bagel: Bagel) -> Iterator[Row]:
    """A prompt, then one noisy image at several times, with and without the prompt."""
    g = arrays("03_velocity")
    grid = grid_from_ids(g["latent_position_ids"], bagel.config.max_latent_size)
    contexts = {"cond": run(bagel, [text(g.ids("prompt_ids"))]).past, "uncond": Past()}
    for m in g.match(r"v_(cond|uncond)_(t\d+)"):
        step = run(bagel, [noisy(g["x_t"], grid, time_of(m[2]))], contexts[m[1]])
        yield compare(m[0], step.output.velocity, g[m[0]], kind="velocity")
        if m[1] == "uncond":
            if "uncond_block_pos" in g:
                yield compare("uncond_block_pos", in_order(step.packed.layout, step.packed.layout.position),
                              g["uncond_block_pos"], EXACT)  # fmt: skip
            continue
        for name, ours in (("block_input", step.inputs), ("layer_out", step.layers), ("hidden", step.hidden)):
            if f"{name}_{m[2]}" in g:
                yield compare(f"{name}_{m[2]}", ours, g[f"{name}_{m[2]}"])
        yield compare("block_pos", in_order(step.packed.layout, step.packed.layout.position), g["block_pos"], EXACT)
        yield compare("latent_position_ids", step.packed.latent_position_ids, g["latent_position_ids"], EXACT)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """The full context and the two dropped ones of guidance."""

    full: Past
    text_dropped: Past
    image_dropped: Past


def edit_contexts(bagel: Bagel) -> tuple[Contexts, list[Row]]:
    """The recorded edit: autoencoder image, ViT image, instruction."""
    g = arrays("04_edit_velocity")
    config, rows = bagel.config, []
    image = recorded_image("04_edit_velocity")
    pixels = g["vae_pixel_values"]
    image = image if image.shape == pixels.shape[1:] else resample(image, *pixels.shape[2:])
    rows.append(compare("vae_pixel_values", normalise(image)[None], pixels))
    with torch.no_grad():
        tokens = latents_to_tokens(autoencoder().encode(pixels), config.latent_patch_size)[0]
    grid = (pixels.shape[2] // config.latent_stride, pixels.shape[3] // config.latent_stride)
    vae = run(bagel, [latents(tokens, grid)])
    rows.append(compare("vae_block_input", vae.inputs, g["vae_block_input"]))
    rows.append(compare("vae_block_hidden", vae.hidden, g["vae_block_hidden"]))
    position = in_order(vae.packed.layout, vae.packed.layout.position)
    rows.append(compare("vae_block_pos", position, g["vae_block_pos"], EXACT))
    vit = run(bagel, [look(vit_pixels(image, config, len(g["vit_block_pos"]) - 2), config)], vae.past)
    rows.append(compare("vit_block_pos", vit.packed.layout.position, g["vit_block_pos"], EXACT))
    rows.append(compare("vit_block_input", vit.inputs, g["vit_block_input"]))
    ids = g.ids("text_ids")
    said = run(bagel, [text(ids)], vit.past)
    rows.append(compare("text_pos", said.packed.layout.position, g["text_pos"], EXACT))
    rows.append(compare("text_logits", said.logits, g["text_logits"], kind="logits"))
    rows.append(compare("key_cache", said.past.stacked("keys"), g["key_cache"]))
    rows.append(compare("value_cache", said.past.stacked("values"), g["value_cache"]))
    alone = run(bagel, [text(ids)]).past
    return Contexts(full=said.past, text_dropped=vit.past, image_dropped=alone), rows


def edit_velocity(bagel: Bagel) -> Iterator[Row]:
    """The blocks of an edit and the three velocities of its guidance."""
    g = arrays("04_edit_velocity")
    contexts, rows = edit_contexts(bagel)
    yield from rows
    image = g["image_u8"]
    pasts = {"cond": contexts.full, "textdrop": contexts.text_dropped, "imgdrop": contexts.image_dropped}
    for name, past in pasts.items():
        yield compare(f"gen_pos_{name}", torch.tensor(past.position), g[f"gen_pos_{name}"], EXACT)
    grid = nearest_grid(len(g["x_t"]), image.shape[0] / image.shape[1])
    for m in g.match(r"v_(cond|textdrop|imgdrop)_(t\d+)"):
        step = run(bagel, [noisy(g["x_t"], grid, time_of(m[2]))], pasts[m[1]])
        yield compare(m[0], step.output.velocity, g[m[0]], kind="velocity")


# ---- 03, 04, 07 drawings ---------------------------------------------------------------------------------------

INTERVAL = (0.4, 1.0)
T2I_GUIDANCE = {
    "nocfg": Guidance(interval=INTERVAL),
    "global_": Guidance(text=4.0, interval=INTERVAL, renorm="global"),
    "channel": Guidance(text=4.0, interval=INTERVAL, renorm="channel"),
    "textch": Guidance(text=4.0, interval=INTERVAL, renorm="text_channel"),
    "rmin": Guidance(text=4.0, interval=INTERVAL, renorm="global", renorm_min=0.8),
    "global_img15": Guidance(text=4.0, image=1.5, interval=INTERVAL, renorm="global"),
}
EDIT_GUIDANCE = {
    "global_": Guidance(text=4.0, image=1.5, interval=INTERVAL, renorm="global"),
    "textch": Guidance(text=4.0, image=1.5, interval=INTERVAL, renorm="text_channel"),
    "channel": Guidance(text=4.0, image=1.5, interval=INTERVAL, renorm="channel"),
    "imgonly": Guidance(text=1.0, image=1.5, interval=INTERVAL),
}
"""The guidance of each recorded case; the arrays name the cases but do not hold their settings."""


def cases(name: str) -> list[str]:
    """The guidance cases of a file, discovered from its arrays."""
    return [m[1] for m in arrays(name).match(r"(\w+)_final")]


def case_guidance(settings: dict[str, Guidance], case: str) -> Guidance:
    """The settings of a case; one that nobody described is skipped, named."""
    if case not in settings:
        pytest.skip(f"the guidance of case {case!r} is not known")
    return settings[case]


@torch.no_grad()
def velocities(bagel: Bagel, x: Tensor, grid: tuple[int, int], time: float, contexts: Contexts) -> list[Tensor]:
    """[v, v_text, v_img] of one state."""
    pasts = (contexts.full, contexts.text_dropped, contexts.image_dropped)
    return [run(bagel, [noisy(x, grid, time)], past).output.velocity for past in pasts]


def solve_shift(times: Tensor) -> float:
    """The shift s of a schedule t = s u / (1 + (s - 1) u) out of its second point."""
    u, t = 1 - 1 / (len(times) - 1), float(times[1])
    return round(t * (1 - u) / (u * (1 - t)), 3)


def generate(bagel: Bagel, name: str, case: str) -> Iterator[Row]:
    """A whole drawing: every state, every combined velocity, the image."""
    g = arrays(name)
    editing = "prompt_ids" not in g
    guidance = case_guidance(EDIT_GUIDANCE if editing else T2I_GUIDANCE, case)
    if editing:
        contexts, _ = edit_contexts(bagel)
    else:
        full = run(bagel, [text(g.ids("prompt_ids"))]).past
        contexts = Contexts(full=full, text_dropped=Past(), image_dropped=full)
    recorded_times = g[f"{case}_t"].float()
    times = torch.cat([recorded_times, torch.zeros(1)])
    yield compare("schedule", shifted_schedule(len(times), solve_shift(times)), times)
    if "timesteps_full" in g:
        yield compare("timesteps_full", times, g["timesteps_full"])
        yield compare("dts", times[:-1] - times[1:], g["dts"])
    active = guidance.active(times[:-1])
    yield compare(f"{case}_cfg_active", active, g[f"{case}_cfg_active"], EXACT)
    grid = image_grid(g[f"{case}_image_u8"], bagel.config)
    x, states, combined, raw = g["init_noise"], [], [], []
    for i, time in enumerate(times[:-1]):
        states.append(x)
        three = velocities(bagel, x, grid, float(time), contexts)
        if active[i]:
            raw.append(torch.stack(three))
        combined.append(combine(guidance, time, *three))
        x = euler_step(x, combined[-1], time, times[i + 1])
    yield compare(f"{case}_x", torch.stack(states), g[f"{case}_x"], SAMPLING)
    yield compare(f"{case}_v", torch.stack(combined), g[f"{case}_v"], SAMPLING)
    yield compare(f"{case}_final", x, g[f"{case}_final"], SAMPLING)
    if f"{case}_raw_active" in g:
        yield compare(f"{case}_raw_active", torch.stack(raw), g[f"{case}_raw_active"], SAMPLING)
    yield compare(f"{case}_image_u8", _picture(x, grid, bagel), g[f"{case}_image_u8"], ONE_LEVEL)


@torch.no_grad()
def _picture(tokens: Tensor, grid: tuple[int, int], bagel: Bagel) -> Tensor:
    p = bagel.config.latent_patch_size
    decoded = autoencoder().decode(tokens_to_latents(tokens[None], (grid[0] * p, grid[1] * p), p))
    return torch.from_numpy(to_uint8(denormalise(decoded))[0]).int()


# ---- 07 rollouts -----------------------------------------------------------------------------------------------

CONVENTION = {"constant": "r3_constant", "monotonic": "r3_monotonic"}
ROLLOUT_GUIDANCE = Guidance(text=4.0, interval=INTERVAL, renorm="global")
"""Guidance of the recorded rollouts, which the arrays do not hold."""


def rollout_schedule() -> tuple[int, float]:
    """Points and shift of the rollouts' schedule, solved from the times recorded for the stochastic steps."""
    g = arrays("07_r3_rollout")
    for mode in rollout_modes():
        chosen, t, dt = g[f"{mode}_sde_steps"], g[f"{mode}_t"], g[f"{mode}_dt"]
        first, after = int(chosen[0]), float(t[0] - dt[0])
        for num_points in range(int(chosen.max()) + 2, 129):
            u = 1 - (first + 1) / (num_points - 1)
            if not 0 < u < 1 or not 0 < after < 1:
                continue
            shift = round(after * (1 - u) / (u * (1 - after)), 3)
            times = shifted_schedule(num_points, max(shift, 1e-3))
            if torch.allclose(times[chosen], t, atol=1e-5) and torch.allclose(times[chosen + 1], t - dt, atol=1e-5):
                return num_points, shift
    return pytest.skip("07_r3_rollout.npz holds no times that tell its schedule")


def rollout_grid(bagel: Bagel, num_tokens: int) -> tuple[int, int]:
    """The grid of the rollouts is not recorded: that of a drawing with as many tokens."""
    for name in ("03_velocity", "03_generate_t2i", "04_edit_velocity", "05_vae"):
        try:
            g = arrays(name)
        except pytest.skip.Exception:
            continue
        if "latent_position_ids" in g:
            grid = grid_from_ids(g["latent_position_ids"], bagel.config.max_latent_size)
        else:
            image = next(g[m[0]] for m in g.match(r"(\w+_)?image_u8"))
            grid = image_grid(image, bagel.config)
        if grid[0] * grid[1] == num_tokens:
            return grid
    return pytest.skip("no file tells the grid of the rollouts in 07_r3_rollout.npz")


def _noisy_rows(states: list[Tensor], grid: tuple[int, int], time: float) -> list[list[LatentBlock]]:
    return [[noisy(x, grid, time)] for x in states]


@torch.no_grad()
def batched_rollout(bagel: Bagel) -> Iterator[Row]:
    """Two prompts of different length drawn in one batch, with guidance normed for each image."""
    g = arrays("07_r3_rollout")
    prompts = [g.ids("prompt_a"), g.ids("prompt_b")]
    states = [g["noise_a"], g["noise_b"]]
    grid = rollout_grid(bagel, len(states[0]))
    context = pack([[text(ids)] for ids in prompts], bagel.config)
    past = bagel(context, keep=True).part
    starts = context.next_position.tolist()
    times = shifted_schedule(*rollout_schedule())
    x = torch.stack(states)
    for time, next_time in itertools.pairwise(times):
        rows = _noisy_rows(list(x), grid, float(time))
        full = bagel(pack(rows, bagel.config, start=starts), [past]).velocity.view_as(x)
        dropped = bagel(pack(rows, bagel.config)).velocity.view_as(x)
        x = euler_step(x, combine(ROLLOUT_GUIDANCE, time.expand(2), full, dropped), time, next_time)
    yield compare("batch_final_a", x[0], g["batch_final_a"], SAMPLING)
    yield compare("batch_final_b", x[1], g["batch_final_b"], SAMPLING)


def rollout_modes() -> list[str]:
    """The noise modes of the recorded mixed rollouts."""
    return [m[1] for m in arrays("07_r3_rollout").match(r"(\w+)_sde_steps")]


@torch.no_grad()
def mixed_rollout(bagel: Bagel, mode: str) -> Iterator[Row]:
    """A drawing whose steps are partly stochastic: stored states, log-probs of each token, the end."""
    g = arrays("07_r3_rollout")
    if mode not in CONVENTION:
        pytest.skip(f"the SDE convention of mode {mode!r} is not known")
    chosen, eta = g.ids(f"{mode}_sde_steps"), float(g[f"{mode}_eta"])
    times = shifted_schedule(*rollout_schedule())
    yield compare(f"{mode}_t", times[chosen], g[f"{mode}_t"])
    yield compare(f"{mode}_dt", (times[:-1] - times[1:])[chosen], g[f"{mode}_dt"])
    full = run(bagel, [text(g.ids("prompt_a"))]).past
    contexts = Contexts(full=full, text_dropped=Past(), image_dropped=full)
    x = g["noise_a"]
    grid = rollout_grid(bagel, len(x))
    stored, scores = [], []
    for i, (time, next_time) in enumerate(itertools.pairwise(times)):
        v = combine(ROLLOUT_GUIDANCE, time, *velocities(bagel, x, grid, float(time), contexts))
        if i not in chosen:
            x = euler_step(x, v, time, next_time)
            continue
        stored = stored or [x]
        step = stochastic_step(x, v, time, next_time, CONVENTION[mode], eta)
        x = sample(step, g[f"{mode}_eps"][chosen.index(i)])
        stored.append(x)
        scores.append(log_prob(_by_token(step), x[:, None]))
    yield compare(f"{mode}_latents", torch.stack(stored), g[f"{mode}_latents"], SAMPLING)
    yield compare(f"{mode}_token_log_probs", torch.stack(scores), g[f"{mode}_token_log_probs"], SAMPLING)
    yield compare(f"{mode}_final", x, g[f"{mode}_final"], SAMPLING)


def _by_token(step: StepDistribution) -> StepDistribution:
    """Every token as an image of its own, so that log-probs come out by token."""
    num_tokens = step.mean.shape[0]
    return StepDistribution(mean=step.mean[:, None], std=step.std.expand(num_tokens), eta=step.eta.expand(num_tokens))
