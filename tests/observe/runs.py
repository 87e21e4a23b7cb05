"""A run folder as a run would leave it, made by the recorder from real tensors and real pictures."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from r3_rl.modalities import ImageSegment, TextSegment, still
from r3_rl.observe.environment import environment
from r3_rl.observe.recorder import Recorder, new_run_folder
from r3_rl.observe.statistics import mean_of, paired_difference, share, unpaired_difference
from r3_rl.types import Critique, Prompt, Round, Trajectory, Verdict

COLOURS = {"red": (222, 60, 50), "blue": (60, 110, 230), "green": (60, 190, 90), "yellow": (232, 205, 60)}
HOSTILE = "a <script>alert('prompt')</script> & \"circle\" left of a 'square'"
RECIPE = (
    "# An example\nversion: 1\nmodel: {kind: embedded}\n"
    "algorithm: {schedule: tree, gain: paper}\n"
    "rollout: {num_prompts: 8, branch: {plan: 8, draft: 1, critique: 8, refinement: 1}}\n"
)


def picture(colour: str, *, side: int = 32, shape: str = "ellipse") -> torch.Tensor:
    """float32 [3, side, side] in [0, 1]: one coloured shape on a dark ground."""
    image = Image.new("RGB", (side, side), (14, 14, 16))
    box = [side // 4, side // 4, side - side // 4, side - side // 4]
    getattr(ImageDraw.Draw(image), shape)(box, fill=COLOURS[colour])
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def text(words: str) -> TextSegment:
    return TextSegment(context=(), token_ids=(1, 2), log_probs=torch.zeros(2), text=words, ended=True)


def drawn(image: torch.Tensor) -> ImageSegment:
    return still(image)


def critique(words: str, *, stop: bool = False, instruction: str = "", well_formed: bool = True) -> Critique:
    return Critique(segment=text(words), well_formed=well_formed, stop=stop, instruction=instruction)


def trajectory(
    scores: list[float | None], *, prompt: str = "a red circle", tag: str = "single_object", side: int = 32
) -> Trajectory:
    """A draft and its refinements with these scores; it stops when the last image is right."""
    rounds = []
    names = list(COLOURS)
    for number, score in enumerate(scores):
        right = score == 1.0
        colour = "red" if right else names[1 + number % 3]
        verdict = Verdict(
            total=score,
            scores={"shapes": score, "sharpness": 0.5},
            words="right" if right else f"1 circle is {colour}, red was asked for",
        )
        wish = critique(
            f"{names[1 + (number - 1) % 3]} circle center\nedit", instruction="change the circle at center to red"
        )
        rounds.append(
            Round(
                image=drawn(picture(colour, side=side)),
                plan=text("red circle center") if number == 0 else None,
                critique=wish if number else None,
                verdict=verdict,
            )
        )
    stop = critique("red circle center\nno further edit needed", stop=True) if scores[-1] == 1.0 else None
    return Trajectory(prompt=Prompt(text=prompt, columns={"tag": tag}), rounds=tuple(rounds), last_critique=stop)


def step_metrics(step: int, total: int, noise: random.Random) -> dict[str, float]:
    done = step / total
    draft = 0.55 + 0.25 * (1 - math.exp(-3 * done)) + noise.gauss(0, 0.03)
    values = {
        "reward": draft + 0.05,
        "reward_std": 0.3 - 0.1 * done + noise.gauss(0, 0.02),
        "frac_reward_zero_std": min(1.0, max(0.0, 0.2 + 0.2 * done + noise.gauss(0, 0.06))),
        "rewards/shapes/mean": draft,
        "rewards/shapes_partial/mean": min(1.0, draft + 0.15),
        "eval_rewards/shapes_strict/mean": draft - 0.08 + noise.gauss(0, 0.02),
        "scores/missing_fraction": 0.02 if step == total // 2 else 0.0,
        "refine/draft_score": draft,
        "refine/gain_mean": 0.14 - 0.06 * done + noise.gauss(0, 0.02),
        "refine/frac_improved": 0.3 - 0.1 * done,
        "refine/frac_regressed": 0.06,
        "refine/frac_stopped": 0.5 + 0.2 * done + noise.gauss(0, 0.03),
        "kl": 0.002 * done + abs(noise.gauss(0, 2e-4)),
        "image/kl": 0.01 * done + abs(noise.gauss(0, 1e-3)),
        "ratio/text_deviation": abs(noise.gauss(0, 4e-6)),
        "ratio/image_deviation": abs(noise.gauss(0, 9e-6)),
        "grad/cosine": noise.gauss(0.1, 0.12),
        "grad_norm": 0.8 + abs(noise.gauss(0, 0.1)),
        "learning_rate": 1e-4,
        "loss": noise.gauss(0, 0.01),
        "time/draft_s": 0.21 + noise.gauss(0, 0.01),
        "time/critique_s": 0.24,
        "time/refine_s": 0.3,
        "time/score_s": 0.08,
        "time/update_s": 0.72,
        "time/step_s": 1.6 + noise.gauss(0, 0.05),
    }
    return values


CHANCES = {
    "draft": (0.55, 0.74), "round_1": (0.66, 0.8), "final": (0.7, 0.82), "draft/counting": (0.5, 0.66),
    "final/counting": (0.61, 0.76), "draft/color_attribution": (0.66, 0.84), "final/color_attribution": (0.8, 0.9),
    "questions": (0.78, 0.79), "wrong_drafts_edited": (0.84, 0.87), "wrong_drafts_repaired": (0.43, 0.55),
    "right_drafts_kept": (0.93, 0.92), "harder_draft": (0.42, 0.57), "harder_final": (0.52, 0.68),
}  # fmt: skip
NEW_CHANCES = {
    "draft_greedy": (0.91, 0.9), "draft_greedy/counting": (0.9, 0.93), "final_greedy": (0.95, 0.96),
    "ita_fixed": (0.8, 0.84), "ita_fixed_greedy": (0.85, 0.88), "ita_fixed_greedy/right": (0.82, 0.9),
    "questions_greedy": (0.79, 0.77), "draft_pass_8": (0.97, 0.99), "true_plan_drawn": (0.93, 0.94),
}  # fmt: skip
"""Not in the files of runs from before figures were measured in both decodings."""


def evaluation(num_prompts: int = 320, *, old: bool = False) -> dict[str, object]:
    """An `evaluation.json` whose figures come from answers, prompt by prompt. old: one of sampled texts only."""
    noise = random.Random(3)
    phases: dict[str, dict[str, object]] = {"before": {}, "after": {}}
    differences = {}
    for name, (low, high) in (CHANCES if old else {**CHANCES, **NEW_CHANCES}).items():
        before = [float(noise.random() < low) for _ in range(num_prompts)]
        after = [float(noise.random() < high) for _ in range(num_prompts)]
        phases["before"][name] = share(before).as_dict()
        phases["after"][name] = share(after).as_dict()
        differences[name] = paired_difference(before, after, num_resamples=400).as_dict()
    phases["after"]["swap_own_critic_edits"] = share([1.0] * 50 + [0.0] * 27).as_dict()
    phases["after"]["swap_base_critic_edits"] = share([1.0] * 48 + [0.0] * 29).as_dict()
    if not old:
        plans = [[noise.gauss(mean, 0.05) for _ in range(num_prompts)] for mean in (0.7, 0.2)]
        for phase, values in zip(phases.values(), plans, strict=True):
            phase["entropy_plan"] = mean_of(values, num_resamples=400).as_dict()
        differences["entropy_plan"] = paired_difference(*plans, num_resamples=400).as_dict()
        own = [[1.0] * 30 + [0.0] * 60, [1.0] * 20 + [0.0] * 15]
        for phase, values in zip(phases.values(), own, strict=True):
            phase["repair_round_1"] = share(values).as_dict()
        differences["repair_round_1"] = unpaired_difference(*own).as_dict()
    return {"phases": phases, "differences": differences}


def fill_run(base: Path, *, steps: int = 60) -> Path:
    """A finished run with a hostile prompt in it."""
    folder = new_run_folder(base, "shapes_r3")
    recorder = Recorder(folder, keep_trajectories=6)
    noise = random.Random(0)
    choices: list[list[float | None]] = [[0.3, 1.0], [0.3, 0.6, 1.0], [1.0], [0.0, 0.3, 0.3], [0.6, 0.3], [None]]
    prompts = ("a red circle", "two red circles and a blue square", HOSTILE)
    for step in range(1, steps + 1):
        recorder.metrics(step, step_metrics(step, steps, noise))
        if step % 10 == 0:
            rolled = [trajectory(noise.choice(choices), prompt=prompts[k % 3]) for k in range(9)]
            recorder.trajectories(step, rolled)
    evaluated = [f"{number} red circles" for number in ("two", "three", "four", "five", "six")] + [HOSTILE] * 3
    for phase, step in (("before", 0), ("after", steps)):
        rolled = [trajectory(noise.choice(choices), prompt=this, tag="counting") for this in evaluated]
        recorder.trajectories(step, rolled, phase=phase)
    recorder.document("recipe.yaml", RECIPE)
    recorder.document("recipe.resolved.yaml", RECIPE + "training: {max_steps: 60, seed: 0}\n")
    recorder.document("environment.json", environment(dtype="bfloat16"))
    recorder.document("evaluation.json", evaluation())
    recorder.document("summary.json", {"num_prompts": 320, "seeds": [0], "wall_s": 271.4, "draft_before": 0.55})
    return folder
