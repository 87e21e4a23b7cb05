"""What one process of several does in the tests; its findings lie in a folder by rank."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from r3_rl import joining, ranks
from r3_rl.balance.gradients import Balancer
from r3_rl.balance.progressive import Progressive
from r3_rl.errors import R3Error
from r3_rl.modalities import TextPiece
from r3_rl.observe.numbers import Numbers, combine
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.base import Sampling
from r3_rl.training.batcher import Batcher
from r3_rl.training.config import R3Config
from r3_rl.training.engines import learner_of
from r3_rl.training.signals import SignalCallback
from r3_rl.training.update import LossSettings, accumulate, step_sizes
from r3_rl.types import Prompt
from tests.policy.tiny import PROMPTS, tiny_policy
from tests.training.rollouts import step_credits, trained_policy
from tests.training.test_trainer import make, red, reddish, run, untimed, weights

DISTINCT = (*PROMPTS, Prompt(text="a green cross"))
"""As many as a step takes. A prompt that comes twice is read once where one process has both groups and twice where two
have one each, which rounds differently."""
PATIENCE_S = 300
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


def resume_share(folder: Path, options: dict[str, Any], checkpoint: str) -> None:
    """A run's share from somebody's checkpoint on."""
    _train(folder, options, checkpoint)


def _train(folder: Path, options: dict[str, Any], resume: str | None) -> None:
    folder.mkdir(exist_ok=True)
    options = dict(options)
    if "deepspeed" in options:
        _spare_compiling()
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


def _spare_compiling() -> None:
    """Half a minute of it, for a quicker sum in shared memory; and DeepSpeed's deprecations are not ours."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for kind in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", kind)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def whole_policy(dtype: str) -> BagelPolicy:
    """What a recipe trains without an adapter: the decoder's layers."""
    policy = tiny_policy(dtype=getattr(torch, dtype))
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_(".layers." in name and "vit_model" not in name)
    return policy


def add_up_shares(folder: Path, share: str, aggregator: str, probe_every: int, **options: Any) -> None:
    """The gradient of one step whose credits lie in two processes as `SHARES` says, or all in a single one, and the
    weights after it and one more step.

    options: `full` trains whole weights of that type, `recompute` keeps no activations, `scale` multiplies advantages;
    `num_steps` takes fewer or more; others are arguments.
    """
    options = {"beta": 0.1, "image_beta": 0.1, **options}
    num_steps = options.pop("num_steps", 2)
    full, recompute = options.pop("full", None), options.pop("recompute", False)
    if "deepspeed" in options:
        _spare_compiling()
    policy = whole_policy(full) if full else trained_policy()
    args = R3Config(str(folder), adam_epsilon=1e-6, lr_scheduler_type="constant", seed=0, **options)
    credits = step_credits(policy)  # before the engine: of weights that are exactly everybody's
    policy.checkpoint_activations(recompute)
    learner = learner_of(policy, args)
    shares = (*SHARES[share], *((),) * ranks.count())
    stages = shares[ranks.rank()] if ranks.count() > 1 else sum(SHARES[share], ())
    learner.prepare(lambda: 0.0, Progressive(apart=args.apart_fraction, ramp=args.ramp_fraction))
    places = {p: f"all/{i % 3}" for i, p in enumerate(learner.names)}
    over = learner.over_parts if learner.in_parts else None
    kept = [p for p, name in learner.names.items() if "_moe_gen" not in name and args.image_gradients == "generation"]
    balancer = Balancer(
        places, aggregator=aggregator, probe_every=probe_every, seed=0, over_parts=over, kept_from_images=kept
    )
    losses = LossSettings(beta=args.beta, image_beta=args.image_beta).losses()
    batcher, passes, replay = Batcher(policy=policy, token_budget=64), [], policy.replay
    own = [c for c in credits if c.stage in stages]

    def watched(segments: Any) -> Any:
        passes.extend([len(passes)] * torch.is_grad_enabled())  # a reference of nothing is not computed
        return replay(segments)

    policy.replay = watched  # type: ignore[method-assign]

    def run(part: Any, sizes: tuple[float, float]) -> Numbers:
        return accumulate(batcher, part, losses, learner, sizes)

    tensors: dict[str, torch.Tensor] = {}
    for step in range(num_steps):
        with torch.no_grad():  # as unlike as rollouts are: nobody waits for anybody
            policy.write(
                [(TextPiece(text="a red circle"),)] * (ranks.rank() + 1),
                Sampling(max_new_tokens=3),
                [0, 1, 2, 3][: ranks.rank() + 1],
            )
        numbers = balancer.accumulate(step, own, run, step_sizes(own))
        if step == 0:
            seen = {
                "numbers": dict(combine(ranks.everyone(numbers), over="ranks")),
                "passes": len(passes),
                "touched": [name for p, name in learner.names.items() if p.grad is not None],
                "learner": type(learner).__name__,
            }
            grads = ((n, p.grad) for p, n in learner.names.items() if p.grad is not None)
            tensors |= {f"gradient {name}": ranks.whole(g.detach()).clone() for name, g in grads}
        norm = learner.norm()
        tensors[f"norm {step}"] = norm.detach().clone()
        learner.step(norm)
    trained = set(learner.names.values())
    tensors |= {n: p.detach().clone() for n, p in policy.module.named_parameters() if n in trained}
    folder.mkdir(exist_ok=True)
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(seen))
    torch.save(tensors, folder / f"{ranks.rank()}.pt")


def add_up_cases(folder: Path, cases: dict[str, Any]) -> None:
    """Several of these by name, in the same processes."""
    for name, (share, aggregator, probe_every, options) in cases.items():
        add_up_shares(folder / name, share, aggregator, probe_every, **options)


def do_all(folder: Path, jobs: dict[str, Any]) -> None:
    """Several jobs, each in a folder of its own, in the same processes."""
    for name, (job, *arguments) in jobs.items():
        (folder / name).mkdir(exist_ok=True)
        JOBS[job](folder / name, *arguments)


def fail_share(folder: Path, how: str) -> None:
    """A run in which the second process, or the first, fails in its second step."""

    def score(images: Any, **columns: Any) -> list[float | None]:
        dead = how == "scorer" and ranks.rank() == 1 and trainer.state.global_step == 1
        return [None if dead else score for score in red(images)]

    def plant(step: int, collected: Any) -> None:
        if (ranks.rank(), step) != (int(not how.startswith("first")), 1):
            return
        if "killed" in how:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "error":
            raise ValueError("planted")
        if "disk" in how:  # every write beyond the first bytes of a file fails, as on a full one
            room = 300_000 if "meanwhile" in how else 100  # all but the weights and moments fit
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        for credit in collected.credits if how == "loss" else ():
            credit.segment.log_probs.fill_(float("nan"))

    options = {"schedule": "draft_only", "num_prompts": 4, "max_steps": 4, "save_steps": 1, "parallel": "fsdp2"}
    with joining.one_fate():
        trainer = make(folder, score, policy=whole_policy("float32"), lora=None, dataset=DISTINCT, **options)
        trainer.on_collected = plant
        try:
            trainer.train()
        finally:  # what says why is written to a file, too, while a test watches
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            trainer.close()


JOBS: dict[str, Callable[..., None]] = {
    "train": train_share, "add_up": add_up_shares, "cases": add_up_cases, "resume": resume_share, "fail": fail_share,
    "all": do_all,
}  # fmt: skip


def main(folder: str, job: str, *arguments: Any) -> None:
    """Joins the others, does its job, leaves."""
    torch.set_num_threads(1)  # a fork has no threads of its parent's
    joining.join()
    JOBS[job](Path(folder), *arguments)
    joining.leave()


def fork(count: int, folder: Path, *job: Any) -> None:
    """`count` processes that start with what is imported here."""
    port = _free_port()
    started = torch.multiprocessing.start_processes(
        _child, (count, port, str(folder), *job), nprocs=count, join=False, start_method="fork"
    )
    end = time.monotonic() + PATIENCE_S
    while not started.join(timeout=1):
        if time.monotonic() > end:  # processes that wait for each other do it for ever
            for process in started.processes:
                process.kill()
            raise TimeoutError(f"{count} processes were not done after {PATIENCE_S} s")


def fork_and_watch(count: int, folder: Path, *job: Any, patience_s: float = PATIENCE_S) -> list[int | None]:
    """The same without a launcher that ends the others when one fails: their exit codes."""
    port, context = _free_port(), torch.multiprocessing.get_context("fork")
    started = [context.Process(target=_ended, args=(rank, count, port, str(folder), *job)) for rank in range(count)]
    for process in started:
        process.start()
    end = time.monotonic() + patience_s
    for process in started:
        process.join(max(end - time.monotonic(), 0))
        process.kill()
        process.join()
    return [process.exitcode for process in started]


def _ended(rank: int, *job: Any) -> None:
    """As the command line ends."""
    try:
        _child(rank, *job)
    except R3Error as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _child(rank: int, count: int, port: int, *job: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({**{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1"})
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun sets it; accelerate warns where nobody did
    main(*job)


if __name__ == "__main__":
    main(sys.argv[1], *json.loads(sys.argv[2]))
