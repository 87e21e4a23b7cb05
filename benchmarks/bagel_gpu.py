"""BAGEL-7B-MoT's exact shape with random weights on one GPU: load, rollout, LoRA R3 step; speed, memory, one table.

Nothing is downloaded: random weights cost what trained ones cost. Every text runs to its limit and every critique is
followed by a refinement, so the work is fixed: G plans, drafts, critiques and refinements at 512 pixels, with the
paper's sampling (temperature 0.9, top-p 0.9, guidance 4.0 and 1.5 inside (0.4, 1], shift 3, 15 and 20 steps), first as
inference, then as one R3 step that ends in an update of LoRA weights. Meant to take less than 8 minutes on an 80 GB
GPU; a line a stage goes to stderr, so a run that is cut short has said what it knew.

    python benchmarks/bagel_gpu.py              on a GPU
    python benchmarks/bagel_gpu.py --tiny       the same code on a CPU in a minute
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from flops import Count, counted, layer_weights
from machine import Report
from timed_policy import EveryoneEdits

from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import TextPiece, TextSegment
from r3_rl.nodes import given_image
from r3_rl.observe.memory import peak_bytes
from r3_rl.policy.adapters import AdapterSettings, attach
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.bagel.checkpoint import random_bagel
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.bagel.reader import Reader
from r3_rl.policy.bagel.tiny import byte_tokenizer, tiny_config
from r3_rl.policy.base import Drawing, Sampling
from r3_rl.rollout.engine import Engine
from r3_rl.stages.protocol import protocol_named
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.training.batcher import Batcher
from r3_rl.training.config import R3Config
from r3_rl.training.credit import Credit
from r3_rl.training.parallel import Learner
from r3_rl.training.update import LossSettings, accumulate
from r3_rl.types import Prompt

GOAL_BYTES = 75 * 2**30
PROMPT = "a photo of two red apples to the left of a blue bench, and one green umbrella above them"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage took."""

    seconds: float
    flops: float
    peak_bytes: int
    made: int
    """Texts' tokens or images that came out; 0 for other work."""


@dataclass(kw_only=True)
class Bench:
    """The stages so far."""

    device: torch.device
    stages: dict[str, Stage] = field(default_factory=dict)
    model: Any = None

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Runs a stage, synchronised, and remembers what it took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        if self.model is None:
            result, count = work(), Count()
        else:
            with counted(self.model) as count:
                result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        memory, made = self.memory_bytes(), num_made(result)
        self.stages[name] = Stage(seconds=seconds, flops=count.flops, peak_bytes=memory, made=made)
        print(f"{name}: {seconds:.2f} s, {memory / 2**30:.1f} GiB at most", file=sys.stderr, flush=True)
        return result

    def memory_bytes(self) -> int:
        """Peak of the device since the stage began; of the process on a CPU."""
        return peak_bytes(self.device)


def num_made(result: Any) -> int:
    """Tokens of texts and critiques, or images."""
    if not isinstance(result, list):
        return 0
    texts = [getattr(item, "segment", item) for item in result]
    return sum(len(t.token_ids) if isinstance(t, TextSegment) else 1 for t in texts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on a CPU: tries the code, measures nothing")
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--size", type=int, help="side of the images in pixels (default 512; tiny 64)")
    parser.add_argument("--new-tokens", type=int, help="tokens of a plan and of a critique (default 128; tiny 12)")
    parser.add_argument("--draft-steps", type=int, help="default 15; tiny 4")
    parser.add_argument("--refine-steps", type=int, help="default 20; tiny 5")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA weights, on both experts")
    parser.add_argument("--token-budget", type=int, default=12288, help="tokens of a micro-batch of the update")
    parser.add_argument("--beta", type=float, default=1e-3, help="KL coefficient; 0 saves the reference pass")
    parser.add_argument("--attention", choices=("sdpa", "matmul"), default="sdpa")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args()
    defaults = (64, 12, 4, 5) if args.tiny else (512, 128, 15, 20)
    for name, value in zip(("size", "new_tokens", "draft_steps", "refine_steps"), defaults, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; --tiny tries the code on a CPU")
    return args


def main() -> None:
    args = arguments()
    begin = time.perf_counter()
    bench = Bench(device=torch.device("cpu" if args.tiny else "cuda"))
    peak_flops, bandwidth = matmul_flops(bench.device, args.tiny), copy_bytes_per_s(bench.device, args.tiny)
    policy = bench.run("load", lambda: load(args, bench.device))
    bench.model = policy.model
    settings = loop(args)
    with torch.no_grad():
        warm_up(policy, settings)
        token_s = seconds_per_token(policy, settings)
        roll_out(bench, "infer", policy, settings, args)
    attach(policy.module, AdapterSettings(rank=args.rank), BAGEL.spec.branches, seed=0)
    with torch.no_grad():
        credits = roll_out(bench, "step", policy, settings, args)
    update(bench, policy, credits, args)
    report(args, bench, policy, peak_flops, bandwidth, token_s, time.perf_counter() - begin).show(args.out)


def load(args: argparse.Namespace, device: torch.device) -> BagelPolicy:
    """Random weights made on the device, bfloat16; the autoencoder in float32, as released."""
    tokenizer = byte_tokenizer()
    config = tiny_config(tokenizer) if args.tiny else BagelConfig()
    model = random_bagel(config, dtype=torch.bfloat16, device=device).requires_grad_(False)
    model.decoder.backend = args.attention
    model.decoder.gradient_checkpointing = True
    autoencoder = Autoencoder(config.autoencoder).to(device)
    return BagelPolicy(model, Reader(config=model.config, tokenizer=tokenizer, autoencoder=autoencoder))


def loop(args: argparse.Namespace) -> LoopSettings:
    """The paper's settings; one stochastic step in each image."""

    def drawing(steps: int, image: float, renorm: Any) -> DrawingPlan:
        guidance = Guidance(text=4.0, image=image, interval=(0.4, 1.0), renorm=renorm)
        size = (args.size, args.size)
        return DrawingPlan(
            drawing=Drawing(num_steps=steps, shift=3.0, guidance=guidance, size=size, sde_steps=(1,)), num_sde_steps=1
        )

    text = Sampling(max_new_tokens=args.new_tokens, temperature=0.9, top_p=0.9)
    return LoopSettings(
        protocol=EveryoneEdits(**vars(protocol_named("bagel")), instruction="Move the green umbrella above the bench."),
        plan=text,
        critique=text,
        draft=drawing(args.draft_steps, 1.0, "global"),
        refine=drawing(args.refine_steps, 1.5, "text_channel"),
    )


def warm_up(policy: BagelPolicy, settings: LoopSettings) -> None:
    """Kernels are chosen and memory is fetched on first use."""
    context = settings.protocol.reason_context(Prompt(text=PROMPT))
    policy.write([context] * 2, Sampling(max_new_tokens=4), [0, 1])
    quick = Drawing(num_steps=2, size=settings.draft.drawing.size)
    policy.draw([context] * 2, [quick] * 2, [0, 1])


def seconds_per_token(policy: BagelPolicy, settings: LoopSettings) -> float:
    """Of one decoding step of one row, where reading the weights is all there is to do."""
    context = settings.protocol.reason_context(Prompt(text=PROMPT))

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        policy.write([context], Sampling(max_new_tokens=count), [0])
        return time.perf_counter() - begin

    short, long = min(seconds(4) for _ in range(2)), min(seconds(36) for _ in range(2))
    return (long - short) / 32


def roll_out(
    bench: Bench, label: str, policy: BagelPolicy, settings: LoopSettings, args: argparse.Namespace
) -> list[Credit]:
    """G plans and drafts of one prompt, G critiques and refinements of one draft; credits of alternating sign."""
    prompt, group = Prompt(text=PROMPT), args.group
    context = settings.protocol.reason_context(prompt)
    plans = bench.run(f"{label} plan", lambda: policy.write([context] * group, settings.plan, list(range(group))))
    drawings = [settings.draft.drawing] * group
    planned = [(*context, TextPiece(text=p.text, token_ids=p.token_ids)) for p in plans]
    drafts = bench.run(f"{label} draft", lambda: policy.draw(planned, drawings, list(range(group))))
    engine = Engine(policy=policy, settings=settings)
    looked_at = [given_image(prompt, drafts[0].image)]
    critiques = bench.run(f"{label} critique", lambda: engine.critiques(looked_at, seed=1, each=group))
    refined = bench.run(f"{label} refinement", lambda: engine.refinements(critiques, seed=1))
    rows = {
        "plan": plans,
        "draft": drafts,
        "critique": [c.sample for c in critiques],
        "refinement": [node.sample for node in refined if node is not None],
    }
    return [
        Credit(segment=segment, advantage=1.0 if i % 2 else -1.0, stage=stage)
        for stage, segments in rows.items()
        for i, segment in enumerate(segments)
    ]


def update(bench: Bench, policy: BagelPolicy, credits: list[Credit], args: argparse.Namespace) -> None:
    """Replay, losses and backward in micro-batches, then AdamW on the adapter."""
    trained = [p for p in policy.module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=5e-6, betas=(0.9, 0.95), weight_decay=0.0)
    settings = LossSettings(beta=args.beta, image_beta=args.beta).losses()
    batcher, learner = Batcher(policy=policy, token_budget=args.token_budget), Learner(policy, R3Config("out"))
    bench.run("step update", lambda: accumulate(batcher, credits, settings, learner))

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    bench.run("step optimiser", step)


def matmul_flops(device: torch.device, tiny: bool) -> float:
    """Measured bfloat16 matrix products, operations a second."""
    size, count = (512, 2) if tiny else (8192, 20)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(device, lambda: left @ right, count)


def copy_bytes_per_s(device: torch.device, tiny: bool) -> float:
    """Measured memory bandwidth of a copy, bytes read and written a second."""
    source = torch.empty((2**24 if tiny else 2**31) // 2, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(device, lambda: target.copy_(source), 3 if tiny else 10)


def _seconds(device: torch.device, work: Callable[[], Any], count: int) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    begin = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - begin) / count


def decoding_bytes(config: BagelConfig) -> int:
    """Weights read for one decoding step: the understanding expert's layers and the head, in bfloat16."""
    llm = config.llm
    return 2 * (llm.num_hidden_layers * layer_weights(llm) + llm.hidden_size * llm.vocab_size)


def report(
    args: argparse.Namespace,
    bench: Bench,
    policy: BagelPolicy,
    peak_flops: float,
    bandwidth: float,
    token_s: float,
    wall_s: float,
) -> Report:
    stages, group = bench.stages, args.group
    units = {"plan": "tokens", "draft": "drafts", "critique": "tokens", "refinement": "refinements"}
    rows = []
    for name, stage in stages.items():
        share = f"{stage.flops / stage.seconds / peak_flops:.0%}" if stage.flops else ""
        unit = units.get(name.partition(" ")[2])
        rate = f"{stage.made / stage.seconds:.3g} {unit}/s" if unit else ""
        rows.append([name, f"{stage.seconds:.2f}", rate, share, f"{stage.peak_bytes / 2**30:.1f}"])
    step = [s for name, s in stages.items() if name.startswith("step")]
    step_s, most = sum(s.seconds for s in step), max(s.peak_bytes for s in step)
    rows.append(["whole step", f"{step_s:.2f}", f"{group / step_s:.2f} samples/s", "", f"{most / 2**30:.1f}"])
    bound = decoding_bytes(policy.model.config) / bandwidth
    where = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU, tiny sizes: no measurement"
    return Report(
        title=f"BAGEL with random weights, G = {group}, {args.size} pixels, {where}",
        columns=["stage", "seconds", "rate", "of matrix peak", "peak GiB"],
        rows=rows,
        notes=[
            f"{sum(p.numel() for p in policy.model.parameters()):,} weights. "
            f"Matrix products {peak_flops / 1e12:.3g} TFLOP/s (bfloat16), copies {bandwidth / 1e12:.3g} TB/s.",
            f"Decoding one row: {1e3 * token_s:.2f} ms a token, reading the weights alone would take "
            f"{1e3 * bound:.2f} ms: {bound / token_s:.0%} of the bandwidth bound.",
            f"Step: LoRA rank {args.rank} on both experts, micro-batches of {args.token_budget} tokens, "
            f"activation checkpointing (its second forward is not in the shares), KL {args.beta:g}.",
            f"Goal: step under {GOAL_BYTES / 2**30:.0f} GiB: {'reached' if most < GOAL_BYTES else 'NOT reached'}. "
            f"The whole took {wall_s:.0f} s.",
        ],
        numbers={
            "stages": {name: vars(stage) for name, stage in stages.items()}, "token_s": token_s,
            "peak_flops": peak_flops, "bandwidth": bandwidth, "decoding_bound_s": bound, "wall_s": wall_s,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
