"""The recorded contexts, drawings and texts through the policy itself: reader, cache, sampler, writer, replay.

`golden_checks` drives the model block by block; here the same numbers must come out of what users run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from r3_rl.modalities import Context, FlowSegment, ImagePiece, TextPiece
from r3_rl.policy.bagel.config import ResizeRule
from r3_rl.policy.bagel.images import resized_size
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.bagel.reader import Reader
from r3_rl.policy.bagel.sampler import Denoised, Denoiser, denoise
from r3_rl.policy.base import Drawing, Sampling
from tests.policy import golden_drawing as drawing_checks
from tests.policy.golden_checks import EXACT, SAMPLING, Row, compare
from tests.policy.golden_set import arrays, autoencoder, image_grid, recorded_image


def reader_for(bagel: Bagel, image: Tensor | None = None) -> Reader:
    """A reader with the set's resize rules: no change for the autoencoder, at most image_size for the tower."""
    config = bagel.config
    p = config.vit.patch_size
    sides = image.shape[1:] if image is not None else (config.latent_stride, config.latent_stride)
    rules = {
        "vae_resize": ResizeRule(longest=max(sides), shortest=min(sides), stride=config.latent_stride),
        "vit_resize": ResizeRule(longest=config.vit.image_size, shortest=2 * p, stride=p),
    }
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(config.llm.vocab_size)}, unk_token="w0"))
    # the identity of words does not matter: texts come as ids
    needed = autoencoder() if image is not None else None
    return Reader(config=replace(config, **rules), tokenizer=words, autoencoder=needed)  # type: ignore[arg-type]


def said(ids: list[int]) -> TextPiece:
    """A recorded text as a piece, without its begin and end tokens."""
    return TextPiece(text="", token_ids=tuple(ids[1:-1]))


def edit_context(bagel: Bagel) -> tuple[Reader, Context]:
    """The recorded edit as a user gives it: an image to edit and an instruction."""
    g = arrays("04_edit_velocity")
    image = recorded_image("04_edit_velocity")
    reader = reader_for(bagel, image)
    p, count = bagel.config.vit.patch_size, len(g["vit_block_pos"]) - 2
    height, width = resized_size(*image.shape[1:], reader.config.vit_resize)
    if image.shape != g["vae_pixel_values"].shape[1:] or height * width != count * p * p:
        pytest.skip("04_edit_velocity.npz was resized by rules that it does not record")
    return reader, (ImagePiece(image=image, use="edit"), said(g.ids("text_ids")))


def drawn(bagel: Bagel, name: str, case: str) -> Iterator[Row]:
    """A whole drawing by the sampler: its end."""
    g = arrays(name)
    if "prompt_ids" in g:
        reader, context = reader_for(bagel), (said(g.ids("prompt_ids")),)
        guidance = drawing_checks.case_guidance(drawing_checks.T2I_GUIDANCE, case)
    else:
        reader, context = edit_context(bagel)
        guidance = drawing_checks.case_guidance(drawing_checks.EDIT_GUIDANCE, case)
    times = torch.cat([g[f"{case}_t"].float(), torch.zeros(1)])
    drawing = Drawing(num_steps=len(times) - 1, shift=drawing_checks.solve_shift(times), guidance=guidance)
    grid = image_grid(g[f"{case}_image_u8"], bagel.config)
    noise = g["init_noise"][None]
    walk = denoise(Denoiser(bagel, reader, [context], grid, guidance), [drawing], noise, noise[:, None])
    yield compare(f"{case}_final by the sampler", walk.final[0], g[f"{case}_final"], SAMPLING)


def written(bagel: Bagel, name: str) -> Iterator[Row]:
    """Greedy decoding by the writer; it stops at the end token, which is recorded as not part of the text."""
    g = arrays(name)
    if name == "01_text":
        reader, context = reader_for(bagel), (said(g.ids("ids_a")), said(g.ids("ids_b")))
    else:
        image = recorded_image(name)
        reader = reader_for(bagel, image)
        if resized_size(*image.shape[1:], reader.config.vit_resize) != tuple(g["pixel_values"].shape[1:]):
            pytest.skip(f"{name}.npz was resized by rules that it does not record")
        context = (ImagePiece(image=image, use="look"), said(g.ids("text_ids")))
    recorded = g["greedy_tokens"][1:]
    policy = BagelPolicy(bagel, reader)
    segment = policy.write([context], Sampling(max_new_tokens=len(recorded), temperature=0.0), [0])[0]
    yield compare("greedy_tokens by the writer", torch.tensor(segment.token_ids), recorded, EXACT)


def batched(bagel: Bagel) -> Iterator[Row]:
    """Two prompts of different length in one batch of the sampler."""
    g = arrays("07_r3_rollout")
    contexts = [(said(g.ids("prompt_a")),), (said(g.ids("prompt_b")),)]
    noise = torch.stack([g["noise_a"], g["noise_b"]])
    walk = _rollout(bagel, contexts, noise, noise[:, None], [_drawing()] * 2)
    for row, letter in enumerate("ab"):
        name = f"batch_final_{letter}"
        yield compare(f"{name} by the sampler", walk.final[row], g[name], SAMPLING)


def mixed(bagel: Bagel, mode: str) -> Iterator[Row]:
    """A partly stochastic drawing by the sampler, its log-probs, and the same log-probs out of the replay."""
    g = arrays("07_r3_rollout")
    if mode not in drawing_checks.CONVENTION:
        pytest.skip(f"the SDE convention of mode {mode!r} is not known")
    chosen = g.ids(f"{mode}_sde_steps")
    drawing = _drawing(convention=drawing_checks.CONVENTION[mode], eta=float(g[f"{mode}_eta"]), sde_steps=tuple(chosen))
    context = (said(g.ids("prompt_a")),)
    walk = _rollout(bagel, [context], g["noise_a"][None], g[f"{mode}_eps"][None], [drawing])
    recorded = g[f"{mode}_token_log_probs"].mean(-1)
    states, next_states = torch.stack(walk.states[0]), torch.stack(walk.next_states[0])
    yield compare(f"{mode}_latents by the sampler", next_states, g[f"{mode}_latents"][1:], SAMPLING)
    yield compare(f"{mode}_log_probs by the sampler", torch.stack(walk.log_probs[0]), recorded, SAMPLING)
    yield compare(f"{mode}_final by the sampler", walk.final[0], g[f"{mode}_final"], SAMPLING)
    segment = FlowSegment(
        context=context,
        image=torch.zeros(3, 1, 1),
        states=states,
        next_states=next_states,
        times=walk.times[chosen],
        next_times=walk.times[[i + 1 for i in chosen]],
        log_probs=torch.stack(walk.log_probs[0]),
        drawing=replace(drawing, size=_size(bagel, len(g["noise_a"]))),
    )
    with torch.no_grad():
        again = BagelPolicy(bagel, reader_for(bagel)).replay([segment])[0]
    yield compare(f"{mode}_log_probs by the replay", again.log_probs, recorded, SAMPLING)


def _drawing(**settings: Any) -> Drawing:
    num_points, shift = drawing_checks.rollout_schedule()
    return Drawing(num_steps=num_points - 1, shift=shift, guidance=drawing_checks.ROLLOUT_GUIDANCE, **settings)


def _size(bagel: Bagel, num_tokens: int) -> tuple[int, int]:
    rows, columns = drawing_checks.rollout_grid(bagel, num_tokens)
    return rows * bagel.config.latent_stride, columns * bagel.config.latent_stride


def _rollout(
    bagel: Bagel, contexts: list[Context], noise: Tensor, step_noise: Tensor, drawings: list[Drawing]
) -> Denoised:
    grid = drawing_checks.rollout_grid(bagel, noise.shape[1])
    denoiser = Denoiser(bagel, reader_for(bagel), contexts, grid, drawings[0].guidance)
    return denoise(denoiser, drawings, noise, step_noise)
