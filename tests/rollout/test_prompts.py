"""The order of prompts in a run."""

from __future__ import annotations

from collections import Counter

import pytest

from r3_rl.errors import DataError, InputError
from r3_rl.rollout.prompts import PromptStream
from r3_rl.types import Prompt
from r3_rl.worlds.shapes.prompts import sample_prompts


def prompts(count):
    return [Prompt(text=str(n)) for n in range(count)]


def texts(batches):
    return [[p.text for p in batch] for batch in batches]


@pytest.mark.parametrize("count, num_prompts", [(10, 4), (3, 8), (8, 8), (1, 3)])
def test_every_epoch_shows_each_prompt_once_in_a_new_order(count, num_prompts):
    stream = PromptStream(prompts(count), num_prompts, seed=1)
    flat = [text for batch in texts(map(stream.batch, range(3 * count))) for text in batch]
    epochs = [flat[at : at + count] for at in range(0, len(flat), count)]
    assert all(Counter(epoch) == Counter(map(str, range(count))) for epoch in epochs)
    assert count < 8 or epochs[0] != epochs[1]


def test_a_step_is_the_same_whatever_came_before():
    stream, other = (PromptStream(prompts(7), 4, seed=2) for _ in range(2))
    walked = texts(stream.batch(step) for step in range(20))
    assert texts([other.batch(13), other.batch(2)]) == [walked[13], walked[2]]
    assert texts([PromptStream(prompts(7), 4, seed=3).batch(13)]) != [walked[13]]


@pytest.mark.parametrize("source", [prompts(10), lambda n, seed: sample_prompts(n, seed=seed)])
def test_processes_share_the_batch_of_one(source):
    stream = PromptStream(source, 6, seed=0)
    for step in (0, 1, 5):
        whole = stream.batch(step)
        assert [p for rank in range(3) for p in stream.batch(step, rank, 3)] == whole
    assert stream.batch(0) != stream.batch(1)
    with pytest.raises(InputError, match="6 prompts cannot be shared by 4 processes; use a multiple of 4"):
        stream.batch(0, 1, 4)


def test_empty_sources_are_refused():
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], 2, seed=0)
    with pytest.raises(InputError, match="num_prompts: 0"):
        PromptStream(prompts(2), 0, seed=0)
