"""What a server does with a request, in a thread of the request: the refiner's loop, an edit, an answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from r3_rl.errors import InputError
from r3_rl.evaluate.loading import Loaded
from r3_rl.evaluate.refiner import Refiner, RefinerOutput
from r3_rl.policy.base import Heard, Sampling
from r3_rl.rollout.rows import row_seeds
from r3_rl.serve.conversation import Answers, answer_of, context_of, most_tokens
from r3_rl.serve.images import png_base64, unpacked
from r3_rl.serve.limits import ServeLimits
from r3_rl.serve.requests import (
    Asked,
    BadField,
    ChatAsked,
    EditAsked,
    GenerationAsked,
    ImagesAsked,
    check_at_most,
    check_text,
)
from r3_rl.serve.worker import ModelWorker, WorkerClient
from r3_rl.stages import ANSWER

BASE = "base"
"""Name of the model without its adapter."""


@dataclass(frozen=True, kw_only=True)
class StudioSettings:
    """How a model is served."""

    adapter: str = "adapter"
    """Name of the model with its adapter, if it has one."""
    rounds: int = 2
    """Refinements at most where a request does not say."""
    limits: ServeLimits = field(default_factory=ServeLimits)


class Studio:
    """One model at work for many requests; each method runs in a thread of its request, and all share the worker.

    Args:
        loaded: the model, with its adapter if it has one.
        settings: names, rounds and limits.
    """

    def __init__(self, loaded: Loaded, settings: StudioSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        if settings.adapter == BASE:
            raise InputError(f"the adapter cannot be called '{BASE}'", hint="rename its folder")
        self.names = (settings.adapter, BASE) if loaded.adapted else (BASE,)
        """The models that may be asked for, the default first."""
        self.policy = loaded.policy
        self.worker = ModelWorker(loaded.policy, adapted=loaded.adapted, max_batch=self.limits.max_batch)
        self._refiner = Refiner(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)

    def client(self, asked: Asked) -> WorkerClient:
        """Return a place at the worker for a request. Raises `BadField` (404) for a model that is not served."""
        name = asked.model or self.names[0]
        if name not in self.names:
            raise BadField("model", f"no model is called '{name}'", status=404, hint=f"there are {self._listed}")
        return self.worker.client(base=name == BASE)

    def check_image_request(self, asked: ImagesAsked) -> None:
        """Raise `Refusal` for a request that is beyond the limits or asks for another size."""
        check_text("prompt", asked.prompt, most=self.limits.prompt_letters)
        check_at_most("n", asked.n, self.limits.n)
        height, width = self._refiner.loop.draft.drawing.size
        if asked.size not in ("auto", own := f"{width}x{height}"):
            raise BadField("size", f"this model draws {own}", hint=f"leave it out, or say '{own}'")
        if isinstance(asked, GenerationAsked):
            check_at_most("rounds", asked.rounds or 0, self.limits.rounds)
        if isinstance(asked, EditAsked) and asked.original_prompt is not None:
            check_text("original_prompt", asked.original_prompt, most=self.limits.prompt_letters)

    def generate(self, asked: GenerationAsked, client: WorkerClient) -> dict[str, Any]:
        """Run the loop; returns the body of the answer."""
        seed, rounds = _seed(asked), self.settings.rounds if asked.rounds is None else asked.rounds
        with client:
            output = self._refiner.with_policy(client)(
                [asked.prompt] * asked.n, num_rounds=rounds, seed=seed, temperature=asked.temperature
            )
        data = [_generated(output, number, asked.intermediate) for number in range(asked.n)]
        return self._images(asked, data, {"seed": seed, "rounds": rounds})

    def edit(self, asked: EditAsked, image: Image.Image, client: WorkerClient) -> dict[str, Any]:
        """Refine an image once; returns the body of the answer."""
        seed = _seed(asked)
        with client:
            drawn = self._refiner.with_policy(client).edit(
                unpacked(image), asked.prompt, prompt=asked.original_prompt, num_images=asked.n, seed=seed
            )
        return self._images(asked, [{"b64_json": png_base64(each)} for each in drawn], {"seed": seed})

    def chat(
        self,
        asked: ChatAsked,
        images: list[Image.Image],
        client: WorkerClient,
        heard: Sequence[Heard] | None = None,
    ) -> Answers:
        """Write the answers to a conversation. `heard`: who listens to each of them while it is written."""
        context = context_of(asked, images)
        self._refiner.check(
            [
                part.text
                for message in asked.messages
                for part in message.parts
                if part.type == "text" and part.text.strip()
            ]
        )
        sampling = Sampling(
            max_new_tokens=most_tokens(asked), temperature=asked.temperature, top_p=asked.top_p, task=ANSWER.name
        )
        with client:
            texts = client.write([context] * asked.n, sampling, row_seeds(_seed(asked), 0, asked.n), heard)
        written = sum(len(text.token_ids) for text in texts)
        return Answers(
            model=asked.model or self.names[0],
            answers=[answer_of(text) for text in texts],
            prompt_tokens=self.policy.num_tokens(texts[:1]) - len(texts[0].token_ids),
            completion_tokens=written,
        )

    def close(self) -> None:
        """End the worker; requests that wait are refused."""
        self.worker.close()

    @property
    def _listed(self) -> str:
        return ", ".join(f"'{name}'" for name in self.names)

    def _images(self, asked: ImagesAsked, data: list[dict[str, Any]], extension: dict[str, Any]) -> dict[str, Any]:
        model = asked.model or self.names[0]
        return {"created": int(time.time()), "data": data, "r3": {"model": model, **extension}}


def _generated(output: RefinerOutput, number: int, intermediate: bool) -> dict[str, Any]:
    """An image with its extension field: how it came about."""
    trajectory, images = output.trajectories[number], output.rounds[number]
    plan = trajectory.rounds[0].plan
    said: dict[str, Any] = {
        "plan": None if plan is None else plan.text,
        "critiques": output.critiques[number],
        "num_rounds": len(images) - 1,
        "stopped_after": output.stopped_after[number],
        "scores": None if output.scores is None else output.scores[number],
    }
    if intermediate:
        said["images"] = [{"b64_json": png_base64(image)} for image in images[:-1]]
    return {"b64_json": png_base64(images[-1]), "r3": said}


def _seed(asked: Asked) -> int:
    return secrets.randbelow(2**31) if asked.seed is None else asked.seed
