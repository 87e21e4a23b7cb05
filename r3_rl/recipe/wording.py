"""What pydantic found -> what a person reads: the value's name, what is wrong and how to put it right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from r3_rl.recipe import Recipe
from r3_rl.recipe.tree import Path, split, unfilled

# Names that other tools use for the same thing.
ELSEWHERE = {
    "batch_size": "num_prompts",
    "clip_range": "epsilon",
    "group_size": "branch",
    "kl_coef": "beta",
    "logging_steps": "log_every",
    "lora_alpha": "alpha",
    "lora_r": "rank",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "micro_batch_size": "token_budget",
    "model_name_or_path": "path",
    "num_generations": "branch",
    "steps": "max_steps",
}
_MOST = 200
"""Mistakes that are put into words, which takes a millisecond each; far fewer are shown."""
RENAMED = ("num_generations", "images_per_plan", "images_per_critique")
"""Keys of `rollout` that are `rollout.branch` now."""
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a section (a mapping of keys)",
    "string_type": "text",
    "tuple_type": "a list",
}


def mistakes_of(
    error: ValidationError, root: type[BaseModel] = Recipe, *, incomplete: bool = False
) -> Iterator[tuple[Path, str]]:
    """Path and message of every mistake that the validation found.

    Args:
        error: what pydantic raised.
        root: of which section; paths start there.
        incomplete: part of the recipe could not be read, so that nothing is said about what is missing.
    """
    every = error.errors(include_url=False)
    old = {e["loc"][1]: e["input"] for e in every if e["type"] == "extra_forbidden" and _is_renamed(e["loc"])}
    for found in islice(every, _MOST):
        if incomplete and found["type"] in ("missing", "together"):
            continue
        path = tuple(found["loc"])
        if found["type"] == "together":
            for problem in found["ctx"]["problems"]:
                yield (*path, *split(problem.path)), problem.message
        elif found["type"] == "extra_forbidden" and _is_renamed(path):
            yield path, f"renamed; write rollout.branch: {renamed(old)}"
        elif found["type"] == "extra_forbidden" and path == ("training", "shard_optimizer"):
            kind = "fsdp2" if found["input"] is True else "auto"
            yield path, f"renamed; did you mean training.parallel: {{kind: {kind}}}?"
        elif found["type"] == "extra_forbidden" and path == ("pretrain", "position_weight"):
            yield path, f"renamed; write pretrain.prompt_weights: {{position: {_show(found['input'])}}}"
        else:
            yield path, _message(path, found, root)


def _message(path: Path, found: Any, root: type[BaseModel]) -> str:
    kind, value, context = found["type"], found["input"], found.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(path, root)}"
    if kind == "missing":
        return "missing; the list is too short" if isinstance(path[-1], int) else f"missing{_example(path)}"
    if kind == "literal_error":
        choices = [str(choice) for choice in get_args(field.annotation)] if (field := _field(path, root)) else []
        return f"{_show(value)} is none of {context['expected']}{_closest(str(value), choices)}"
    if kind == "unknown_name":
        known = list(context["known"])
        return f"{_show(value)} is none of {', '.join(map(repr, known))}{_closest(str(value), known)}"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"must be {words} {shown_number(context[bound])}, not {_show(value)}"
    if kind in _WANTED:
        return f"expected {_WANTED[kind]}, got {_show(value)}{_unquote(kind, value)}"
    if kind == "too_short":
        return f"the list is too short; give {context['min_length']} or more"
    if kind == "too_long":
        return f"the list is too long; give {context['max_length']} or fewer"
    if kind == "string_too_short":
        return "the text is empty; write one, or leave the key out"
    if kind == "finite_number":
        return f"must be a finite number, not {_show(value)}"
    return f"{found['msg'][:1].lower()}{found['msg'][1:]}, got {_show(value)}"


def _is_renamed(path: Path) -> bool:
    return len(path) == 2 and path[0] == "rollout" and path[1] in RENAMED


def renamed(old: Mapping[Any, Any]) -> str:
    """The value of `rollout.branch` that rolls out as the keys before it did.

    Args:
        old: what is given of `RENAMED`; a group had 8 rollouts unless said, a text one image.

    >>> renamed({"num_generations": 16, "images_per_plan": 4})
    '{plan: 4, draft: 4, critique: 16, refinement: 1}'
    """
    given = [old.get(key, usual) for key, usual in zip(RENAMED, (8, 1, 1), strict=True)]
    peers, drafts, refinements = (n if isinstance(n, int) and n > 0 else 1 for n in given)
    plans, critiques = max(peers // drafts, 1), max(peers // refinements, 1)
    return f"{{plan: {plans}, draft: {drafts}, critique: {critiques}, refinement: {refinements}}}"


def did_you_mean(path: Path, root: type[BaseModel] = Recipe) -> str:
    """The hint for a key that the schema does not know, found among its neighbours, then among all sections.

    >>> did_you_mean(("rollout", "num_promts"))
    "; did you mean 'num_prompts'?"
    >>> did_you_mean(("learning_rate",))
    "; did you mean 'training.learning_rate'?"
    """
    key, section = str(path[-1]), section_at(path[:-1], root)
    if key == "<<":
        return "; YAML 1.2 has no merge key: use extends, or repeat the keys"
    fields = list(section.model_fields) if section else []
    familiar = [*fields, *(word for word, ours in ELSEWHERE.items() if ours in fields)]
    if close := difflib.get_close_matches(key, familiar, n=1, cutoff=0.6):
        return f"; did you mean '{close[0] if close[0] in fields else ELSEWHERE[close[0]]}'?"
    wanted = ELSEWHERE.get(key, key)
    homes = [dotted for dotted in _all_fields(Recipe) if dotted.rsplit(".", 1)[-1] == wanted]
    if homes:
        return "; did you mean " + " or ".join(f"'{home}'" for home in homes) + "?"
    return f"; the keys here are {', '.join(fields)}" if fields else ""


def section_at(path: Path, root: type[BaseModel] = Recipe) -> type[BaseModel] | None:
    """The schema's section at the path; None where the path leads to a plain value or nowhere."""
    section: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_in(field.annotation) if field else None
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _field(path: Path, root: type[BaseModel]) -> Any:
    section = section_at(path[:-1], root)
    return section.model_fields.get(str(path[-1])) if section else None


def _all_fields(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if (inner := _section_in(field.annotation)) and get_args(field.annotation) == ():
            yield from _all_fields(inner, f"{prefix}{name}.")


def _closest(word: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _example(path: Path) -> str:
    return "; write 'version: 1'" if path == ("version",) else ""


def shown_number(number: float) -> str:
    """A bound as it is shown: whole numbers in full.

    >>> shown_number(4294967295), shown_number(0.01)
    ('4294967295', '0.01')
    """
    return str(number) if isinstance(number, int) else f"{number:g}"


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unquote(kind: str, value: Any) -> str:
    if not isinstance(value, str) or kind not in ("int_type", "float_type", "bool_type"):
        return ""
    if hint := unfilled(value):
        return hint
    try:
        float(value)
    except ValueError:
        return "; YAML knows only true and false" if value.lower() in ("yes", "no", "on", "off") else ""
    return "; remove the quotes"
