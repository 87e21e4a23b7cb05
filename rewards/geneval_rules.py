"""GenEval's rules: what a detector and a colour classifier saw, against what a prompt asks for. Plain Python.

Source: Ghosh, Hajishirzi and Schmidt, "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment"
(2023) and its evaluation code; the verdicts are held against 200 recorded ones in `tests/rewards/`.

The order is `geneval_request.read_request` -> `keep` -> `colour_questions` (which objects need a colour) -> `judge`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r3_rl.rewards.geneval_request import COLOURS, Clause, Request


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Thresholds; the defaults are those of the published benchmark."""

    threshold: float = 0.3
    """Detections count above this score, strictly."""
    counting_threshold: float = 0.9
    """The same for prompts tagged `counting`."""
    max_objects: int = 16
    """Most detections of a class that are looked at."""
    max_overlap: float = 1.0
    """A detection that overlaps a better one of its class by this much (IoU) is dropped; 1 drops none."""
    position_threshold: float = 0.1
    """Share of the two objects' extents by which they must be apart before one is left of, above ... the other."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object that the detector saw."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels, y down."""
    score: float
    """Confidence, 0 to 1."""
    mask: Any = None
    """bool [H, W], the object's pixels; the rules do not look at it."""


Detections = Mapping[str, Sequence[Detection]]
"""What was seen in one image, by GenEval's class name, in any order."""


@dataclass(frozen=True, kw_only=True)
class ColourQuestion:
    """Objects whose colour decides a clause."""

    clause: int
    """Position in `Request.include`."""
    name: str
    """Class of the objects."""
    objects: tuple[int, ...]
    """Indices into the raw detections of that class, best first."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the rules say about one image."""

    correct: bool
    partial: float
    """Share of what was asked for, 0 to 1; 1 exactly when `correct`."""
    reason: str
    """One line for each clause that failed, in the words of the published code; empty when correct."""


def keep(seen: Detections, request: Request, rules: Rules) -> dict[str, list[int]]:
    """Return the detections that count, best first: by class, indices into what was seen.

    >>> from r3_rl.rewards.geneval_request import read_request
    >>> dogs = [Detection(box=(0, 0, 9, 9), score=score) for score in (0.2, 0.5, 0.8)]
    >>> keep({"dog": dogs}, read_request([]), Rules())
    {'dog': [2, 1]}
    """
    least = rules.counting_threshold if request.counting else rules.threshold
    kept = {}
    for name, found in seen.items():
        # Of two equal scores the published code takes the later one: it sorts upwards and turns the result around.
        order = sorted(range(len(found)), key=lambda index, found=found: found[index].score)[::-1]
        left = [index for index in order if found[index].score > least][: rules.max_objects]
        chosen: list[int] = []
        while left:
            best = left.pop(0)
            chosen.append(best)
            if rules.max_overlap != 1:
                left = [i for i in left if overlap(found[best].box, found[i].box) < rules.max_overlap]
        if chosen:
            kept[name] = chosen
    return kept


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes whose last pixels belong to them.

    >>> overlap((0, 0, 9, 9), (0, 5, 9, 14))
    0.3333333333333333
    """
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - shared
    return shared / union if union else 0.0


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def relations(a: Sequence[float], b: Sequence[float], margin: float) -> list[str]:
    """Where box a is as seen from box b: none, one or two of `RELATIONS`, in alphabetical order.

    The offset of the centres, less `margin` x (sum of the extents) on each axis, is divided by the length of the whole
    offset; an axis counts when more than half of it is left.

    >>> relations((0, 0, 10, 10), (50, 0, 60, 10), margin=0.1), relations((0, 0, 10, 10), (2, 0, 12, 10), margin=0.1)
    (['left of'], [])
    """
    offset = [(a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2 for i in (0, 1)]
    extent = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    left = [math.copysign(max(abs(o) - margin * e, 0.0), o) for o, e in zip(offset, extent, strict=True)]
    if max(abs(left[0]), abs(left[1])) < 1e-3:
        return []
    length = math.sqrt(offset[0] ** 2 + offset[1] ** 2)
    x, y = left[0] / length, left[1] / length
    held = {"above": y < -0.5, "below": y > 0.5, "left of": x < -0.5, "right of": x > 0.5}
    return [name for name, holds in held.items() if holds]


def colour_questions(request: Request, kept: Mapping[str, Sequence[int]]) -> list[ColourQuestion]:
    """Say which objects need a colour: the best `count` of each clause with a colour that has enough objects.

    >>> from r3_rl.rewards.geneval_request import read_request
    >>> colour_questions(read_request([{"class": "dog", "count": 1, "color": "red"}]), {"dog": [2, 1]})[0].objects
    (2,)
    """
    questions = []
    for place, clause in enumerate(request.include):
        objects = kept.get(clause.name, ())
        if clause.colour is not None and len(objects) >= clause.count:
            questions.append(ColourQuestion(clause=place, name=clause.name, objects=tuple(objects[: clause.count])))
    return questions


def judge(
    request: Request,
    seen: Detections,
    kept: Mapping[str, Sequence[int]],
    colours: Mapping[int, Sequence[str]],
    rules: Rules,
) -> Judgement:
    """Judge one image.

    `kept` is what `keep` returned; `colours` holds the answers to `colour_questions`: by clause, one colour for each
    object. `partial` is the mean over what the clauses ask for: the share of the count that is there (where an
    `exclude` bounds it from above, surplus objects cost as much as missing ones), of the colours, and 1 or 0 for a
    position; what could not be looked at because objects are missing is 0.

    >>> from r3_rl.rewards.geneval_request import read_request
    >>> request = read_request([{"class": "dog", "count": 2}], tag="two_object")
    >>> seen = {"dog": [Detection(box=(0, 0, 9, 9), score=0.8)]}
    >>> judge(request, seen, keep(seen, request, Rules()), {}, Rules())
    Judgement(correct=False, partial=0.5, reason='expected dog>=2, found 1')
    """
    reasons: list[str] = []
    shares: list[float] = []
    matched: list[list[Detection] | None] = []
    for place, clause in enumerate(request.include):
        best = [seen[clause.name][index] for index in kept.get(clause.name, ())][: clause.count]
        found = len(kept.get(clause.name, ()))
        shares.append(_count_share(found, clause, request))
        failed = ""
        if found < clause.count:
            failed = f"expected {clause.name}>={clause.count}, found {found}"
            shares += [0.0] * ((clause.colour is not None) + (clause.relation is not None))
        else:
            if clause.colour is not None:
                failed = _colour_failure(clause, colours[place])
                shares.append(colours[place].count(clause.colour) / clause.count)
            if clause.relation is not None:
                failed = failed or _position_failure(clause, best, matched[clause.target], rules)
                shares.append(0.0 if failed else 1.0)
        matched.append(None if failed else best)
        reasons += [failed] if failed else []
    for name, count in request.exclude:
        found = len(kept.get(name, ()))
        if found >= count:
            reasons.append(f"expected {name}<{count}, found {found}")
        if all(clause.name != name for clause in request.include):
            shares.append(float(found < count))
    partial = sum(shares) / len(shares) if shares else 1.0
    return Judgement(correct=not reasons, partial=partial, reason="\n".join(reasons))


def _count_share(found: int, clause: Clause, request: Request) -> float:
    most = min((count - 1 for name, count in request.exclude if name == clause.name), default=None)
    if most is not None and found > most:
        return max(0.0, 1 - (found - most) / clause.count)
    return min(found, clause.count) / clause.count


def _colour_failure(clause: Clause, colours: Sequence[str]) -> str:
    right = colours.count(clause.colour)
    if right >= clause.count:
        return ""
    all_found = ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOURS if colour in colours)
    asked = f"{clause.colour} {clause.name}>={clause.count}"
    return f"expected {asked}, found {right} {clause.colour}; and {all_found}"


def _position_failure(
    clause: Clause, objects: Sequence[Detection], targets: Sequence[Detection] | None, rules: Rules
) -> str:
    if targets is None:
        return f"no target for {clause.name} to be {clause.relation}"
    for item in objects:
        for target in targets:
            held = relations(item.box, target.box, rules.position_threshold)
            if clause.relation not in held:  # the published code reports the first violation alone
                return f"expected {clause.name} {clause.relation} target, found {' and '.join(held)} target"
    return ""
