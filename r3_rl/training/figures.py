"""Numbers of a step's rollouts: what they are means over, and what a critic and a trajectory came to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from r3_rl.nodes import Node
from r3_rl.observe.metrics import Numbers
from r3_rl.types import Trajectory


def means(items: Mapping[str, torch.Tensor]) -> Numbers:
    """The mean of every tensor over its items; nan is missing, and a mean of nothing is left out.

    >>> means({"reward": torch.tensor([0.5, math.nan, 1.0]), "kl": torch.tensor([])})
    Numbers({'reward': 0.75}, {'reward': 2.0})
    """
    present = {name: values[~values.isnan()] for name, values in items.items()}
    return Numbers(
        {name: values.float().mean() for name, values in present.items() if len(values)},
        {name: len(values) for name, values in present.items()},
    )


def tensor(values: Sequence[float | None]) -> torch.Tensor:
    """Scores as float32 [R]; nan where one is missing."""
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float32)


def scores(images: Sequence[Node]) -> torch.Tensor:
    """The panel's totals of images, float32 [R]; nan where one is missing."""
    return tensor([image.score for image in images])


def draft_scores(drafts: Sequence[Node]) -> dict[str, torch.Tensor]:
    """The scores of the drafts, whatever is trained on them: a gain is to be read next to their mean."""
    return {"refine/draft_score": scores(drafts)}


def of_critiques(critiques: Sequence[Node]) -> dict[str, torch.Tensor]:
    """How critiques decided: whether each wrong image is to be edited, and whether each right one is left alone.

    Args:
        critiques: one a rollout; those of one image in any order.
    """
    right = torch.tensor([node.above.perfect for node in critiques], dtype=torch.bool)
    stopped = torch.tensor([node.said.stop for node in critiques], dtype=torch.bool)
    edits = torch.tensor([bool(node.said.instruction) for node in critiques], dtype=torch.bool)
    return {
        "refine/frac_well_formed": torch.tensor([node.well_formed for node in critiques], dtype=torch.bool),
        "refine/frac_stopped": stopped,
        "refine/frac_wrong_edited": edits[~right],
        "refine/frac_right_kept": stopped[right],
    }


def whole_trajectories(trajectories: Sequence[Trajectory]) -> dict[str, torch.Tensor]:
    """From the draft to the last image drawn, however many rounds lie between; a missing score is missing."""
    first = tensor([t.rounds[0].verdict.total if t.rounds[0].verdict else None for t in trajectories])
    last = tensor([t.final.verdict.total if t.final.verdict else None for t in trajectories])
    gain = (last - first)[~(last - first).isnan()]
    return {
        "refine/gain_mean": gain,
        "refine/final_score": last,
        "refine/frac_improved": gain > 0,
        "refine/frac_regressed": gain < 0,
    }
