"""Rewards that change with the run: `trainer_state` says how far it is, as TRL hands its own."""

from r3_rl.scoring.asked import ScorerSpec
from r3_rl.scoring.base import RunProgress, ScorerInfo
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.panel import Panel
from r3_rl.types import Prompt


def test_a_reward_may_look_at_how_far_the_run_is():
    def curriculum(completions, trainer_state, **columns):
        assert "trainer_state" not in columns
        return [trainer_state.global_step / max(trainer_state.max_steps, 1)] * len(completions)

    batch = ScoreBatch(prompts=[Prompt(text="p")], texts=["a"])
    spec = ScorerSpec(name="c", scorer=curriculum, info=ScorerInfo(deterministic=True), params={})
    with Panel([spec], cache=ScoreCache()) as panel:
        assert panel.score(batch)[0].total == 0.0
        panel.trainer_state = RunProgress(global_step=3, max_steps=12)
        assert panel.score(batch)[0].total == 0.25


def test_a_reward_that_takes_all_keywords_finds_the_state_among_them():
    def curriculum(completions, **kwargs):
        return [float(kwargs["trainer_state"].global_step)] * len(completions)

    with Panel([ScorerSpec(name="c", scorer=curriculum)]) as panel:
        panel.trainer_state = RunProgress(global_step=7, max_steps=12)
        assert panel.score(ScoreBatch(prompts=[Prompt(text="p")], texts=["a"]))[0].total == 7.0
