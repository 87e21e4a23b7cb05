"""YAML text -> plain tree that knows the line of every key, so that a mistake can be shown where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]
"""Keys and list positions from the root of the recipe."""

# A recipe has a few hundred values; aliases that multiply beyond this are a mistake or an attack.
MAX_VALUES = 20_000


def split(dotted: str) -> Path:
    """The path that a dotted key stands for.

    >>> split("rewards.0.weight")
    ('rewards', 0, 'weight')
    """
    return tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))


class Place(NamedTuple):
    """Where something was written: `recipe.yaml:12`, or an override (which has no line)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Mistake(NamedTuple):
    """One line for the user."""

    place: Place
    path: Path
    message: str

    def __str__(self) -> str:
        dotted = ".".join(map(str, self.path))
        return f"{self.place}: {dotted}: {self.message}" if dotted else f"{self.place}: {self.message}"


@dataclass
class Tree:
    """Values of a recipe as written, with the place of each."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)
    """Where a value was written that could not be read; the empty path where a whole file could not."""

    def place_of(self, path: Path, default: Place) -> Place:
        """Place of the value, or of the nearest value beside or around it that was written at all."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
            around = path[: end - 1]
            if around and around not in self.places:
                beside = [known for known in self.places if known[: end - 1] == around]
                if beside:
                    return self.places[beside[-1]]
        return default

    def forget(self, path: Path) -> None:
        """Drop the places at and below the path: what stood there was replaced."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]

    def overlay(self, other: Tree) -> None:
        """Write the other tree over this one: sections are merged key by key, everything else is replaced."""
        self.mistakes += other.mistakes
        self.unreadable |= other.unreadable
        self._overlay(self.values, other.values, other, ())

    def _overlay(self, below: dict[str, Any], above: dict[str, Any], other: Tree, path: Path) -> None:
        for key, value in above.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(below.get(key), dict):
                self.places[here] = other.places[here]
                self._overlay(below[key], value, other, here)
                continue
            self.forget(here)
            below[key] = value
            self.places.update({known: place for known, place in other.places.items() if known[: len(here)] == here})


def parse_tree(text: str, source: str) -> Tree:
    """Read YAML; mistakes (syntax, a key written twice, unknown tags) are collected in the tree, never raised.

    >>> tree = parse_tree("training:\\n  seed: 1\\n  seed: 2", "r.yaml")
    >>> print(tree.mistakes[0])
    r.yaml:3: training.seed: written twice, first in line 2; keep one of them
    """
    tree, yaml = Tree(), YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except YAMLError as error:
        tree.mistakes.append(_syntax(error, source))
        tree.unreadable.add(())
        return tree
    if isinstance(root, MappingNode):
        tree.values = _Builder(yaml, tree, source).build(root, ())
    elif root is not None:
        tree.mistakes.append(
            Mistake(Place(source, 1), (), "a recipe is a mapping of sections; begin with 'version: 1'")
        )
    return tree


def scalar_spans(text: str) -> dict[Path, tuple[int, int]]:
    """Begin and end of every single value in a YAML text that can be read.

    >>> scalar_spans("a: {b: [1, 23]}")
    {('a', 'b', 0): (8, 9), ('a', 'b', 1): (11, 13)}
    """
    spans: dict[Path, tuple[int, int]] = {}

    def walk(node: Node | None, path: Path) -> None:
        if isinstance(node, MappingNode):
            for key, value in node.value:
                walk(value, (*path, str(key.value)))
        elif isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*path, index))
        elif node is not None:
            spans[path] = (node.start_mark.index, node.end_mark.index)

    walk(YAML(typ="safe", pure=True).compose(text), ())
    return spans


def parse_value(text: str) -> Any:
    """The value of an override, read as YAML.

    >>> parse_value("1e-4"), parse_value("[32, 64]"), parse_value("tree"), parse_value("")
    (0.0001, [32, 64], 'tree', None)
    """
    tree = parse_tree(f"value: {text}" if text.strip() else "value: null", "")
    if tree.mistakes or "value" not in tree.values or len(tree.values) > 1:
        raise ValueError(f"cannot read {text!r} as a YAML value")
    return tree.values["value"]


def override_value(tree: Tree, override: str) -> None:
    """Write `a.b=c` over the tree, the value read as YAML; a mistake is collected in it."""
    place = Place(f"override '{override}'")
    dotted, equals, text = override.partition("=")
    parts = split(dotted.strip())
    try:
        if not equals or "" in parts:
            raise ValueError("write key=value with a dotted key, for example training.seed=1")
        _assign(tree.values, parts, parse_value(text))
    except ValueError as error:
        tree.mistakes.append(Mistake(place, (), str(error)))
        return
    tree.forget(parts)
    for depth in range(1, len(parts) + 1):  # sections that only the override names stand there too
        tree.places.setdefault(parts[:depth], place)


def _assign(values: dict[str, Any], parts: Path, value: Any) -> None:
    here: Any = values
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                at = ".".join(map(str, parts[:depth]))
                raise ValueError(f"{at} is a list of {len(here)}; give a position from 0 to {len(here) - 1}")
        elif isinstance(here, dict):
            part = str(part)
            if not last and here.get(part) is None:
                here[part] = {}
        else:
            raise ValueError(f"{'.'.join(map(str, parts[:depth]))} is a single value and has nothing below it")
        if last:
            here[part] = value
        else:
            here = here[part]


def _syntax(error: YAMLError, source: str) -> Mistake:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "context", None) or str(error).splitlines()[0]
    return Mistake(Place(source, mark.line + 1 if mark else 1), (), f"no valid YAML: {what}")


class _Builder:
    """Nodes -> plain values, noting lines. Two keys of one name are a mistake here, not the last one's victory."""

    def __init__(self, yaml: YAML, tree: Tree, source: str) -> None:
        self.constructor = yaml.constructor
        self.tree = tree
        self.source = source
        self.inside: set[int] = set()
        self.count = 0

    def build(self, node: Node, path: Path) -> Any:
        self.count += 1
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if why := self._refusal(node):
            return self._unreadable(node, path, why)
        self.inside.add(id(node))
        built = self._mapping(node, path) if isinstance(node, MappingNode) else self._sequence(node, path)
        self.inside.discard(id(node))
        return built

    def _refusal(self, node: Node) -> str:
        if id(node) in self.inside:
            return "an alias that contains itself"
        if self.count > MAX_VALUES:
            return f"more than {MAX_VALUES} values"
        plain = "tag:yaml.org,2002:map" if isinstance(node, MappingNode) else "tag:yaml.org,2002:seq"
        return "" if node.tag == plain else f"the tag '{node.tag}' has no meaning here"

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = (*path, str(key_node.value))
            if here[-1] in built:
                first = self.tree.places[here].line
                self._mistake(key_node, here, f"written twice, first in line {first}; keep one of them")
                continue
            self.tree.places[here] = Place(self.source, key_node.start_mark.line + 1)
            built[str(here[-1])] = self.build(value_node, here)
        return built

    def _sequence(self, node: Node, path: Path) -> list[Any]:
        built = []
        for index, item in enumerate(node.value):
            self.tree.places[(*path, index)] = Place(self.source, item.start_mark.line + 1)
            built.append(self.build(item, (*path, index)))
        return built

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        try:
            return self.constructor.construct_object(node)
        except (YAMLError, ValueError) as error:
            return self._unreadable(node, path, f"no valid YAML: {getattr(error, 'problem', None) or error}")

    def _unreadable(self, node: Node, path: Path, message: str) -> None:
        self.tree.unreadable.add(path)
        self._mistake(node, path, message)

    def _mistake(self, node: Node, path: Path, message: str) -> None:
        self.tree.mistakes.append(Mistake(Place(self.source, node.start_mark.line + 1), path, message))
