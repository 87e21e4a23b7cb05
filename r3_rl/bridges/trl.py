"""Our scorers as reward functions of TRL's trainers.

TRL calls `reward(prompts=, completions=, completion_ids=, log_metric=, log_extra=, trainer_state=, environments=,
**columns)`. A scorer of ours wants the words of a conversation, pictures as uint8 [H, W, 3] and, group-wise, one group
at a time; it may be asynchronous, need more than a row has, or fail. The panel deals with all of that in a run of ours,
so it does here. This module imports neither torch nor TRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r3_rl.errors import InputError, ScorerError
from r3_rl.scoring.base import RunProgress, accepted_arguments, info_of
from r3_rl.scoring.batch import Image, ScoreBatch, applicable, call_parts
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.panel import MOST_FAILED, Panel, ScorerSpec
from r3_rl.scoring.registry import load_scorer, short_name
from r3_rl.types import Prompt, Verdict

_CACHED_SCORES = 10_000


def as_trl_reward(
    scorer: Any,
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    base_folder: str | Path = ".",
    num_generations: int | None = None,
    gain: bool = False,
    max_failed_fraction: float = MOST_FAILED,
    timeout_s: float = ScorerSpec.timeout_s,
) -> TRLReward:
    """Make any scorer a reward function for `trl.GRPOTrainer(reward_funcs=...)`.

    Pictures come from the rows' column `image`, or `images` with one picture a row, or from `DrawingEnvironment`: then
    the last picture that the rollout drew is scored.

    Args:
        scorer: a name as in a recipe (`shapes`, `package.module:name`, `./file.py:name`), or the scorer itself:
            function, asynchronous function, instance of a class, one on a server, group-wise.
        name: what TRL's metrics call it; by default the scorer's.
        params: of a scorer given by its name.
        base_folder: what `./file.py:name` is relative to.
        num_generations: peers of a group, GRPOConfig's; group-wise scorers need it.
        gain: reward = score of the last picture - score of the draft, in [low - high, high - low] of the scorer's
            range; needs rollouts that draw.
        max_failed_fraction: share of missing scores in one call above which the run stops, in [0, 1].
        timeout_s: seconds that one call of the scorer may take.

    Raises:
        InputError: wrong name or parameters, or arguments that contradict each other.

    >>> reward = as_trl_reward("length", params={"max_words": 4, "soft_words": 2})
    >>> reward(prompts=["p", "p"], completions=["one two", "one two three"])
    [1.0, 0.5]
    >>> reward.close()
    """
    if isinstance(scorer, str):
        name, params = name or short_name(scorer), dict(params or {})
        scorer = load_scorer(scorer, params, base_folder)
    elif params is not None:
        raise InputError("`params` belong to a scorer given by its name", hint="bind them with functools.partial")
    spec = ScorerSpec(name=name or _name_of(scorer), scorer=scorer, params=params, timeout_s=timeout_s)
    if info_of(scorer).group_wise and (num_generations is None or num_generations < 2):
        raise InputError(f"scorer '{spec.name}' compares peers", hint="give num_generations, 2 or more, of GRPOConfig")
    return TRLReward(spec, num_generations=num_generations, gain=gain, max_failed_fraction=max_failed_fraction)


class TRLReward:
    """A scorer as TRL calls it; made by `as_trl_reward`. A call raises `ScorerError` where a run of ours would stop.

    Missing stays missing: what fails or does not apply is None, which TRL leaves out of a group's statistics.
    """

    def __init__(
        self, spec: ScorerSpec, *, num_generations: int | None, gain: bool, max_failed_fraction: float
    ) -> None:
        self.__name__ = spec.name  # what TRL's metrics call it
        self.info = info_of(spec.scorer)
        self._spec, self._num_generations, self._gain = spec, num_generations, gain
        self._gives_words = "log_extra" in accepted_arguments(spec.scorer, {"log_extra": None})
        self._panel = Panel([spec], max_failed_fraction=max_failed_fraction, cache=ScoreCache(max_items=_CACHED_SCORES))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        environments: Sequence[Any] | None = None,
        log_metric: Any = None,
        log_extra: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one reward for each completion, None where there is none; the arguments are TRL's."""
        count = len(prompts)
        if (state := columns.pop("trainer_state", None)) is not None:
            self._panel.trainer_state = RunProgress(global_step=state.global_step, max_steps=state.max_steps)
        # TRL may hand over more some day: what has no entry for each sample is no column
        per_sample = {n: list(v) for n, v in columns.items() if isinstance(v, list | tuple) and len(v) == count}
        images = _row_images(per_sample, count)
        drafts: list[Image | None] | None = None
        critiques: list[str | None] | None = None
        if environments is not None:
            _refuse_broken(environments, self.__name__)
            prompts = [getattr(e, "prompt", p) for e, p in zip(environments, prompts, strict=True)]
            if all(hasattr(e, "pictures") for e in environments):
                images = [_pixels(e.pictures[-1]) for e in environments]
                drafts = [_pixels(e.pictures[-2]) if len(e.pictures) > 1 else None for e in environments]
                critiques = [e.instructions[-1] if e.instructions else None for e in environments]
        rows = [
            Prompt(text=_last_words(prompt), columns={n: _without_nulls(v[i]) for n, v in per_sample.items()})
            for i, prompt in enumerate(prompts)
        ]
        batch = ScoreBatch(
            prompts=rows,
            images=images,
            texts=[_said(completion) for completion in completions],
            token_ids=completion_ids,
            draft_images=drafts,
            critiques=critiques,
            groups=self._groups(rows) if self.info.group_wise else None,
        )
        verdicts = self._ask(batch)
        rewards = [verdict.total for verdict in verdicts]
        if self._gain:
            before = [verdict.total for verdict in self._ask(self._drafts(batch, environments))]
            rewards = [None if a is None or b is None else a - b for a, b in zip(rewards, before, strict=True)]
        self._log(self._panel.metrics() if self._num_applicable(batch) else {}, verdicts, log_metric, log_extra)
        return rewards

    def close(self) -> None:
        """End the scorer's threads; they end with the process too."""
        self._panel.close()

    def _ask(self, batch: ScoreBatch) -> list[Verdict]:
        known = {"prompts", "completions", *call_parts(batch, self.info, self._panel.trainer_state).samples}
        lacking = [name for name in self.info.needs if name not in known]
        if lacking:
            there = ", ".join(sorted(known))
            raise ScorerError(
                f"scorer '{self.__name__}' needs {', '.join(lacking)}, and the rows have only {there}",
                hint="add the column, or an environment that draws, to the trainer",
            )
        if not self._num_applicable(batch):  # rows of another task: None for all of them is TRL's way to say so
            return [Verdict(total=None, scores={self.__name__: None})] * batch.count
        return self._panel.score(batch)

    def _num_applicable(self, batch: ScoreBatch) -> int:
        return len(applicable(batch, call_parts(batch, self.info, self._panel.trainer_state), self.info))

    def _drafts(self, batch: ScoreBatch, environments: Sequence[Any] | None) -> ScoreBatch:
        if environments is None or not all(hasattr(e, "pictures") for e in environments):
            raise ScorerError(f"'{self.__name__}': a gain needs rollouts that draw", hint="use DrawingEnvironment")
        return ScoreBatch(
            prompts=batch.prompts,
            images=[_pixels(e.pictures[0]) for e in environments],
            texts=batch.texts,
            token_ids=batch.token_ids,
            groups=batch.groups,
        )

    def _groups(self, rows: Sequence[Prompt]) -> list[int]:
        size = self._num_generations
        assert size is not None, "as_trl_reward has asked for it"
        groups = [i // size for i in range(len(rows))]
        whole = len(rows) % size == 0
        if not whole or any(row.text != rows[group * size].text for row, group in zip(rows, groups, strict=True)):
            raise ScorerError(
                f"'{self.__name__}' compares groups of {size}, and this call of {len(rows)} completions cuts one apart",
                hint="make per_device_train_batch_size * gradient_accumulation_steps a multiple of num_generations",
            )
        return groups

    def _log(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict], log_metric: Any, log_extra: Any) -> None:
        prefix = f"rewards/{self.__name__}/"
        if log_metric is not None:
            for key, value in metrics.items():
                if key.startswith(prefix) and key.removeprefix(prefix) not in ("mean", "std"):  # these TRL logs itself
                    log_metric(key, value)
        if log_extra is not None and self._gives_words:
            log_extra(f"{self.__name__}/reason", [verdict.words for verdict in verdicts])


def _name_of(scorer: Any) -> str:
    inner = getattr(scorer, "func", scorer)  # a partial
    return str(getattr(inner, "__name__", type(inner).__name__))


def _refuse_broken(environments: Sequence[Any], name: str) -> None:
    # TRL tells the model of every error in a tool and goes on; a painter that is broken is not the model's fault.
    for environment in environments:
        error = getattr(environment, "failure", None)
        if error is not None:
            raise ScorerError(f"'{name}': no picture to score: {type(error).__name__}: {error}") from error


def _last_words(prompt: Any) -> str:
    """The text of a prompt, or of the last user message of a conversation."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message["role"] == "user"]
    return _content(asked[-1]) if asked else ""


def _said(completion: Any) -> str:
    """What the model said; between calls of tools, line by line."""
    if isinstance(completion, str):
        return completion
    said = [_content(message) for message in completion if message["role"] == "assistant"]
    return "\n".join(text for text in said if text)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block.get("type") == "text")


def _without_nulls(value: Any) -> Any:
    """Take out the fields that Arrow puts into every struct of a column because one of them has it."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _row_images(per_sample: dict[str, list[Any]], count: int) -> list[Image | None] | None:
    """Take the pictures out of the columns."""
    single, several = per_sample.pop("image", None), per_sample.pop("images", None)
    if single is not None:
        return [None if picture is None else _pixels(picture) for picture in single]
    if several is None:
        return None
    pictures: list[Image | None] = []
    for index, found in enumerate(several):
        listed = list(found) if isinstance(found, list | tuple) else [found]
        if len(listed) > 1:
            raise ScorerError(f"sample {index} of {count} has {len(listed)} images", hint="a scorer judges one picture")
        pictures.append(_pixels(listed[0]) if listed and listed[0] is not None else None)
    return pictures


def _pixels(picture: Any) -> Image:
    """uint8 [H, W, 3] of a PIL image or of such an array."""
    if hasattr(picture, "convert"):
        picture = picture.convert("RGB")
    return np.ascontiguousarray(np.asarray(picture))
