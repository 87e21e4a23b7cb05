"""A third modality, brought by a backbone: two classes, and nothing else in the house knows of them.

A tune is a row of notes. The backbone draws tunes note by note where others draw images, and reads them before it
writes or draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.modalities import DrawnSegment, Piece, TextPiece, content_key
from r3_rl.nodes import Node, NodeId
from r3_rl.nodes_io import from_bytes, to_bytes
from r3_rl.policy.base import Sampling
from r3_rl.rollout.engine import Engine
from r3_rl.types import Prompt
from tests.policy.tiny import tiny_policy
from tests.policy.toy import BEGIN, CODES, IMAGE, PALETTE, TOY, ToyPolicy
from tests.training.test_token_backbone import LOOP, PROMPTS
from tests.training.test_trainer import assert_equal_weights, make, run, weights

NOTES = len(PALETTE)


@dataclass(frozen=True, kw_only=True, eq=False)
class TunePiece(Piece):
    """A tune in a context."""

    notes: torch.Tensor
    """float32 [N] in [0, 1)."""

    @cached_property
    def key(self) -> Hashable:
        return ("tune", content_key(self.notes))


@dataclass(frozen=True, kw_only=True, eq=False)
class TuneSegment(DrawnSegment):
    """A tune as sampled, note by note."""

    argument: ClassVar[str] = "tunes"
    notes: torch.Tensor
    token_ids: tuple[int, ...] = ()

    def piece(self, use="look"):
        return TunePiece(notes=self.notes)

    def given(self):
        return TuneSegment(context=(), log_probs=torch.zeros(0), notes=self.notes)

    def scored(self):
        return self.notes.numpy()


class Musician(ToyPolicy):
    """The toy, whose codebook is notes."""

    def ids(self, context, *, drop_text=False):
        out = [self.words + BEGIN]
        for piece in context:
            if isinstance(piece, TunePiece):
                codes = (piece.notes * NOTES).round().long().tolist()
                out += [self.words + IMAGE, *(self.words + CODES + code for code in codes)]
            elif not drop_text or piece.keep:
                out += self.text(piece.text, piece.token_ids)
        return out

    def draw(self, contexts, drawings, seeds, noise_seeds=None):
        images, out = super().draw(contexts, drawings, seeds, noise_seeds), []
        for drawn in images:
            notes = torch.tensor(drawn.token_ids) / NOTES
            made = {"context": drawn.context, "log_probs": drawn.log_probs, "token_ids": drawn.token_ids}
            out.append(TuneSegment(**made, drawing=drawn.drawing, notes=notes))
        return out


@pytest.fixture
def musician(tmp_path):
    toy = TOY.load(TOY.write_tiny(tmp_path / "weights"), dtype=torch.float32, device="cpu")
    return Musician(toy.module, toy.tokenizer)


def high(tunes, draft_tunes=None, **columns):
    """How high the tunes are; what was refined comes with what it was before."""
    assert draft_tunes is None or len(draft_tunes) == len(tunes)
    return [float(tune.mean()) for tune in tunes]


def test_a_run_trains_tunes_and_critiques_of_tunes(musician, tmp_path):
    trainer = make(
        tmp_path, high, policy=musician, loop_settings=LOOP, dataset=PROMPTS, max_steps=4, image_beta=0.01, save_steps=2
    )
    asked = []
    submit = trainer.panel.submit
    trainer.schedule.engine.submit = lambda batch: asked.append(batch) or submit(batch)
    checked = trainer.self_check()
    assert max(checked.deviation.values()) < 1e-4
    before = weights(trainer)
    rows = run(trainer)
    assert [batch.images for batch in asked] == [None] * 4 and asked[0].drawn.keys() == {"tunes"}
    assert asked[1].drawn.keys() == {"tunes", "draft_tunes"}
    for row in rows:
        assert row.get("ratio/image_deviation", 0.0) < 1e-4 and row["grad_norm"] > 0
    assert sum("image/loss" in row for row in rows) >= 2 and any(row.get("image/count") for row in rows)
    assert any("refine/gain_mean" in row for row in rows), "drafts and refinements take turns"
    assert any(not torch.equal(before[name], after) for name, after in weights(trainer).items())
    resumed = make(
        tmp_path, high, policy=Musician(fresh(tmp_path), musician.tokenizer), loop_settings=LOOP, dataset=PROMPTS,
        max_steps=4, image_beta=0.01, save_steps=1000,
    )  # fmt: skip
    run(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_weights(weights(trainer), weights(resumed))


def fresh(tmp_path):
    return TOY.load(tmp_path / "weights", dtype=torch.float32, device="cpu").module


def test_tunes_cross_a_process_border(musician):
    engine = Engine(policy=musician, settings=LOOP)
    drafts = engine.drafts(PROMPTS, seed=1, plans=4)
    refined = [node for node in engine.round(drafts, seed=2) if node.stage == "refinement"]
    again = from_bytes(to_bytes(refined))
    assert all(isinstance(node.sample, TuneSegment) for node in again) and refined
    for ours, theirs in zip(refined, again, strict=True):
        assert torch.equal(ours.sample.notes, theirs.sample.notes) and ours.sample.drawing == theirs.sample.drawing
        assert [p.key for p in ours.sample.context] == [p.key for p in theirs.sample.context]
    for a, b in zip(
        musician.replay([n.sample for n in refined]), musician.replay([n.sample for n in again]), strict=True
    ):
        assert torch.equal(a.log_probs, b.log_probs)


def test_a_question_about_a_given_tune_is_answered_and_trained(musician, tmp_path):
    tunes = [torch.tensor([i / NOTES, 0.5]) for i in range(4)]

    def questions(count, seed):
        asked = [Prompt(text=f"left of {i}", columns={"answer": "a"}) for i in range(count)]
        given = [TuneSegment(context=(), log_probs=torch.zeros(0), notes=tunes[i % 4]) for i in range(count)]
        return [Node(id=NodeId(row=0, depth=0), prompt=p, sample=tune) for p, tune in zip(asked, given, strict=True)]

    trainer = make(
        tmp_path, high, policy=musician, loop_settings=LOOP, dataset=PROMPTS, questions=questions, answer_share=1.0
    )
    (first, second) = run(trainer)
    assert 0 <= first["answer/frac_right"] <= 1 and not math.isnan(second["reward"])


def test_a_backbone_that_does_not_read_tunes_says_so():
    with pytest.raises(InputError, match="BAGEL does not read a TunePiece"):
        tiny_policy().write([(TextPiece(text="a"), TunePiece(notes=torch.zeros(2)))], Sampling(), [0])
