"""From scores to a loss: gain, reward, advantage, clipped loss. Pure functions."""

from r3_rl.algorithm.advantage import Advantages, advantages
from r3_rl.algorithm.gain import GAINS, Gains, gains
from r3_rl.algorithm.loss import LossStatistics, PolicyLoss, clipped_surrogate, image_loss, k3, text_loss
from r3_rl.algorithm.rewards import Format, text_reward

__all__ = [
    "GAINS",
    "Advantages",
    "Format",
    "Gains",
    "LossStatistics",
    "PolicyLoss",
    "advantages",
    "clipped_surrogate",
    "gains",
    "image_loss",
    "k3",
    "text_loss",
    "text_reward",
]
