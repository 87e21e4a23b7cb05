"""Training prompts in the style of GenEval and GenEval++, never one of their test prompts.

Every prompt is made from the 80 classes at random and dropped when its words or its content are those of a test prompt
(`held_out.py`), of a prompt that the caller excludes, or of one made before. Single objects are not made at all: the
test asks for every class.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError
from r3_rl.worlds.files.checks import geneval_problems
from r3_rl.worlds.files.geneval_test_keys import TEST_KEYS
from r3_rl.worlds.files.geneval_words import CLASSES, COLORS, NUMBERS, REGIONS, RELATIONS, plural, with_article
from r3_rl.worlds.files.held_out import keys_of
from r3_rl.worlds.files.load import load_prompts

Row = dict[str, Any]
_MOST_TRIES = 3000
"""In vain, after which a kind is used up: there are 240 prompts for two to four of a class, 80 of them in the test."""
_THINGS = tuple(name for name in CLASSES if name != "person")
"""What has a colour in GenEval."""


def geneval_prompts(
    num: int, *, seed: int = 0, style: str = "geneval", tags: Sequence[str] = (), exclude: Iterable[str] = ()
) -> Iterator[Row]:
    """Makes prompts with the columns of GenEval's files: `tag`, `include`, for counting `exclude`, and `prompt`.

    Args:
        num: how many, all of them different in content.
        seed: the same seed gives the same prompts, and a larger `num` goes on where a smaller one ended.
        style: `geneval` or `geneval_plus`.
        tags: kinds of prompts, equally often; none takes the style's own mix.
        exclude: files whose prompts are not made: JSON lines with a column `prompt`.

    Raises InputError for a style or tag that does not exist, and when there are no more prompts to make.

    >>> [row["prompt"] for row in geneval_prompts(2, seed=1, tags=["position"])]
    ['a photo of a boat above a refrigerator', 'a photo of a couch below a laptop']
    """
    if num < 1:
        raise InputError(f"--num {num}: at least 1")
    kinds = _kinds(style, tags)
    taken = set(TEST_KEYS)
    for file in exclude:
        taken.update(*(keys_of(p.text, _content(p.columns)) for p in load_prompts("jsonl", Path(file))))
    rng = random.Random(seed)
    for made in range(num):
        row = None
        while kinds and row is None:
            kind = rng.choice(kinds)
            row = _new(KINDS[style][kind], rng, taken)
            if row is None:
                kinds = [other for other in kinds if other != kind]
        if row is None:
            raise InputError(f"only {made} prompts of these kinds exist beside the excluded ones", hint="ask for fewer")
        yield {"tag": kind, **row}


def _kinds(style: str, tags: Sequence[str]) -> list[str]:
    if style not in KINDS:
        raise InputError(f"no style {style!r}", hint=f"use one of {', '.join(KINDS)}")
    for tag in tags:
        if tag not in KINDS[style]:
            raise InputError(f"--tags: {style} has no kind {tag!r}", hint=f"it has {', '.join(KINDS[style])}")
    return list(tags) or list(MIXES[style])


def _content(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns where they are GenEval's; a file of prompts alone is excluded by its words."""
    return {} if any(geneval_problems({"tag": "", **columns})) else columns


def _new(make: Callable[[random.Random], Row], rng: random.Random, taken: set[str]) -> Row | None:
    """A row whose keys are not taken, which are then; None when there seems to be none left."""
    for _ in range(_MOST_TRIES):
        row = make(rng)
        keys = keys_of(row["prompt"], row)
        if not keys & taken:
            taken |= keys
            return row
    return None


def _row(prompt: str, *include: Row) -> Row:
    return {"include": list(include), "prompt": f"a photo of {prompt}"}


def _thing(name: str, count: int = 1, **described: Any) -> Row:
    return {"class": name, "count": count, **described}


def _counted(count: int, words: str, name: str) -> str:
    """`two red cups`; the words stand between."""
    return " ".join(part for part in (NUMBERS[count], words, name if count == 1 else plural(name)) if part)


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(parts) if len(parts) == 2 else ", ".join(parts[:-1]) + f", and {parts[-1]}"


def _two_object(rng: random.Random) -> Row:
    first, second = rng.sample(CLASSES, 2)
    return _row(f"{with_article(first)} and {with_article(second)}", _thing(first), _thing(second))


def _counting(low: int, high: int) -> Callable[[random.Random], Row]:
    def make(rng: random.Random) -> Row:
        name, count = rng.choice(CLASSES), rng.randint(low, high)
        row = _row(_counted(count, "", name), _thing(name, count))
        return {"include": row["include"], "exclude": [_thing(name, count + 1)], "prompt": row["prompt"]}

    return make


def _colors(rng: random.Random) -> Row:
    name, color = rng.choice(_THINGS), rng.choice(COLORS)
    return _row(with_article(f"{color} {name}"), _thing(name, color=color))


def _position(rng: random.Random) -> Row:
    first, second = rng.sample(CLASSES, 2)
    relation = rng.choice(tuple(RELATIONS))
    words = f"{with_article(second)} {relation} {with_article(first)}"
    return _row(words, _thing(first), _thing(second, position=[relation, 0]))


def _color_attr(num: int) -> Callable[[random.Random], Row]:
    def make(rng: random.Random) -> Row:
        pairs = list(zip(rng.sample(_THINGS, num), rng.sample(COLORS, num), strict=True))
        words = _listed([with_article(f"{color} {name}") for name, color in pairs])
        return _row(words, *(_thing(name, color=color) for name, color in pairs))

    return make


def _spatial_count_attr(rng: random.Random) -> Row:
    names, counts, regions = rng.sample(CLASSES, 2), _counts(rng, 2), _regions(rng)
    words = [f"{_counted(n, '', name)} {_where(r)}" for name, n, r in zip(names, counts, regions, strict=True)]
    return _row(_listed(words), *(_thing(name, n, region=r) for name, n, r in zip(names, counts, regions, strict=True)))


def _color_spatial_attr(rng: random.Random) -> Row:
    parts = list(zip(rng.sample(_THINGS, 2), rng.sample(COLORS, 2), _regions(rng), strict=True))
    words = [f"{with_article(f'{color} {name}')} {_where(region)}" for name, color, region in parts]
    return _row(_listed(words), *(_thing(name, color=color, region=region) for name, color, region in parts))


def _color_count_attr(rng: random.Random) -> Row:
    parts = list(zip(rng.sample(_THINGS, 2), rng.sample(COLORS, 2), _counts(rng, 2), strict=True))
    words = [_counted(n, color, name) for name, color, n in parts]
    return _row(_listed(words), *(_thing(name, n, color=color) for name, color, n in parts))


def _multi_object_count_attr(rng: random.Random) -> Row:
    num = rng.randint(2, 3)
    parts = list(zip(rng.sample(CLASSES, num), _counts(rng, num), strict=True))
    return _row(_listed([_counted(n, "", name) for name, n in parts]), *(_thing(name, n) for name, n in parts))


def _size_spatial_attr(rng: random.Random) -> Row:
    parts = list(zip(rng.sample(CLASSES, 2), ("larger", "smaller"), _regions(rng), strict=True))
    words = [f"a {size} {name} {_where(region)}" for name, size, region in parts]
    return _row(_listed(words), *(_thing(name, size=size, region=region) for name, size, region in parts))


def _counts(rng: random.Random, num: int) -> list[int]:
    """One to three of each, not one of each: that is another kind."""
    counts = [rng.randint(1, 3) for _ in range(num)]
    return counts if max(counts) > 1 else _counts(rng, num)


def _regions(rng: random.Random) -> tuple[str, str]:
    first = rng.choice(("left", "above"))
    return first, REGIONS[first]


def _where(region: str) -> str:
    return {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}[region]


KINDS: dict[str, dict[str, Callable[[random.Random], Row]]] = {
    "geneval": {
        "two_object": _two_object,
        "counting": _counting(2, 4),
        "colors": _colors,
        "position": _position,
        "color_attr": _color_attr(2),
    },
    "geneval_plus": {
        "counting": _counting(4, 7),
        "color_attr": _color_attr(3),
        "color_count_attr": _color_count_attr,
        "color_spatial_attr": _color_spatial_attr,
        "multi_object_count_attr": _multi_object_count_attr,
        "spatial_count_attr": _spatial_count_attr,
        "size_spatial_attr": _size_spatial_attr,
    },
}
"""Style -> tag -> how a prompt of that kind is made."""
MIXES = {
    "geneval": ("two_object", "counting", *["colors"] * 2, *["position"] * 8, *["color_attr"] * 8),
    "geneval_plus": tuple(KINDS["geneval_plus"]),
}
"""How often the kinds come: for GenEval about as in the training prompts that R3's authors published."""
