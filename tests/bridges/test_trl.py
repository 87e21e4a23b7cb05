"""Our scorers in TRL: what they are handed, what TRL gets back, and two trainers of TRL's own that learn from them."""

from __future__ import annotations

import functools
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerState

from r3_rl.bridges.drawing import PolicyPainter, drawing_environment
from r3_rl.bridges.trl import as_trl_reward
from r3_rl.errors import InputError, ScorerError
from r3_rl.scoring.base import ScorerInfo, scorer_info
from r3_rl.worlds.shapes.description import describe_shapes
from tests.bridges.conftest import call_of
from tests.policy.tiny import loop, tiny_policy

ASKED = [[{"role": "user", "content": "a red circle"}]] * 2


def red(images, **columns):
    """How red the picture is."""
    return [float(image[..., 0].mean()) / 255 for image in images]


@scorer_info(group_wise=True)
def rank(completions, **columns):
    """Share of the peers that say less."""
    return [sum(len(other) < len(mine) for other in completions) / len(completions) for mine in completions]


async def later(completions, **columns):
    return [1.0 if text else None for text in completions]


class Counted:
    """Keeps what it was handed."""

    info = ScorerInfo(range=(0.0, 999.0))

    def __init__(self):
        self.seen = []

    def __call__(self, prompts, completions, tag, **columns):
        self.seen.append((prompts, completions, tag))
        return [float(len(text.split())) for text in completions]


def picture(colour, mode="RGB"):
    return Image.new(mode, (4, 2), colour)


def test_conversations_become_words():
    counted = Counted()
    said = [
        [{"role": "assistant", "content": "one two"}],
        [
            {"role": "assistant", "content": "", "tool_calls": []},
            {"role": "tool", "name": "t", "content": "not mine"},
            {"role": "assistant", "content": [{"type": "text", "text": "three"}]},
        ],
    ]
    with closing(as_trl_reward(counted)) as reward:
        assert reward.__name__ == "Counted"
        assert reward(
            prompts=ASKED, completions=said, tag=["a", "b"], trainer_state=TrainerState(global_step=1, max_steps=2)
        ) == [2.0, 1.0]
    assert counted.seen == [(["a red circle"] * 2, ["one two", "three"], ["a", "b"])]


@pytest.mark.parametrize("scorer", [later, functools.partial(later, answer=1)])
def test_what_is_missing_is_none(scorer):
    with closing(as_trl_reward(scorer, max_failed_fraction=0.5)) as reward:
        assert reward.__name__ == "later"
        assert reward(prompts=["p", "p"], completions=["", "x"]) == [None, 1.0]


def test_too_many_missing_scores_stop_the_run():
    said = "scorer 'later': 1 of 2 scores are missing"
    with closing(as_trl_reward(later, max_failed_fraction=0.4)) as reward, pytest.raises(ScorerError, match=said):
        reward(prompts=["p", "p"], completions=["", "x"])


def test_peers_are_compared_within_their_group():
    with closing(as_trl_reward(rank, num_generations=2)) as reward:
        assert reward(prompts=["p", "p", "q", "q"], completions=["a", "bb", "dddd", "ccc"]) == [0.0, 0.5, 0.5, 0.0]
        with pytest.raises(ScorerError, match="cuts one apart; make per_device_train_batch_size"):
            reward(prompts=["p", "q", "q", "p"], completions=["a", "b", "c", "d"])
    with pytest.raises(InputError, match="'rank' compares peers; give num_generations"):
        as_trl_reward(rank)


@pytest.mark.parametrize(
    "column",
    [
        {"image": [picture("red"), picture(7, "L")]},
        {"images": [[picture("red")], [picture((7, 7, 7))]]},
        {"image": [np.asarray(picture("red")), np.asarray(picture((7, 7, 7)))]},
    ],
)
def test_pictures_of_the_rows(column):
    with closing(as_trl_reward(red)) as reward:
        assert reward(prompts=["p", "p"], completions=["a", "b"], **column) == pytest.approx([1.0, 7 / 255])


def test_what_the_rows_lack_is_named_and_rows_of_another_task_have_no_reward():
    with closing(as_trl_reward("shapes")) as reward:
        with pytest.raises(
            ScorerError, match="needs images, include, and the rows have only completions, prompts, tag"
        ):
            reward(prompts=["p"], completions=["a"], tag=[1])
        shown = {"image": [picture("red")], "include": [None]}
        assert reward(prompts=["p"], completions=["a"], **shown) == [None]
    with closing(as_trl_reward(red)) as reward, pytest.raises(ScorerError, match="sample 0 of 1 has 2 images"):
        reward(prompts=["p"], completions=["a"], images=[[picture("red")] * 2])
    with closing(as_trl_reward(red, gain=True)) as reward, pytest.raises(ScorerError, match="rollouts that draw"):
        reward(prompts=["p"], completions=["a"], image=[picture("red")])
    with pytest.raises(InputError, match=r"functools\.partial"):
        as_trl_reward(red, params={"a": 1})


def test_fields_that_arrow_fills_up_are_taken_out_again():
    from datasets import Dataset

    asked = [[{"class": "circle", "count": 1}], [{"class": "cross", "count": 2, "color": "red"}]]
    column = Dataset.from_dict({"include": asked})["include"][:]
    assert column != asked, "Arrow has put a colour into the first"
    seen = []

    def look(completions, include):
        seen.extend(include)
        return [1.0 for _ in completions]

    with closing(as_trl_reward(look)) as reward:
        reward(prompts=["p", "q"], completions=["a", "b"], include=column)
    assert seen == asked


def test_words_and_numbers_of_a_scorer_reach_trl():
    def loud(completions, log_metric, log_extra):
        log_metric("letters", 3)
        log_extra("reason", [f"says {text}" for text in completions])
        return [0.5 for _ in completions]

    metrics, extra = {}, {}
    with closing(as_trl_reward(loud, name="mine")) as reward:
        reward(
            prompts=["p"], completions=["a"], log_metric=metrics.__setitem__, log_extra=extra.__setitem__
        )  # fmt: skip
    assert extra == {"mine/reason": ["says a"]}
    assert set(metrics) == {"rewards/mine/letters", "rewards/mine/time_s", "rewards/mine/missing_fraction"}


class Mixer:
    """Paints flat colours: the draft black, then the colour it is told."""

    def __init__(self):
        self.drafts, self.asked = 0, []

    def draft(self, prompt, *, seed):
        self.drafts += 1
        return Image.new("RGB", (4, 4), (0, 0, 0))

    def redraw(self, picture, instruction, *, prompt, seed):
        self.asked.append((prompt, instruction, seed))
        if instruction == "break":
            raise OSError("the brush broke")
        try:
            return Image.new("RGB", (4, 4), instruction)
        except ValueError as error:
            raise InputError(f"no colour '{instruction}'") from error


def test_an_easel_from_draft_to_reward():
    painter = Mixer()
    easels = [drawing_environment(painter, max_redraws=2)() for _ in range(2)]
    with pytest.raises(InputError, match="prompt_key="):
        easels[0].reset(prompt="a text without roles")
    factory = drawing_environment(painter, max_redraws=2)
    easels = [factory() for _ in range(3)]
    shown = [easel.reset(prompt=ASKED[0], seed=None) for easel in easels]
    assert painter.drafts == 1, "peers look at one draft"
    assert shown[0] == [{"type": "image", "image": easels[0].pictures[0]}]
    again = easels[0].draw_again("red")
    assert again[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    easels[1].draw_again("lime")
    easels[1].draw_again("red")
    assert [seed for _, _, seed in painter.asked[:2]] == [painter.asked[0][2]] * 2, "equal words, equal noise"
    with pytest.raises(InputError, match="no colour 'colourless'"):
        easels[0].draw_again("colourless")
    with pytest.raises(InputError, match="changed 2 times"):
        easels[1].draw_again("blue")

    def look(images, draft_images, critiques, prompts):
        assert prompts == ["a red circle"] * 3
        assert critiques == ["red", "red", None]
        assert [None if image is None else image[0, 0].tolist() for image in draft_images] == [
            [0, 0, 0],
            [0, 255, 0],
            None,
        ]
        return red(images)

    at = {"prompts": ["shown to the model"] * 3, "completions": ["a", "b", "c"], "environments": easels}
    with closing(as_trl_reward(scorer_info(needs=("images",))(look), gain=False)) as reward:
        assert reward(**at) == [1.0, 1.0, 0.0]
    with closing(as_trl_reward(red, gain=True)) as reward:
        assert reward(**at) == [1.0, 1.0, 0.0]
        with pytest.raises(OSError, match="brush"):
            easels[2].draw_again("break")
        with pytest.raises(ScorerError, match="no picture to score: OSError: the brush broke"):
            reward(**at)
        assert easels[2].reset(prompt=ASKED[0]) == shown[2] and easels[2].failure is None


def test_a_policy_of_ours_paints():
    painter = PolicyPainter(tiny_policy(), loop())
    drawn = painter.draft("a red circle", seed=3)
    assert drawn.size == (36, 36) and painter.draft("a red circle", seed=3).tobytes() == drawn.tobytes()
    edits = ("add a red cross top left", "remove the red cross top left")
    changed = [painter.redraw(drawn, edit, prompt="a red circle", seed=4) for edit in edits]
    assert changed[0].size == (36, 36) and changed[0].tobytes() != changed[1].tobytes()


# TRL asks transformers by names that it is about to drop.
OLD_NAMES = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def rows(count, **columns):
    from datasets import Dataset

    asked = [[{"role": "user", "content": f"draw {i} red circles"}] for i in range(count)]
    return Dataset.from_dict({"prompt": asked, **columns})


def train(talking, rewards, data, **options):
    """The rows that TRL logged, and how far the weights went."""
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    before = {name: value.detach().clone() for name, value in talking.model.named_parameters()}
    trainer = GRPOTrainer(
        model=talking.model, reward_funcs=rewards, args=talking.args, train_dataset=data,
        processing_class=talking.tokenizer, **options,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    moved = max(float((value.detach() - before[name]).abs().max()) for name, value in talking.model.named_parameters())
    return SimpleNamespace(rows=trainer.state.log_history[:-1], moved=moved, trainer=trainer)


@OLD_NAMES
def test_a_stock_trainer_learns_from_every_kind_of_scorer(talker):
    talking = talker("red", "a longer sentence", "blue and green")
    counted = Counted()
    rewards = [
        as_trl_reward("length", params={"max_words": 9, "soft_words": 9}),
        as_trl_reward(counted),
        as_trl_reward(later, max_failed_fraction=1.0),
        as_trl_reward(rank, num_generations=4),
    ]
    done = train(talking, rewards, rows(2, tag=["a", "b"]))
    for reward in rewards:
        reward.close()
    assert len(done.rows) == 2 and done.moved > 0
    for row in done.rows:
        assert {"rewards/length/mean", "rewards/Counted/mean", "rewards/rank/mean"} <= row.keys()
        assert row["rewards/later/missing_fraction"] >= 0
    assert [row["rewards/Counted/mean"] for row in done.rows] == pytest.approx(
        [np.mean([len(text.split()) for text in said]) for _, said, _ in counted.seen]
    )
    assert {tag for _, _, tags in counted.seen for tag in tags} == {"a", "b"}


@OLD_NAMES
def test_a_stock_trainer_trains_a_critic_that_lets_a_policy_of_ours_draw(talker):
    calls = [call_of("draw_again", instruction=f"add a {colour} circle top left") for colour in ("red", "blue")]
    talking = talker(*calls, "no further edit needed", max_tool_calling_iterations=2, max_completion_length=512)
    painted = []

    class Watched(PolicyPainter):
        def redraw(self, picture, instruction, *, prompt, seed):
            painted.append(instruction)
            return super().redraw(picture, instruction, prompt=prompt, seed=seed)

    painter = Watched(tiny_policy(), loop(plan=None))
    weights = [parameter.clone() for parameter in painter.policy.module.parameters()]
    easel = drawing_environment(painter, describe=describe_shapes, prompt_key="asked")
    asked = {"asked": ["a red circle"] * 2, "include": [[{"class": "circle", "count": 1, "color": "red"}]] * 2}
    rewards = [as_trl_reward(red, name="redder", gain=True), as_trl_reward("shapes")]
    done = train(talking, rewards, rows(2, **asked), environment_factory=easel)
    for reward in rewards:
        reward.close()
    assert painted and set(painted) <= {"add a red circle top left", "add a blue circle top left"}
    assert done.rows[0]["tools/call_frequency"] > 0
    assert any(row["rewards/redder/std"] > 0 for row in done.rows) and done.moved > 0
    assert all(0 <= row["rewards/shapes/mean"] <= 1 for row in done.rows)
    assert all(torch.equal(a, b) for a, b in zip(weights, painter.policy.module.parameters(), strict=True))
    drawn = [easel for easel in done.trainer.environments if len(easel.pictures) == 2]
    assert all(len(easel.instructions) == 1 for easel in drawn)
