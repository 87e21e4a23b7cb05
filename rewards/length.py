"""Is a text short enough?

Source: the soft penalty for long answers of DAPO (arXiv 2503.14476, eq. 13), in words and moved from [-1, 0] to [0, 1].
Range: 0 to 1. Weights: none. Memory: none.
Cannot judge: whether the text says anything. Give it a small weight beside a scorer that does.
"""

from __future__ import annotations

from r3_rl.scoring.base import scorer_info


@scorer_info(range=(0.0, 1.0), needs=("completions",), deterministic=True)
def length(completions: list[str], *, max_words: int = 100, soft_words: int = 20, **columns) -> list[float]:
    """Score 1 up to `max_words - soft_words` words, then fall in a straight line to 0 at `max_words`.

    score = clip((max_words - words) / soft_words, 0, 1)

    >>> length(completions=["one two", "one two three", "one two three four"], max_words=4, soft_words=2)
    [1.0, 0.5, 0.0]
    """
    if not 0 < soft_words <= max_words:
        raise ValueError(f"soft_words must lie between 1 and max_words ({max_words}), not {soft_words}")
    return [min(1.0, max(0.0, (max_words - len(text.split())) / soft_words)) for text in completions]
