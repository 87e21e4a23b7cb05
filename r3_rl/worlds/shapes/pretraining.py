"""A world of shapes as supervised examples for a backbone: contexts, answers and images to learn."""

from __future__ import annotations

import torch

from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.policy.base import Example
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.worlds.base import Batches, Tags
from r3_rl.worlds.shapes.board import Board
from r3_rl.worlds.shapes.data import ShapesStream

CHECK = "check {prompt}"
"""What stands before a critique; the protocol `compact` uses the same words."""


def batches(settings: PretrainSection, board: Board, *, seed: int) -> Batches:
    """The examples of a leg of pretraining: kinds of prompts are weighed as the settings and the board say."""
    stream = ShapesStream(seed=seed + 1, board=board)
    tags = {tag: settings.prompt_weights.get(tag, 1.0) for tag in board.kinds}
    draw_tags = {tag: weight * settings.draw_weights.get(tag, 1.0) for tag, weight in tags.items()}
    plan_tags = {tag: settings.draw_weights.get(tag, 1.0) * kind.plan_weight for tag, kind in board.kinds.items()}
    tags_of = {"text_to_image": draw_tags, "plan": plan_tags}

    def next_ones(kind: str, count: int) -> list[Example]:
        return examples(
            stream,
            kind,
            count,
            plan_noise=settings.plan_noise,
            plan_errors=settings.plan_errors,
            image_noise=settings.image_noise,
            edit_noise=settings.edit_noise,
            critique_noise=settings.critique_noise,
            tags=tags_of.get(kind, tags),
        )

    return next_ones


def examples(
    stream: ShapesStream,
    kind: str,
    count: int,
    *,
    plan_noise: float,
    plan_errors: int,
    image_noise: float,
    edit_noise: float,
    critique_noise: float,
    tags: Tags,
) -> list[Example]:
    """`count` examples of one kind; `plan` is text to image without the image (cheap, for what words alone teach).

    plan_noise, image_noise, edit_noise, critique_noise: shares that are wrong on purpose;
    plan_errors: most edits that a wrong plan is away from a right one.
    """
    if kind in ("text_to_image", "plan"):
        drawn = stream.text_to_image(
            count, plan_noise=plan_noise, plan_errors=plan_errors, image_noise=image_noise, tags=tags
        )
        return [
            Example(
                context=(TextPiece(text=d.prompt),),
                answer=d.plan,
                image=torch.from_numpy(d.image) if kind == "text_to_image" else None,
            )
            for d in drawn
        ]
    if kind == "edit":
        return [
            Example(
                context=(ImagePiece(image=torch.from_numpy(e.source), use="edit"), TextPiece(text=e.instruction)),
                image=torch.from_numpy(e.target),
            )
            for e in stream.edits(count, departing_share=edit_noise)
        ]
    if kind == "critique":
        return [
            Example(
                context=(ImagePiece(image=torch.from_numpy(c.image)), TextPiece(text=CHECK.format(prompt=c.prompt))),
                answer=c.text,
            )
            for c in stream.critiques(count, useless_share=critique_noise, tags=tags)
        ]
    return [
        Example(
            context=(ImagePiece(image=torch.from_numpy(q.image)), TextPiece(text=q.text)),
            answer=q.reply,
        )
        for q in stream.questions(count)
    ]
