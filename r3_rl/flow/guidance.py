"""Classifier-free guidance: up to three velocities of one state become one.

Rollout and loss both call `combine`, so that a sample drawn with guidance is scored with the same guidance: only then
is the importance ratio of the sampling policy 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import torch

from r3_rl.errors import InputError
from r3_rl.recipe.base import default
from r3_rl.recipe.drawing import GuidanceSection

RENORMS = ("global", "channel", "text_channel")
_NORM_FLOOR = 1e-8


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly a drawing is pulled towards its text and its image.

    >>> Guidance(text=4.0).needs_text_drop, Guidance(image=1.5).needs_image_drop
    (True, False)
    """

    text: float = default(GuidanceSection, "text")
    """Text scale a; 1 or less switches guidance off altogether, the image scale included."""
    image: float = default(GuidanceSection, "image")
    """Image scale b; above 1 it adds a pull away from the image-dropped velocity."""
    interval: tuple[float, float] = default(GuidanceSection, "interval")
    """Guidance acts while low < t <= high."""
    renorm: Literal["global", "channel", "text_channel"] = default(GuidanceSection, "renorm")
    """What keeps the length of the plain velocity: the image as a whole, each token, or each token after the text
    pull only."""
    renorm_min: float = default(GuidanceSection, "renorm_min")
    """Lower bound of the length factor, 0 .. 1; 1 switches renormalisation off."""

    def __post_init__(self) -> None:
        if self.renorm not in RENORMS:
            raise InputError(f"unknown renorm {self.renorm!r}", hint=f"choose one of {', '.join(RENORMS)}")
        if not 0 <= self.renorm_min <= 1:
            raise InputError(f"renorm_min {self.renorm_min} is outside 0 .. 1")
        if not self.interval[0] <= self.interval[1]:
            raise InputError(f"guidance interval {self.interval} runs backwards", hint="give it as (low, high)")

    @property
    def needs_text_drop(self) -> bool:
        """Whether the velocity without the text is needed at all."""
        return self.text > 1

    @property
    def needs_image_drop(self) -> bool:
        """Whether the velocity without the image is needed at all."""
        return self.text > 1 and self.image > 1

    @overload
    def active(self, time: float) -> bool: ...
    @overload
    def active(self, time: torch.Tensor) -> torch.Tensor: ...
    def active(self, time: float | torch.Tensor) -> bool | torch.Tensor:
        """Tell where guidance acts: a > 1 and low < t <= high; a bool for a number, bool [...] for a tensor.

        >>> Guidance(text=4.0).active(0.4), Guidance(text=4.0).active(1.0), Guidance().active(1.0)
        (False, True, False)
        """
        low, high = self.interval
        if isinstance(time, torch.Tensor):
            return (time > low) & (time <= high) & self.needs_text_drop
        return self.needs_text_drop and low < time <= high


def combine(
    guidance: Guidance,
    time: torch.Tensor,
    velocity: torch.Tensor,
    velocity_text_dropped: torch.Tensor | None = None,
    velocity_image_dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """Merge the velocities of the full, the text-dropped and the image-dropped context.

    u = v_text + a (v - v_text)
    text_channel:      u <- f(u);   then if b > 1: u <- v_image + b (u - v_image)
    global, channel:   if b > 1: u <- v_image + b (u - v_image);   then u <- f(u)
    f(u) = u clamp(|v| / (|u| + 1e-8), renorm_min, 1), norms over the image (global) or over each token's channels

    Rows where guidance does not act (a <= 1, or t outside the interval) keep v, even when b > 1.

    Args:
        guidance: scales, interval and renormalisation.
        time: [...], t of each image, as it stands in the schedule (after shifting).
        velocity: [..., N, C], full context.
        velocity_text_dropped: [..., N, C], text dropped; may be None when no row is active.
        velocity_image_dropped: [..., N, C], image dropped; may be None when b <= 1 or no row is active. For a
            context without an image it equals `velocity`.

    Returns:
        float32 [..., N, C]. Norms are taken per image, never over the batch.

    Raises:
        InputError: a dropped velocity that an active row needs is missing.

    Source: BAGEL (cfg_renorm_type); Lin et al., "Common diffusion noise schedules", for the renormalisation.

    >>> v, dropped = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 0.0]]])
    >>> combine(Guidance(text=2.0, renorm_min=1.0), torch.tensor([1.0]), v, dropped)
    tensor([[[3., 8.]]])
    >>> combine(Guidance(text=2.0), torch.tensor([0.3]), v, dropped)
    tensor([[[3., 4.]]])
    """
    plain = velocity.float()
    active = guidance.active(torch.as_tensor(time, device=velocity.device))
    missing = velocity_text_dropped is None or (guidance.needs_image_drop and velocity_image_dropped is None)
    if not guidance.needs_text_drop or (missing and not bool(active.any())):
        return plain
    if velocity_text_dropped is None or missing:
        raise InputError(
            "guidance is on but a dropped velocity is missing",
            hint="pass what needs_text_drop and needs_image_drop ask for",
        )
    dropped = velocity_text_dropped.float()
    guided = dropped + guidance.text * (plain - dropped)
    if guidance.renorm == "text_channel":
        guided = _pull_from_image(guidance, _keep_length(guidance, guided, plain), velocity_image_dropped)
    else:
        guided = _keep_length(guidance, _pull_from_image(guidance, guided, velocity_image_dropped), plain)
    return torch.where(active[..., None, None], guided, plain)


def _pull_from_image(guidance: Guidance, guided: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    if not guidance.needs_image_drop:
        return guided
    assert dropped is not None
    return dropped.float() + guidance.image * (guided - dropped.float())


def _keep_length(guidance: Guidance, guided: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    dims = (-2, -1) if guidance.renorm == "global" else (-1,)
    length = torch.linalg.vector_norm(plain, dim=dims, keepdim=True)
    guided_length = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
    return guided * (length / (guided_length + _NORM_FLOOR)).clamp(guidance.renorm_min, 1.0)
