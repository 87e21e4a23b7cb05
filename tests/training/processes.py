"""What one process of several does in the tests; its findings lie in a folder by rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from r3_rl import ranks
from r3_rl.balance.gradients import Balancer
from r3_rl.observe.metrics import Numbers, combine
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.training.batcher import Batcher
from r3_rl.training.shards import Shards
from r3_rl.training.signals import SignalCallback
from r3_rl.training.update import LossSettings, accumulate, step_sizes
from r3_rl.types import Prompt
from tests.policy.tiny import PROMPTS, tiny_policy
from tests.training.rollouts import gradient, step_credits, trained_policy
from tests.training.test_trainer import make, reddish, run, untimed, weights

DISTINCT = (*PROMPTS, Prompt(text="a green cross"))
"""As many as a step takes. A prompt that comes twice is read once where one process has both groups and twice where two
have one each, which rounds differently."""
SHARES: dict[str, tuple[tuple[str, ...], ...]] = {
    "texts_and_images": (("plan", "critique"), ("draft", "refinement")),
    "none": (("plan", "draft", "critique", "refinement"), ()),
    "texts": (("plan", "critique"), ()),
}
"""Stages that rank 0 and rank 1 learn from: micro-batches of texts alone and of images alone; none at all; texts in one
process and nothing in the other."""


def train_share(folder: Path, options: dict[str, Any], cut: int | None = None) -> None:
    """A run's share: its rows, its weights and what it rolled out. cut: once more from the checkpoint of that step,
    into the folder `again`."""
    _train(folder, options, None)
    if cut is not None:
        _train(folder / "again", options, str(folder / "run" / f"checkpoint-{cut}"))


def _train(folder: Path, options: dict[str, Any], resume: str | None) -> None:
    folder.mkdir(exist_ok=True)
    options = dict(options)
    if options.pop("plain_products", False):
        torch.backends.mkldnn.enabled = False
    if options.get("scorer") == "reddish":
        options = {**options, "scorer": reddish}
    if "full" in options:
        options = {**options, "policy": whole_policy(options["full"]), "lora": None}
        del options["full"]
    same_noise = options.pop("same_noise", False)
    stopped_rank, stopped_step, name = options.pop("stop", (-1, -1, "SIGTERM"))
    trainer = make(folder / "run", dataset=DISTINCT, **options)
    if same_noise:
        trainer.schedule.engine.first_group = 0
    seen: list[dict[str, Any]] = []

    def keep(step: int, collected: Any) -> None:
        rolled = collected.trajectories()
        plans = [t.rounds[-1].plan.text for t in rolled if t.rounds[-1].plan]
        pixels = [float(t.rounds[-1].image.image.double().sum()) for t in rolled]
        prompts = [t.prompt.text for t in rolled]
        if (ranks.rank(), step) == (stopped_rank, stopped_step):
            signal.raise_signal(signal.Signals[name])
        seen.append({"phase": collected.phase, "prompts": prompts, "plans": plans, "pixels": pixels})

    own_s: list[float] = []
    step_of = trainer.step

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        loss = step_of(*args, **kwargs)
        own_s.append(time.perf_counter() - begin)
        return loss

    trainer.add_callback(SignalCallback())
    trainer.on_collected, trainer.step = keep, timed  # type: ignore[method-assign]
    logged = run(trainer, **({"resume_from_checkpoint": resume} if resume else {}))
    found = {
        "world_size": ranks.count(),
        "learner": type(trainer.learner).__name__,
        "rows": untimed(logged),
        "step_s": [row["time/step_s"] for row in logged],
        "own_s": own_s,
        "stopped": trainer.guards.stopped.finding.name if trainer.guards.stopped else None,
        "seen": seen,
        "pool": [[n.score for n in group] for group in trainer.schedule.pool.groups],
    }
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(found))
    torch.save(weights(trainer), folder / f"{ranks.rank()}.pt")


def whole_policy(dtype: str) -> BagelPolicy:
    """What a recipe trains without an adapter: the decoder's layers."""
    policy = tiny_policy(dtype=getattr(torch, dtype))
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_(".layers." in name and "vit_model" not in name)
    return policy


def add_up_shares(folder: Path, share: str, aggregator: str, probe_every: int, sharded: bool = False) -> None:
    """The gradient of one step whose credits lie in two processes as `SHARES` says, or all in a single one. sharded:
    of full weights, each process's parts of it."""
    policy = whole_policy("float32") if sharded else trained_policy()
    shards = Shards(policy.module, policy.layered, parts=ranks.count(), keep_base=True) if sharded else None
    stages = SHARES[share][ranks.rank()] if ranks.count() > 1 else sum(SHARES[share], ())
    credits = [c for c in step_credits(policy) if c.stage in stages]
    masters = list(shards.masters.values()) if shards else []
    held = masters or [p for p in policy.module.parameters() if p.requires_grad]
    places = {p: f"all/{i % 3}" for i, p in enumerate(held)}
    balancer = Balancer(places, aggregator=aggregator, probe_every=probe_every, seed=0, in_parts=sharded)
    settings = LossSettings(beta=0.1, image_beta=0.1)
    batcher, passes, replay = Batcher(policy=policy, token_budget=64), [], policy.replay

    def watched(segments: Any) -> Any:
        passes.append(len(passes))
        return replay(segments)

    policy.replay = watched  # type: ignore[method-assign]

    def run(part: Any, sizes: tuple[float, float]) -> Numbers:
        base = shards.reference(policy) if shards else None
        with shards.collecting() if shards else nullcontext():
            return accumulate(
                batcher, part, settings, backward=torch.Tensor.backward, normalisers=sizes, base_first=base
            )

    numbers = balancer.accumulate(0, credits, run, step_sizes(credits))
    seen = {
        "numbers": dict(combine(ranks.everyone(numbers), over="ranks")),
        "passes": len(passes),
        "touched": [p.grad is not None for p in held],
    }
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(seen))
    found = [m.grad for m in masters] if shards else gradient(policy)
    torch.save(found, folder / f"{ranks.rank()}.pt")


def main(folder: str, job: str, *arguments: Any) -> None:
    """Joins the others, does its job, leaves."""
    torch.set_num_threads(1)  # a fork has no threads of its parent's
    ranks.join()
    if find_spec("deepspeed"):
        import deepspeed

        # half a minute of compiling for a quicker sum in shared memory
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    {"train": train_share, "add_up": add_up_shares}[job](Path(folder), *arguments)
    ranks.leave()


def fork(count: int, folder: Path, *job: Any) -> None:
    """`count` processes that start with what is imported here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_child, (count, port, str(folder), *job), nprocs=count, start_method="fork")


def _child(rank: int, count: int, port: int, *job: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({**{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1"})
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun sets it; accelerate warns where nobody did
    main(*job)


if __name__ == "__main__":
    main(sys.argv[1], *json.loads(sys.argv[2]))
