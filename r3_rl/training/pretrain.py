"""Supervised pretraining of an embedded model: flow matching and next-token loss on a world's examples.

Progressive: understanding and generation are first trained apart (each step one of them), then the share of joint
steps ramps up to one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.base import Example
from r3_rl.training.muon import Muon

GENERATION = ("text_to_image", "edit")
UNDERSTANDING = ("critique", "question", "plan")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """What supervised pretraining is told (the `pretrain` section of a recipe)."""

    steps: int
    batch: dict[str, int]
    """Examples a step of each kind: text_to_image, edit, critique, question."""
    muon_lr: float
    adam_lr: float
    ema: float
    warmup_steps: int
    decay_fraction: float
    """Last share of the steps over which the learning rates fall to zero."""
    apart_fraction: float
    """First share of the steps in which the two objectives take turns."""
    ramp_fraction: float
    """Following share over which joint steps become the rule."""
    text_weight: float
    context_dropout: float
    """Share of drawing examples that lose their texts (and, half as often, their images): guidance needs them."""
    time_mean: float
    micro_batch: int
    """Examples of one pass."""
    seed: int
    max_seconds: float | None


def objectives(step: int, settings: PretrainSettings, rng: np.random.Generator) -> tuple[str, ...]:
    """Which kinds of examples a step holds."""
    done = step / settings.steps
    ramp = max(settings.ramp_fraction, 1e-9)
    joint_share = min(max((done - settings.apart_fraction) / ramp, 0.0), 1.0)
    if rng.random() < joint_share:
        return GENERATION + UNDERSTANDING
    return GENERATION if step % 2 == 0 else UNDERSTANDING


def drop_contexts(examples: list[Example], share: float, rng: np.random.Generator) -> list[Example]:
    """Takes the context away from a share of the drawing examples, so that the dropped branches are trained."""
    out = []
    for example in examples:
        draw = rng.random()
        if example.image is None or draw >= share:
            out.append(example)
        elif draw < share * 2 / 3:
            kept = tuple(p for p in example.context if not hasattr(p, "text"))
            out.append(Example(context=kept, image=example.image))
        else:
            kept = tuple(p for p in example.context if hasattr(p, "text"))
            out.append(Example(context=kept, answer=example.answer, image=example.image))
    return out


def optimizers(module: nn.Module, settings: PretrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, heads, biases and norms."""
    matrices, rest = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            in_block = parameter.ndim == 2 and ".layers." in name
            (matrices if in_block else rest).append(parameter)
    return [
        Muon(matrices, lr=settings.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, elapsed: float, settings: PretrainSettings) -> float:
    """Learning-rate factor: linear warm-up, flat, linear decay at the end (by steps, or by time where that is short)."""
    done = step / settings.steps
    if settings.max_seconds:
        done = max(done, elapsed / settings.max_seconds)
    return min(1.0, (step + 1) / settings.warmup_steps, max((1 - done) / settings.decay_fraction, 0.01))


def run_pretraining(
    policy: BagelPolicy,
    batches: Callable[[str, int], list[Example]],
    settings: PretrainSettings,
    *,
    on_step: Callable[[int, dict[str, float]], None],
) -> Iterator[int]:
    """Trains in place and yields after every step; at the end the weights are their moving average."""
    module = policy.module
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.endswith("pos_embed"))
    optims = optimizers(module, settings)
    base_rates = [o.param_groups[0]["lr"] for o in optims]
    average = {n: p.detach().clone() for n, p in module.named_parameters()}
    rng = np.random.default_rng(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    started = time.monotonic()
    for step in range(settings.steps):
        begin = time.monotonic()
        kinds = objectives(step, settings, rng)
        examples: list[Example] = []
        for kind in kinds:
            examples += drop_contexts(batches(kind, settings.batch[kind]), settings.context_dropout, rng)
        made = time.monotonic()
        flow, text = _backward(policy, examples, settings, generator)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        factor = rate(step, begin - started, settings)
        for optim, base in zip(optims, base_rates, strict=True):
            optim.param_groups[0]["lr"] = base * factor
            optim.step()
            optim.zero_grad(set_to_none=True)
        decay = min(settings.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for n, p in module.named_parameters():
                average[n].lerp_(p, 1 - decay)
        numbers = {
            "loss/flow": flow,
            "loss/text": text,
            "time/data_s": made - begin,
            "time/step_s": time.monotonic() - begin,
            "time/elapsed_s": time.monotonic() - started,
            "learning_rate_factor": factor,
        }
        on_step(step, {k: v for k, v in numbers.items() if v or k.startswith("time")})
        yield step
        if settings.max_seconds and time.monotonic() - started > settings.max_seconds:
            break
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.copy_(average[n])


def _backward(
    policy: BagelPolicy, examples: list[Example], settings: PretrainSettings, generator: torch.Generator
) -> tuple[float, float]:
    """Accumulates the gradient of mean flow loss + weighted mean text loss in micro-batches; returns the two means.

    Micro-batches hold examples of like length (they come sorted by kind) and stay small enough for the processor's
    cache, which on a CPU matters more than the size of the matrix products.
    """
    config = policy.model.config
    num_text = sum(len(policy.reader.token_ids(e.answer)) + 1 for e in examples if e.answer is not None)
    tokens = [e.image.numel() for e in examples if e.image is not None]
    num_flow = sum(tokens)
    flow = text = 0.0
    for start in range(0, len(examples), settings.micro_batch):
        part = examples[start : start + settings.micro_batch]
        images = [e.image for e in part if e.image is not None]
        times = torch.sigmoid(torch.randn(len(images), generator=generator) + settings.time_mean)
        grid = policy.reader.grid((images[0].shape[1], images[0].shape[2])) if images else (1, 1)
        noise = torch.randn(len(images), grid[0] * grid[1], config.latent_channels, generator=generator)
        loss = policy.supervised(part, times, noise)
        (loss.flow / max(num_flow, 1) + settings.text_weight * loss.text / max(num_text, 1)).backward()
        flow += float(loss.flow.detach()) / max(num_flow, 1)
        text += float(loss.text.detach()) / max(num_text, 1)
    return flow, text


def append_json_line(path: Path, numbers: dict[str, float]) -> None:
    """One line of metrics."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(numbers) + "\n")
