"""Flow matching: schedule, stochastic steps, which steps are stochastic, guidance. Pure functions."""

from r3_rl.flow.conventions import CONVENTIONS, StepDistribution, can_be_stochastic
from r3_rl.flow.guidance import Guidance, combine
from r3_rl.flow.schedule import WINDOWS, choose_steps, shifted_schedule
from r3_rl.flow.sde import euler_step, kl_mean, kl_velocity, log_prob, sample, stochastic_step

__all__ = [
    "CONVENTIONS",
    "WINDOWS",
    "Guidance",
    "StepDistribution",
    "can_be_stochastic",
    "choose_steps",
    "combine",
    "euler_step",
    "kl_mean",
    "kl_velocity",
    "log_prob",
    "sample",
    "shifted_schedule",
    "stochastic_step",
]
