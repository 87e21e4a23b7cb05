"""From scores to a loss: gain, reward, advantage, clipped loss. Pure functions."""

from r3_rl.algorithm.advantage import Advantages, advantages
from r3_rl.algorithm.gain import GAINS, Gains, gains, text_reward
from r3_rl.algorithm.loss import LossStatistics, PolicyLoss, k3, policy_loss
from r3_rl.algorithm.surrogates import LossInputs, LossOutputs

__all__ = [
    "GAINS",
    "Advantages",
    "Gains",
    "LossInputs",
    "LossOutputs",
    "LossStatistics",
    "PolicyLoss",
    "advantages",
    "gains",
    "k3",
    "policy_loss",
    "text_reward",
]
