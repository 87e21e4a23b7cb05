"""What is minimised for each sampled token or denoising step: the clipped surrogate and its relatives.

A loss of your own is a function of this form: `algorithm.text_loss: ./my_loss.py:my_loss` in a recipe, or an entry
point under `r3_rl.losses`. The KL term, the sum over elements and the normaliser are added around it (`loss.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from r3_rl.errors import InputError
from r3_rl.recipe.base import default
from r3_rl.recipe.learning import AlgorithmSection


@dataclass(frozen=True, kw_only=True, eq=False)
class LossInputs:
    """The M elements of a micro-batch: tokens of all its texts in a row, or scored steps of all its images."""

    log_probs: torch.Tensor
    """[M], under the current weights and the distribution that was sampled from, with gradient."""
    old_log_probs: torch.Tensor
    """[M], as recorded at sampling."""
    advantages: torch.Tensor
    """[M], each text's or image's advantage repeated over its elements."""
    owner: torch.Tensor
    """int64 [M], the number of the text or image that an element belongs to: 0, 1, ... within the micro-batch."""
    epsilon: float = default(AlgorithmSection, "epsilon")
    """Clip range below 1, in [0, 1]."""
    epsilon_high: float | None = default(AlgorithmSection, "epsilon_high")
    """Clip range above 1, 0 or more; None takes `epsilon`."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """The smallest and the largest ratio that still has its effect. Raises InputError for a senseless range."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if not 0 <= self.epsilon <= 1 or not high >= 0:
            raise InputError(
                f"clip range {self.epsilon}, {high} is not valid", hint="0 <= epsilon <= 1 and epsilon_high >= 0"
            )
        return 1 - self.epsilon, 1 + high


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutputs:
    """What a loss gives."""

    values: torch.Tensor
    """[M], with gradient: they are summed up and divided by the elements of the whole step."""
    ratio: torch.Tensor
    """[M], what was compared with the clip range; only counted."""


Surrogate = Callable[[LossInputs], LossOutputs]


def clip(inputs: LossInputs) -> LossOutputs:
    """Clip each element's own importance ratio.

    l = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A),   rho = exp(log_prob - old_log_prob)

    Source: PPO (arXiv 1707.06347), equation 7; DAPO (arXiv 2503.14476), section 3.1, for the separate upper range.

    >>> zeros, ones, owner = torch.zeros(2), torch.ones(2), torch.zeros(2, dtype=torch.int64)
    >>> clip(LossInputs(log_probs=torch.tensor([0.0, 1.0]), old_log_probs=zeros, advantages=ones, owner=owner)).values
    tensor([-1.0000, -1.2000])
    """
    low, high = inputs.clip_range
    ratio = torch.exp(inputs.log_probs - inputs.old_log_probs)
    clipped = ratio.clamp(low, high) * inputs.advantages
    return LossOutputs(values=-torch.minimum(ratio * inputs.advantages, clipped), ratio=ratio.detach())


def gspo(inputs: LossInputs) -> LossOutputs:
    """Clip the ratio of the whole text or image: the geometric mean of its elements' ratios.

    l = -min(s A, clip(s, 1 - epsilon, 1 + epsilon_high) A),   s = exp(mean(log_prob - old_log_prob))

    Every element of a text has the text's value, so a text weighs by its length, as with TRL's
    `importance_sampling_level: sequence` and a mean over tokens. Sensible ranges are far narrower than for `clip`: the
    paper's are 3e-4 and 4e-4.

    Source: GSPO (arXiv 2507.18071), equations 5 to 7.

    >>> new, old, owner = torch.tensor([0.2, 0.0, 0.0]), torch.zeros(3), torch.tensor([0, 0, 1])
    >>> gspo(LossInputs(log_probs=new, old_log_probs=old, advantages=torch.ones(3), owner=owner)).ratio
    tensor([1.1052, 1.1052, 1.0000])
    """
    low, high = inputs.clip_range
    gap, owner = inputs.log_probs - inputs.old_log_probs, inputs.owner
    num = int(owner.max()) + 1 if len(owner) else 0
    sums = gap.new_zeros(num).index_add(0, owner, gap)
    ratio = torch.exp(sums / torch.bincount(owner, minlength=num)).index_select(0, owner)
    clipped = ratio.clamp(low, high) * inputs.advantages
    return LossOutputs(values=-torch.minimum(ratio * inputs.advantages, clipped), ratio=ratio.detach())


def cispo(inputs: LossInputs) -> LossOutputs:
    """Bound the weight of an element instead of dropping it: whatever its ratio, it keeps a gradient.

    l = -stop_gradient(min(rho, 1 + epsilon_high)) A log_prob

    The lower range is not used, as in the paper's experiments.

    Source: MiniMax-M1 (arXiv 2506.13585), equation 4.

    >>> new, zeros, owner = torch.tensor([0.5, 0.5]), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    >>> cispo(LossInputs(log_probs=new, old_log_probs=zeros, advantages=torch.ones(2), owner=owner)).values
    tensor([-0.6000, -0.6000])
    """
    _, high = inputs.clip_range
    ratio = torch.exp(inputs.log_probs - inputs.old_log_probs).detach()
    return LossOutputs(values=-ratio.clamp(max=high) * inputs.advantages * inputs.log_probs, ratio=ratio)
