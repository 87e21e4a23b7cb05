"""What the policy is told and how its answers are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r3_rl.modalities import TextPiece, TextSegment, still
from r3_rl.nodes import given_critique, given_image
from r3_rl.stages import CRITIQUE, REFINEMENT
from r3_rl.stages.protocol import PROTOCOLS, Protocol, protocol_named, split_thought
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt

COMPACT, BAGEL = PROTOCOLS["compact"], protocol_named("bagel")


def said(text, ended=True):
    return TextSegment(context=(), token_ids=(1, 2), log_probs=torch.zeros(2), text=text, ended=ended)


@pytest.mark.parametrize(
    ("text", "well_formed", "stop", "instruction"),
    [
        ("<think> red circle top </think> add a cross", True, False, "add a cross"),
        ("<think> red circle top </think> no further edit needed", True, True, ""),
        ("<think> all there </think> No Further Edit Needed.", True, True, ""),
        (
            "<think> all there </think> no further edit needed at the top",
            True,
            False,
            "no further edit needed at the top",
        ),
        ("  <think>\nx\n</think>\nmake it red!  ", True, False, "make it red!"),
        ("<think> no end of thought add a cross", False, False, ""),
        ("no further edit needed", False, False, ""),
        ("add a cross", False, False, ""),
        ("<think> </think> add a cross", False, False, ""),
        ("<think> a cross is missing </think>", False, False, ""),
        ("<think> a </think> b </think> c", False, False, ""),
        ("<think> a <think> b </think> c", False, False, ""),
        ("add a cross <think> a </think> b", False, False, ""),
        ("", False, False, ""),
    ],
)
@pytest.mark.parametrize("protocol", [COMPACT, BAGEL], ids=["compact", "bagel"])
def test_critiques(protocol, text, well_formed, stop, instruction):
    critique = protocol.read_critique(said(text))
    assert (critique.well_formed, critique.stop, critique.instruction) == (well_formed, stop, instruction)
    assert critique.segment.text == text


def test_a_cut_text_is_malformed_and_no_stop():
    critique = COMPACT.read_critique(said("<think> fine </think> no further edit needed", ended=False))
    assert not critique.well_formed and not critique.stop and not critique.instruction
    assert not COMPACT.plan_well_formed(said("<think> red circle </think>", ended=False))


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("<think> red circle </think>", True),
        ("<think> red circle </think> and more", False),
        ("<think> </think>", False),
        ("red circle", False),
    ],
)
def test_plans(text, well_formed):
    assert COMPACT.plan_well_formed(said(text)) is well_formed


def test_what_stands_in_the_contexts():
    prompt = Prompt(text="a {curly} circle")
    assert [p.text for p in COMPACT.reason_context(prompt)] == ["a {curly} circle"]
    system, asked = BAGEL.reason_context(prompt)
    assert system.keep and "<think>" in system.text and not asked.keep
    image = given_image(prompt, torch.zeros(3, 2, 2))
    plain = LoopSettings(protocol=COMPACT)
    looked, template = CRITIQUE.context(image, plain)
    assert looked.use == "look" and template.text == "check a {curly} circle"
    assert "a {curly} circle" in CRITIQUE.context(image, LoopSettings(protocol=BAGEL))[1].text
    critique = given_critique(image, "add a cross")
    for settings, words in ((plain, []), (replace(plain, show_prompt=True), ["a {curly} circle"])):
        seen, *shown = REFINEMENT.context(critique, settings)
        assert seen.use == "edit" and [p.text for p in shown] == [*words, "add a cross"]
    assert CRITIQUE.context(critique, plain) is None and REFINEMENT.context(given_critique(image, ""), plain) is None


def test_with_history_later_rounds_read_the_earlier_ones():
    image = given_image(Prompt(text="a circle"), torch.zeros(3, 2, 2))
    settings = LoopSettings(protocol=COMPACT, history=True)
    first = given_critique(image, "add a cross")
    drawn = replace(first.children("refinement", 1)[0], sample=still(torch.ones(3, 2, 2)))
    assert [p.use for p in CRITIQUE.context(image, settings)[:1]] == ["look"] and len(
        CRITIQUE.context(image, settings)
    ) == 2
    before, said_then, now, asked = CRITIQUE.context(drawn, settings)
    assert before.key == image.looked_at.key and said_then.text == "add a cross" and asked.text == "check a circle"
    assert now.key == drawn.looked_at.key != before.key
    second = given_critique(drawn, "remove a cross")
    *history, edited, instruction = REFINEMENT.context(second, settings)
    assert [p.key for p in history] == [before.key, said_then.key]
    assert (edited.use, instruction.text) == ("edit", "remove a cross")
    again = REFINEMENT.context(second, replace(settings, refines="regenerate"))
    assert [p.text if isinstance(p, TextPiece) else p.use for p in again] == [
        "a circle", "look", "add a cross", "look", "remove a cross",
    ]  # fmt: skip
    assert len(CRITIQUE.context(drawn, replace(settings, history=False))) == 2


def test_a_thought_is_split_once():
    assert split_thought("<think>a</think>b") == ("a", "b")
    assert Protocol(reflect_template="x", stop_words="done").read_critique(said("<think>a</think> Done!")).stop
