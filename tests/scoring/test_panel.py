"""What the panel makes of scores: totals, missing ones, peers, metrics, cache, overlap."""

import threading
import time

import numpy as np
import pytest
import torch

from r3_rl.errors import ScorerError
from r3_rl.observe.metrics import unknown_names
from r3_rl.scoring.base import RunProgress, ScorerInfo, scorer_info
from r3_rl.scoring.batch import ScoreBatch, to_uint8
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.panel import Panel
from r3_rl.scoring.registry import load_scorer
from r3_rl.scoring.seat import ScorerSpec
from r3_rl.types import Prompt, Verdict


def words(completions, **columns):
    return [float(len(text.split())) for text in completions]


def letters(completions, **columns):
    return [float(len(text)) for text in completions]


def test_the_total_is_the_weighted_sum(text_batch):
    specs = [
        ScorerSpec(name="words", scorer=words, weight=2.0),
        ScorerSpec(name="letters", scorer=letters, weight=-0.5),
        ScorerSpec(name="logged", scorer=lambda completions: [9.0] * len(completions), weight=0.0),
    ]
    with Panel(specs) as panel:
        verdict = panel.score(text_batch("ab cd"))[0]
        metrics = panel.metrics()
    assert verdict.total == 2.0 * 2 - 0.5 * 5
    assert verdict.scores == {"words": 2.0, "letters": 5.0, "logged": 9.0}
    assert metrics["rewards/letters/mean"] == 5.0
    assert metrics["weighted_rewards/letters/mean"] == -2.5
    assert metrics["rewards/logged/mean"] == 9.0
    assert "weighted_rewards/logged/mean" not in metrics


def test_a_verdict_says_what_a_perfect_sample_would_get():
    half = scorer_info(range=(0.0, 1.0))(lambda completions, **columns: [0.5] * len(completions))
    asked = scorer_info(range=(-1.0, 1.0), needs=("asked",))(lambda completions, asked: [0.0] * len(completions))
    prompts = [Prompt(text="a"), Prompt(text="b", columns={"asked": 1})]
    specs = [
        ScorerSpec(name="half", scorer=half, weight=1.0),
        ScorerSpec(name="asked", scorer=asked, weight=-0.3),
        ScorerSpec(name="logged", scorer=words, weight=0.0),
    ]
    with Panel(specs) as panel:
        verdicts = panel.score(ScoreBatch(prompts=prompts, texts=["x", "y"]))
    assert [verdict.best for verdict in verdicts] == pytest.approx([1.0, 1.3]), "of the scorers that apply"
    with Panel([*specs, ScorerSpec(name="words", scorer=words)]) as panel:
        (verdict,) = panel.score(ScoreBatch(prompts=prompts[:1], texts=["x"]))
    assert verdict.best == 1.0, "where a range is not declared, 1 is taken for perfect"


def test_one_missing_score_makes_the_total_missing(text_batch):
    def partly(completions):
        return [None if text == "?" else 1.0 for text in completions]

    with Panel([ScorerSpec(name="words", scorer=words), ScorerSpec(name="partly", scorer=partly)],
               max_failed_fraction=0.5) as panel:  # fmt: skip
        verdicts = panel.score(text_batch("a", "?"))
        metrics = panel.metrics()
    assert [verdict.total for verdict in verdicts] == [2.0, None]
    assert verdicts[1].scores == {"words": 1.0, "partly": None}
    assert metrics["rewards/partly/missing_fraction"] == 0.5
    assert metrics["rewards/partly/mean"] == 1.0
    assert metrics["scores/missing_fraction"] == 0.25


def test_a_scorer_that_does_not_apply_leaves_the_total(text_batch):
    calls = []

    @scorer_info(needs=("images", "answer"))
    def about_images(images, answer):
        calls.append(answer)
        return [0.5] * len(images)

    image = np.zeros((2, 2, 3), dtype=np.uint8)
    prompts = [Prompt(text="a"), Prompt(text="b", columns={"answer": 3}), Prompt(text="c", columns={"answer": 4})]
    batch = ScoreBatch(prompts=prompts, texts=["x"] * 3, images=[image, image, None])
    with Panel([ScorerSpec(name="words", scorer=words), ScorerSpec(name="about", scorer=about_images)]) as panel:
        totals = [verdict.total for verdict in panel.score(batch)]
        panel.score(text_batch("x"))
        metrics = panel.metrics()
    assert totals == [1.0, 1.5, 1.0]
    assert calls == [[3]]
    assert metrics["rewards/about/missing_fraction"] == 0.0


def test_a_panel_of_which_nothing_applies_says_so(text_batch):
    with Panel([ScorerSpec(name="about", scorer=lambda images: [])]) as panel:
        assert panel.score(text_batch("x"))[0].total is None
        with pytest.raises(ScorerError, match=r"no scorer applies to any of 1 samples: 'about' needs images"):
            panel.metrics()


def test_a_scorer_sees_what_the_contract_promises():
    seen = {}

    def look(
        prompts, completions, images, *, draft_images=None, critiques=None, log_metric=None, log_extra=None, **rest
    ):
        seen.update(locals())
        log_metric("answers", 4)
        log_extra("reason", ["too dark", None])
        return torch.tensor([0.25, 1.0])

    image = np.zeros((2, 3, 3), dtype=np.uint8)
    batch = ScoreBatch(
        prompts=[Prompt(text="a", columns={"tag": "one"}), Prompt(text="b")],
        images=[image, image + 1],
        draft_images=[None, image],
        critiques=[None, "make it brighter"],
    )
    with Panel([ScorerSpec(name="look", scorer=look)]) as panel:
        verdicts = panel.score(batch)
        metrics = panel.metrics()
    assert seen["prompts"] == ["a", "b"]
    assert seen["completions"] == ["", ""]
    assert [picture.shape for picture in seen["images"]] == [(2, 3, 3)] * 2
    assert seen["draft_images"][0] is None
    assert seen["critiques"] == [None, "make it brighter"]
    assert seen["rest"] == {"completion_ids": None, "trainer_state": RunProgress(), "tag": ["one", None]}
    assert [verdict.words for verdict in verdicts] == ["too dark", ""]
    assert metrics["rewards/look/answers"] == 4.0


def test_words_of_several_scorers_carry_their_names(text_batch):
    def says(word):
        def scorer(completions, log_extra):
            log_extra("reason", [word])
            return [1.0]

        return scorer

    with Panel([ScorerSpec(name="a", scorer=says("dim")), ScorerSpec(name="b", scorer=says("flat"))]) as panel:
        assert panel.score(text_batch("x"))[0].words == "a: dim; b: flat"


def test_async_and_class_scorers(text_batch):
    class Judge:
        info = ScorerInfo(range=(0.0, 1.0))

        async def __call__(self, completions, **columns):
            return [1.0 for _ in completions]

    async def plain(completions):
        return [0.5 for _ in completions]

    with Panel([ScorerSpec(name="judge", scorer=Judge()), ScorerSpec(name="plain", scorer=plain)]) as panel:
        assert panel.score(text_batch("a", "b"))[1].total == 1.5


def test_trl_rewards_run_unchanged(text_batch):
    specs = [
        ScorerSpec(name="think", scorer=load_scorer("trl.rewards:think_format_reward")),
        ScorerSpec(name="ids", scorer=load_scorer("trl.rewards:get_repetition_penalty_reward", {"ngram_size": 1})),
    ]
    batch = text_batch("<think>a</think> b", "b b", token_ids=[[1, 2, 3], [7, 7]])
    with Panel(specs) as panel:
        assert [verdict.total for verdict in panel.score(batch)] == [1.0, -0.5]


def test_group_wise_scorers_see_one_group_at_a_time(text_batch):
    calls = []

    @scorer_info(group_wise=True)
    def best(completions):
        calls.append(completions)
        return [float(text == max(completions)) for text in completions]

    batch = text_batch("a", "y", "b", "x", groups=["one", "two", "one", "two"])
    with Panel([ScorerSpec(name="best", scorer=best)]) as panel:
        assert [verdict.total for verdict in panel.score(batch)] == [0.0, 1.0, 1.0, 0.0]
        assert sorted(calls) == [["a", "b"], ["y", "x"]]
        with pytest.raises(ScorerError, match=r"give ScoreBatch\.groups"):
            panel.score(text_batch("a"))


def test_normalize_then_sum_follows_its_equation(text_batch):
    values = {"words": [1.0, 3.0, 2.0, 2.0], "letters": [10.0, 30.0, 5.0, 5.0]}
    verdicts = [
        Verdict(total=1.0, scores={name: values[name][i] for name in values} | {"logged": 50.0 * i}) for i in range(4)
    ]
    verdicts.append(Verdict(total=None, scores={"words": 99.0, "letters": None, "logged": 0.0}))
    specs = [
        ScorerSpec(name="words", scorer=words, weight=2.0),
        ScorerSpec(name="letters", scorer=letters),
        ScorerSpec(name="logged", scorer=words, weight=0.0),
    ]
    with Panel(specs, aggregate="normalize_then_sum") as panel:
        rewards = panel.rewards(verdicts, ["p", "p", "q", "q", "p"])
    by_hand = 2.0 * 1.0 / (np.std([1, 3], ddof=1) + 1e-4) + 10.0 / (np.std([10, 30], ddof=1) + 1e-4)
    assert rewards[:2] == pytest.approx([-by_hand, by_hand])
    assert rewards[2:] == [0.0, 0.0, None]
    with Panel(specs) as panel:
        assert panel.rewards(verdicts, ["p"] * 5) == [1.0, 1.0, 1.0, 1.0, None]


def test_metrics_close_the_step_and_do_not_depend_on_order(text_batch):
    barrier = threading.Barrier(2)

    def slow_first(completions):
        barrier.wait(timeout=5)  # both batches are in flight
        time.sleep(0.05 if completions[0] == "0.1" else 0.0)
        return [float(text) for text in completions]

    with Panel([ScorerSpec(name="value", scorer=slow_first)], num_workers=2) as panel:
        both = [panel.submit(text_batch("0.1", "0.2")), panel.submit(text_batch("0.3"))]
        assert [verdict.total for future in both for verdict in future.result()] == [0.1, 0.2, 0.3]
        metrics = panel.metrics()
        assert metrics["rewards/value/mean"] == pytest.approx(0.2)
        assert metrics["rewards/value/std"] == pytest.approx(0.1)
        after = panel.metrics()
    assert "rewards/value/mean" not in after  # what did not occur is absent, never 0


def test_metric_names_are_in_the_table(text_batch):
    allowed = {"rewards/words/missing_fraction", "rewards/words/time_s"}
    with Panel([ScorerSpec(name="words", scorer=words)]) as panel:
        panel.score(text_batch("a", "b c"))
        assert set(unknown_names(panel.metrics())) <= allowed


def test_held_out_metrics_have_their_own_names(text_batch):
    with Panel([ScorerSpec(name="words", scorer=words)], held_out=True) as panel:
        panel.score(text_batch("a b"))
        metrics = panel.metrics()
    assert metrics["eval_rewards/words/mean"] == 2.0
    assert not [name for name in metrics if not name.startswith("eval_rewards/")]


def test_deterministic_scores_are_cached_by_content(image_batch, tmp_path):
    calls = []

    @scorer_info(range=(0.0, 255.0), needs=("images",), deterministic=True)
    def mean(images, *, shift: float = 0.0, log_extra=None, **columns):
        calls.append(len(images))
        log_extra("reason", [f"{image.mean():.0f}" for image in images])
        return [float(image.mean()) + shift for image in images]

    def score(params, *greys, **columns):
        import functools

        spec = ScorerSpec(name="mean", scorer=functools.partial(mean, **params), params=params)
        with Panel([spec], cache=ScoreCache(folder=tmp_path)) as panel:
            verdicts = panel.score(image_batch(*greys, **columns))
            hits = panel.metrics()["scores/cache_hit_fraction"]
        return [verdict.total for verdict in verdicts], [verdict.words for verdict in verdicts], hits

    assert score({}, 10, 20) == ([10.0, 20.0], ["10", "20"], 0.0)
    assert score({}, 10, 30) == ([10.0, 30.0], ["10", "30"], 0.5)
    assert calls == [2, 1]
    assert score({"shift": 1.0}, 10)[0] == [11.0]
    assert score({}, 10, tag="other")[2] == 0.0
    assert calls == [2, 1, 1, 1]


def test_scoring_overlaps_with_the_caller(text_batch):
    def slow(completions):
        time.sleep(0.2)
        return [1.0] * len(completions)

    with Panel([ScorerSpec(name="slow", scorer=slow)], num_workers=4) as panel:
        start = time.perf_counter()
        futures = [panel.submit(text_batch("a")) for _ in range(4)]
        submitted = time.perf_counter() - start
        for future in futures:
            future.result()
        assert submitted < 0.1
        assert time.perf_counter() - start < 0.6


def test_a_scorer_that_is_not_thread_safe_runs_alone(text_batch):
    running, most = 0, 0

    @scorer_info(thread_safe=False)
    def alone(completions):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return [1.0]

    with Panel([ScorerSpec(name="alone", scorer=alone)], num_workers=4) as panel:
        for future in [panel.submit(text_batch("a")) for _ in range(6)]:
            future.result()
    assert most == 1


def test_wrong_batches_are_refused():
    prompts = [Prompt(text="a")]
    with pytest.raises(ValueError, match="texts has 2 entries for 1 prompts"):
        ScoreBatch(prompts=prompts, texts=["a", "b"])
    with pytest.raises(ValueError, match=r"uint8 arrays \[H, W, 3\], not float32 \(3, 4, 4\)"):
        ScoreBatch(prompts=prompts, images=[np.zeros((3, 4, 4), dtype=np.float32)])


def test_a_column_may_not_take_the_name_of_an_argument(text_batch):
    batch = ScoreBatch(prompts=[Prompt(text="a", columns={"images": 3})], texts=["a"])
    with Panel([ScorerSpec(name="words", scorer=words)]) as panel, pytest.raises(ScorerError, match="column 'images'"):
        panel.score(batch)


def test_two_scorers_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one name"):
        Panel([ScorerSpec(name="a", scorer=words), ScorerSpec(name="a", scorer=letters)])


def test_to_uint8_keeps_height_and_width():
    image = torch.zeros(3, 2, 5)
    image[1, 0, 4] = 1.5
    pixels = to_uint8(image)
    assert pixels.shape == (2, 5, 3)
    assert pixels[0, 4].tolist() == [0, 255, 0]
