"""What a scorer may look like, and what the toolkit reads from it."""

import functools

import pytest
import trl.rewards

from r3_rl.scoring.base import ScorerInfo, accepted_arguments, call_parameters, info_of, scorer_info


def test_a_plain_reward_has_the_defaults():
    def reward(completions, **kwargs): ...

    assert info_of(reward) == ScorerInfo()


def test_images_without_default_are_needed():
    assert info_of(lambda prompts, images: []).needs == ("images",)
    assert info_of(lambda prompts, images=None: []).needs == ()


def test_the_decorator_survives_partial():
    @scorer_info(range=(-1.0, 1.0), version="7")
    def reward(completions, sharpness): ...

    bound = functools.partial(reward, sharpness=3)
    assert info_of(bound).version == "7"
    assert "sharpness" not in call_parameters(bound)


def test_a_bound_parameter_wins_over_a_column_of_its_name():
    bound = functools.partial(lambda images, level, **columns: [], level=3)
    assert set(accepted_arguments(bound, {"images": [], "level": ["column"], "other": []})) == {"images", "other"}


def test_a_class_declares_for_its_instances():
    class Score:
        info = ScorerInfo(range=(0.0, 10.0))

        def __call__(self, images, **columns): ...

    assert info_of(Score) == info_of(Score()) == Score.info
    assert list(call_parameters(Score)) == list(call_parameters(Score()))


def test_only_named_arguments_are_passed():
    offered = {"prompts": [], "completions": [], "images": None, "log_metric": print}
    assert set(accepted_arguments(lambda completions: [], offered)) == {"completions"}
    assert accepted_arguments(lambda **everything: [], offered) == offered


def test_trl_rewards_that_read_messages_are_recognised():
    assert info_of(trl.rewards.think_format_reward).conversational
    assert not info_of(trl.rewards.get_soft_overlong_punishment(10, 5)).conversational
    assert info_of(trl.rewards.get_soft_overlong_punishment(10, 5)).needs == ("completion_ids",)


def test_wrong_declarations_are_refused():
    with pytest.raises(ValueError, match=r"low < high"):
        ScorerInfo(range=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"write \('images',\)"):
        ScorerInfo(needs="images")

    class Score:
        info = {"range": (0, 1)}  # noqa: RUF012

        def __call__(self, images): ...

    with pytest.raises(TypeError, match="must be a ScorerInfo"):
        info_of(Score())
