"""What rows share is read once: encodes and tokens of a call, seconds of a guided group, on a tiny random BAGEL.

Groups of peers look at one image each; every row has an instruction of its own. Counted are images through the
autoencoder and through the vision tower, and tokens through the decoder: those whose keys are kept for a draw or a
write, all of them for a replay. `--against TREE` runs the same with another checkout, in turns.

    python benchmarks/shared_prefixes.py --help
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import Report, middle

GROUPS = {"16": (16,), "4 4 4": (4, 4, 4), "4 3 4 (one stopped)": (4, 3, 4)}
COUNTED = ("autoencoder", "vision", "tokens")
GOAL = "one image encode a group, in every row"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", help="another checkout of the repository, for a comparison")
    parser.add_argument("--backend", choices=("matmul", "sdpa"), default="matmul", help="attention")
    parser.add_argument("--side", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions of a turn; medians are shown")
    parser.add_argument("--turns", type=int, default=3, help="processes of each checkout, in turns")
    parser.add_argument("--threads", type=int, default=None, help="default: the physical cores")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    here = Path(__file__).resolve().parents[1]
    trees = {"here": here, **({"there": Path(args.against).resolve()} if args.against else {})}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for _ in range(args.turns):
        for name, tree in trees.items():
            found[name].append(in_process(args, tree))
    report(args, found).show(args.out)


def in_process(args: argparse.Namespace, tree: Path) -> dict[str, Any]:
    """One turn of a checkout, in a process that imports it."""
    options = {"--backend": args.backend, "--side": args.side, "--repeat": args.repeat, "--threads": args.threads}
    command = [sys.executable, __file__, "--measure"]
    command += [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    path = os.pathsep.join([str(tree), str(Path(__file__).parent)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{tree}:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Counts of every case, and seconds of the guided group of 16."""
    from r3_rl.process import prepare_process

    prepare_process(args.threads)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    policy = tiny_policy(args)
    counts, seconds = {}, {}
    for name, sizes in GROUPS.items():
        for case, run in cases(policy, args, sizes).items():
            counts[f"{case}, groups {name}"] = counted(policy, run)
            if sizes == (16,):
                seconds[case] = [timed(run) for _ in range(args.repeat)]
    return {"counts": counts, "seconds": seconds}


def tiny_policy(args: argparse.Namespace) -> Any:
    from r3_rl.policy.bagel.autoencoder import Autoencoder
    from r3_rl.policy.bagel.checkpoint import random_bagel
    from r3_rl.policy.bagel.policy import BagelPolicy
    from r3_rl.policy.bagel.reader import Reader
    from r3_rl.policy.bagel.tiny import byte_tokenizer, tiny_config

    tokenizer = byte_tokenizer()
    config = tiny_config(tokenizer, image_size=args.side)
    model = random_bagel(config, seed=0)
    model.decoder.backend = args.backend
    return BagelPolicy(model, Reader(config=config, tokenizer=tokenizer, autoencoder=Autoencoder(config.autoencoder)))


def cases(policy: Any, args: argparse.Namespace, sizes: Sequence[int]) -> dict[str, Callable[[], Any]]:
    """What is run for groups of these sizes, by name; the rollouts that are replayed are made here."""
    import torch

    from r3_rl import types
    from r3_rl.flow.guidance import Guidance
    from r3_rl.policy.base import Drawing, Sampling

    if hasattr(types, "TextPiece"):  # a checkout from before `modalities`, which would get those of this one
        ImagePiece, TextPiece = types.ImagePiece, types.TextPiece
    else:
        from r3_rl.modalities import ImagePiece, TextPiece

    owners = [group for group, size in enumerate(sizes) for _ in range(size)]
    rows = range(len(owners))
    images = torch.rand(len(sizes), 3, args.side, args.side, generator=torch.Generator().manual_seed(0))
    # one object a group, so that a checkout that shares objects shows its best
    look, edit = ([ImagePiece(image=image, use=use) for image in images] for use in ("look", "edit"))
    check = [TextPiece(text=f"compare the image with prompt {group}") for group in range(len(sizes))]
    looking = [(look[group], check[group]) for group in owners]
    editing = [(edit[group], TextPiece(text=f"move thing {row} to the left")) for row, group in enumerate(owners)]
    texts = Sampling(max_new_tokens=8)
    plain = Drawing(size=(args.side, args.side), sde_steps=(0, 2))
    guided = Drawing(size=plain.size, sde_steps=(0, 2), guidance=Guidance(text=4.0, image=1.5, interval=(0.4, 1.0)))
    found: dict[str, Callable[[], Any]] = {"write": lambda: policy.write(looking, texts, rows)}
    written = policy.write(looking, texts, rows)
    found["replay of texts"] = lambda: learned(policy, written)
    for name, drawing in (("plain", plain), ("guided", guided)):
        drawn = policy.draw(editing, [drawing] * len(rows), rows)
        found[f"draw, {name}"] = lambda d=drawing: policy.draw(editing, [d] * len(rows), rows)  # type: ignore[misc]
        found[f"replay, {name}"] = lambda d=drawn: learned(policy, d)  # type: ignore[misc]
    return found


def learned(policy: Any, segments: Sequence[Any]) -> None:
    """Replay and gradient."""
    policy.module.zero_grad()
    results = policy.replay(segments)
    sum(getattr(r, "log_probs", r).sum() for r in results).backward()


def timed(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def counted(policy: Any, run: Callable[[], Any]) -> dict[str, int]:
    """Images encoded and tokens read while `run` runs."""
    import torch

    count, model, autoencoder = dict.fromkeys(COUNTED, 0), policy.model, policy.reader.autoencoder
    plain = autoencoder.encode

    def encode(images: Any) -> Any:
        count["autoencoder"] += len(images)
        return plain(images)

    def look(_: Any, args: Any) -> None:
        count["vision"] += len(args[0])

    def forward(_: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("keep") or torch.is_grad_enabled():
            count["tokens"] += args[0].layout.position.shape[0]

    autoencoder.encode = encode
    handles = [
        model.vit_model.register_forward_pre_hook(look),
        model.register_forward_pre_hook(forward, with_kwargs=True),
    ]
    try:
        run()
    finally:
        del autoencoder.encode
        for handle in handles:
            handle.remove()
    return count


def report(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> Report:
    names = list(found)
    counts = {name: turns[0]["counts"] for name, turns in found.items()}
    seconds = {
        name: {case: middle([s for turn in turns for s in turn["seconds"][case]]) for case in turns[0]["seconds"]}
        for name, turns in found.items()
    }
    rows = []
    for case in counts["here"]:
        stage = case.partition(", groups 16")[0] if case.endswith("groups 16") else None
        cells = [str(counts[name][case][kind]) for kind in COUNTED for name in names]
        times = [f"{1000 * seconds[name][stage]:.0f}" if stage else "" for name in names]
        rows.append([case, *cells, *times])
    several = len(names) > 1
    return Report(
        title=f"What groups of peers read: tiny random BAGEL, {args.side} pixels, {args.backend} attention",
        columns=["case", *(f"{kind} {n}" if several else kind for kind in (*COUNTED, "ms") for n in names)],
        rows=rows,
        notes=[
            f"Goal: {GOAL}. Autoencoder and vision: images. Tokens: those whose keys a draw or a write keeps, all of a",
            "replay. Milliseconds: processor time, which neighbours on the machine hardly change; medians of",
            f"{args.turns} x {args.repeat} runs, a replay with its gradient.",
        ],
        numbers={"counts": counts, "seconds": seconds},
    )


if __name__ == "__main__":
    main()
