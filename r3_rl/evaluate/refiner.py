"""The loop as a pipeline: prompts in, pictures out, with every draft and critique on the way."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer

from r3_rl.errors import InputError
from r3_rl.evaluate.loading import load
from r3_rl.nodes import given_critique, given_image, image_roots
from r3_rl.observe.notebook import notebook_html
from r3_rl.observe.strip import round_name, strip
from r3_rl.observe.trajectories import to_pixels
from r3_rl.pixels import from_picture
from r3_rl.policy.base import Sampler
from r3_rl.policy.words import said_unknown
from r3_rl.rollout.engine import Engine, Submit
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt, Trajectory, Verdict
from r3_rl.worlds.base import world_speaking
from r3_rl.worlds.sets import verdicts

MAX_ROUNDS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class RefinerOutput:
    """What the loop made of each prompt, in the order of the prompts."""

    images: list[Image.Image]
    """The last image of each prompt, RGB."""
    rounds: list[list[Image.Image]]
    """Every image of a prompt: the draft, then a refinement a round."""
    critiques: list[list[str]]
    """What was said about each image, as written; one fewer than images where the rounds ran out."""
    scores: list[list[float] | None] | None
    """1 or 0 for each image where its world can be inspected exactly: None for a prompt that the world cannot read,
    and None in all for a model of no such world."""
    stopped_after: list[int | None]
    """Rounds after which the critique asked for no further edit; None where they ran out or it was malformed."""
    trajectories: list[Trajectory] = field(repr=False)
    """Everything, for `r3_rl.observe.strip` and for scorers."""

    def _repr_html_(self) -> str:
        """What a notebook shows: every image and critique, in HTML that needs nothing else."""
        return notebook_html(self.trajectories)


class Refiner:
    """Draws, looks and draws again with one policy, called like a diffusers pipeline.

        pipe = Refiner.from_pretrained(adapter="runs/demo/adapter")
        pipe("two red circles and a cross", num_rounds=2, seed=0).images[0].save("final.png")

    Args:
        policy: any backbone.
        loop: how it writes and draws; stochastic steps and temperatures of training are not used.
        tokenizer: tells which words of a prompt the policy does not know; None lets every word pass.
    """

    def __init__(self, policy: Sampler, loop: LoopSettings, *, tokenizer: Tokenizer | None = None) -> None:
        self.policy, self.loop, self.tokenizer = policy, loop, tokenizer
        self.world = None if tokenizer is None else world_speaking(tokenizer.get_vocab())
        """The world whose words it speaks, if there is one: its images are judged."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        adapter: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Refiner:
        """Load a policy, with an adapter or without.

        How it writes and draws is read from the `recipe.resolved.yaml` beside the adapter or in the model's folder;
        without one as the model's world or its backbone says.

        Args:
            model: folder of weights, their name on the hub, or that of a world (`mosaic`) for the model that ships with
                it; None takes the adapter's base, or the embedded model.
            adapter: folder of an adapter, or of a run that left one; `shipped` is the one that comes with the package.
            device: such as `cuda`; None takes an accelerator where there is one.
            dtype: `float32`, `bfloat16` or `auto`; None takes the recipe's, else `auto`.

        Raises:
            InputError: a folder that is not there or holds something else; CheckpointError where weights do not fit.
        """
        loaded = load(model, adapter, device=device, dtype=dtype)
        return cls(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)

    def with_policy(self, policy: Sampler, loop: LoopSettings | None = None) -> Refiner:
        """The same loop, or another one, run by another policy of the same words."""
        other = copy.copy(self)
        other.policy, other.loop = policy, loop or self.loop
        return other

    @torch.no_grad()
    def edit(
        self, image: Image.Image, instruction: str, *, prompt: str | None = None, num_images: int = 1, seed: int = 0
    ) -> list[Image.Image]:
        """Refine a given image once by an instruction of the caller's.

        Args:
            image: what to refine; transparent pixels count as white.
            instruction: one edit, in the words of a critique.
            prompt: what the image should show, for a loop whose refinements read it; None gives the instruction.
            num_images: how many refinements, 1 or more.
            seed: 0 or more; the same seed gives the same images.

        Raises:
            InputError: an empty text, words that the policy does not know, a number outside its range.
        """
        shown = instruction if prompt is None else prompt
        self.check([instruction, shown])
        _check_numbers(0, seed, None, 0.0)
        if num_images < 1:
            raise InputError(f"{num_images} images", hint="1 or more")
        given = given_image(Prompt(text=shown), from_picture(image))
        critiques = [given_critique(root, instruction) for root in image_roots([given] * num_images)]
        drawn = Engine(policy=self.policy, settings=self.loop).refinements(critiques, seed=seed)
        return [Image.fromarray(to_pixels(node.image)) for node in drawn if node is not None]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_rounds: int = 2,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 0.3,
    ) -> RefinerOutput:
        """Draft, then up to `num_rounds` rounds of critique and refinement; a prompt whose critique stops is done.

        Args:
            prompt: one prompt, or several drawn side by side; repeat a prompt for several images of it.
            num_rounds: refinements at most, 0 to 16; 0 gives drafts.
            seed: 0 or more; the same prompts with the same seed give the same images.
            generator: gives the seed instead, another one at every call; without either torch's own does.
            temperature: of the texts, 0 or more; 0 writes the likeliest words. Default: R3's evaluation.

        Raises:
            InputError: an empty prompt, words that the policy does not know, a number outside its range.
        """
        walked = self._walk(
            prompt, num_rounds=num_rounds, seed=seed, generator=generator, temperature=temperature, submit=None
        )
        (whole,) = deque(walked, maxlen=1)
        return self._output(whole, judge=self.world is not None)

    @torch.no_grad()
    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        num_rounds: int = 2,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 0.3,
        submit: Submit | None = None,
    ) -> Iterator[RefinerOutput]:
        """Give the result after every stage: with the draft, with its critique, with the refinement, and so on.

            for output in pipe.stream("a red circle", seed=0):
                print(len(output.rounds[0]), output.critiques[0])

        Args:
            prompt, num_rounds, seed, generator, temperature: as in a call, whose result is the last one of the stream.
            submit: scorers that are asked about every image (`Panel.submit`); None asks the model's world, if it has
                one. Their verdicts are in the trajectories, and `scores` is None.

        Raises:
            InputError: as a call does, when the first result is asked for.
        """
        walked = self._walk(
            prompt, num_rounds=num_rounds, seed=seed, generator=generator, temperature=temperature, submit=submit
        )
        for so_far in walked:
            yield self._output(so_far, judge=self.world is not None and submit is None)

    def _walk(
        self,
        prompt: str | Sequence[str],
        *,
        num_rounds: int,
        seed: int | None,
        generator: torch.Generator | None,
        temperature: float,
        submit: Submit | None,
    ) -> Iterator[list[Trajectory]]:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        self.check(texts)
        _check_numbers(num_rounds, seed, generator, temperature)
        if seed is None:
            seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device if generator else None))
        prompts = [self._read(text) or Prompt(text=text) for text in texts]
        engine = Engine(policy=self.policy, settings=self.loop.for_evaluation(temperature), submit=submit)
        return engine.walk(prompts, rounds=num_rounds, seed=seed)

    def check(self, prompts: Sequence[str]) -> None:
        """Raise InputError for an empty list, an empty prompt, or words that the policy does not know."""
        if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
            raise InputError("an empty prompt", hint='say what to draw, such as "a red circle"')
        for text in prompts:
            if self.tokenizer and (unknown := said_unknown(self.tokenizer, text)):
                known = " ".join(sorted(filter(str.isalpha, self.tokenizer.get_vocab())))
                raise InputError(unknown, hint=f"its words are: {known}")

    def _read(self, text: str) -> Prompt | None:
        return self.world.read_prompt(text) if self.world else None

    def _output(self, trajectories: Sequence[Trajectory], *, judge: bool) -> RefinerOutput:
        return _output([self._judged(t) if judge else t for t in trajectories], judged=judge)

    def _judged(self, trajectory: Trajectory) -> Trajectory:
        if self.world is None or not trajectory.prompt.columns:
            return trajectory
        images = [this.image.image for this in trajectory.rounds]
        found = verdicts(self.world, images, [trajectory.prompt] * len(images))
        rounds = [replace(this, verdict=verdict) for this, verdict in zip(trajectory.rounds, found, strict=True)]
        return replace(trajectory, rounds=tuple(rounds))


def refine_command(
    *, prompt: str, model: str | None, adapter: str | None, rounds: int, out: str, seed: int
) -> RefinerOutput:
    """What `r3 refine` does: run the loop on one prompt, print it round by round, save it as a labelled strip.

    Args:
        prompt, model, adapter, seed: as in `Refiner`.
        rounds: refinements at most.
        out: PNG file to write.
    """
    file = Path(out)
    if file.suffix.lower() != ".png" or not file.parent.is_dir():
        why = f"no such folder '{file.parent}'" if file.suffix.lower() == ".png" else "not a PNG file"
        raise InputError(f"{out}: {why}", hint="name a .png file in a folder that exists")
    _check_numbers(rounds, seed, None, 0.0)
    pipe = Refiner.from_pretrained(model, adapter)
    pipe.check([prompt])
    source = " and ".join(place for place in (model, adapter) if place) or "the embedded model"
    print(f"drawing '{prompt}' with {source}: a draft and at most {rounds} rounds, seed {seed}")
    output = pipe(prompt, num_rounds=rounds, seed=seed)
    for number, this in enumerate(output.trajectories[0].rounds):
        print(f"{round_name(number):8} {_verdict_words(this.verdict)}".rstrip())
        if number < len(output.critiques[0]):
            print(f"critique {output.critiques[0][number]}")
    strip(output.trajectories[0]).save(file)
    print(f"picture  {file}")
    return output


def _verdict_words(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return "right" if verdict.total == 1 else f"wrong: {verdict.words}"


def _output(trajectories: list[Trajectory], *, judged: bool) -> RefinerOutput:
    rounds = [[Image.fromarray(to_pixels(this.image.image)) for this in t.rounds] for t in trajectories]
    critiques = [[this.critique for this in t.rounds[1:]] + [t.last_critique] for t in trajectories]
    stops = [t.last_critique is not None and t.last_critique.stop for t in trajectories]
    return RefinerOutput(
        images=[images[-1] for images in rounds],
        rounds=rounds,
        critiques=[[critique.segment.text for critique in said if critique] for said in critiques],
        scores=[_scores(t) for t in trajectories] if judged else None,
        stopped_after=[len(t.rounds) - 1 if stop else None for t, stop in zip(trajectories, stops, strict=True)],
        trajectories=trajectories,
    )


def _scores(trajectory: Trajectory) -> list[float] | None:
    verdicts = [this.verdict for this in trajectory.rounds]
    return [float(verdict.total) for verdict in verdicts if verdict and verdict.total is not None] or None


def _check_numbers(num_rounds: int, seed: int | None, generator: torch.Generator | None, temperature: float) -> None:
    if not 0 <= num_rounds <= MAX_ROUNDS:
        raise InputError(f"{num_rounds} rounds", hint=f"0 to {MAX_ROUNDS}")
    if seed is not None and generator is not None:
        raise InputError("both a seed and a generator", hint="give one of them")
    if seed is not None and seed < 0:
        raise InputError(f"seed {seed}", hint="0 or more")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature {temperature}", hint="0 or more")
