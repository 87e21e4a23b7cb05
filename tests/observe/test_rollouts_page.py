"""`rollouts.html`: every kept rollout, found by its words, kind and outcome."""

from __future__ import annotations

import json

import pytest

from r3_rl.observe import rollouts_page
from r3_rl.observe.recorder import read_lines
from r3_rl.observe.report import write_report
from r3_rl.observe.rollouts_page import write_rollouts
from tests.observe.browser import find_browser, open_browser
from tests.observe.runs import HOSTILE
from tests.observe.test_report import Tags


def rows_of(folder):
    return read_lines(folder / "trajectories.jsonl").rows


@pytest.fixture(scope="module")
def page(finished_run):
    write_report(finished_run)
    return finished_run / "rollouts.html"


def test_every_kept_rollout_is_on_the_page_with_what_it_is_found_by(page, finished_run):
    rows, tags = rows_of(finished_run), Tags(page.read_text(encoding="utf-8"))
    assert tags.open == []
    cards = [attributes for tag, attributes in tags.elements if tag == "article"]
    assert len(cards) == len(rows) and f"{len(rows):,} rollouts, with every image" in tags.text
    for card, row in zip(cards, rows, strict=True):
        assert card["data-step"] == str(row["step"]) and card["data-phase"] == row["phase"]
        assert row["prompt"].lower() in card["data-text"] and card["data-tag"] == row["tag"]
        first, last = row["rounds"][0]["score"], row["rounds"][-1]["score"]
        if first is not None and last is not None:
            assert float(card["data-gain"]) == pytest.approx(last - first)
    assert {card["data-outcome"] for card in cards} >= {"right at once", "repaired"}
    sources = [attributes["src"] for tag, attributes in tags.elements if tag == "img"]
    assert len(sources) == sum(len(row["rounds"]) for row in rows) and all(s.startswith("data:image/") for s in sources)


def test_texts_of_strangers_stay_texts(page, finished_run):
    assert any(row["prompt"] == HOSTILE for row in rows_of(finished_run))
    tags = Tags(page.read_text(encoding="utf-8"))
    assert [tag for tag, _ in tags.elements].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in tags.elements for name in attributes)


def test_of_many_rollouts_some_are_shown_evenly_from_first_to_last(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts_page, "MOST", 3)
    (tmp_path / "images").symlink_to(finished_run / "images")
    rows = rows_of(finished_run)
    assert len(rows) > 3 and write_rollouts(tmp_path, rows, name="a run") == 3
    tags = Tags((tmp_path / "rollouts.html").read_text(encoding="utf-8"))
    steps = [attributes["data-step"] for tag, attributes in tags.elements if tag == "article"]
    assert steps[0] == str(rows[0]["step"]) and steps[-1] == str(rows[-1]["step"])
    assert f"3 of {len(rows):,} kept rollouts" in tags.text


def test_broken_rows_are_left_out_and_a_run_without_any_has_no_page(finished_run, tmp_path):
    good = rows_of(finished_run)[0]
    broken = [
        {"step": 1},
        {**good, "rounds": []},
        {**good, "step": "soon"},
        {k: v for k, v in good.items() if k != "step"},
    ]
    assert write_rollouts(tmp_path, broken, name="a run") == 0 and not (tmp_path / "rollouts.html").exists()
    assert write_rollouts(tmp_path, [*broken, good], name="a run") == 1


def test_a_report_links_to_the_page_only_where_there_is_one(finished_run, tmp_path):
    good = rows_of(finished_run)[0]
    for rows, linked in (([good], True), ([{**good, "rounds": []}], False)):
        folder = tmp_path / f"linked-{linked}"
        folder.mkdir()
        (folder / "trajectories.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        report = write_report(folder).read_text(encoding="utf-8")
        assert ('href="rollouts.html"' in report) is linked is (folder / "rollouts.html").is_file()


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="needs chromium")
def test_a_browser_finds_filters_and_sorts(page, finished_run):
    rows = rows_of(finished_run)
    shown = "[...document.querySelectorAll('.rollouts > *')].filter(c => c.offsetHeight > 0)"
    set_ = (
        "(() => {{ const box = document.querySelector('.filters [name={}]'); box.value = '{}';"
        " box.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )
    with open_browser(find_browser()) as tab:
        for width in (1280, 390):
            tab.open(page, width=width)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.evaluate(f"{shown}.length") == len(rows)
            steps = tab.evaluate(f"{shown}.map(c => Number(c.dataset.step))")
            assert steps == sorted(steps, reverse=True), "the last steps first"
            tab.evaluate(set_.format("order", "gained"))
            gains = tab.evaluate(f"{shown}.map(c => Number(c.dataset.gain))")
            assert gains == sorted(gains, reverse=True) and gains[0] > gains[-1]
            tab.evaluate(set_.format("outcome", "repaired"))
            assert set(tab.evaluate(f"{shown}.map(c => c.dataset.outcome)")) == {"repaired"}
            tab.evaluate(set_.format("text", "  RED   circle"))
            texts = tab.evaluate(f"{shown}.map(c => c.dataset.text)")
            assert texts and all("red" in text and "circle" in text for text in texts)
            said = tab.evaluate("document.querySelector('.filters output').textContent")
            assert said == f"{len(texts)} of {len(rows)} shown"
            tab.evaluate(set_.format("text", "no such words"))
            assert tab.evaluate(f"{shown}.length") == 0
            assert tab.complaints() == [] and tab.requests() == [page.resolve().as_uri()]
