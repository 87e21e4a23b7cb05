"""What says that pieces are shared, and the tree that finds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.policy.prefixes import context_key, spans, written_before
from tests.policy.tiny import pictures


def letters(words):
    return [tuple(TextPiece(text=letter) for letter in word) for word in words]


def shape(levels):
    return [[("".join(piece.text for piece in s.pieces), s.rows) for s in level] for level in levels]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ab", "cd", "e"], [[("ab", (0,)), ("cd", (1,)), ("e", (2,))]]),
        (["ab", "ab", "ab"], [[("ab", (0, 1, 2))]]),
        (["xa", "xb", "ya", "xc"], [[("x", (0, 1, 3)), ("ya", (2,))], [("a", (0,)), ("b", (1,)), ("c", (3,))]]),
        (["spa", "sp", "sq"], [[("s", (0, 1, 2))], [("p", (0, 1)), ("q", (2,))], [("a", (0,))]]),
        (["", "a", ""], [[("a", (1,))]]),
        (["", ""], []),
        ([], []),
    ],
)
def test_chains_are_one_span_and_branches_are_levels(words, expected):
    assert shape(spans(letters(words))) == expected


def test_what_fewer_rows_share_is_left_out_with_all_that_follows():
    assert shape(spans(letters(["spa", "sp", "sq", "t"]), least=2)) == [[("s", (0, 1, 2))], [("p", (0, 1))]]


def test_texts_are_the_same_by_what_is_read():
    ids = TextPiece(text="a", token_ids=(5, 7))
    assert ids.key == TextPiece(text="another spelling", token_ids=(5, 7)).key
    others = [ids, TextPiece(text="a"), TextPiece(text="b"), replace(ids, keep=True), replace(ids, token_ids=(5,))]
    assert len({piece.key for piece in others}) == len(others)


def test_images_are_the_same_by_their_values_shape_and_use():
    image = pictures(1)[0]
    piece = ImagePiece(image=image)
    assert piece.key == ImagePiece(image=image.clone()).key
    assert piece.key == ImagePiece(image=image.flip(1).flip(1).transpose(1, 2).contiguous().transpose(1, 2)).key
    changed = image.clone()
    changed[2, 35, 35] += 1e-6
    others = [image, changed, image.reshape(3, 18, 72), image.double()]
    keys = {ImagePiece(image=other, use=use).key for other in others for use in ("look", "edit")}
    assert len(keys) == 8


def test_a_key_is_computed_once():
    """That it is the same in another process is seen in tests/test_nodes_io.py."""
    piece = ImagePiece(image=torch.zeros(3, 4, 4))
    assert piece.key is piece.key


def test_a_sampled_text_is_found_by_what_was_drawn_after_it():
    prompt = TextPiece(text="a red circle")
    plan = TextPiece(text="red", token_ids=(7, 2))
    assert written_before((prompt, plan)) == (context_key((TextPiece(text="a red circle"),)), (7, 2))
    assert written_before((prompt,)) is written_before(()) is None
    assert written_before((plan, ImagePiece(image=pictures(1)[0]))) is None
