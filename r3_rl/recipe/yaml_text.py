"""YAML text -> plain values that know their lines; what is too large, too deep or of no plain type is said."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.scanner import Scanner

from r3_rl.errors import one_line
from r3_rl.recipe.tree import Mistake, Path, Place, Tree, text_problem, unfilled

# A recipe has a few hundred values in a few kilobytes, at most five levels deep. What passes these bounds is a mistake
# or an attack, and is refused before it costs seconds: composing YAML takes 30 to 50 microseconds a value.
MAX_BYTES = 256_000
MAX_VALUES = 20_000
MAX_DEPTH = 100
_MAX_NUMBER = 2**63
_YAML = "tag:yaml.org,2002:"


def parse_tree(text: str, source: str) -> Tree:
    """Read a mapping; mistakes (syntax, a key written twice, unknown tags) are collected, never raised.

    >>> print(parse_tree("training:\\n  seed: 1\\n  seed: 2", "r.yaml").mistakes[0])
    r.yaml:3: training.seed: written twice, first in line 2; keep one of them
    """
    if len(text) > MAX_BYTES:
        why = f"longer than {MAX_BYTES} letters: not a recipe"
        return Tree(mistakes=[Mistake(Place(source, 1), (), why)], unreadable={()})
    tree, yaml = Tree(), _yaml()
    try:
        root = yaml.compose(text)
        if isinstance(root, MappingNode):
            tree.values = _Builder(yaml, tree, source).build(root, ())
    except YAMLError as error:
        return Tree(mistakes=[_syntax(error, text, source)], unreadable={()})
    if root is not None and not isinstance(root, MappingNode):
        why = "a recipe is a mapping of sections; begin with 'version: 1'"
        return Tree(mistakes=[Mistake(Place(source, 1), (), why)], unreadable={()})
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

    walk(_yaml().compose(text), ())
    return spans


def parse_value(text: str) -> Any:
    """The value of an override, read as YAML.

    Raises:
        ValueError: it cannot be read.

    >>> parse_value("1e-4"), parse_value("[32, 64]"), parse_value("tree"), parse_value("")
    (0.0001, [32, 64], 'tree', None)
    """
    tree = parse_tree(f"value: {text}" if text.strip() else "value: null", "")
    if tree.mistakes or "value" not in tree.values or len(tree.values) > 1:
        why = f": {tree.mistakes[0].message}" if tree.mistakes else ""
        raise ValueError(f"cannot read {one_line(text, 40)!r} as a YAML value{why}")
    return tree.values["value"]


class _BoundError(ComposerError):
    """More than a recipe may hold."""


class _BoundedComposer(Composer):
    """Stops at the first value too many or too deep; ruamel would go on to the end, or to the end of the stack."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self.warn_double_anchors = False  # YAML 1.2 allows them; a warning is four lines on the terminal
        self.count = 0
        self.level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.count += 1
        self.level += 1
        if self.count > MAX_VALUES:
            raise _BoundError(problem=f"more than {MAX_VALUES} values", problem_mark=self._here())
        if self.level > MAX_DEPTH:
            raise _BoundError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=self._here())
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def _here(self) -> Any:
        return self.parser.peek_event().start_mark


class _BoundedScanner(Scanner):
    """Stops at the bracket too deep: ruamel reads ahead, and looks at every open one for each."""

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise _BoundError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=self.reader.get_mark())
        super().fetch_flow_collection_start(TokenClass, to_push)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner = _BoundedScanner
    yaml.Composer = _BoundedComposer
    return yaml


def _syntax(error: YAMLError, text: str, source: str) -> Mistake:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "context", None) or str(error).splitlines()[0]
    number = mark.line + 1 if mark else 1
    hint = "".join(map(unfilled, text.split("\n")[number - 1 : number]))
    what = what if isinstance(error, _BoundError) else f"no valid YAML: {what}"
    return Mistake(Place(source, number), (), what + hint)


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
        if self.count > MAX_VALUES:  # aliases multiply: what was composed once may be meant a million times
            raise _BoundError(problem=f"more than {MAX_VALUES} values", problem_mark=node.start_mark)
        if len(path) > MAX_DEPTH:
            raise _BoundError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=node.start_mark)
        if why := self._refusal(node):
            return self._unreadable(node, path, why)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self.inside.add(id(node))
        built = self._mapping(node, path) if isinstance(node, MappingNode) else self._sequence(node, path)
        self.inside.discard(id(node))
        return built

    def _refusal(self, node: Node) -> str:
        if id(node) in self.inside:
            return "an alias that contains itself"
        tag, kind = str(node.tag), "map" if isinstance(node, MappingNode) else "seq"
        known = tag.startswith(_YAML) if isinstance(node, ScalarNode) else tag == f"{_YAML}{kind}"
        return "" if known else f"the tag '{tag}' has no meaning here; leave it out"

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, ScalarNode) else ""
            if not key or (why := text_problem(key)):
                what = f"{why} in a key; leave it out" if key else "a key that is no word; write `name: value`"
                self._mistake(key_node, path, what)
                continue
            here = (*path, key)
            if key in built:
                first = self.tree.places[here].line
                self._mistake(key_node, here, f"written twice, first in line {first}; keep one of them")
                continue
            self.tree.places[here] = Place(self.source, key_node.start_mark.line + 1)
            built[key] = self.build(value_node, here)
        return built

    def _sequence(self, node: Node, path: Path) -> list[Any]:
        built: list[Any] = []
        for index, item in enumerate(node.value):
            self.tree.places[(*path, index)] = Place(self.source, item.start_mark.line + 1)
            built.append(self.build(item, (*path, index)))
        return built

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        tag = str(node.tag).removeprefix(_YAML)
        try:
            value = self.constructor.construct_object(node)
        except Exception as error:  # ruamel raises what its parts raise: IndexError for !!int '', KeyError for !!bool x
            why = getattr(error, "problem", None) or f"{one_line(node.value, 40)!r} cannot be read as {tag}"
            return self._unreadable(node, path, f"no valid YAML: {why}")
        if isinstance(value, int) and abs(value) >= _MAX_NUMBER:
            return self._unreadable(node, path, "a number of more than 64 bits; write a smaller one")
        if isinstance(value, str) and (why := text_problem(value)):
            return self._unreadable(node, path, f"{why} in the text; leave it out")
        if value is not None and not isinstance(value, str | int | float):
            return self._unreadable(node, path, f"{one_line(node.value, 40)!r} is read as {tag}; put it in quotes")
        return value

    def _unreadable(self, node: Node, path: Path, message: str) -> None:
        self.tree.unreadable.add(path)
        self._mistake(node, path, message)

    def _mistake(self, node: Node, path: Path, message: str) -> None:
        self.tree.mistakes.append(Mistake(Place(self.source, node.start_mark.line + 1), path, message))
