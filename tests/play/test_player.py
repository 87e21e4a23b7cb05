"""The model at play: what it gives stage by stage is what `Refiner` gives, with the adapter and without."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from r3_rl.errors import InputError
from r3_rl.evaluate.loading import SHIPPED, load
from r3_rl.evaluate.refiner import Refiner
from r3_rl.play.player import Player, Scales, scorers_named
from r3_rl.policy.adapters import AdapterSettings, attach

PROMPT = "one yellow triangle and two green circles"


@pytest.fixture(scope="module")
def loaded():
    return load(None, SHIPPED, dtype="float32")


@pytest.fixture(scope="module")
def player(loaded):
    player = Player(loaded, name="shipped", scorers=scorers_named(["sharpness", "jpeg_size"]))
    yield player
    player.close()


def pixels(image):
    return np.asarray(image).astype(int)


def drawn(steps):
    """What there is after each stage that draws or judges, by side, without the looks at texts in between."""
    whole = [step for step in steps if not any(shown.stage for shown in step.values())]
    return [{side: shown.output for side, shown in step.items()} for step in whole]


def test_a_plan_is_read_while_it_is_written_and_before_its_draft(player):
    steps = [step["shipped"] for step in player.draw(PROMPT, seed=1, rounds=1, sides=["shipped"])]
    done = [place for place, shown in enumerate(steps) if not shown.stage]
    draft = steps[done[0]].output
    plans, critiques = steps[: done[0]], steps[done[0] + 1 : done[1]]
    assert {(shown.stage, shown.output) for shown in plans} == {("plan", None)}
    plan = draft.trajectories[0].rounds[0].plan.text
    assert all(plan.startswith(shown.text) for shown in plans) and plans[-1].text == plan, (
        "the whole one stays in sight"
    )
    assert {shown.stage for shown in critiques} == {"critique"} and critiques[0].output is draft
    assert all(steps[done[1]].output.critiques[0][0].startswith(shown.text) for shown in critiques)


def test_both_sides_grow_stage_by_stage_to_what_the_refiner_gives(player, loaded):
    stages = drawn(player.draw(PROMPT, seed=1, rounds=1))
    assert set(stages[0]) == {"shipped"} and list(stages[-1]) == ["shipped", "base"]
    grown = [len(stage["shipped"].rounds[0]) + len(stage["shipped"].critiques[0]) for stage in stages]
    assert grown == sorted(grown) and grown[0] == 1 < grown[-1]
    pipe = Refiner(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)
    whole = pipe(PROMPT, num_rounds=1, seed=1)
    with loaded.policy.reference():
        base = pipe(PROMPT, num_rounds=1, seed=1)
    for output, side in ((whole, "shipped"), (base, "base")):
        assert output.critiques == stages[-1][side].critiques and output.scores == stages[-1][side].scores
        assert np.abs(pixels(output.images[0]) - pixels(stages[-1][side].images[0])).max() <= 1


def test_chosen_scorers_are_asked_instead_of_the_world(player):
    (last,) = drawn(player.draw(PROMPT, seed=1, rounds=0, scorers=["sharpness", "jpeg_size"], sides=["base"]))
    verdict = last["base"].trajectories[0].final.verdict
    assert set(verdict.scores) == {"sharpness", "jpeg_size"} and last["base"].scores is None


def test_guidance_reaches_drafts_and_refinements(player, loaded):
    own = Scales.of(player.loop)
    assert own.put_into(player.loop) == player.loop
    other = Scales(draft=2.0, refine=3.0, image=1.5).put_into(player.loop)
    assert (other.draft.drawing.guidance.text, other.refine.drawing.guidance.text) == (2.0, 3.0)
    assert other.refine.drawing.guidance.image == 1.5
    (plain,) = drawn(player.draw("a cross", seed=0, rounds=0, sides=["base"]))
    (guided,) = drawn(player.draw("a cross", seed=0, rounds=0, sides=["base"], scales=replace(own, draft=4.0)))
    assert np.abs(pixels(guided["base"].images[0]) - pixels(plain["base"].images[0])).max() > 1


def test_both_sides_answer_a_question_about_an_image(player):
    image = drawn(player.draw("two red circles", seed=0, rounds=2, sides=["shipped"]))[-1]["shipped"].images[0]
    said = player.ask(image, "how many circles ?")
    assert list(said) == ["shipped", "base"] and said["base"].thought and said["base"].content
    with pytest.raises(InputError, match="does not know 'zebras'"):
        player.ask(image, "how many zebras ?")


def test_an_adapter_that_is_routed_by_task_answers_too():
    routed = load(None, None, dtype="float32")
    attach(routed.policy.module, AdapterSettings(rank=2, routing="routed"), routed.policy.spec.branches, seed=0)
    player = Player(replace(routed, adapted=True), name="routed")
    try:
        said = player.ask(Image.new("RGB", (36, 36)), "how many circles ?")
    finally:
        player.close()
    assert said["routed"].content == said["base"].content, "a fresh adapter is the base"


def test_examples_are_one_prompt_of_each_kind_and_questions_that_it_knows(player):
    for text in [*player.examples, *player.questions]:
        player._refiner.check([text])
    assert len(player.examples) == len(set(player.examples)) > 5 and len(player.questions) > 2


def test_scorers_are_named_and_need_nothing_more():
    with pytest.raises(InputError, match="no scorer is called 'sharpnes'; did you mean 'sharpness'"):
        scorers_named(["sharpnes"])
    with pytest.raises(InputError, match="needs the parameter 'judge'"):
        scorers_named(["tiif"])


def test_the_verb_says_what_is_wrong_before_it_loads_anything(r3, monkeypatch):
    monkeypatch.setattr("r3_rl.process.prepare_process", lambda: None)  # it would replace this process
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = r3("play", "no-such-model")
    assert done.code == 2 and done.err == "the page needs gradio; pip install 'r3-rl[play,train]'\n"
