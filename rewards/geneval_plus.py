"""Does a picture show what a GenEval++ prompt asks for, by a judge that goes through a checklist?

Source: GenEval++ (280 prompts of seven kinds; Echo-4o, arXiv 2508.09987), with its columns `include` and `exclude`. The
checklist and its words are our own: figures compare with each other, and only roughly with published ones.
Range: 0 to 1. Weights: the judge's, under their licence. Memory: none here.
Cannot judge: anything that the columns do not state (style, beauty, further objects). Judges are weak at counting past
four or five and at left and right; check yours on pictures you know before you train on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from r3_rl.errors import DataError, InputError
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.judge_settings import JudgeSettings
from r3_rl.scoring.yes_no import ask_yes_no

TASK = "Look at the picture and check each of these statements about it: yes when it is true, no when it is not."
_MOST_ENTRIES = 64  # each is a question, and told from the others
_KNOWN = frozenset(("class", "count", "color", "region", "size", "position"))
_PLACES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_HALVES = {"left": "left half", "right": "right half", "above": "upper half", "below": "lower half"}
_SIZES = ("larger", "smaller")


class GenevalPlus:
    """Scores w strict + (1 - w) partial, w = `strict_weight` in [0, 1].

    strict is 1 when every statement holds, else 0; partial = statements that hold / statements. `strict_weight: 1` asks
    for all of it, as the benchmark does; less than 1 pays for being near, so that the drafts of a group differ.
    """

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images", "include"),
        deterministic=True,
        weights_licence="the judge's",
        memory="none here",
        packages=("openai",),
        install="pip install 'r3-rl[judge]'",
    )

    def __init__(self, *, judge: JudgeSettings, strict_weight: float = 0.7) -> None:
        from r3_rl.scoring.judge import Judge

        if not 0 <= strict_weight <= 1:
            raise InputError(f"strict_weight must lie between 0 and 1, not {strict_weight}")
        self.judge = Judge(judge)
        self._strict_weight = strict_weight

    async def __call__(
        self,
        images: Sequence[Any],
        include: Sequence[Any],
        *,
        exclude: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
    ) -> list[float | None]:
        """Score images, uint8 [H, W, 3], against the rows of GenEval's columns."""
        excluded = exclude or [None] * len(include)
        checklists = [checklist(row, without) for row, without in zip(include, excluded, strict=True)]
        replies = await ask_yes_no(self.judge, images, checklists, task=TASK, form="evidence", log_metric=log_metric)
        scores: list[float | None] = [None] * len(replies)
        reasons = [""] * len(replies)
        for index, (statements, reply) in enumerate(zip(checklists, replies, strict=True)):
            if reply.said is not None:
                failed = [text for text, holds in zip(statements, reply.said, strict=True) if not holds]
                partial = 1 - len(failed) / len(statements)
                scores[index] = self._strict_weight * (not failed) + (1 - self._strict_weight) * partial
                reasons[index] = f"not so: {' '.join(failed)}" if failed else ""
        if log_extra is not None:
            log_extra("reason", reasons)
            log_extra("cause", [reply.cause for reply in replies])
        return scores


def checklist(include: Any, exclude: Any = None) -> list[str]:
    """Return the statements that hold for a right picture; raises DataError for an entry that would go unchecked.

    >>> checklist([{"class": "cup", "count": 2, "color": "red"}])
    ['The picture shows exactly 2 of this: cup.', 'Each cup is red.']
    """
    items = list(include or ())
    if len(items) > _MOST_ENTRIES:
        raise DataError(f"include has {len(items)} entries", hint=f"at most {_MOST_ENTRIES} are checked")
    for place, item in enumerate([*items, *(exclude or ())]):
        unknown = sorted(set(item) - _KNOWN) if isinstance(item, Mapping) else ["no object"]
        if unknown or not {"class", "count"} <= set(item):
            fault = f"'{unknown[0]}', which no statement covers" if unknown else "no class or no count"
            raise DataError(
                f"include or exclude: entry {place} has {fault}", hint=f"it may have {', '.join(sorted(_KNOWN))}"
            )
    if not items:
        raise DataError("include is empty, so there is nothing to check")
    names = _names(items)
    statements = [
        f"The picture shows exactly {item['count']} of this: {name}." for item, name in zip(items, names, strict=True)
    ]
    for index, (item, name) in enumerate(zip(items, names, strict=True)):
        if "color" in item and not name.startswith(f"{item['color']} "):
            statements.append(f"Each {name} is {item['color']}.")
        statements += _pair_statements(items, names, index)
    listed = {item["class"] for item in items}
    # For a class that is asked for, `exclude` says "fewer than", which "exactly" has said already.
    statements += [f"The picture shows no {item['class']}." for item in exclude or () if item["class"] not in listed]
    return statements


def _names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each entry by its class, and by its colour too where the class alone would not tell two apart."""
    classes = [item["class"] for item in items]
    alone = [classes.count(name) == 1 for name in classes]
    names = [
        item["class"] if single or "color" not in item else f"{item['color']} {item['class']}"
        for item, single in zip(items, alone, strict=True)
    ]
    if len(set(names)) < len(names):
        raise DataError(f"include names '{max(names, key=names.count)}' twice, and nothing tells the two apart")
    return names


def _pair_statements(items: Sequence[Mapping[str, Any]], names: Sequence[str], index: int) -> Iterator[str]:
    """Say where an entry is and how large, once for each pair: B right of A says nothing that A left of B has not."""
    item, name, later = items[index], names[index], range(index + 1, len(items))
    region, size = item.get("region"), item.get("size")
    if region is not None:
        if region not in _PLACES:
            raise DataError(f"include: region {region!r}", hint=f"the regions are {', '.join(_PLACES)}")
        others = [other for other in range(len(items)) if items[other].get("region") not in (None, region)]
        yield from (f"Each {name} is {_PLACES[region]} each {names[other]}." for other in others if other in later)
        if not others:
            yield f"Each {name} is in the {_HALVES[region]} of the picture."
    if size is not None:
        others = [other for other in range(len(items)) if items[other].get("size") not in (None, size)]
        if size not in _SIZES or not others:
            raise DataError(f"include: size {size!r} of '{name}'", hint="one is larger, another smaller")
        yield from (f"The {name} looks {size} than the {names[other]}." for other in others if other in later)
    if "position" in item:
        relation, target = item["position"]
        yield f"The {name} is {relation} the {names[target]}."
