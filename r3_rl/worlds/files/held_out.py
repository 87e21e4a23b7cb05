"""What a prompt asks for, as hashes: so that training prompts can avoid the test's without the test being shipped.

A prompt has a key of its words and, where it has GenEval's column `include`, a key of its content, which other wording,
another order of the objects or the mirrored relation leave the same. `geneval_test_keys.py` holds the keys of GenEval's
553 and GenEval++'s 280 test prompts; `python -m r3_rl.worlds.files.held_out FILE...` writes such a list from files.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r3_rl.worlds.files.geneval_words import REGIONS, RELATIONS

KEY_DIGITS = 12
"""Hexadecimal digits of a key: among a million prompts a wrong match is less likely than one in a hundred thousand."""
_ARTICLES = {"a", "an", "the"}
_FIRST = ("left of", "above")


def keys_of(prompt: str, columns: Mapping[str, Any]) -> frozenset[str]:
    """The keys of a prompt: of its words, and of its content where the columns say it.

    >>> one = {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]}
    >>> two = {"include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["below", 0]}]}
    >>> len(keys_of("a dog above a cat", one) & keys_of("A photo of a cat below a dog.", two))
    1
    """
    include = columns.get("include")
    texts = [words_of(prompt), *([content_of(include)] if include else [])]
    return frozenset(hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS] for text in texts)


def words_of(prompt: str) -> str:
    """A prompt without case, punctuation, articles and the opening `a photo of`.

    >>> words_of("A photo of an  orange, and the cup.")
    'words: orange and cup'
    """
    words = [word for word in re.findall(r"\w+", prompt.casefold()) if word not in _ARTICLES]
    return "words: " + " ".join(words[2:] if words[:2] == ["photo", "of"] else words)


def content_of(include: Sequence[Mapping[str, Any]]) -> str:
    """What must be in the picture, in one order: objects, then how they lie to each other.

    >>> content_of([{"class": "cup", "count": 1, "region": "right"}, {"class": "bowl", "count": 2, "region": "left"}])
    'content: 1 cup, 2 bowl; 2 bowl left of 1 cup'
    """
    opposed = len(include) == 2 and REGIONS.get(include[0].get("region", "")) == include[1].get("region", "?")
    names = [_object(item, region=not opposed) for item in include]
    relations = [(name, *item["position"]) for name, item in zip(names, include, strict=True) if "position" in item]
    if opposed:
        region = include[0]["region"]
        relations.append((names[0], f"{region} of" if region in ("left", "right") else region, 1))
    lies = sorted(
        f"{name} {relation} {names[other]}"
        if relation in _FIRST
        else f"{names[other]} {RELATIONS.get(relation, relation)} {name}"
        for name, relation, other in relations
    )
    return "content: " + "; ".join([", ".join(sorted(names)), *lies])


def _object(item: Mapping[str, Any], *, region: bool) -> str:
    described = [item.get("count", 1), item.get("size"), item.get("color"), item["class"]]
    described.append(item.get("region") if region else None)
    return " ".join(str(word) for word in described if word is not None)


def _module(keys: Iterable[str], width: int = 8) -> str:
    """The text of a module that holds the keys, sorted, a few a line."""
    ordered = sorted(set(keys))
    lines = [" ".join(ordered[i : i + width]) for i in range(0, len(ordered), width)]
    return "\n".join(
        [
            '"""Keys of the test prompts of GenEval and GenEval++, written by `r3_rl.worlds.files.held_out`."""',
            "",
            '_KEYS = """',
            *lines,
            '"""',
            "TEST_KEYS = frozenset(_KEYS.split())",
            "",
        ]
    )


def main(files: Sequence[str]) -> None:
    """Print the module that holds the keys of some GenEval files."""
    from r3_rl.worlds.files.load import load_prompts

    prompts = [prompt for file in files for prompt in load_prompts("geneval", Path(file))]
    print(_module(key for prompt in prompts for key in keys_of(prompt.text, prompt.columns)), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
