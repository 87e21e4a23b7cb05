"""The words of a world of shapes: plans, critiques, instructions, questions, and the tokenizer that reads them.

Texts are lower case with single spaces between words; commas and question marks are words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.scene import UNCLEAR, Edit, Obj, Scene, apply_edit, reading_order
from r3_rl.worlds.shapes.terms import COLORS, NUMBERS, SHAPES, plural

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
_SIZE_WORDS = "make size"


def vocabulary(board: Board) -> tuple[str, ...]:
    """Every word of a board's texts, in alphabetical order."""
    words = {THINK, END_THINK, ROUGH, NOTHING, *STOP.split(), *_OTHER_WORDS.split()}
    words |= {*COLORS, *SHAPES, *map(plural, SHAPES), *board.rows, *board.columns, *NUMBERS}
    return tuple(sorted(words | {*board.size_words, *(_SIZE_WORDS.split() if board.is_sized else ())}))


def cell_words(row: int, col: int, board: Board = NINE) -> str:
    """Two words for a cell.

    >>> cell_words(0, 2)
    'top right'
    """
    return f"{board.rows[row]} {board.columns[col]}"


def object_words(o: Obj, board: Board = NINE) -> str:
    """Colour, shape and cell of an object, before them its size and whether it is malformed, if there is that to say:
    "rough red circle top left"."""
    words = (ROUGH if o.rough else "", o.size, o.color, o.shape, cell_words(o.row, o.col, board))
    return " ".join(word for word in words if word)


def listing(objects: Iterable[Obj], board: Board = NINE) -> str:
    """Objects as given, or "nothing"."""
    return " ".join(object_words(o, board) for o in objects) or NOTHING


def thoughts(objects: Iterable[Obj], board: Board = NINE) -> str:
    """A listing between thinking marks; a plan is this alone, in the prompt's order.

    >>> thoughts([Obj("red", "circle", 0, 0)])
    '<think> red circle top left </think>'
    """
    return f"{THINK} {listing(objects, board)} {END_THINK}"


def plan_text(scene: Scene, board: Board = NINE) -> str:
    """The plan that leads to the scene: its objects in the order they have there (the prompt's)."""
    return thoughts((o._replace(rough="") for o in scene), board)


def critique_text(scene: Scene, edit: Edit | None, board: Board = NINE) -> str:
    """What is seen, in reading order, and then one instruction; None stops."""
    said = STOP if edit is None else instruction_text(edit, board)
    return f"{thoughts(reading_order(scene), board)} {said}"


def answer_text(seen: Scene, answer: str, board: Board = NINE) -> str:
    """What is seen, in reading order, and then the answer's word."""
    return f"{thoughts(reading_order(seen), board)} {answer}"


def question_text(question: str) -> str:
    """A question as the model reads it.

    >>> question_text("how many circles")
    'how many circles ?'
    """
    return f"{question} ?"


def _objects(words: list[str], board: Board) -> list[Obj] | None:
    if words == [NOTHING]:
        return []
    found: list[Obj] = []
    rest = words
    while rest:
        rough, rest = rest[0] == ROUGH, rest[rest[0] == ROUGH :]
        named = _named(rest, board)
        if named is None or not named.color or (board.is_sized and not named.size):
            return None
        rough_now = UNCLEAR if rough else ""
        found.append(Obj(named.color, named.shape, named.row, named.col, rough=rough_now, size=named.size))
        rest = named.rest
    return found or None


class _Named(NamedTuple):
    """An object as words name it, and the words after it."""

    size: str
    color: str
    shape: str
    row: int
    col: int
    rest: list[str]


def _named(words: list[str], board: Board) -> _Named | None:
    """The object that words begin with: shape and cell, before them size and colour where they are said."""
    size = words[0] if words and words[0] in board.size_words else ""
    words = words[bool(size) :]
    color = words[0] if words and words[0] in COLORS else ""
    words = words[bool(color) :]
    if len(words) < 3 or words[0] not in SHAPES or words[1] not in board.rows or words[2] not in board.columns:
        return None
    return _Named(size, color, words[0], board.rows.index(words[1]), board.columns.index(words[2]), words[3:])


def parse_listing(text: str, board: Board = NINE) -> list[Obj] | None:
    """Objects of a listing, or of the thoughts at the start of a critique or an answer; None when it is not one.

    >>> parse_listing("<think> nothing </think> no further edit needed")
    []
    """
    words = text.split()
    if words[:1] == [THINK]:
        if words.count(END_THINK) != 1:
            return None
        words = words[1 : words.index(END_THINK)]
    return _objects(words, board)


def parse_plan(text: str, board: Board = NINE) -> list[Obj] | None:
    """Objects of a plan; None when it is malformed, says more than a plan or puts two objects in a cell."""
    words = text.split()
    if len(words) < 3 or words[0] != THINK or words[-1] != END_THINK:
        return None
    objects = _objects(words[1:-1], board)
    if objects is None or len({o.cell for o in objects}) < len(objects):
        return None
    return objects


def instruction_text(edit: Edit, board: Board = NINE) -> str:
    """The edit in words.

    >>> instruction_text(Edit("move", "red", "circle", 0, 0, to_row=2, to_col=2))
    'move the red circle top left to bottom right'
    """
    words = (edit.size, edit.color, edit.shape, cell_words(edit.row, edit.col, board))
    what = " ".join(word for word in words if word)
    if edit.kind == "change":
        return f"change the {what} to {edit.to_color}"
    if edit.kind == "turn":
        return f"turn the {what} into a {edit.to_shape}"
    if edit.kind == "make":
        return f"make the {what} {edit.to_size}"
    if edit.kind == "add":
        return f"add a {what}"
    if edit.kind == "remove":
        return f"remove the {what}"
    return f"move the {what} to {cell_words(edit.to_row, edit.to_col, board)}"


def parse_instruction(text: str, board: Board = NINE) -> Edit | None:
    """The edit that an instruction asks for; None when it is not one. Size and colour of an object that is there may be
    left out.

    >>> parse_instruction("turn the circle top left into a square").to_shape
    'square'
    """
    words = text.split()
    kind, article = words[0] if words else "", "a" if words[:1] == ["add"] else "the"
    named = _named(words[2:], board)
    if words[1:2] != [article] or named is None:
        return None
    edit, tail = Edit(kind, named.color, named.shape, named.row, named.col, size=named.size), named.rest
    whole = bool(named.color) and (bool(named.size) or not board.is_sized)
    if (kind == "remove" or (kind == "add" and whole)) and not tail:
        return edit
    if kind == "change" and len(tail) == 2 and tail[0] == "to" and tail[1] in COLORS:
        return edit._replace(to_color=tail[1])
    if kind == "turn" and len(tail) == 3 and tail[:2] == ["into", "a"] and tail[2] in SHAPES:
        return edit._replace(to_shape=tail[2])
    if kind == "make" and len(tail) == 1 and tail[0] in board.size_words:
        return edit._replace(to_size=tail[0])
    if kind == "move" and len(tail) == 3 and tail[0] == "to" and tail[1] in board.rows and tail[2] in board.columns:
        return edit._replace(to_row=board.rows.index(tail[1]), to_col=board.columns.index(tail[2]))
    return None


def apply_instruction(scene: Scene, instruction: str, board: Board = NINE) -> Scene | None:
    """The scene after an instruction in words; None when the words are no instruction or do not fit the scene.

    >>> apply_instruction((), "add a red circle top left")[0].color
    'red'
    """
    edit = parse_instruction(instruction, board)
    return None if edit is None else apply_edit(scene, edit, board=board)


def build_tokenizer(board: Board = NINE) -> Tokenizer:
    """A word-level tokenizer of the world's words, to be saved as `tokenizer.json`.

    It lowers case and sets commas and question marks apart, so that "A red circle, a cross" reads as the world writes
    it. Unknown words become <unk>. The thinking marks are ordinary words and survive decoding without special tokens.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("<think> Red circle</think>").ids)
    '<think> red circle </think>'
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    numbers = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *vocabulary(board)))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    apart = pre_tokenizers.Split(Regex(r",|\?|</?think>"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), apart])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer
