"""The cache: what a key depends on, what is kept, and a file that others may have spoilt."""

import itertools
import json

import numpy as np
import pytest

from r3_rl.errors import InputError
from r3_rl.scoring.base import scorer_info
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.cache import FILE_NAME, CachedScore, ScoreCache, content_key
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.types import Prompt


def image(height=2, width=3, grey=0):
    return np.full((height, width, 3), grey, dtype=np.uint8)


def test_every_part_of_a_sample_is_in_the_key():
    samples = [
        {"prompts": "a", "images": image()},
        {"prompts": "b", "images": image()},
        {"prompts": "a", "images": image(grey=1)},
        {"prompts": "a", "images": image(3, 2)},  # the same bytes in another shape
        {"prompts": "a", "images": image(), "tag": None},
        {"prompts": "a", "images": image(), "tag": "1"},
        {"prompts": "a", "images": image(), "tag": 1},
        {"prompts": "a", "images": None},
        {"prompt": "a", "simages": None},
    ]
    keys = [content_key(identity, sample) for identity in ("x:1", "x:2") for sample in samples]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_the_key_is_of_the_content_not_of_the_order_or_the_memory():
    one = content_key("x", {"a": 1, "images": image(4, 4)[::2]})
    other = content_key("x", {"images": image(2, 4), "a": 1})
    assert one == other


def test_what_has_no_stable_content_has_no_key():
    assert content_key("x", {"a": object()}) is None
    assert content_key("x", {"a": {1, 2}}) is None


def test_the_least_recently_used_score_goes_first():
    cache = ScoreCache(max_items=2)
    cache.put({"a": CachedScore(score=1.0), "b": CachedScore(score=2.0)})
    cache.get("a")
    cache.put({"c": CachedScore(score=3.0)})
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]


def test_scores_outlive_the_run(tmp_path):
    ScoreCache(folder=tmp_path / "cache").put({"a": CachedScore(score=0.1, words="two\nlines, ünder")})
    assert ScoreCache(folder=tmp_path / "cache").get("a") == CachedScore(score=0.1, words="two\nlines, ünder")


def test_the_file_is_bounded_and_keeps_what_was_used_last(tmp_path):
    cache = ScoreCache(max_items=5, folder=tmp_path)
    for index in range(100):
        cache.put({f"k{index}": CachedScore(score=float(index))})
        assert len((tmp_path / FILE_NAME).read_text().splitlines()) <= 10
    again = ScoreCache(max_items=5, folder=tmp_path)
    assert len(again) == 5
    assert again.get("k99") == CachedScore(score=99.0)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_two_runs_share_a_folder(tmp_path):
    one, other = ScoreCache(folder=tmp_path), ScoreCache(folder=tmp_path)
    one.put({"a": CachedScore(score=1.0)})
    other.put({"b": CachedScore(score=2.0)})
    both = ScoreCache(folder=tmp_path)
    assert both.get("a") is not None
    assert both.get("b") is not None


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "a", "sco',
        "[" * 200_000,
        '{"key": "a", "score": 1' + "0" * 400 + ', "words": "", "check": "x"}',
        "[]",
        "3",
        "\x00\xff",
        json.dumps({"key": "a", "score": "high", "words": ""}),
        json.dumps({"key": "a", "score": float("nan"), "words": ""}),
        json.dumps({"key": 1, "score": 1.0, "words": ""}),
        json.dumps({"key": "a", "score": 1.0, "words": None}),
    ],
)
def test_spoilt_lines_are_skipped(tmp_path, line):
    ScoreCache(folder=tmp_path).put({"good": CachedScore(score=0.5)})
    good = (tmp_path / FILE_NAME).read_text()
    (tmp_path / FILE_NAME).write_text(f"{line}\n{good}", encoding="latin-1")
    cache = ScoreCache(folder=tmp_path)
    assert len(cache) == 1
    assert cache.get("good") == CachedScore(score=0.5)


@pytest.mark.parametrize(("was", "is_now"), [("0.5", "0.9"), ('"a"', '"b"'), ("dark", "dank")])
def test_a_line_that_is_not_as_it_was_written_is_skipped(tmp_path, was, is_now):
    ScoreCache(folder=tmp_path).put({"a": CachedScore(score=0.5, words="dark")})
    line = (tmp_path / FILE_NAME).read_text()
    assert ScoreCache(folder=tmp_path).get("a") == CachedScore(score=0.5, words="dark")
    (tmp_path / FILE_NAME).write_text(line.replace(was, is_now, 1))
    assert len(ScoreCache(folder=tmp_path)) == 0


def test_a_torn_last_line_does_not_spoil_the_next_score(tmp_path):
    (tmp_path / FILE_NAME).write_text('{"key": "a", "sco')
    ScoreCache(folder=tmp_path).put({"b": CachedScore(score=1.0)})
    assert ScoreCache(folder=tmp_path).get("b") == CachedScore(score=1.0)


def test_a_disk_that_takes_no_more_costs_no_score(tmp_path, caplog):
    cache = ScoreCache(folder=tmp_path / "scores")
    (tmp_path / "scores" / FILE_NAME).mkdir()
    for key in ("a", "b"):
        cache.put({key: CachedScore(score=0.5)})
        assert cache.get(key) == CachedScore(score=0.5)
    assert [record.message.partition(" in ")[0] for record in caplog.records] == ["scores are no longer kept"]
    with pytest.raises(InputError, match="cannot be used"):
        ScoreCache(folder=tmp_path / "scores")


def test_a_cache_for_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ScoreCache(max_items=0)


def test_a_scorer_that_is_not_as_deterministic_as_it_says_is_named_and_not_kept(caplog):
    calls = itertools.count()

    @scorer_info(deterministic=True)
    def dice(completions):
        return [float(next(calls)) for _ in completions]

    batch = ScoreBatch(prompts=[Prompt(text="p")] * 2, texts=["a", "a"])
    with Panel([ScorerSpec(name="dice", scorer=dice, params={})], cache=ScoreCache()) as panel:
        assert [verdict.total for verdict in panel.score(batch)] == [0.0, 0.0]
        for _ in range(2):
            panel.prove()
        assert [verdict.total for verdict in panel.score(batch)] == [2.0, 3.0]
    (record,) = caplog.records
    assert "'dice' declares deterministic=True and gave 0 and 1 for one sample" in record.message


def test_an_honest_scorer_is_asked_again_once_and_kept(caplog):
    calls = []

    @scorer_info(deterministic=True)
    def length(completions):
        calls.append(completions)
        return [len(text) + 1e-4 * len(completions) for text in completions]

    batch = ScoreBatch(prompts=[Prompt(text="p")] * 2, texts=["a", "bc"])
    with Panel([ScorerSpec(name="length", scorer=length, params={})], cache=ScoreCache()) as panel:
        for _ in range(2):
            panel.score(batch)
            panel.prove()
    assert calls == [["a", "bc"], ["a"]] and not caplog.records
