"""Rollouts as bytes: written in one process, read and replayed in another, on another machine, with nothing lost.

The form is one safetensors file: arrays by number, and a JSON text beside them that says what they belong to. There is
no code in it. Images and pieces of contexts that several nodes share are written once.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from r3_rl.errors import InputError
from r3_rl.flow.guidance import Guidance
from r3_rl.nodes import Node, NodeId
from r3_rl.policy.base import Drawing
from r3_rl.types import (
    Context,
    Critique,
    FlowSegment,
    ImagePiece,
    ImageSegment,
    ImageTokenSegment,
    Prompt,
    TextPiece,
    TextSegment,
    Verdict,
)

VERSION = 3
_KINDS = {kind.__name__: kind for kind in (TextSegment, ImageSegment, FlowSegment, ImageTokenSegment)}
_ARRAYS = {
    TextSegment: ("log_probs", "cutoff"),
    ImageSegment: ("log_probs",),
    FlowSegment: ("states", "next_states", "times", "next_times", "log_probs"),
    ImageTokenSegment: ("log_probs",),
}
_WORDS = {TextSegment: ("token_ids", "text", "ended", "temperature", "task"), ImageTokenSegment: ("token_ids",)}


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

    def _sample(self, sample: TextSegment | ImageSegment) -> dict[str, Any]:
        arrays = {n: None if (x := getattr(sample, n)) is None else self._array(x) for n in _ARRAYS[type(sample)]}
        row: dict[str, Any] = {
            "kind": type(sample).__name__,
            "arrays": arrays,
            "context": [self._piece(piece) for piece in sample.context],
            "words": {n: getattr(sample, n) for n in _WORDS.get(type(sample), ())},
        }
        if isinstance(sample, ImageSegment):
            row["image"] = self._image(sample.image)
            row["drawing"] = None if sample.drawing is None else asdict(sample.drawing)
        return row

    def _piece(self, piece: TextPiece | ImagePiece) -> int:
        if piece.key not in self._places:
            row: dict[str, Any]
            if isinstance(piece, TextPiece):
                row = {"text": piece.text, "token_ids": piece.token_ids, "keep": piece.keep}
            else:
                row = {"image": self._image(piece.image), "use": piece.use}
            self.pieces.append(row)
            self._places[piece.key] = len(self.pieces) - 1
        return self._places[piece.key]

    def _image(self, image: torch.Tensor) -> int:
        """Of an image that was written before, the same number: by content, since pieces hold copies."""
        key = ImagePiece(image=image, use="bytes").key
        if key not in self._places:
            self._places[key] = self._array(image)
        return self._places[key]

    def _array(self, array: torch.Tensor) -> int:
        self.arrays.append(array.detach().cpu().clone().contiguous())
        return len(self.arrays) - 1


class _Reader:
    def __init__(self, *, arrays: dict[str, torch.Tensor], pieces: Sequence[dict[str, Any]]) -> None:
        self._arrays = arrays
        self._pieces = [self._piece(row) for row in pieces]

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

    def _sample(self, row: dict[str, Any]) -> TextSegment | ImageSegment:
        arrays: dict[str, Any] = {n: None if i is None else self._arrays[str(i)] for n, i in row["arrays"].items()}
        context: Context = tuple(self._pieces[i] for i in row["context"])
        words = _tuples(row["words"])
        if "image" in row:
            words |= {"image": self._arrays[str(row["image"])], "drawing": _drawing(row["drawing"])}
        sample: TextSegment | ImageSegment = _KINDS[row["kind"]](context=context, **arrays, **words)
        return sample

    def _piece(self, row: dict[str, Any]) -> TextPiece | ImagePiece:
        if "image" in row:
            return ImagePiece(image=self._arrays[str(row["image"])], use=row["use"])
        ids = row["token_ids"]
        return TextPiece(text=row["text"], token_ids=None if ids is None else tuple(ids), keep=row["keep"])


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {"total": verdict.total, "scores": dict(verdict.scores), "words": verdict.words, "best": verdict.best}


def _drawing(row: dict[str, Any] | None) -> Drawing | None:
    if row is None:
        return None
    return Drawing(**_tuples(row) | {"guidance": Guidance(**_tuples(row["guidance"]))})


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
