"""A whole world in one file: four tiles, each dark or in one of three colours. Images of 16 x 16 pixels.

The tests install this folder as a package of its own, `toy_world`; nothing in r3_rl knows it. A scene is a tuple of
four words, one a tile: a colour, DARK, or SMUDGE for what the inspector takes for neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import ClassVar

import numpy as np

from r3_rl.errors import CheckpointError
from r3_rl.scoring.base import scorer_info
from r3_rl.types import Prompt, Verdict
from r3_rl.worlds.base import Demo, Edited, Question, Squares

HERE = Path(__file__).resolve().parent
PALETTE = {"dark": (0.0, 0.0, 0.0), "amber": (1.0, 0.7, 0.0), "teal": (0.0, 0.7, 0.7), "plum": (0.6, 0.0, 0.5)}
DARK, *COLOURS = PALETTE
SMUDGE = "smudge"
PLACES = ("northwest", "northeast", "southwest", "southeast")
STOP = "no further edit needed"
WORDS = [*PALETTE, SMUDGE, *PLACES, *STOP.split(), "<think>", "</think>"]
WORDS += ["and", "check", "light", "switch", "off", "which", "?"]
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
Scene = tuple[str, ...]


def prompt_of(colours: Sequence[str]) -> Prompt:
    columns = {"tag": "one" if len(colours) == 1 else "several", "wanted": list(colours)}
    return Prompt(text=" and ".join(colours), columns=columns)


PROMPTS = [prompt_of(chosen) for n in (1, 2, 3) for chosen in combinations_with_replacement(COLOURS, n)]


class ToyWorld:
    """Prompts ask for colours; which tiles show them is free."""

    name = "toy"
    image_size = 16
    background = 0.0
    tags = ("one", "several")
    harder_tags = ("several",)
    question_kinds: ClassVar = {"which": "which tile"}
    rollout: ClassVar = {"draft": {"size": (16, 16)}}
    bench, pretrain_keys = "loop", ("draw_weights", "prompt_weights")
    base_sizes = dict.fromkeys(
        ("num_prompts", "num_fixed", "num_right", "num_questions", "num_pairs", "num_plans", "num_edits"), 6
    )
    demo = Demo(recipe=str(HERE / "demo.yaml"), max_steps=2, sizes=base_sizes)

    def prompts(self, count, *, split, tags=None, seed):
        rng = np.random.default_rng(seed)
        kept = [p for i, p in enumerate(PROMPTS) if (i % 3 == 2) == (split == "held_out")]
        weights = np.array([self._weight(p, tags) for p in kept])
        return [kept[i] for i in rng.choice(len(kept), count, p=weights / weights.sum())]

    def _weights(self, settings):
        return {t: settings.prompt_weights.get(t, 1.0) * settings.draw_weights.get(t, 1.0) for t in self.tags}

    def _weight(self, prompt, tags):
        tag = prompt.columns["tag"]
        return tags.get(tag, 0.0) if isinstance(tags, Mapping) else float(tags is None or tag in tags)

    def read_prompt(self, text):
        words = text.lower().split(" and ")
        return prompt_of(words) if 0 < len(words) < 4 and set(words) <= set(COLOURS) else None

    def tokenizer(self):
        from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

        made = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
        made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
        return made

    def examples(self, settings, *, seed):
        import torch

        from r3_rl.modalities import ImagePiece, TextPiece
        from r3_rl.policy.base import Example

        rng = np.random.default_rng(seed)

        def drawn(scene):
            return torch.from_numpy(self.roughen(self.draw([scene]), rng)[0])

        def one(kind):
            (prompt,) = self.prompts(1, split="train", tags=self._weights(settings), seed=rng)
            scene = self.scene(prompt, rng)
            if kind in ("text_to_image", "plan"):
                image = torch.from_numpy(self.draw([scene])[0]) if kind == "text_to_image" else None
                return Example(context=(TextPiece(text=prompt.text),), answer=self.plan_text(scene), image=image)
            if kind == "edit":
                (edited,) = self.edits(1, seed=rng)
                source = ImagePiece(image=torch.from_numpy(edited.source), use="edit")
                target = torch.from_numpy(edited.target)
                return Example(context=(source, TextPiece(text=edited.instruction)), image=target)
            if kind == "critique":
                scene = scene if rng.random() < 0.5 else self.wrong_scene(prompt, rng)
                said = f"{self.plan_text(scene)} {self._repair(scene, prompt)}"
                asked = TextPiece(text=f"check {prompt.text}")
                return Example(context=(ImagePiece(image=drawn(scene)), asked), answer=said)
            (question,) = self.questions(1, seed=rng)
            seen = ImagePiece(image=torch.from_numpy(question.image))
            return Example(context=(seen, TextPiece(text=question.text)), answer=question.reply)

        return lambda kind, count: [one(kind) for _ in range(count)]

    def plan_text(self, scene):
        return f"<think> {' '.join(scene)} </think>"

    def read_plan(self, text):
        words = text.split()
        return self.read_listing(text) if words[-1:] == ["</think>"] else None

    def read_listing(self, text):
        start, *words = text.split() or [""]
        seen = tuple(words[:4])
        well_formed = start == "<think>" and words[4:5] == ["</think>"] and set(seen) <= {*PALETTE, SMUDGE}
        return seen if well_formed else None

    def follow(self, scene, instruction):
        return next((after for words, after in self._all_edits(scene) if words == instruction), None)

    def _all_edits(self, scene):
        """Every instruction that changes the scene, and what it leads to."""
        for at, (place, now) in enumerate(zip(PLACES, scene, strict=True)):
            for word in PALETTE:
                if word != now:
                    words = f"switch off {place}" if word == DARK else f"light {place} {word}"
                    yield words, (*scene[:at], word, *scene[at + 1 :])

    def _repair(self, scene, prompt):
        needed = self.edits_needed(scene, prompt)
        fits = (words for words, after in self._all_edits(scene) if self.edits_needed(after, prompt) < needed)
        return next(fits, STOP)

    def scene(self, prompt, rng):
        wanted = prompt.columns["wanted"]
        return tuple(str(word) for word in rng.permutation([*wanted, *[DARK] * (len(PLACES) - len(wanted))]))

    def wrong_scene(self, prompt, rng):
        while True:
            scene = tuple(str(word) for word in rng.choice([DARK, *COLOURS], len(PLACES)))
            if self.edits_needed(scene, prompt):
                return scene

    def near_miss(self, scene, prompt, rng):
        misses = [after for _, after in self._all_edits(scene) if self.edits_needed(after, prompt) == 1]
        return misses[int(rng.integers(len(misses)))]

    def draw(self, scenes):
        out = np.zeros((len(scenes), 3, 16, 16), np.float32)
        for image, scene in zip(out, scenes, strict=True):
            for at, word in enumerate(scene):
                row, col = 8 * (at // 2), 8 * (at % 2)
                image[:, row + 1 : row + 7, col + 1 : col + 7] = np.array(PALETTE[word])[:, None, None]
        return out

    def roughen(self, images, rng):
        return np.clip(images + rng.uniform(-0.05, 0.05, images.shape), 0, 1).astype(np.float32)

    def squares(self, scenes):
        words = list(PALETTE)
        labels = [[[words.index(word) if word in words else -1] for word in scene] for scene in scenes]
        return Squares(labels=np.array(labels), sizes=(len(words),))

    def inspect(self, images):
        return [self._read(image) for image in np.asarray(images)]

    def _read(self, image):
        seen = []
        for at in range(len(PLACES)):
            tile = image[:, 8 * (at // 2) : 8 * (at // 2) + 8, 8 * (at % 2) : 8 * (at % 2) + 8]
            off = {w: np.abs(tile - self._tile(w)).mean() for w in PALETTE}
            best = min(off, key=off.get)
            seen.append(best if off[best] < 0.1 else SMUDGE)
        return tuple(seen)

    def _tile(self, word):
        return self.draw([(word, DARK, DARK, DARK)])[0, :, :8, :8]

    def inspect_again(self, images):
        return []

    def same(self, one, other):
        return tuple(one) == tuple(other)

    def edits_needed(self, scene, prompt):
        there, wanted = Counter(word for word in scene if word != DARK), Counter(prompt.columns["wanted"])
        return max((there - wanted).total(), (wanted - there).total())

    def judge(self, scene, prompt):
        needed = self.edits_needed(scene, prompt)
        words = "correct" if needed == 0 else f"expected {prompt.text}, found {' '.join(scene)}"
        return Verdict(total=float(needed == 0), words=words)

    def repair(self, scene, prompt, rng):
        return None if self.edits_needed(scene, prompt) == 0 else self._repair(scene, prompt)

    def edits(self, count, *, seed):
        rng, made = np.random.default_rng(seed), []
        for _ in range(count):
            scene = tuple(str(word) for word in rng.choice([DARK, *COLOURS], len(PLACES)))
            words, after = (choices := list(self._all_edits(scene)))[int(rng.integers(len(choices)))]
            source, target = self.draw([scene, after])
            made.append(Edited(source=self.roughen(source, rng), instruction=words, target=target))
        return made

    def questions(self, count, *, seed):
        rng = np.random.default_rng(seed)
        scenes = [tuple(str(word) for word in rng.choice([DARK, *COLOURS], len(PLACES))) for _ in range(count)]
        images = self.roughen(self.draw(scenes), rng)
        return [self.ask(image, scene, "which", rng) for image, scene in zip(images, scenes, strict=True)]

    def ask(self, image, scene, kind, rng):
        if SMUDGE in scene:
            return None
        at = int(rng.integers(len(PLACES)))
        asked, reply = f"which {PLACES[at]}", f"{self.plan_text(scene)} {scene[at]}"
        return Question(image=image, words=asked, text=f"{asked} ?", answer=scene[at], reply=reply, kind=kind)

    def weights_folder(self, base=None):
        if not (HERE / "weights").is_dir():
            raise CheckpointError("the toy world has no weights yet", hint="make them with its pretrain.yaml")
        return HERE / "weights"

    def adapter_folder(self):
        raise CheckpointError("the toy world ships no adapter")


WORLD = ToyWorld()


@scorer_info(range=(0.0, 1.0), needs=("images", "wanted"), deterministic=True)
def tiles(images, wanted, **columns):
    """1 for exactly the colours that are asked for, a third less for every edit that is missing."""
    seen = WORLD.inspect(np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) / 255 for image in images]))
    return [max(0.0, 1 - WORLD.edits_needed(s, prompt_of(w)) / 3) for s, w in zip(seen, wanted, strict=True)]
