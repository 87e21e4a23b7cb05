"""A group of 16 rollouts (plan, draft, critique, refinement) batched, against the same rollouts one by one.

Every row has its own seeds, so both ways give the same texts and images; the table says whether they did. The second
table encodes the context of groups of growing size: what a group shares is read once, so the cost does not grow.

    python benchmarks/group_rollout.py --help
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from machine import Report, middle

GOAL = 4.0
STAGES = ("plan", "draft", "critique", "refinement")
GROUPS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What some rows gave."""

    texts: Sequence[tuple[int, ...]]
    images: Sequence[Any]
    """float32 [3, H, W]: drafts, then refinements."""
    seconds: dict[str, float]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="folder of weights (default: the shipped ones, else random weights)")
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--prompt", default="two red circles and three blue squares")
    parser.add_argument("--repeat", type=int, default=5, help="turns of both ways; medians are shown")
    parser.add_argument("--threads", type=int, default=None, help="default: the physical cores")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    from r3_rl.process import prepare_process

    prepare_process(args.threads)
    import torch
    from embedded import load_embedded

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = load_embedded(args.model)
    rows = range(args.group)
    batched, single = [], []
    with torch.no_grad():
        image = first_image(model, args.prompt)
        for _ in range(args.repeat + 1):  # the first turn warms up
            batched.append(roll_out(model, args.prompt, image, rows))
            single.append(joined([roll_out(model, args.prompt, image, [row]) for row in rows]))
        costs = prefill(model, args.prompt, image, args.repeat)
    report(args, model.origin, batched[1:], single[1:]).show(args.out)
    print("\n" + prefill_report(costs).text())


def first_image(model: Any, prompt: str) -> Any:
    """The image that the group's critiques and refinements branch from."""
    from r3_rl.types import Prompt

    context = model.settings.protocol.reason_context(Prompt(text=prompt))
    return model.policy.draw([context], [model.settings.draft.drawing], [99])[0].image


def roll_out(model: Any, prompt: str, image: Any, rows: Sequence[int]) -> Rollouts:
    """Rows of one group; row r has the seeds of row r, whoever else is in the batch, and an instruction of its own."""
    from r3_rl.modalities import TextPiece
    from r3_rl.nodes import given_image
    from r3_rl.stages import CRITIQUE
    from r3_rl.types import Prompt

    policy, settings, asked = model.policy, model.settings, Prompt(text=prompt)
    seconds: dict[str, float] = {}

    def timed(stage: str, run: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = run()
        seconds[stage] = time.perf_counter() - begin
        return result

    def seeds(stage: int) -> list[int]:
        return [1000 * stage + row for row in rows]

    asking = [settings.protocol.reason_context(asked)] * len(rows)
    plans = timed("plan", lambda: policy.write(asking, settings.plan, seeds(0)))
    planned = [(*c, TextPiece(text=p.text, token_ids=p.token_ids)) for c, p in zip(asking, plans, strict=True)]
    drafts = timed("draft", lambda: policy.draw(planned, [settings.draft.drawing] * len(rows), seeds(1)))
    given = given_image(asked, image)
    looking = [CRITIQUE.context(given, settings)] * len(rows)
    critiques = timed("critique", lambda: policy.write(looking, settings.critique, seeds(2)))
    seen = given.edited
    redrawing = [(seen, TextPiece(text=instruction(row))) for row in rows]
    refined = timed("refinement", lambda: policy.draw(redrawing, [settings.refine.drawing] * len(rows), seeds(3)))
    return Rollouts(
        texts=[s.token_ids for s in (*plans, *critiques)],
        images=[s.image for s in (*drafts, *refined)],
        seconds=seconds,
    )


def instruction(row: int) -> str:
    """Peers ask for unlike edits."""
    from r3_rl.worlds.shapes.scene import COLORS, SHAPES

    names, shapes = list(COLORS), list(SHAPES)
    return f"add a {names[row % len(names)]} {shapes[row // len(names) % len(shapes)]} top left"


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Rows that ran alone, in the order of the batch."""
    half = len(parts[0].texts) // 2
    return Rollouts(
        texts=[t for at in (slice(None, half), slice(half, None)) for part in parts for t in part.texts[at]],
        images=[i for at in (slice(None, half), slice(half, None)) for part in parts for i in part.images[at]],
        seconds={stage: sum(part.seconds[stage] for part in parts) for stage in STAGES},
    )


def prefill(model: Any, prompt: str, image: Any, repeat: int) -> dict[str, list[float]]:
    """Seconds to encode a group's shared context, by what is read and by the group's size."""
    from r3_rl.nodes import given_image
    from r3_rl.policy.bagel.encoder import encode
    from r3_rl.stages import CRITIQUE
    from r3_rl.types import Prompt

    protocol, policy = model.settings.protocol, model.policy
    asked = Prompt(text=prompt)
    given = given_image(asked, image)
    contexts = {
        "prompt, before plans": protocol.reason_context(asked),
        "image and prompt, before critiques": CRITIQUE.context(given, model.settings),
        "image, before refinements": (given.edited,),
    }
    costs: dict[str, list[float]] = {}
    for name, context in contexts.items():
        for group in GROUPS:
            seconds = []
            for _ in range(4 * repeat):
                begin = time.perf_counter()
                encode(policy.model, policy.reader, [context] * group)
                seconds.append(time.perf_counter() - begin)
            costs.setdefault(name, []).append(middle(seconds))
    return costs


def report(args: argparse.Namespace, origin: str, batched: Sequence[Rollouts], single: Sequence[Rollouts]) -> Report:
    import torch

    equal = batched[-1].texts == single[-1].texts
    apart = max(float((a - b).abs().max()) for a, b in zip(batched[-1].images, single[-1].images, strict=True))
    rows, seconds = [], {}
    for stage in (*STAGES, "all"):
        names = STAGES if stage == "all" else (stage,)
        both = [middle([sum(r.seconds[n] for n in names) for r in turns]) for turns in (batched, single)]
        seconds[stage] = both
        rows.append([stage, *(f"{s:.3f}" for s in both), f"{both[1] / both[0]:.1f}x"])
    ratio = seconds["all"][1] / seconds["all"][0]
    return Report(
        title=f"A group of {args.group} rollouts of the embedded model, {origin}",
        columns=["stage", "batched s", "one by one s", "ratio"],
        rows=rows,
        notes=[
            f"Medians of {args.repeat} turns, {torch.get_num_threads()} threads. Texts "
            f"{'equal' if equal else 'NOT equal'}, images differ by {apart:.1e} at most.",
            f"Goal: {GOAL:.0f}x or more: {'reached' if ratio >= GOAL else 'NOT reached'}.",
        ],
        numbers={"ratio": ratio, "goal": GOAL, "seconds": seconds, "texts_equal": equal, "largest_difference": apart},
    )


def prefill_report(costs: dict[str, list[float]]) -> Report:
    return Report(
        title="Encoding what a group shares, ms by the group's size",
        columns=["context", *map(str, GROUPS)],
        rows=[[name, *(f"{1000 * s:.1f}" for s in seconds)] for name, seconds in costs.items()],
        numbers={},
    )


if __name__ == "__main__":
    main()
