"""`r3 probe`: what lies under the noise is found, and where nothing does, nothing is claimed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from r3_rl.balance.conflict import grams_by_place
from r3_rl.errors import InputError
from r3_rl.evaluate.probe import ALL, Probe, _with_sums, probe
from r3_rl.evaluate.probe_page import UNSEEN, table_lines, write_probe
from r3_rl.recipe_io import load_recipe

STEPS, SIZE = 12, 4000


def planted(*signals, noise=3.0, seed=0):
    """Gradients of steps: each objective's signal in the first place, noise in both."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(STEPS):
        for signal in signals:
            row = torch.randn(2 * SIZE, generator=generator).double() * noise
            row[:SIZE] += signal
            rows.append(row)
    grams = grams_by_place(rows, [SIZE, SIZE], ["understanding/10", "understanding/9"])
    shape = (STEPS, len(signals), STEPS, len(signals))
    names = ("plan", "draft", "critique")[: len(signals)]
    return Probe(objectives=names, grams=_with_sums({place: gram.view(shape) for place, gram in grams.items()}))


@pytest.mark.parametrize("cosine", [-0.6, 0.0, 0.8])
def test_the_cosine_under_the_noise_is_found_where_the_measured_one_is_lost_in_it(cosine):
    e, f = torch.zeros(2, SIZE, dtype=torch.float64)
    e[0::2], f[1::2] = 1, 1
    tried = [planted(e, cosine * e + (1 - cosine**2) ** 0.5 * f, seed=seed) for seed in range(20)]
    intervals = [found.cosine("understanding/10", 0, 1) for found in tried]
    assert sum(i.low <= cosine <= i.high for i in intervals) >= 16, "19 of 20 are to hold it"
    assert max(i.high - i.low for i in intervals) < 0.5
    found = tried[0]
    # the signal's share of a gradient's square is 1/2 : 9, so what is measured is a twentieth of it
    assert abs(float(found.measured("understanding/10")[0, 1]) - cosine / 19) < 0.03
    assert found.agreement("understanding/10").tolist() == pytest.approx([1 / 19, 1 / 19], abs=0.02)


def test_where_nothing_lies_under_the_noise_nothing_is_said():
    still = torch.zeros(SIZE, dtype=torch.float64)
    unseen = [planted(still, still, seed=seed).cosine("understanding/9", 0, 1) for seed in range(5)]
    # by chance all dot products of unlike steps may add up above 0; an interval then spans what a cosine can be
    assert None in unseen and all(i is None or i.high - i.low > 0.5 for i in unseen)


def test_places_are_in_the_order_of_the_layers_and_add_up():
    found = planted(torch.ones(SIZE).double(), torch.ones(SIZE).double(), torch.ones(SIZE).double())
    assert list(found.grams) == ["understanding/9", "understanding/10", ALL]
    torch.testing.assert_close(found.grams[ALL], found.grams["understanding/9"] + found.grams["understanding/10"])
    assert found.pairs == [(0, 1), (0, 2), (1, 2)]
    assert found.norms("understanding/9")[0] == pytest.approx(3 * SIZE**0.5, rel=0.02)


def test_the_page_and_the_tables_say_the_same(tmp_path):
    found = planted(torch.ones(SIZE).double(), -torch.ones(SIZE).double())
    file = write_probe(found, tmp_path / "new", title="<b>mine</b>")
    written = json.loads((tmp_path / "new" / "probe.json").read_text())
    expected = found.cosine(ALL, 0, 1)
    assert written["places"][ALL]["cosine"]["plan / draft"] == expected.as_dict() and expected.high < 0
    text, html = (tmp_path / "new" / "probe.md").read_text(), file.read_text()
    for line in table_lines(found):
        assert line in text
    assert f"{expected.mean:+.2f}" in html and "rgba(214" in html and "<b>mine" not in html
    still = torch.zeros(SIZE, dtype=torch.float64)
    nothing = next(p for seed in range(9) if (p := planted(still, still, seed=seed)).cosine(ALL, 0, 1) is None)
    assert UNSEEN in "\n".join(table_lines(nothing))


def test_the_embedded_model_is_measured_at_all_four_stages_and_left_alone():
    recipe = load_recipe(
        "shapes_r3",
        ["rollout.num_prompts=2", "rollout.branch={plan: 4, draft: 2, critique: 4}", "training.num_threads=1",
         "algorithm.tree.node_choice=uniform", "algorithm.tree.synthetic_fraction=0.5", "lora.enabled=false"],
    )  # fmt: skip
    found = probe(recipe, num_steps=3)
    assert set(found.objectives) <= {"plan", "draft", "critique", "refinement"} and len(found.objectives) >= 2
    assert found.num_steps == 3 and {"understanding", "generation", ALL} < set(found.grams)
    assert "understanding/0" in found.grams and "generation/5" in found.grams
    plan = found.objectives.index("plan")
    assert found.norms("generation")[plan] == 0 < found.norms("understanding")[plan]


def test_too_few_steps_and_one_stage_alone_are_refused():
    with pytest.raises(InputError, match="an interval needs 3"):
        probe(load_recipe("shapes_r3"), num_steps=2)
    alone = ["algorithm.schedule=critique_only", "rollout.num_prompts=2", "rollout.branch={plan: 4, critique: 4}"]
    with pytest.raises(InputError, match="two are needed to compare"):
        probe(load_recipe("shapes_r3", [*alone, "training.num_threads=1"]), num_steps=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["."], "no run in this folder"),
        (["half"], "has no adapter/"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_a_line(r3, workplace, arguments, said):
    Path("half").mkdir()
    Path("half/recipe.resolved.yaml").write_text("version: 1\n")
    done = r3("probe", *arguments)
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) <= 2 and "Traceback" not in done.err
