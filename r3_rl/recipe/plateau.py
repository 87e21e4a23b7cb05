"""Keys of progressive training that reinforcement learning and pretraining share: what ends the apart phase."""

from __future__ import annotations

from typing import Any

from pydantic import Field

PLATEAU_STEPS: Any = Field(
    None,
    ge=1,
    le=100_000,
    description="n: the apart phase also ends as soon as nothing gets better: the mean of the last n values of each "
    "kind of step is not above that of the n before. Null: it lasts its whole share.",
)
PLATEAU_GAIN: Any = Field(
    0.02, ge=0, le=1, description="What still counts as better for `plateau_steps`, as a share of the mean before."
)
RESTART_RATE: Any = Field(
    True, description="The learning rate's course begins anew, warm-up included, when the apart phase ends."
)
