"""Rollouts as bytes: written in one process, read and replayed in another, on another machine, with nothing lost.

The form is one safetensors file: arrays by number, and a JSON text beside them that says what they belong to. There is
no code in it. Images and pieces of contexts that several nodes share are written once.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from r3_rl.errors import InputError
from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import DrawnSegment, Piece, Segment, TextSegment, content_key
from r3_rl.nodes import Node, NodeId
from r3_rl.policy.base import Drawing
from r3_rl.types import Critique, Prompt, Verdict

VERSION = 4


def to_bytes(nodes: Sequence[Node]) -> bytes:
    """Write nodes and everything above them.

    Args:
        nodes: any nodes of a turn; their parents are written too, siblings' common ones once.

    Returns:
        What `from_bytes` reads, nodes in the same order.
    """
    writer = _Writer()
    wanted = [writer.node(node) for node in nodes]
    words = {"version": VERSION, "nodes": writer.nodes, "pieces": writer.pieces, "wanted": wanted}
    return save({str(i): tensor for i, tensor in enumerate(writer.arrays)}, {"r3_rl": json.dumps(words)})


def from_bytes(data: bytes) -> list[Node]:
    """Read what `to_bytes` wrote.

    Raises:
        InputError: bytes of another kind or of another version.

    >>> from r3_rl.nodes import given_image
    >>> image = given_image(Prompt(text="a cross", columns={"tag": "one"}), torch.ones(3, 2, 2))
    >>> (again,) = from_bytes(to_bytes([image]))
    >>> again.prompt == image.prompt, torch.equal(again.image, image.image)
    (True, True)
    """
    try:
        arrays, words = load(data), json.loads(_metadata(data)["r3_rl"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError("these bytes are no rollouts", hint="write them with to_bytes") from error
    if words["version"] != VERSION:
        raise InputError(f"rollouts of version {words['version']}", hint=f"this r3-rl reads version {VERSION}")
    reader = _Reader(arrays=arrays, pieces=words["pieces"])
    nodes: list[Node] = []
    for row in words["nodes"]:
        nodes.append(reader.node(row, nodes))
    return [nodes[i] for i in words["wanted"]]


def _metadata(data: bytes) -> dict[str, str]:
    """The header of a safetensors file: 8 bytes of length, then JSON."""
    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size])["__metadata__"])


class _Writer:
    def __init__(self) -> None:
        self.arrays: list[torch.Tensor] = []
        self.pieces: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self._places: dict[Hashable, int] = {}

    def node(self, node: Node) -> int:
        """The node's number; its parents come before it."""
        if node in self._places:
            return self._places[node]
        parent = None if node.parent is None else self.node(node.parent)
        self.nodes.append(
            {
                "id": [node.id.row, node.id.depth],
                "prompt": [node.prompt.text, dict(node.prompt.columns)],
                "stage": node.stage,
                "num_rows": node.num_rows,
                "parent": parent,
                "sample": None if node.sample is None else self._sample(node.sample),
                "critique": None if node.critique is None else [node.critique.stop, node.critique.instruction],
                "well_formed": node.well_formed,
                "verdict": None if node.verdict is None else _plain(node.verdict),
                "num_refinements": node.num_refinements,
            }
        )
        self._places[node] = len(self.nodes) - 1
        return self._places[node]

    def _sample(self, sample: Segment) -> dict[str, Any]:
        row = self._fields(sample, without=("context", "drawing"))
        drawing = sample.drawing if isinstance(sample, DrawnSegment) else None
        row["context"] = [self._piece(piece) for piece in sample.context]
        return row | {"drawing": None if drawing is None else asdict(drawing)}

    def _piece(self, piece: Piece) -> int:
        if piece.key not in self._places:
            self.pieces.append(self._fields(piece))
            self._places[piece.key] = len(self.pieces) - 1
        return self._places[piece.key]

    def _fields(self, held: Any, without: Sequence[str] = ()) -> dict[str, Any]:
        """A piece or segment of whichever modality: its kind, its tensors' numbers, and the rest unchanged."""
        values = {f.name: getattr(held, f.name) for f in fields(held) if f.name not in without}
        arrays = {name: self._array(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        words = {name: value for name, value in values.items() if name not in arrays}
        return {"kind": type(held).__name__, "arrays": arrays, "words": words}

    def _array(self, array: torch.Tensor) -> int:
        """Of a tensor that was written before, the same number: by content, since pieces hold copies."""
        key = ("array", content_key(array))
        if key not in self._places:
            self.arrays.append(array.detach().cpu().clone().contiguous())
            self._places[key] = len(self.arrays) - 1
        return self._places[key]


class _Reader:
    def __init__(self, *, arrays: dict[str, torch.Tensor], pieces: Sequence[dict[str, Any]]) -> None:
        self._arrays = arrays
        self._pieces: list[Piece] = [self._made(row, Piece) for row in pieces]

    def node(self, row: dict[str, Any], above: Sequence[Node]) -> Node:
        """The node of a row, whose parent was read before."""
        sample = None if row["sample"] is None else self._sample(row["sample"])
        critique = None
        if row["critique"] is not None:
            assert isinstance(sample, TextSegment)
            stop, instruction = row["critique"]
            critique = Critique(segment=sample, well_formed=row["well_formed"], stop=stop, instruction=instruction)
        text, columns = row["prompt"]
        return Node(
            id=NodeId(row=row["id"][0], depth=row["id"][1]),
            prompt=Prompt(text=text, columns=columns),
            stage=row["stage"],
            num_rows=row["num_rows"],
            parent=None if row["parent"] is None else above[row["parent"]],
            sample=sample,
            critique=critique,
            well_formed=row["well_formed"],
            verdict=None if row["verdict"] is None else Verdict(**row["verdict"]),
            num_refinements=row["num_refinements"],
        )

    def _sample(self, row: dict[str, Any]) -> Segment:
        drawing = {} if row["drawing"] is None else {"drawing": _drawing(row["drawing"])}
        sample: Segment = self._made(row, Segment, context=tuple(self._pieces[i] for i in row["context"]), **drawing)
        return sample

    def _made(self, row: dict[str, Any], family: type[Any], **more: Any) -> Any:
        """The piece or segment of a row."""
        kind = next((kind for kind in _kinds(family) if kind.__name__ == row["kind"]), None)
        if kind is None:
            raise InputError(f"rollouts with a {row['kind']}", hint="import the backbone that makes it")
        arrays = {name: self._arrays[str(number)] for name, number in row["arrays"].items()}
        return kind(**arrays, **_tuples(row["words"]), **more)


def _kinds(family: type[Any]) -> list[type[Any]]:
    """A class and all that are derived from it, those of other people's backbones too."""
    return [family, *(kind for below in family.__subclasses__() for kind in _kinds(below))]


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {"total": verdict.total, "scores": dict(verdict.scores), "words": verdict.words, "best": verdict.best}


def _drawing(row: dict[str, Any]) -> Drawing:
    return Drawing(**_tuples(row) | {"guidance": Guidance(**_tuples(row["guidance"]))})


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
