"""Answers to questions about images as a trained stage: alone, and as a share of any schedule."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from r3_rl import ranks
from r3_rl.errors import InputError
from r3_rl.modalities import TextSegment
from r3_rl.nodes import given_image, image_roots
from r3_rl.recipe_io import load_recipe
from r3_rl.stages import ANSWER
from r3_rl.stages.answer_rules import RULES, worth
from r3_rl.training.credit import CreditSettings
from r3_rl.training.earned import credit_answers
from r3_rl.types import Prompt
from r3_rl.worlds.files.questions import MATCHES
from tests.training.test_trainer import make, run


def questions(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 16, 16, generator=generator)
    return [
        given_image(Prompt(text=f"how many {i}", columns={"answer": "two"}), image) for i, image in enumerate(images)
    ]


def answered(*texts, wanted="two"):
    """The answers to one question."""
    image = given_image(Prompt(text="how many", columns={"answer": wanted}), torch.rand(3, 16, 16))
    (root,) = image_roots([image], num_rows=len(texts))
    nodes = []
    for child, text in zip(root.children("answer", len(texts)), texts, strict=True):
        sample = TextSegment(context=(), token_ids=(1, 2), log_probs=torch.zeros(2), text=text, ended=True)
        nodes.append(ANSWER.read(child, sample, None))
    return nodes


def test_an_answer_is_right_after_its_thought_and_compared_with_the_others_to_its_question():
    nodes = answered("<think> a a </think> two", "Two.", "three", "<think> two")
    stage = credit_answers(nodes, CreditSettings(format_weight=0.0))
    assert stage.metrics["answer/frac_right"] == 0.5 and stage.metrics["answer/frac_well_formed"] == 0.75
    assert [c.advantage for c in stage.credits] == pytest.approx([0.5, 0.5, -0.5, -0.5])
    assert {c.stage for c in stage.credits} == {"answer"} and {c.objective for c in stage.credits} == {"understanding"}
    assert not credit_answers(answered("two", "two"), CreditSettings()).credits, "nothing to learn among equals"


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [("2", ["two", "2"], True), ("no", "not", False), ("", "", False), (" YES ", "yes", True), ("1", 1, False)],
)
def test_right_is_equal_but_for_case_and_a_full_stop(answer, wanted, right):
    assert worth(answer, {"answer": wanted if wanted != 1 else "one"}) == right


@pytest.mark.parametrize(
    ("match", "answer", "wanted", "more", "earns"),
    [
        ("yes_no", "Yes, there is a cat.", "yes", {}, 1.0),
        ("yes_no", "there is no cat", "yes", {}, 0.0),
        ("yes_no", "a cat", "no", {}, 0.0),
        ("number", "three dogs", 3, {}, 1.0),
        ("number", "4", 3, {}, 0.0),
        ("number", "4", 3, {"within": 1}, 1.0),
        ("number", "1.5", [1.25, 9], {"within": 0.25}, 1.0),
        ("number", "3 or 4", 3, {}, 0.0),
        ("number", "many", 3, {"within": 9}, 0.0),
        ("vqa", "2", ["2"] * 3 + ["3"] * 7, {}, 0.9),
        ("vqa", "4", ["2"] * 3 + ["3"] * 7, {}, 0.0),
        (None, "Two.", ["two", "2"], {}, 1.0),
    ],
)
def test_an_answer_earns_what_its_rule_says(match, answer, wanted, more, earns):
    assert worth(answer, {"answer": wanted, "match": match, **more}) == pytest.approx(earns)


def test_files_may_name_every_rule():
    assert tuple(RULES) == MATCHES


def test_questions_about_own_images_are_about_images_of_the_pool_and_resume(tmp_path):
    def about(images, seed):
        return [given_image(Prompt(text="how many own", columns={"answer": "two"}), image.image) for image in images]

    options = {
        "answer_share": 0.5, "answer_own_share": 0.5, "questions": questions, "about": about, "num_prompts": 2,
        "max_steps": 6, "save_steps": 3,
    }  # fmt: skip
    whole, asked = make(tmp_path / "whole", **options), []
    drawn: list[torch.Tensor] = []

    def look(step, collected):
        if collected.phase == "answer":
            roots = dict.fromkeys(leaf.root for leaf in collected.leaves)
            asked.append([root.prompt.text for root in roots])
            own = [root.image for root in roots if root.prompt.text == "how many own"]
            assert all(any(torch.equal(image, other) for other in drawn) for image in own)
        else:
            drawn.extend(leaf.image for leaf in collected.leaves if leaf.verdict is not None)

    whole.on_collected = look
    rows = run(whole)
    assert len(asked) == 3
    assert ["how many own" in texts for texts in asked][-1]
    assert all(len(texts) == 2 for texts in asked)
    resumed = run(make(tmp_path / "again", **options), resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name in ("reward", "loss"):
        assert [row[name] for row in resumed[-3:]] == [row[name] for row in rows[-3:]], name
    with pytest.raises(InputError, match="answer_own_share without anybody who asks"):
        make(tmp_path / "none", **{**options, "about": None})


@pytest.mark.parametrize(("share", "expected"), [(0.25, 2), (0.5, 4), (1.0, 8), (0.0, 0)])
def test_answers_take_their_share_of_the_turns_and_the_rest_goes_on_as_without(tmp_path, share, expected):
    trainer = make(tmp_path, answer_share=share, max_steps=8, questions=questions)
    seen = []
    trainer.on_collected = lambda step, collected: seen.append(collected.phase)
    rows = run(trainer)
    assert Counter(seen)["answer"] == expected
    others = [phase for phase in seen if phase != "answer"]
    assert others == (["reason", "refine"] * 4)[: len(others)], "both kinds come, in turn"
    for phase, row in zip(seen, rows, strict=True):
        assert ("answer/frac_right" in row) == (phase == "answer")
        assert "rewards/red/mean" not in row or phase != "answer"


def test_answers_are_learned_and_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def first_word(count, seed):
        made = questions(count, seed)
        return [replace(n, prompt=Prompt(text=n.prompt.text, columns={"answer": wanted})) for n in made]

    probe = make(tmp_path / "probe", answer_share=1.0, questions=questions, num_generations=8, max_steps=1)
    said = []
    probe.on_collected = lambda step, collected: said.extend(leaf.sample.text for leaf in collected.leaves)
    run(probe)
    wanted = Counter(said).most_common(1)[0][0] or said[0]
    options = {"answer_share": 1.0, "questions": first_word, "num_generations": 8, "max_steps": 4, "save_steps": 2}
    whole = make(tmp_path / "whole", **options)
    rows = run(whole)
    again = make(tmp_path / "again", **options)
    resumed = run(again, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name in ("answer/frac_right", "reward", "loss"):
        assert [row[name] for row in resumed[-2:]] == [row[name] for row in rows[-2:]], name


def test_two_processes_ask_what_one_would(tmp_path, monkeypatch):
    def asked(rank, count):
        monkeypatch.setattr(ranks, "count", lambda: count)
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        schedule = make(tmp_path / f"{rank}{count}", answer_share=1.0, questions=questions, num_prompts=2).schedule
        found = schedule.collect(0, [Prompt(text="a")] * (2 // count), seed=5, progress=0.0)
        return [(leaf.prompt.text, leaf.id.row, leaf.sample.token_ids) for leaf in found.leaves]

    assert asked(0, 2) + asked(1, 2) == asked(0, 1)


def test_answers_without_questions_or_peers_are_refused(tmp_path):
    with pytest.raises(InputError, match="answer_share without questions"):
        make(tmp_path, answer_share=0.5)
    with pytest.raises(InputError, match=r"branch\.answer: 1 answer in an answer step: no text has a peer"):
        branch = {"plan": 3, "critique": 3, "answer": 1}
        make(tmp_path, answer_share=0.5, questions=questions, branch=branch, num_generations=None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["algorithm.answer_share=0.5", "algorithm.text_loss_weight=0"], "answers are texts"),
        (["algorithm.answer_share=1.5"], "algorithm.answer_share"),
    ],
)
def test_what_a_recipe_asks_in_vain(settings, said):
    with pytest.raises(InputError, match=said):
        load_recipe("shapes_r3", settings)


def test_the_recipe_says_what_its_steps_are(r3):
    done = r3("check", "shapes_answer_only")
    assert "8 questions x 8 answers = 64 rollouts an answer step" in done.out
    mixed = r3("check", "shapes_r3", "algorithm.answer_share=0.25")
    assert "a refine step" in mixed.out and "answer step" in mixed.out
