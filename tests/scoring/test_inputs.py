"""No scorer can spoil what the others and the run read: not the images, not the columns, not the cache."""

import gc
import logging
import weakref

import numpy as np
import pytest
import torch

from r3_rl.errors import ScorerError
from r3_rl.scoring.asked import Asked
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.inputs import Inputs
from r3_rl.scoring.panel import Panel
from r3_rl.scoring.seat import ScorerSpec
from r3_rl.types import Prompt


def mean(images, **columns):
    return [float(image.mean()) for image in images]


def blacken(images, **columns):
    for image in images:
        image[:] = 0
    return [0.0] * len(images)


def blacken_through_torch(images, draft_images=None, **columns):
    for image in (*images, *(draft_images or ())):
        torch.from_numpy(image).zero_()
    return [0.0] * len(images)


def recount(images, include, **columns):
    include[0][0]["count"] = 99
    return [0.0] * len(images)


def counts(images, include, **columns):
    return [float(groups[0]["count"]) for groups in include]


def batch_of(*greys, **columns):
    images = [np.full((4, 6, 3), grey, dtype=np.uint8) for grey in greys]
    return ScoreBatch(prompts=[Prompt(text="p", columns=columns)] * len(greys), images=images, draft_images=images)


def specs(*scorers, **fields):
    return [ScorerSpec(name=scorer.__name__, scorer=scorer, **fields) for scorer in scorers]


def test_a_scorer_that_writes_into_images_fails_by_name_and_the_others_see_what_was_drawn():
    batch = batch_of(100, 50)
    with Panel(specs(blacken, mean), num_workers=1) as panel:
        verdicts = panel.score(batch)
        said = r"scorer 'blacken': 2 of 2 .* read-only \(a scorer gets its images read-only: let it change `image.copy"
        with pytest.raises(ScorerError, match=said):
            panel.metrics()
    assert [verdict.scores["mean"] for verdict in verdicts] == [100.0, 50.0]
    assert all(image.flags.writeable for image in batch.images), "the caller's own arrays stay as they were"


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_torch_writes_past_the_flag_into_copies_and_is_named_once(caplog):
    batch = batch_of(100, 50)
    with Panel(specs(blacken_through_torch, mean), num_workers=1) as panel:
        for _ in range(2):
            assert [verdict.scores["mean"] for verdict in panel.score(batch)] == [100.0, 50.0]
    assert [int(image[0, 0, 0]) for image in batch.images] == [100, 50]
    assert [record.message for record in caplog.records if "'images'" in record.message] == [
        "scorer 'blacken_through_torch' writes into its argument 'images'; every scorer has copies of its own, so "
        "nothing else changes; let it copy what it changes"
    ]


def test_columns_are_copies_for_each_scorer(caplog):
    batch = batch_of(1, 2, include=[{"count": 1}])
    with Panel(specs(recount, counts), num_workers=1) as panel:
        assert [verdict.scores["counts"] for verdict in panel.score(batch)] == [1.0, 1.0]
    assert batch.prompts[0].columns == {"include": [{"count": 1}]}
    assert "scorer 'recount' writes into its argument 'include'" in caplog.text


def test_a_score_is_kept_under_what_was_shown(tmp_path):
    info = ScorerInfo(deterministic=True)
    cache = ScoreCache(folder=tmp_path)
    batch = batch_of(1, include=[{"count": 1}])
    with Panel(specs(recount, info=info, params={}), cache=cache) as panel:
        panel.score(batch)
        panel.score(batch_of(1, include=[{"count": 1}]))
        assert panel.metrics()["scores/cache_hit_fraction"] == 0.5


def test_copies_share_what_the_originals_share_and_nothing_with_them():
    image, lock = np.zeros((2, 2, 3), np.uint8), open  # a builtin is neither copied nor compared
    value = {"images": [image, image], "box": (1, [2.5, float("nan")], None, lock), "tensor": torch.ones(2)}
    inputs = Inputs(value)
    given = inputs.give()
    assert given["images"][0] is given["images"][1] is not image
    assert not given["images"][0].flags.writeable
    assert given["tensor"] is not value["tensor"]
    assert inputs.written() == []
    given["box"][1][0] = 2.0
    assert inputs.written() == ["box"]


def test_what_cannot_be_copied_is_shared():
    with open(__file__, encoding="utf-8") as file:
        inputs = Inputs({"handle": [file]})
        assert inputs.give()["handle"][0] is file
        assert inputs.written() == []


def test_no_line_for_scorers_that_only_read(caplog):
    with caplog.at_level(logging.WARNING), Panel(specs(mean, counts)) as panel:
        panel.score(batch_of(3, 4, include=[{"count": 2}]))
    assert caplog.records == []


@pytest.mark.parametrize("copied", [True, False])
def test_a_call_is_freed_with_its_images_when_it_is_over(copied):
    def logs(images, *, log_metric, log_extra):
        log_metric("light", float(images[0].mean()))
        log_extra("reason", ["dark"])
        return [0.0]

    gc.disable()  # nothing may wait for it: a step's images are megabytes, and it looks for circles seldom
    try:
        asked = Asked(
            ScorerSpec(name="logs", scorer=logs), {"images": [np.zeros((2, 2, 3))]}, count=1, columns=(), copy=copied
        )
        asked.read(asked.call(), None)
        assert asked.logged == [("light", 0.0)]
        asked, gone = None, weakref.ref(asked)
        assert gone() is None
    finally:
        gc.enable()
