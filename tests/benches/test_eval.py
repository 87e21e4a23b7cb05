"""A whole evaluation of the shipped adapter, in small: what is in its folder, and that it can be killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from r3_rl.benches import work
from r3_rl.benches.run import EvalSettings, evaluate
from r3_rl.errors import InputError
from tests.observe.browser import find_browser, open_browser

pytestmark = pytest.mark.slow

SETTINGS = EvalSettings(benches=["shapes"], rounds=[0, 1], limit=2)
OUTPUT = ("table.json", "table.md", "samples.jsonl", "index.html", "plan.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "whole"
    evaluate("shipped", folder, SETTINGS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUT}


def test_base_and_adapter_are_compared_in_both_decodings(whole):
    table = json.loads((whole / "table.json").read_text())
    assert table["models"] == {"base": "shipped without its adapter", "trained": "shipped"}
    assert table["weights"]["trained"].startswith(table["weights"]["base"] + "+")
    drawing = next(bench for bench in table["benches"] if bench["name"] == "shapes.drawing")
    rows = {figure["name"]: figure for figure in drawing["figures"]}
    assert {"draft", "round_1", "gain_1", "best_own_critic_1", "best_oracle_1", "looking_1"} <= set(rows)
    assert list(rows["draft"]["decodings"]) == ["greedy", "sampled"]
    cells = rows["draft"]["decodings"]["greedy"]
    assert set(cells["models"]) == {"base", "trained"} and cells["models"]["base"]["count"] == 2
    assert sum(cells["changes"]["trained - base"][n] for n in ("wins", "ties", "losses")) == 2


def test_a_table_says_what_its_samples_say(whole):
    rows = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    drawn = [r for r in rows if (r["bench"], r["model"], r["decoding"]) == ("shapes.drawing", "trained", "greedy")]
    table = json.loads((whole / "table.json").read_text())["benches"][0]["figures"][0]
    mean = table["decodings"]["greedy"]["models"]["trained"]["mean"]
    assert mean == sum(r["values"]["draft"] for r in drawn) / len(drawn)
    for row in drawn:
        for name, place in row["images"].items():
            assert (whole / place).is_file() and f"score-{row['values']['draft']:.2f}" in row["images"]["round_0"], name


def test_questions_about_its_own_images_are_answered_by_inspection(whole):
    rows = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["bench"] == "shapes.own"]
    drawn = {(r["model"], r["item"]): r for r in rows if r["bench"] == "shapes.drawing" and r["decoding"] == "greedy"}
    assert len(own) == 2 * 2 * 2
    for row in own:
        assert (row["values"] == {}) == ("question" not in row)
        if row["values"]:
            assert row["values"]["own"] == float(row["said"].endswith(f"</think> {row['answer']}"))
        if row["decoding"] == "greedy":  # the same first images as those that the loop refines
            one = whole / row["images"]["draft"]
            assert one.read_bytes() == (whole / drawn[row["model"], row["item"]]["images"]["round_0"]).read_bytes()


@pytest.mark.skipif(find_browser() is None, reason="needs chromium")
def test_a_browser_shows_the_page_without_errors_at_both_widths(whole):
    with open_browser(find_browser()) as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(whole / "index.html", width=width, dark=dark)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert page.evaluate("document.querySelectorAll('.tile').length") == 4
            opened = page.evaluate("[...document.querySelectorAll('.panel')].filter(p => p.offsetHeight > 0).length")
            assert opened == 1 and page.evaluate("document.querySelectorAll('.card img').length") > 0
            anchors = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
            assert all(page.evaluate(f"document.getElementById('{anchor[1:]}') !== null") for anchor in anchors)
            assert page.complaints() == []
            assert page.requests() == [(whole / "index.html").resolve().as_uri()]


def test_a_finished_evaluation_is_written_again_without_measuring(whole, tmp_path, monkeypatch):
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    (folder / "table.md").unlink()
    monkeypatch.setattr(work, "_keep", lambda *_: pytest.fail("nothing is left to measure"))
    evaluate("shipped", folder, SETTINGS)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rounds": [0, 1, 2]}, "holds an evaluation with other rounds"),
        ({"limit": 3}, "holds 'shapes.drawing' on other items or settings"),
        ({"benches": ["shapes", "shapes"]}, "'shapes.drawing' is asked for twice"),
        ({"benches": ["vqav3"]}, "no bench is called 'vqav3'; did you mean 'vqav2'"),
    ],
)
def test_another_evaluation_is_not_mixed_in(whole, change, said):
    settings = EvalSettings(**{"benches": ["shapes"], "rounds": [0, 1], "limit": 2, **change})
    with pytest.raises(InputError, match=said):
        evaluate("shipped", whole, settings)


def test_another_model_is_not_mixed_in(whole):
    with pytest.raises(InputError, match="other models"):
        evaluate(None, whole, SETTINGS)


def test_a_model_without_an_adapter_is_shown_by_itself(tmp_path):
    (result, *_) = evaluate(None, tmp_path / "model", EvalSettings(benches=["shapes"], rounds=[0], limit=2))
    cells = result.rows[0].cells["greedy"]
    assert list(cells.models) == ["model"] and not cells.changes
    assert "| model |" in (tmp_path / "model" / "table.md").read_text()
    assert (tmp_path / "model" / "index.html").is_file()


def test_two_models_of_one_base_are_compared_on_the_same_items(tmp_path):
    settings = EvalSettings(benches=["shapes"], rounds=[0], limit=2)
    results = evaluate("shipped", tmp_path / "two", settings, against="shipped")
    cells = results[0].rows[0].cells["greedy"]
    assert list(cells.models) == ["base", "trained", "other"]
    assert list(cells.changes) == [("base", "trained"), ("trained", "other"), ("base", "other")]
    assert cells.changes["trained", "other"].over_items.mean == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bench", ","], "--bench names no bench"),
        (["--bench", "shapes", "--rounds", "0,x"], "--rounds 0,x: not numbers from 0 to 16"),
        (["--bench", "shapes", "--rounds", "17"], "--rounds 17"),
        (["--bench", "shapes", "--seeds", "0"], "--seeds and --limit are at least 1"),
        ([], "--bench"),
    ],
)
def test_wrong_arguments_are_told_before_anything_loads(r3, arguments, said):
    done = r3("eval", "shipped", *arguments)
    assert done.code == 2 and said in done.err


@pytest.mark.parametrize(
    ("bench", "said"),
    [
        ("pope=nowhere", "bench 'pope': nowhere is missing"),
        ("vqav2", "bench 'vqav2' reads files: give vqav2=PATH"),
        ("shapez", "no bench is called 'shapez'"),
    ],
)
def test_files_are_looked_at_before_a_model_is(tmp_path, bench, said):
    with pytest.raises(InputError, match=said):
        evaluate("no-such-model", tmp_path, EvalSettings(benches=[bench]))
    with pytest.raises(InputError, match="no-such-model: no such folder"):
        evaluate("no-such-model", tmp_path, EvalSettings(benches=["shapes"]))
