"""How likely is a vision-language model to say that a picture shows its prompt?

Source: VQAScore (arXiv 2404.01291), P("Yes" | picture, question); the question is our own by default and a parameter.
Range: 0 to 1. Weights: those of the model you name, under their licence (Qwen2.5-VL of 7B and 32B is Apache-2.0; 3B and
72B have licences of their own). Memory: 2 bytes a parameter in bfloat16 and what one picture takes, some 17 GB for 7B;
with `judge` none here.
Cannot judge: exact counts and layouts of long prompts, where one probability mixes everything (`decomposed` asks for
one thing at a time); beauty. It is not calibrated: 0.5 is no coin toss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r3_rl.errors import InputError
from r3_rl.rewards.yes_sources import Asked, Dtype, source_problems, with_packages, yes_source
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.judge_settings import JudgeSettings

QUESTION = 'Does this picture show "{prompt}"? Answer with yes or no only.'


class PYes:
    """Scores P(yes) of the answer's first token, summed over all tokens that read "yes": score = P(yes).

    Give `judge` (a server with log-probs) or `model` (a folder or hub id, loaded here; `revision`, `device`, `dtype`).
    `{prompt}` in `question` becomes the prompt. Where P(yes) + P(no) is below `least_mass`, the model has not answered
    and the sample has no score. A local model scores the same picture the same on one machine; a server may differ in
    the last digits by what else it computes, and the first score is the one that is kept.
    """

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        version="2",  # quotes and marks around yes and no are left out
        deterministic=True,
        weights_licence="the named model's",
        memory="2 bytes a parameter, or none here with a judge",
    )

    def __init__(
        self,
        *,
        judge: JudgeSettings | None = None,
        model: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: Dtype = "bfloat16",
        question: str = QUESTION,
        least_mass: float = 0.5,
    ) -> None:
        if "{prompt}" not in question:
            raise InputError(_NO_PROMPT)
        self.source = yes_source(
            judge=judge, model=model, revision=revision, device=device, dtype=dtype, least_mass=least_mass
        )
        self._question = question

    @classmethod
    def info_for(cls, params: Mapping[str, Any]) -> ScorerInfo:
        """What it declares with these parameters."""
        return with_packages(cls.info, params)

    @staticmethod
    def check_params(params: dict[str, Any]) -> list[str]:
        """Return what is wrong with the parameters together, one line each."""
        return source_problems(params) + ([] if "{prompt}" in params.get("question", QUESTION) else [_NO_PROMPT])

    async def __call__(
        self,
        prompts: Sequence[str],
        images: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
    ) -> list[float | None]:
        """Score images, uint8 [H, W, 3], against their prompts."""
        asked = [
            Asked(image=image, question=self._question.replace("{prompt}", prompt))
            for prompt, image in zip(prompts, images, strict=True)
        ]
        chances = await self.source.ask(asked, log_metric)
        if log_extra is not None:
            log_extra("cause", [chance.cause for chance in chances])
        return [chance.yes for chance in chances]


_NO_PROMPT = "question must hold {prompt}, which becomes the prompt of each picture"
