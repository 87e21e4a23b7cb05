"""The words of the shapes world: plans, critiques, instructions, questions, and the tokenizer that reads them.

Texts are lower case with single spaces between words; commas and question marks are words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from r3_rl.worlds.shapes.prompts import NUMBERS, plural
from r3_rl.worlds.shapes.scene import (
    COLORS,
    COLUMNS,
    ROWS,
    SHAPES,
    UNCLEAR,
    Edit,
    Obj,
    Scene,
    apply_edit,
    reading_order,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

THINK, END_THINK = "<think>", "</think>"
STOP = "no further edit needed"
ROUGH = "rough"
NOTHING = "nothing"
SPECIAL_TOKENS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
_OTHER_WORDS = (
    "a and the of above below change turn into add remove move to how many is there what color shape none yes no "
    "check draw , ?"
)
WORDS = tuple(
    sorted(
        {THINK, END_THINK, ROUGH, NOTHING, *STOP.split(), *_OTHER_WORDS.split()}
        | {*COLORS, *SHAPES, *map(plural, SHAPES), *ROWS, *COLUMNS, *NUMBERS}
    )
)


def cell_words(row: int, col: int) -> str:
    """Two words for a cell.

    >>> cell_words(0, 2)
    'top right'
    """
    return f"{ROWS[row]} {COLUMNS[col]}"


def object_words(o: Obj) -> str:
    """Four words for an object, a fifth in front where it is malformed: "rough red circle top left"."""
    words = f"{o.color} {o.shape} {ROWS[o.row]} {COLUMNS[o.col]}"
    return f"{ROUGH} {words}" if o.rough else words


def listing(objects: Iterable[Obj]) -> str:
    """Objects as given, or "nothing"."""
    return " ".join(map(object_words, objects)) or NOTHING


def thoughts(objects: Iterable[Obj]) -> str:
    """A listing between thinking marks; a plan is this alone, in the prompt's order.

    >>> thoughts([Obj("red", "circle", 0, 0)])
    '<think> red circle top left </think>'
    """
    return f"{THINK} {listing(objects)} {END_THINK}"


def plan_text(scene: Scene) -> str:
    """The plan that leads to the scene: its objects in the order they have there (the prompt's)."""
    return thoughts(o._replace(rough="") for o in scene)


def critique_text(scene: Scene, edit: Edit | None) -> str:
    """What is seen, in reading order, and then one instruction; None stops."""
    return f"{thoughts(reading_order(scene))} {STOP if edit is None else instruction_text(edit)}"


def answer_text(scene: Scene, answer: str) -> str:
    """What is seen, in reading order, and then the answer's word."""
    return f"{thoughts(reading_order(scene))} {answer}"


def question_text(question: str) -> str:
    """A question as the model reads it.

    >>> question_text("how many circles")
    'how many circles ?'
    """
    return f"{question} ?"


def _objects(words: list[str]) -> list[Obj] | None:
    if words == [NOTHING]:
        return []
    found, at = [], 0
    while at < len(words):
        rough = words[at] == ROUGH
        at += rough
        if len(words) < at + 4:
            return None
        color, shape, row, col = words[at : at + 4]
        if color not in COLORS or shape not in SHAPES or row not in ROWS or col not in COLUMNS:
            return None
        found.append(Obj(color, shape, ROWS.index(row), COLUMNS.index(col), rough=UNCLEAR if rough else ""))
        at += 4
    return found or None


def parse_listing(text: str) -> list[Obj] | None:
    """Objects of a listing, or of the thoughts at the start of a critique or an answer; None when it is not one.

    >>> parse_listing("<think> nothing </think> no further edit needed")
    []
    """
    words = text.split()
    if words[:1] == [THINK]:
        if words.count(END_THINK) != 1:
            return None
        words = words[1 : words.index(END_THINK)]
    return _objects(words)


def parse_plan(text: str) -> list[Obj] | None:
    """Objects of a plan; None when it is malformed, says more than a plan or puts two objects in a cell."""
    words = text.split()
    if len(words) < 3 or words[0] != THINK or words[-1] != END_THINK:
        return None
    objects = _objects(words[1:-1])
    if objects is None or len({o.cell for o in objects}) < len(objects):
        return None
    return objects


def instruction_text(edit: Edit) -> str:
    """The edit in words.

    >>> instruction_text(Edit("move", "red", "circle", 0, 0, to_row=2, to_col=2))
    'move the red circle top left to bottom right'
    """
    named = f"{edit.color} {edit.shape}" if edit.color else edit.shape
    what = f"{named} {cell_words(edit.row, edit.col)}"
    if edit.kind == "change":
        return f"change the {what} to {edit.to_color}"
    if edit.kind == "turn":
        return f"turn the {what} into a {edit.to_shape}"
    if edit.kind == "add":
        return f"add a {what}"
    if edit.kind == "remove":
        return f"remove the {what}"
    return f"move the {what} to {cell_words(edit.to_row, edit.to_col)}"


def parse_instruction(text: str) -> Edit | None:
    """The edit that an instruction asks for; None when it is not one. The named object's colour may be left out.

    >>> parse_instruction("turn the circle top left into a square").to_shape
    'square'
    """
    words = text.split()
    kind, article, rest = words[0] if words else "", "a" if words[:1] == ["add"] else "the", words[2:]
    if words[1:2] != [article]:
        return None
    color = rest.pop(0) if rest and rest[0] in COLORS else ""
    if len(rest) < 3 or rest[0] not in SHAPES or rest[1] not in ROWS or rest[2] not in COLUMNS:
        return None
    edit = Edit(kind, color, rest[0], ROWS.index(rest[1]), COLUMNS.index(rest[2]))
    tail = rest[3:]
    if (kind == "remove" or (kind == "add" and color)) and not tail:
        return edit
    if kind == "change" and len(tail) == 2 and tail[0] == "to" and tail[1] in COLORS:
        return edit._replace(to_color=tail[1])
    if kind == "turn" and len(tail) == 3 and tail[:2] == ["into", "a"] and tail[2] in SHAPES:
        return edit._replace(to_shape=tail[2])
    if kind == "move" and len(tail) == 3 and tail[0] == "to" and tail[1] in ROWS and tail[2] in COLUMNS:
        return edit._replace(to_row=ROWS.index(tail[1]), to_col=COLUMNS.index(tail[2]))
    return None


def apply_instruction(scene: Scene, instruction: str) -> Scene | None:
    """The scene after an instruction in words; None when the words are no instruction or do not fit the scene.

    >>> apply_instruction((), "add a red circle top left")[0].color
    'red'
    """
    edit = parse_instruction(instruction)
    return None if edit is None else apply_edit(scene, edit)


def build_tokenizer() -> Tokenizer:
    """A word-level tokenizer of the world's words, to be saved as `tokenizer.json`.

    It lowers case and sets commas and question marks apart, so that "A red circle, a cross" reads as the world writes
    it. Unknown words become <unk>. The thinking marks are ordinary words and survive decoding without special tokens.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("<think> Red circle</think>").ids)
    '<think> red circle </think>'
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    apart = pre_tokenizers.Split(Regex(r",|\?|</?think>"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), apart])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer
