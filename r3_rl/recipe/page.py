"""The text of `docs/recipes.md`: every key of a recipe with its values and default, from the JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from r3_rl.recipe import Recipe
from r3_rl.recipe.wording import shown_number

INTRODUCTION = """\
# Recipes

A recipe is one YAML file that says everything about a run. It holds what differs from the defaults; the defaults are
those of the embedded model. `r3 recipes ls` lists the shipped ones, `r3 recipes copy shapes_r3 mine.yaml` gives you one
to change, and `r3 check mine.yaml` checks it and says what a step is made of, before anything loads.

```yaml
extends: shapes_r3            # a shipped recipe, or a file beside this one
rewards:
  - scorer: ./my_reward.py:my_reward
    weight: 0.5
  - scorer: shapes
training:
  max_steps: 60
```

* Keys are strict: an unknown key is an error with its line and the nearest name, and all mistakes are listed at once.
  Values are never converted: `"8"` is no number.
* `extends` merges section by section; a list replaces the list below it.
* On the command line a setting is changed by its dotted name: `r3 train mine.yaml training.seed=1 rewards.0.weight=2`.
* `r3 recipes show mine.yaml --resolved` prints every setting with its value. A run keeps the same text as
  `recipe.resolved.yaml`.
* `r3 schema > r3.schema.json` gives editors what they need to complete and check recipes.

This page is written from the recipe's schema (`r3_rl/recipe/`): change it there, then run
`python -m r3_rl.recipe.page > docs/recipes.md`.
"""


def recipes_page() -> str:
    """Every key as a table for each section.

    >>> "| `training.learning_rate` |" in recipes_page()
    True
    """
    schema = Recipe.model_json_schema()
    lines = [INTRODUCTION]
    for name, entry in schema["properties"].items():
        section, many = _section(entry, schema)
        if section is None:
            lines += [f"## {name}", "", f"{entry['description']} Value: {_values(entry)}.", ""]
            continue
        key = f"{name}.N" if many else name
        lines += [f"## {name}", "", str(entry.get("description") or section["description"]), ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [*_rows(section, key, schema), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(section: Mapping[str, Any], prefix: str, schema: Mapping[str, Any]) -> Iterator[str]:
    required = section.get("required", ())
    for name, entry in section["properties"].items():
        inner, _ = _section(entry, schema)
        if inner is not None:
            yield from _rows(inner, f"{prefix}.{name}", schema)
            continue
        default = "needed" if name in required else f"`{json.dumps(entry['default'])}`"
        key = f"{prefix}.{name}"
        yield f"| `{key}` | {_values(entry)} | {default} | {entry['description']} |"


def _section(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, bool]:
    """The section that an entry stands for, and whether it is a list of them."""
    choices = [entry, *entry.get("anyOf", ())]
    for choice in choices:
        if "properties" in choice:
            return choice, False
        if "$ref" in choice:
            return schema["$defs"][choice["$ref"].rpartition("/")[2]], False
        if "$ref" in choice.get("items", {}):
            return schema["$defs"][choice["items"]["$ref"].rpartition("/")[2]], True
    return None, False


def _values(entry: Mapping[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_values(choice) for choice in entry["anyOf"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    kind = entry["type"]
    if kind == "array":
        items = entry.get("prefixItems") or [entry["items"]]
        return f"{len(items)} values: {_values(items[0])}" if "prefixItems" in entry else f"list of {_values(items[0])}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    words |= {"object": "mapping", "null": "`null`"}
    return f"{words[kind]}{_bounds(entry)}"


def _bounds(entry: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {shown_number(entry[name])}" for name, sign in signs.items() if name in entry]
    return f" {', '.join(found)}" if found else ""


if __name__ == "__main__":
    print(recipes_page(), end="")
