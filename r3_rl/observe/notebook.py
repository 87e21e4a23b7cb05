"""Trajectories as a piece of HTML that a notebook shows: images with scores, and the words in between.

It holds everything it needs, images included, and neither scripts nor addresses.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from r3_rl.observe.markup import Html, element
from r3_rl.observe.strip import enlarge, round_name
from r3_rl.observe.trajectories import SeenRound, SeenTrajectory, see
from r3_rl.types import Trajectory

_SIDE_PX = 176
_MOST = 16
"""Trajectories that are shown: a notebook keeps what it shows in its file."""
_ROW = "display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start;margin:4px 0 16px"
_CELL = f"margin:0;width:{_SIDE_PX}px;font-size:12px;line-height:1.4;overflow-wrap:anywhere"


def notebook_html(trajectories: Sequence[Trajectory]) -> str:
    """Return the HTML of trajectories, one row each: draft, critique, refinement, and so on. All texts are escaped.

    Args:
        trajectories: of the loop; the first 16 are shown, and the number of the others is said.

    >>> notebook_html([])
    '<div></div>'
    """
    rows = [_row(see(trajectory)) for trajectory in trajectories[:_MOST]]
    left = len(trajectories) - len(rows)
    return str(element("div", rows, element("p", f"and {left} more") if left else None))


def _row(seen: SeenTrajectory) -> Html:
    plan = seen.rounds[0].plan
    return element(
        "section",
        element("strong", seen.prompt),
        element("div", f"plan: {plan}", style="font-size:12px") if plan else None,
        element("div", [_round(this, number) for number, this in enumerate(seen.rounds)], style=_ROW),
    )


def _round(this: SeenRound, number: int) -> list[Html]:
    assert this.pixels is not None, "a trajectory in memory has its images"
    file = io.BytesIO()
    # small images are enlarged here, since a browser would smooth them
    enlarge(this.pixels, max(_SIDE_PX, *this.pixels.shape[:2])).save(file, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    name = round_name(number)
    shown = element(
        "figure",
        element("img", src=source, alt=name, style="width:100%;display:block"),
        element("figcaption", name, _scores(this), f" ({this.words})" if this.words else None),
        style=_CELL,
    )
    said = element("div", element("em", "critique"), element("br"), this.critique, style=_CELL)
    return [shown] if this.critique is None else [shown, said]


def _scores(this: SeenRound) -> str:
    """The score of an image; of several scorers each, since their sum means little to a reader."""
    if len(this.scores) > 1:
        said = [
            f"{name} {'no score' if score is None else format(score, '.4g')}" for name, score in this.scores.items()
        ]
        return f": {', '.join(said)}"
    return "" if this.score is None else f": score {this.score:.4g}"
