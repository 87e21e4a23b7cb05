"""Is a text well formed: does it close its thoughts and then say one thing?

Source: the format reward of reasoning models ("<think>...</think> answer"), as R3 uses it for plans and critiques.
Range: 0 or 1. Weights: none. Memory: none.
Cannot judge: whether the thoughts are right, or the one thing useful. Trained alone it is won by empty thoughts.
"""

from __future__ import annotations

from r3_rl.scoring.base import scorer_info

OPEN, CLOSE = "<think>", "</think>"


@scorer_info(range=(0.0, 1.0), needs=("completions",), deterministic=True)
def format(completions: list[str], *, log_extra=None, **columns) -> list[float]:
    """Score 1 for `<think>thoughts</think> one line`, else 0, and say what is wrong.

    The opening tag may be missing, since many templates write it for the model; the closing one may not.

    >>> format(completions=["<think>the dog is blue</think> make the dog red", "make the dog red"])
    [1.0, 0.0]
    """
    faults = [_fault(text.strip()) for text in completions]
    if log_extra is not None:
        log_extra("reason", faults)
    return [0.0 if fault else 1.0 for fault in faults]


def _fault(text: str) -> str:
    if text.count(CLOSE) != 1:
        return f"{text.count(CLOSE)} {CLOSE} instead of one"
    thoughts, said = (part.strip() for part in text.split(CLOSE))
    if OPEN in said or OPEN in thoughts.removeprefix(OPEN):
        return f"{OPEN} does not stand at the start alone"
    if not said:
        return "nothing is said after the thoughts"
    if len(said.splitlines()) > 1:
        return "more than one line is said after the thoughts"
    return ""
