"""Supervised pretraining of an embedded model: flow matching and next-token loss on a world's examples.

Progressive: understanding and generation are first trained apart (each step one of them), then the share of joint
steps ramps up to one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

import numpy as np
import torch
from torch import nn

from r3_rl.balance.progressive import Progressive
from r3_rl.modalities import Context, ImagePiece, TextPiece
from r3_rl.policy.base import Example, Policy, SupervisedNoise
from r3_rl.pretraining.muon import Muon
from r3_rl.recipe.pretraining import PretrainSection

GENERATION = ("text_to_image", "edit")
UNDERSTANDING = ("critique", "question", "plan")


def objectives(step: int, joint: float, rng: np.random.Generator) -> tuple[str, ...]:
    """Which kinds of examples a step holds, by the share of joint steps."""
    if rng.random() < joint:
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
            images: Context = tuple(p for p in example.context if isinstance(p, ImagePiece))
            out.append(Example(context=images, image=example.image))
        else:
            texts: Context = tuple(p for p in example.context if isinstance(p, TextPiece))
            out.append(Example(context=texts, answer=example.answer, image=example.image))
    return out


def optimizers(policy: Policy, settings: PretrainSection) -> list[torch.optim.Optimizer]:
    """Muon for the matrices that the backbone names, AdamW for everything else: embeddings, heads, biases, norms."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in policy.module.named_parameters():
        if parameter.requires_grad:
            inside = any(part in name for part in policy.spec.matrices) and parameter.ndim == 2
            (matrices if inside else rest).append(parameter)
    return [
        Muon(matrices, lr=settings.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, done: float, settings: PretrainSection, progressive: Progressive) -> float:
    """Learning-rate factor: linear warm-up, flat, linear decay over the last share; if the rate is to restart so for
    the apart phase, and then once more. `done`: share of the run, by steps or by time, whichever is further."""
    start, begin = progressive.start, 0
    if settings.restart_rate and settings.apart_fraction > 0:
        begin = ceil(start * settings.steps)
        if step < begin:
            begin, done = 0, done / start
        else:
            done = (done - start) / max(1 - start, 1e-9)
    falling = max((1 - done) / settings.decay_fraction, 0.01) if settings.decay_fraction else 1.0
    return min(1.0, (step - begin + 1) / settings.warmup_steps, falling)


def run_pretraining(
    policy: Policy,
    batches: Callable[[str, int], list[Example]],
    settings: PretrainSection,
    *,
    seed: int,
    average: Average | None = None,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train in place and yield each step's number and metrics; at the end the weights are their moving average, which
    a caller that wants snapshots passes in."""
    module = policy.module
    module.requires_grad_(True)  # the position tables too: frozen in the release, they are small here and learn
    optims = optimizers(policy, settings)
    base_rates = [o.param_groups[0]["lr"] for o in optims]
    average = average or Average(module)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    limit = settings.max_hours * 3600 if settings.max_hours else None
    progressive = settings.build(Progressive, apart=settings.apart_fraction, ramp=settings.ramp_fraction)
    for step in range(settings.steps):
        begin = time.monotonic()
        examples: list[Example] = []
        for kind in objectives(step, progressive.share(step / settings.steps), rng):
            if count := getattr(settings.batch, kind):
                examples += drop_contexts(batches(kind, count), settings.context_dropout, rng)
        made = time.monotonic()
        means = _backward(policy, examples, settings, generator)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        done = max(step / settings.steps, (begin - started) / limit if limit else 0.0)
        factor = rate(step, done, settings, progressive)
        for optim, base in zip(optims, base_rates, strict=True):
            optim.param_groups[0]["lr"] = base * factor
            optim.step()
            optim.zero_grad(set_to_none=True)
        progressive.observe((step + 1) / settings.steps, {name: -loss for name, loss in means.items()})
        average.update(module, min(settings.ema, (step + 1) / (step + 10)))
        now = time.monotonic()
        yield step, {**means, "learning_rate": factor, "time/data_s": made - begin, "time/step_s": now - begin}
        if limit and now - started > limit:
            break
    average.exchange(module)


class Average:
    """The exponential moving average of a module's parameters, float32 as they are."""

    def __init__(self, module: nn.Module) -> None:
        self.values = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        """Move by 1 - decay towards the module's weights."""
        for n, p in module.named_parameters():
            self.values[n].lerp_(p, 1 - decay)

    @torch.no_grad()
    def exchange(self, module: nn.Module) -> None:
        """Swap the average and the module's weights."""
        for n, p in module.named_parameters():
            kept = p.detach().clone()
            p.copy_(self.values[n])
            self.values[n].copy_(kept)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Inside, the module's weights are the average."""
        self.exchange(module)
        try:
            yield
        finally:
            self.exchange(module)


def _backward(
    policy: Policy, examples: list[Example], settings: PretrainSection, generator: torch.Generator
) -> dict[str, float]:
    """Accumulates the gradient of mean flow loss + weighted mean text loss in micro-batches; returns the two means.

    Micro-batches hold examples of like length (they come sorted by kind) and stay small enough for the processor's
    cache, which on a CPU matters more than the size of the matrix products.
    """
    noise = settings.build(SupervisedNoise)
    num_flow, num_text = policy.supervised_sizes(examples, noise)
    flow = text = 0.0
    for start in range(0, len(examples), settings.micro_batch):
        loss = policy.supervised(examples[start : start + settings.micro_batch], noise, generator)
        (loss.flow / max(num_flow, 1) + settings.text_weight * loss.text / max(num_text, 1)).backward()
        flow += float(loss.flow.detach()) / max(num_flow, 1)
        text += float(loss.text.detach()) / max(num_text, 1)
    means = {"image/loss": flow} if num_flow else {}
    return {**means, "text/loss": text} if num_text else means
