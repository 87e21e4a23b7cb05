"""`r3 prompts`: prompts to train on."""

from __future__ import annotations

from cyclopts import App

prompts = App(name="prompts", help="Training prompts: geneval.")


@prompts.command
def geneval(
    *, num: int, seed: int = 0, plus: bool = False, tags: list[str] | None = None, exclude: list[str] | None = None
) -> None:
    """Print training prompts in GenEval's columns as JSON lines; never one of GenEval's or GenEval++'s test prompts.

    Args:
        num: how many.
        seed: the same seed gives the same prompts.
        plus: prompts in the style of GenEval++.
        tags: a kind of prompts, such as position; once for each kind.
        exclude: JSON lines whose prompts are not made either; once for each file.
    """
    import json

    from r3_rl.worlds.files.geneval_prompts import geneval_prompts

    style = "geneval_plus" if plus else "geneval"
    for row in geneval_prompts(num, seed=seed, style=style, tags=tags or (), exclude=exclude or ()):
        print(json.dumps(row))
