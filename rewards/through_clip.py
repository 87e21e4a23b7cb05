"""What the scorers that look through CLIP share: their parameters, and the packages that read the weights.

No annotation here is a string: what a recipe gives is checked against them from the modules that inherit them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from r3_rl.rewards.clip_towers import INSTALL, Dtype, load_towers, read_by_open_clip
from r3_rl.rewards.unit_scale import UnitScale
from r3_rl.scoring.base import ScorerInfo


@dataclass(kw_only=True, eq=False)
class ThroughClip:
    """Parameters of a scorer through CLIP; its towers and scale are there when it is built.

    A scorer inherits it as a dataclass of the same kind, changes defaults, adds fields and says in `tower_options` what
    else `load_towers` is to know. Raises `CheckpointError`, `MissingPackageError` or `InputError` when built.
    """

    figure: ClassVar[str]
    """What the authors call the published number."""
    info: ClassVar[ScorerInfo]

    weights: str
    """A hub id, a folder, or open_clip's `name:tag` (see `clip_towers`)."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty is the newest."""
    device: str = "auto"
    """`auto` takes an accelerator where there is one."""
    dtype: Dtype = "float32"
    """Of the weights and of what goes through them."""
    batch_size: int = 16
    """Images or texts that go through a tower together."""
    low: float = 0.0
    """Published figure that scores 0."""
    high: float = 100.0
    """Published figure that scores 1."""

    def __post_init__(self) -> None:
        self._scale = UnitScale(name=self.figure, low=self.low, high=self.high)
        self._towers = load_towers(
            self.weights,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            **self.tower_options(),
        )

    def tower_options(self) -> dict[str, Any]:
        """Further keywords of `load_towers`."""
        return {}

    @classmethod
    def info_for(cls, params: Mapping[str, Any]) -> ScorerInfo:
        """What it declares with these parameters: the weights say which package reads them."""
        weights = params.get("weights", getattr(cls, "weights", ""))
        reader = ("torchvision", "open_clip") if read_by_open_clip(weights) else ("transformers",)
        return replace(cls.info, packages=("torch", "safetensors", *reader), install=INSTALL)
