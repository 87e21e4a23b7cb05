"""The node pool: which image a reflect-refine step branches from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from r3_rl.errors import CheckpointError
from r3_rl.modalities import still
from r3_rl.nodes import Node, NodeId, prompt_roots
from r3_rl.rollout.pool import NodePool, mixed, spread
from r3_rl.training.checkpoint import load_pool, save_pool
from r3_rl.types import Prompt, Verdict


def group(name, *scores, depth=0):
    (root,) = prompt_roots([Prompt(text=name, columns={"tag": "t", "include": [{"class": "circle"}]})], num_rows=9)
    return [
        Node(
            id=NodeId(row=row, depth=1),
            prompt=root.prompt,
            parent=root,
            sample=still(torch.full((3, 2, 2), score)),
            verdict=Verdict(total=score, scores={"s": score, "missing": None}, words="why"),
            num_refinements=depth,
        )
        for row, score in enumerate(scores)
    ]


def pool(choice, *groups, perfect_ratio=0.15, max_groups=8, max_depth=1):
    made = NodePool(choice=choice, perfect_ratio=perfect_ratio, max_groups=max_groups, max_depth=max_depth)
    for images in groups:
        made.add(images)
    return made


def names(nodes):
    return [n.prompt.text for n in nodes]


MIXED, WRONG, RIGHT = group("mixed", 1.0, 0.2, 0.4), group("wrong", 0.1, 0.3), group("right", 1.0, 1.0)


def test_what_a_group_says_about_itself():
    assert mixed(MIXED) and not mixed(WRONG) and not mixed(RIGHT)
    assert spread(RIGHT) == 0 < spread(WRONG) == pytest.approx(0.1)
    assert mixed(group("nearly", 1 - 1e-7, 0.5)), "a weighted panel reaches 1 only up to rounding"


def test_perfect_is_the_best_that_the_panel_can_say(tmp_path):
    """Weights that add up to 1.3 or 0.5: a total of 1 is then not what tells a perfect image."""
    more = [replace(n, verdict=replace(n.verdict, best=1.3)) for n in group("m", 1.3, 1.1)]
    less = [replace(n, verdict=replace(n.verdict, best=0.5)) for n in group("l", 0.5, 0.2)]
    for made in (more, less):
        assert [node.perfect for node in made] == [True, False] and mixed(made)
        kept = pool("spread_only", made, perfect_ratio=0.0)
        other = pool("spread_only")
        save_pool(kept, tmp_path)
        load_pool(other, tmp_path, saved_by=1)
        assert other.choose(1, np.random.default_rng(0))[0].score == made[1].score


def test_spread_only_takes_mixed_groups_alone():
    rng = np.random.default_rng(0)
    assert names(pool("spread_only", MIXED, WRONG, RIGHT).choose(3, rng)) == ["mixed"] * 3
    assert pool("spread_only", WRONG, RIGHT).choose(2, rng) == []
    assert pool("uniform").choose(2, rng) == []


def test_newest_groups_come_first_and_none_twice_while_there_are_others():
    rng = np.random.default_rng(0)
    five = [group(str(i), 0.2, 0.4) for i in range(5)]
    assert names(pool("uniform", *five).choose(3, rng)) == ["4", "3", "2"]
    chosen = names(pool("uniform", *five).choose(7, rng))
    assert sorted(set(chosen)) == list("01234") and len(chosen) == 7
    assert [g[0].prompt.text for g in pool("uniform", *five, max_groups=2).groups] == ["3", "4"]


def test_perfect_ratio_is_the_share_of_perfect_nodes():
    def share(ratio, *groups):
        rng = np.random.default_rng(1)
        made = pool("perfect_ratio", *groups, perfect_ratio=ratio)
        return np.mean([made.choose(1, rng)[0].score == 1.0 for _ in range(600)])

    assert share(0.15, MIXED) == pytest.approx(0.15, abs=0.04)
    assert share(0.0, MIXED) == 0 and share(1.0, MIXED) == 1
    assert share(0.0, RIGHT) == 1 and share(1.0, WRONG) == 0, "where one side is empty the other serves"


def test_uniform_draws_every_node_alike():
    rng = np.random.default_rng(2)
    made = pool("uniform", MIXED)
    scores = [made.choose(1, rng)[0].score for _ in range(600)]
    for score in (1.0, 0.2, 0.4):
        assert np.mean(np.isclose(scores, score)) == pytest.approx(1 / 3, abs=0.07)


def test_spread_weighted_prefers_spread():
    rng = np.random.default_rng(3)
    made = pool("spread_weighted", group("wide", 0.0, 1.0), group("narrow", 0.5, 0.6), RIGHT)
    first = [names(made.choose(1, rng))[0] for _ in range(300)]
    assert first.count("wide") > 250 and first.count("narrow") > 5 and first.count("right") == 0
    assert sorted(names(made.choose(3, rng))) == ["narrow", "right", "wide"]


def test_refined_images_enter_only_where_depth_allows():
    refined = group("refined", 0.3, 0.9, depth=1)
    assert len(pool("uniform", refined).groups) == 0
    assert len(pool("uniform", refined, max_depth=2).groups) == 1
    assert len(pool("uniform", []).groups) == 0


def test_images_without_a_score_and_rows_without_an_image_stay_out():
    a, b = group("a", 0.2, 0.4, 0.6), group("b", 0.5)
    missing = replace(a[1], verdict=Verdict(total=None))
    made = pool("uniform", [a[0], None, missing, b[0], a[2]])
    assert [[node.score for node in images] for images in made.groups] == [[0.2, 0.6], [0.5]]
    assert all(node.parent is None for images in made.groups for node in images), "the way to an image is left behind"


def test_the_same_generator_chooses_the_same_nodes():
    made = pool("perfect_ratio", MIXED, WRONG, RIGHT)
    a, b = (made.choose(5, np.random.default_rng(4)) for _ in range(2))
    assert all(x is y for x, y in zip(a, b, strict=True))


def test_a_checkpoint_brings_the_pool_back(tmp_path):
    made = pool("uniform", MIXED, WRONG, max_depth=2)
    made.add(group("deep", 0.7, depth=1))
    save_pool(made, tmp_path)
    other = pool("uniform", RIGHT, max_depth=2)
    load_pool(other, tmp_path, saved_by=1)
    assert len(other.groups) == 3
    for a, b in zip(made.groups, other.groups, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.prompt == y.prompt and x.verdict == y.verdict
            assert (x.score, x.num_refinements) == (y.score, y.num_refinements) and torch.equal(x.image, y.image)
    assert names(made.choose(3, np.random.default_rng(0))) == names(other.choose(3, np.random.default_rng(0)))


def test_a_pool_of_an_earlier_version_is_refused(tmp_path):
    save_file({"0": torch.zeros(1, 3, 2, 2)}, tmp_path / "node_pool.safetensors")
    with pytest.raises(CheckpointError, match=r"node_pool.safetensors: these bytes are no rollouts"):
        load_pool(pool("uniform"), tmp_path, saved_by=1)
