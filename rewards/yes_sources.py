"""Where the probability of "yes" comes from: a judge's log-probs, or a vision-language model loaded here."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from r3_rl.errors import InputError, MissingPackageError
from r3_rl.rewards.hub_files import hub_folder
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.judge_settings import JudgeSettings

Dtype = Literal["float32", "bfloat16", "float16"]
LogMetric = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a picture, to be answered by yes or no."""

    image: Any
    """uint8 [H, W, 3]."""
    question: str


@dataclass(frozen=True, kw_only=True)
class Chance:
    """How likely a model was to begin its answer with yes."""

    yes: float | None
    """0 to 1, None when the model says neither yes nor no."""
    cause: str = ""
    """Why there is none."""


class YesSource(Protocol):
    """Answers questions by a probability."""

    async def ask(self, asked: Sequence[Asked], log_metric: LogMetric | None = None) -> list[Chance]:
        """Return one chance for each question."""


def chance_of_yes(first: Iterable[tuple[str, float]], *, least_mass: float) -> Chance:
    """Return P(yes) of the likeliest first tokens, as pairs of token and probability.

    P(yes) and P(no) are the sums over all tokens that read so without blanks and capitals. Where the two together are
    below `least_mass` the model is not answering the question, and a small P(yes) would look like a clear no.

    >>> chance_of_yes([("Yes", 0.5), (" yes", 0.25), ("No", 0.125)], least_mass=0.5).yes
    0.75
    >>> chance_of_yes([("The", 0.9), ("Yes", 0.1)], least_mass=0.5).cause
    "the model answers neither yes nor no: its first token is 'The' (0.90)"
    """
    tokens = list(first)
    yes, no = (math.fsum(p for token, p in tokens if reads(token) == word) for word in ("yes", "no"))
    if not tokens or not yes + no >= least_mass:  # also when a probability is NaN
        token, likely = max(tokens, key=lambda pair: pair[1], default=("", 0.0))
        words = f"its first token is {token[:20]!r} ({likely:.2f})"
        return Chance(yes=None, cause=f"the model answers neither yes nor no: {words}")
    return Chance(yes=min(yes, 1.0))


def reads(token: str) -> str:
    """Return a token as it reads: in small letters, without blanks, quotes and marks around it.

    Some servers give the pieces of the vocabulary, in which `▁` or `Ġ` is a blank.

    >>> reads(" Yes"), reads("▁Yes"), reads("ĠYes"), reads('"Yes')
    ('yes', 'yes', 'yes', 'yes')
    """
    return token.strip(_AROUND).casefold()


_AROUND = " \t\r\n▁ĠĊ\"'`*_([.,:!"


class ServedYes:
    """Asks a judge for one token and the log-probs of its likeliest, 20 unless `top_logprobs` is lower.

    Tokens beyond those are taken as 0, which is wrong by less than what they leave of 1.
    """

    def __init__(self, judge: JudgeSettings, *, least_mass: float) -> None:
        from r3_rl.scoring.judge import Judge

        self.judge = Judge(judge)
        self._least_mass = least_mass

    async def ask(self, asked: Sequence[Asked], log_metric: LogMetric | None = None) -> list[Chance]:
        """Return one chance for each question."""
        from r3_rl.scoring.judge import Question

        questions = [Question(text=one.question, image=one.image, first_token=True) for one in asked]
        replies = await self.judge.ask(questions)
        if log_metric is not None:
            self.judge.log_usage(replies, len(asked), log_metric)
        return [
            Chance(yes=None, cause=reply.cause)
            if reply.first is None
            else chance_of_yes(((one.token, one.probability) for one in reply.first), least_mass=self._least_mass)
            for reply in replies
        ]


class LocalYes:
    """Runs a vision-language model of transformers, one question at a time.

    One at a time, since the rounding of a batch depends on what else is in it: so a picture has one score. `model` is a
    folder or a name on the Hugging Face hub; weights are read as safetensors only, and no code of the model's is run.
    """

    def __init__(
        self, model: str, *, revision: str | None, device: str | None, dtype: Dtype, least_mass: float
    ) -> None:
        try:
            import torch

            from r3_rl.torchvision_guard import guard

            guard()
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise MissingPackageError("a local model needs transformers", hint="pip install 'r3-rl[train]'") from error
        try:
            folder = hub_folder(model, revision)
            processor = AutoProcessor.from_pretrained(folder)
            network = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"model '{model}' cannot be loaded: {reason}", hint="name a folder or a hub id") from error
        if not getattr(processor, "chat_template", None):
            raise InputError(
                f"model '{model}' has no chat template", hint="use one that was tuned to follow instructions"
            )
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._processor: Any = processor
        self._network: Any = network.to(self._device).eval()
        self._words = _yes_no_tokens(processor.tokenizer)
        self._least_mass = least_mass
        self._alone = threading.Lock()  # two passes at once would need twice the memory

    async def ask(self, asked: Sequence[Asked], log_metric: LogMetric | None = None) -> list[Chance]:
        """Return one chance for each question."""
        import asyncio

        return await asyncio.to_thread(self._ask_all, asked)

    def _ask_all(self, asked: Sequence[Asked]) -> list[Chance]:
        with self._alone:
            return [self._ask(one) for one in asked]

    def _ask(self, asked: Asked) -> Chance:
        import torch
        from PIL import Image

        content = [
            {"type": "image", "image": Image.fromarray(asked.image)},
            {"type": "text", "text": asked.question},
        ]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._device, self._network.dtype)
        with torch.inference_mode():
            logits_V = self._network(**inputs).logits[0, -1].float()
        probabilities_V = torch.softmax(logits_V, dim=-1)
        likeliest = int(probabilities_V.argmax())
        wanted = {**self._words, likeliest: self._processor.tokenizer.decode([likeliest])}
        pairs = [(word, float(probabilities_V[token])) for token, word in wanted.items()]
        return chance_of_yes(pairs, least_mass=self._least_mass)


def _yes_no_tokens(tokenizer: Any) -> dict[int, str]:
    """Return every token that reads yes or no, by its number."""
    likely = [number for token, number in tokenizer.get_vocab().items() if token.casefold().endswith(("yes", "no"))]
    words = {number: tokenizer.decode([number]) for number in sorted(likely)}
    found = {number: word for number, word in words.items() if reads(word) in ("yes", "no")}
    if {reads(word) for word in found.values()} != {"yes", "no"}:
        raise InputError("the model's tokenizer has no single token for yes or none for no", hint="use another model")
    return found


def yes_source(
    *,
    judge: JudgeSettings | None,
    model: str | None,
    revision: str | None,
    device: str | None,
    dtype: Dtype,
    least_mass: float,
) -> YesSource:
    """Return the judge or the local model, whichever is named; raises InputError when it is both or neither."""
    problems = source_problems({"judge": judge, "model": model, "least_mass": least_mass})
    if problems:
        raise InputError("; ".join(problems))
    if judge is not None:
        return ServedYes(judge, least_mass=least_mass)
    assert model is not None
    return LocalYes(model, revision=revision, device=device, dtype=dtype, least_mass=least_mass)


def with_packages(info: ScorerInfo, params: Mapping[str, Any], *, served: bool = False) -> ScorerInfo:
    """Return `info` with the packages of the source: a local model's, a judge's, or both where one more is `served`."""
    local = params.get("model") is not None
    extras: dict[str, tuple[str, ...]] = {"train": ("torch", "transformers")} if local else {}
    extras |= {"judge": ("openai",)} if served or not local else {}
    packages = tuple(name for names in extras.values() for name in names)
    return replace(info, packages=packages, install=f"pip install 'r3-rl[{','.join(extras)}]'")


def source_problems(params: dict[str, Any]) -> list[str]:
    """Return what is wrong with the parameters of a source, one line each."""
    problems = []
    if (params.get("judge") is None) == (params.get("model") is None):
        problems.append("give either `judge`, a served model, or `model`, one that is loaded here")
    if not 0 < params.get("least_mass", 0.5) <= 1:
        problems.append(f"least_mass must lie above 0 and at most at 1, not {params['least_mass']}")
    return problems
