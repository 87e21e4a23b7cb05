"""Section `guards`: what a run looks for while it goes on, and what it does when it finds it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from r3_rl.recipe.base import Section

Action = Literal["warn", "stop", "off"]


def _guard(description: str, action: Action = "warn") -> Any:
    return Field(action, description=description)


class GuardsSection(Section):
    """What each guard does when it finds something; the guards themselves are in `r3_rl/observe/guards/`."""

    not_finite: Action = _guard("A logged number is not finite.")
    equal_noise: Action = _guard("Processes of one run draw the same noise.", "stop")
    dead_policy: Action = _guard("Every reward is 0, after some were not.", "stop")
    no_change: Action = _guard("Steps with a gradient leave the weights where they were.", "stop")
    drafts_get_worse: Action = _guard("The gain rises because drafts get worse.")
    draft_collapse: Action = _guard("The score of the drafts falls.")
    held_out_falls: Action = _guard("A held-out score falls while the training scores rise.")
    off_policy_ratio: Action = _guard("The importance ratio of a first pass is away from 1.")
    kl_runaway: Action = _guard("The policy is far from the reference (measured where a KL coefficient is above 0).")
    clip_pinned: Action = _guard("Most of what is learned from again is clipped (num_iterations above 1).")
    entropy_collapse: Action = _guard("Sampled texts have no entropy left.")
    malformed: Action = _guard("Most texts are malformed.")
    stop_rate: Action = _guard("Critiques end the loop always, or never.")
    missing_scores: Action = _guard("Scores are missing.")
    equal_groups: Action = _guard("Most groups have rewards that are all equal.")
    near_epsilon: Action = _guard("Gradients are near AdamW's epsilon.")
    memory_growth: Action = _guard("Memory grows step by step.")
