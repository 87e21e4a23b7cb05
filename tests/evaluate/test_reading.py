"""What the policy says about images of the world: stops, listings, answers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from r3_rl.evaluate import measured
from r3_rl.evaluate.reading import answers, exact_listings, measure_pairs, measure_questions, of_own_images
from r3_rl.policy.base import Sampling
from r3_rl.worlds import sets
from r3_rl.worlds.base import find_world
from r3_rl.worlds.shapes.drawing import render
from r3_rl.worlds.shapes.judging import useful_edits
from r3_rl.worlds.shapes.language import critique_text
from r3_rl.worlds.shapes.questions import QUESTION_KINDS, ask
from r3_rl.worlds.shapes.scene import Obj, reading_order
from tests.evaluate.scripted import BROKEN, STOP, Scripted, critique, segment, settings, trajectory

WORLD = find_world("shapes")
SCENE = (Obj("red", "circle", 0, 0), Obj("blue", "cross", 2, 1))


def perfect(pairs):
    rng = np.random.default_rng(0)
    wrongs = [p.near_miss for p in pairs]
    rights = [critique_text(p.right.scene, None) for p in pairs]
    return rights + [critique_text(w.scene, useful_edits(w.scene, w.prompt, rng)[0]) for w in wrongs]


def test_a_perfect_critic_is_right_about_every_pair():
    pairs = sets.pairs(WORLD, 5)
    values = measure_pairs(WORLD, Scripted(texts=perfect(pairs)), pairs, settings(), seed=1)
    assert set(values) == {"ita_fixed", "ita_fixed/right", "ita_fixed/wrong", "listing", "entropy_critique"}
    assert values["ita_fixed"] == values["listing"] == [1.0] * 10
    assert values["ita_fixed/right"] == values["ita_fixed/wrong"] == [1.0] * 5


def test_a_critic_that_always_says_the_same_is_at_chance():
    pairs = sets.pairs(WORLD, 4)
    always_stops = measure_pairs(WORLD, Scripted(texts=[STOP] * 8), pairs, settings(), seed=1)
    assert always_stops["ita_fixed"] == [1.0] * 4 + [0.0] * 4, "right images first"
    never = measure_pairs(WORLD, Scripted(texts=[BROKEN] * 8), pairs, settings(), seed=1)
    assert never["ita_fixed/right"] == [0.0] * 4 and never["ita_fixed/wrong"] == [1.0] * 4
    assert never["listing"] == [0.0] * 8


def test_listing_and_stopping_are_judged_apart():
    pairs = sets.pairs(WORLD, 3)
    said = perfect(pairs)
    swapped = [said[1], said[0], *said[2:]]
    values = measure_pairs(WORLD, Scripted(texts=swapped), pairs, settings(), seed=1)
    assert values["ita_fixed"] == [1.0] * 6 and values["listing"] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_entropy_is_of_sampled_critiques_only():
    pairs = sets.pairs(WORLD, 2)
    texts = [segment(STOP, log_probs=(-float(i), 0.0)) for i in range(4)]

    class Writer(Scripted):
        def write(self, contexts, sampling, seeds):
            return texts

    sampled = measure_pairs(WORLD, Writer(), pairs, settings(), seed=1)
    assert sampled["entropy_critique"] == [0.0, 0.5, 1.0, 1.5]
    assert "entropy_critique" not in measure_pairs(WORLD, Writer(), pairs, settings().for_evaluation(0.0), seed=1)


@pytest.mark.parametrize(
    ("said", "exact"),
    [
        ("<think> red circle top left blue cross bottom center </think> anything", 1.0),
        ("<think> blue cross bottom center red circle top left </think> anything", 1.0),
        ("<think> red circle top left </think> anything", 0.0),
        ("<think> red circle top left blue cross bottom center green cross top right </think> x", 0.0),
        ("<think> red circle top left blue cross bottom right </think> anything", 0.0),
        ("<think> rough red circle top left blue cross bottom center </think> anything", 0.0),
        ("<think> red circle top left blue cross bottom center", 0.0),
        ("", 0.0),
    ],
)
def test_a_listing_is_exact_if_it_names_each_object_once(said, exact):
    assert exact_listings(WORLD, [critique(said)], [SCENE]) == [exact]


def test_questions_of_a_perfect_reader_are_all_right_and_counted_by_kind(monkeypatch):
    monkeypatch.setattr(measured, "CHUNK", 4)
    asked = WORLD.questions(12, seed=3)
    wrong = next(i for i, q in enumerate(asked) if q.kind == "shape")
    texts = [q.reply if i != wrong else "<think> x </think> dunno" for i, q in enumerate(asked)]
    policy = Scripted(texts=texts)
    found = measure_questions(policy, asked, Sampling(temperature=0.5), kinds=QUESTION_KINDS, seed=1)
    assert found["questions"] == [float(i != wrong) for i in range(12)]
    kinds = Counter(q.kind for q in asked)
    assert {kind: len(found[f"questions/{kind}"]) for kind in QUESTION_KINDS} == {k: kinds[k] for k in QUESTION_KINDS}
    assert sum(found["questions/shape"]) == kinds["shape"] - 1
    assert all(sum(found[f"questions/{k}"]) == kinds[k] for k in QUESTION_KINDS if k != "shape")
    assert [rows for rows, _ in policy.asked] == [4, 4, 4]
    assert {sampling for _, sampling in policy.asked} == {Sampling(temperature=0.5, max_new_tokens=64, task="answer")}


def test_an_answer_is_the_word_after_a_closed_thought():
    asked = WORLD.questions(3, seed=3)[:1] * 3
    said = [f"<think> x </think> {asked[0].answer}", asked[0].answer, f"<think> {asked[0].answer}"]
    assert answers(Scripted(texts=said), asked, Sampling(), seed=1) == [1.0, 0.0, 0.0]
    assert answers(Scripted(), [], Sampling(), seed=1) == []


def test_questions_about_own_images_have_the_answers_of_what_is_drawn():
    scenes = [SCENE, (SCENE[0]._replace(rough="half"),), (), SCENE[:1]]
    walked = [trajectory(0.0, pixels=torch.from_numpy(i)) for i in render(scenes)]
    asked = of_own_images(WORLD, walked, 10, seed=4)
    assert len(asked) == 3, "a malformed object has no sure answer"
    rng = np.random.default_rng(4)
    for question, scene, kind in zip(asked, [SCENE, (), SCENE[:1]], QUESTION_KINDS, strict=False):
        expected = ask(reading_order(scene), kind, rng)
        assert (question.words, question.answer, question.kind) == (expected.text, expected.answer, expected.kind)
    assert [
        np.array_equal(a.image, walked[i].rounds[0].image.image) for a, i in zip(asked, (0, 2, 3), strict=True)
    ] == [True] * 3
    assert len(of_own_images(WORLD, walked, 1, seed=4)) == 1 and of_own_images(WORLD, [], 5, seed=4) == []
