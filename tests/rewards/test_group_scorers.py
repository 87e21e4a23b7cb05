"""Scorers that compare peers, against figures worked out by hand and on a panel with several groups."""

import numpy as np
import pytest

from r3_rl.rewards.diversity import diversity
from r3_rl.rewards.win_rate import WinRate
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import check_scorer, load_scorer
from r3_rl.types import Prompt


def flat(grey, size=8):
    return np.full((size, size, 3), grey, dtype=np.uint8)


def panel_of(scorer, images, texts=None, groups=(0, 1, 0, 1)):
    batch = ScoreBatch(prompts=[Prompt(text="p")] * len(images), images=images, texts=texts, groups=list(groups))
    with Panel([ScorerSpec(name="s", scorer=scorer)], max_failed_fraction=1.0) as panel:
        return [verdict.total for verdict in panel.score(batch)]


def test_diversity_is_the_mean_distance_to_the_peers():
    images = [flat(0), flat(0, 4), flat(51), flat(102, 16)]
    assert panel_of(diversity, images) == pytest.approx([0.2, 0.4, 0.2, 0.4])
    half = flat(0)
    half[:, :4] = 255
    assert diversity(images=[half, flat(0)], side=2) == pytest.approx([0.5, 0.5])
    assert diversity(images=[half]) == [None]
    with pytest.raises(ValueError, match="side must be at least 1"):
        diversity(images=[half], side=0)


def by_brightness(images):
    return [None if image.max() == 255 else float(image.mean()) for image in images]


async def by_brightness_later(images):
    return by_brightness(images)


@pytest.mark.parametrize("scorer", ["by_brightness", "by_brightness_later"])
def test_a_sample_is_scored_by_the_peers_it_beats(scorer, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    rate = load_scorer("win_rate", {"scorer": f"test_group_scorers:{scorer}"})
    images = [flat(10), flat(90), flat(20), flat(80), flat(10), flat(255), flat(30)]
    assert panel_of(rate, images, groups=[0, 1, 0, 1, 0, 0, 2]) == [0.25, 1.0, 1.0, 0.0, 0.25, None, None]


def test_close_scores_are_equal_within_the_margin(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    rate = WinRate("test_group_scorers:by_brightness", margin=10.0)
    assert rate.info.needs == ("images",)
    assert rate(completions=[""] * 3, images=[flat(10), flat(20), flat(40)]) == [0.25, 0.25, 1.0]


def test_the_scorer_that_compares_is_checked_before_anything_loads():
    (problem,) = check_scorer("win_rate", {"scorer": "sharpnes"})
    assert problem.startswith("scorer 'win_rate': no scorer is called 'sharpnes'; did you mean 'sharpness'?")
    assert "takes no parameter 'haalf'" in check_scorer("win_rate", {"scorer": "sharpness", "params": {"haalf": 1}})[0]
    assert check_scorer("win_rate", {"scorer": "sharpness"}) == []
    with pytest.raises(ValueError, match="margin must be 0 or more"):
        WinRate("sharpness", margin=-1.0)
