"""The words of GenEval's prompts: the 80 classes of COCO under GenEval's names, ten colours, relations, numbers.

Source: COCO's list of classes and GenEval (MIT), which calls COCO's mouse, remote and keyboard `computer mouse`,
`tv remote` and `computer keyboard`.
"""

from __future__ import annotations

CLASSES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The basic colour terms but grey, which a photograph's shadows are full of."""
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Each with the relation that the other object then has."""
REGIONS = {"left": "right", "right": "left", "above": "below", "below": "above"}
"""GenEval++: halves of the picture, each with its opposite."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")
"""By their value."""

_PLURALS = {"person": "people", "sheep": "sheep", "skis": "skis", "scissors": "scissors", "knife": "knives"}


def plural(name: str) -> str:
    """More than one of a class, in English (GenEval itself adds an s, or es after an s).

    >>> plural("bench"), plural("knife"), plural("tv remote"), plural("bus")
    ('benches', 'knives', 'tv remotes', 'buses')
    """
    return _PLURALS.get(name) or name + ("es" if name.endswith(("s", "ch", "sh", "x")) else "s")


def with_article(words: str) -> str:
    """One of something.

    >>> with_article("orange cup"), with_article("tie")
    ('an orange cup', 'a tie')
    """
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
