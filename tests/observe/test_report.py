import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from r3_rl.errors import InputError
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.markup import element
from r3_rl.observe.recorder import Recorder, new_run_folder
from r3_rl.observe.report import write_report
from r3_rl.observe.statistics import share
from r3_rl.observe.tables import headline
from r3_rl.types import STAGES, Prompt, Trajectory
from tests.observe.browser import find_browser, open_browser
from tests.observe.runs import HOSTILE, critique, evaluation, trajectory

HOSTILE_CRITIQUE = '</p><img src=x onerror="alert(1)"><script>alert("critique")</script>'


class Tags(HTMLParser):
    """Every element of a page with its attributes, its text, and whether all that was opened was closed."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def page(finished_run):
    return write_report(finished_run).read_text(encoding="utf-8")


def test_the_page_is_one_well_formed_offline_file(page):
    tags = Tags(page)
    assert tags.open == []
    for tag, attributes in tags.elements:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href") and value != "rollouts.html":
                assert value.startswith(("data:image/", "#")), value
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page


def test_ids_are_unique_and_links_lead_somewhere(page):
    elements = Tags(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    targets = [link[1:] for link in links if link.startswith("#")]
    assert [link for link in links if not link.startswith("#")] == ["rollouts.html"]
    assert len(set(ids)) == len(ids) and targets and set(targets) <= set(ids)


def test_figures_with_intervals_are_those_of_the_evaluation(page, finished_run):
    document = json.loads((finished_run / "evaluation.json").read_text())
    text = Tags(page).text
    for phase in document["phases"].values():
        for name, interval in phase.items():
            if name.startswith("entropy"):
                assert f"{interval['mean']:.3f}{interval['low']:.3f} – {interval['high']:.3f}" in text
                continue
            assert f"{100 * interval['mean']:.1f} %" in text
            assert f"{100 * interval['low']:.1f} – {100 * interval['high']:.1f}" in text
    change = document["differences"]["draft"]
    assert (
        f"+{100 * change['mean']:.1f}" in text and f"+{100 * change['low']:.1f} to +{100 * change['high']:.1f}" in text
    )
    assert "color attribution" in text and "Edited by the base's critic" in text


def rows_of(text, label):
    return text.split(label)[1][:240]


def test_greedy_figures_come_first_and_the_large_ones_are_greedy(page, finished_run):
    document = json.loads((finished_run / "evaluation.json").read_text())
    tags = Tags(page)
    tiles = [attributes for tag, attributes in tags.elements if attributes.get("class") == "tile"]
    assert len(tiles) == 4
    before, after = (document["phases"][phase] for phase in ("before", "after"))
    for label, name in (("Draft right", "draft"), ("Right at the end", "final"), ("ITA, fixed images", "ita_fixed")):
        shown = f"{100 * before[f'{name}_greedy']['mean']:.1f} %→{100 * after[f'{name}_greedy']['mean']:.1f} %"
        assert f"{label}, greedy{shown}" in tags.text, name
    assert "Sampled texts: draft" in tags.text and "entropy in nats a token: plans" in tags.text
    row = rows_of(tags.text, "Draft rightfirst image, no reflection")
    assert row.index(f"{100 * before['draft_greedy']['mean']:.1f} %") < row.index(
        f"{100 * before['draft']['mean']:.1f} %"
    )
    assert "the same" in rows_of(tags.text, "True plan drawn") and "–" in rows_of(tags.text, "One of 8 drafts right")
    assert "not measured" in rows_of(tags.text, "Wrong drafts edited")


def test_what_has_no_greedy_figure_is_no_large_one():
    half = share([1.0, 0.0])
    tags = Tags(str(headline(Evaluation(before={"draft_greedy": half, "ita_fixed": half}, after={}, differences={}))))
    assert [attributes.get("class") for tag, attributes in tags.elements].count("tile") == 1
    assert "Draft right, greedy" in tags.text and "Sampled texts: ITA 50.0" in tags.text


def test_a_run_of_sampled_texts_only_is_shown_as_before(finished_run, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(finished_run, folder)
    (folder / "evaluation.json").write_text(json.dumps(evaluation(old=True)))
    text = Tags(write_report(folder).read_text(encoding="utf-8")).text
    for label in ("Draft right, sampled", "Right at the end, sampled", "Wrong drafts repaired, sampled"):
        assert label in text
    assert "Sampled texts:" not in text and "not measured" in rows_of(text, "Draft rightfirst image, no reflection")


def test_every_section_is_there(page):
    text = Tags(page).text
    for words in (
        "shapes_r3", "schedule tree", "320 held-out prompts", "4 min 31 s", "Missing scores.", "Score",
        "Gain of a refinement", "Held-out scorers", "shapes_strict", "KL from the reference, image",
        "Importance ratio", "cosine", "All other metrics", "Mean seconds of a step by stage",
        "Best of held-out prompts",
        "change the circle at center to red", "1 circle is blue, red was asked for", "bfloat16", "torch 2",
        "# An example", "Resolved recipe",
    ):  # fmt: skip
        assert words in text, words


def test_gates_are_drawn_where_a_run_has_some(finished_run, tmp_path):
    assert "Gates" not in rows_and_heads(write_report(finished_run))
    folder = tmp_path / "routed"
    shutil.copytree(finished_run, folder)
    with (folder / "gates.jsonl").open("w") as lines:
        for step, own in ((1, 0.4), (41, 0.9)):
            gate = [[own if i == j else (1 - own) / 4 for j in range(5)] for i in range(5)]
            row = {"step": step, "tasks": list(STAGES), "places": {"shared/0": gate, "shared/1": gate}}
            lines.write(json.dumps(row) + "\n")
    found = rows_and_heads(write_report(folder))
    assert "Gates" in found and "shared/1" in found and "of refinement" in found
    assert found.count("0.40 -> 0.90") == 2 * 5 + 5 and "At step 1 -> at step 41" in found


def rows_and_heads(page):
    return Tags(page.read_text(encoding="utf-8")).text


def test_texts_from_strangers_stay_text(tmp_path):
    folder = new_run_folder(tmp_path, "run <b>&")
    recorder = Recorder(folder)
    base = trajectory([0.3])
    hostile = Trajectory(
        prompt=Prompt(text=HOSTILE, columns={"tag": "<i>tag</i>"}),
        rounds=base.rounds,
        last_critique=critique(HOSTILE_CRITIQUE * 5, instruction=HOSTILE_CRITIQUE),
    )
    recorder.trajectory(1, hostile, phase="after")
    recorder.metrics(1, {"rewards/<script>/mean": 0.5, "<img src=x>": 1.0, 'x" onload="y': 2.0})
    recorder.document("recipe.yaml", "# </pre><script>alert('recipe')</script>\n")
    recorder.document("environment.json", {"<script>": "<script>alert('env')</script>"})
    recorder.document("evaluation.json", {"phases": {"after": {"<u>": dict(mean=1, low=0.5, high=2, count=3)}}})
    tags = Tags(write_report(folder).read_text(encoding="utf-8"))
    assert [tag for tag, _ in tags.elements].count("script") == 1
    assert "u" not in {tag for tag, _ in tags.elements}
    assert all(attributes["src"].startswith("data:") for tag, attributes in tags.elements if tag == "img")
    assert HOSTILE in tags.text and HOSTILE_CRITIQUE in tags.text and "<i>tag</i>" in tags.text


def test_an_empty_run_folder_says_what_is_missing(tmp_path):
    text = Tags(write_report(new_run_folder(tmp_path, "empty")).read_text(encoding="utf-8")).text
    for words in (
        "metrics.jsonl is missing", "trajectories.jsonl is missing", "No evaluation.json", "No metrics.jsonl",
        "No seconds by stage", "No trajectories were kept", "No recipe.yaml", "No environment.json", "No step logged",
        "it was killed",
    ):  # fmt: skip
        assert words in text, words


def test_broken_files_are_named_and_the_rest_is_shown(finished_run, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(finished_run, folder)
    (folder / "evaluation.json").write_text('{"phases": {"before": {"draft": 0.5}}}')
    (folder / "environment.json").write_text("{")
    (folder / "summary.json").write_text("[]")
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 61, "re')
    with (folder / "trajectories.jsonl").open("a") as stream:
        stream.write('{"step": 60, "phase": "after", "kept_as": "best", "prompt": "p", "tag": "", "rounds": [{}]}\n')
    for image in (folder / "images").iterdir():
        image.unlink()
    text = Tags(write_report(folder).read_text(encoding="utf-8")).text
    for words in (
        "evaluation.json does not have the expected shape", "environment.json is not JSON",
        "summary.json is not a JSON object", "metrics.jsonl: 1 lines could not be read",
        "This trajectory could not be read", "image missing", "Gain of a refinement",
    ):  # fmt: skip
        assert words in text, words


def test_unknown_measurements_and_one_phase_are_shown_under_their_own_name(tmp_path):
    folder = new_run_folder(tmp_path, "run")
    recorder = Recorder(folder)
    fields = {"mean": 3.25, "low": 3.0, "high": 3.5, "count": 12}
    recorder.document("evaluation.json", {"phases": {"after": {"aesthetic_score": fields}}})
    text = Tags(write_report(folder).read_text(encoding="utf-8")).text
    assert "aesthetic score" in text and "3.250" in text and "3.000 – 3.500" in text and "not measured" in text


def test_a_long_run_stays_a_small_page(tmp_path):
    folder = new_run_folder(tmp_path, "long")
    recorder = Recorder(folder)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": k, "reward": k % 7, "kl": 0.1, "grad/cosine": 0.0}) + "\n" for k in range(1, 8001))
    )
    for _ in range(12):
        recorder.trajectory(1, trajectory([0.3, 0.6], side=512))
    report = write_report(folder)
    assert report.stat().st_size < 1_500_000


def test_a_missing_run_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_attributes_and_children_are_escaped():
    assert element("a", "<", title='">', data_x=1, hidden=False) == '<a title="&quot;&gt;" data-x="1">&lt;</a>'


def test_the_report_loads_no_torch():
    code = "import sys, r3_rl.observe.report, r3_rl.observe.progress; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="needs chromium")
def test_a_browser_shows_the_page_without_errors_and_asks_for_nothing(finished_run):
    report = write_report(finished_run)
    with open_browser(find_browser()) as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(report, width=width, dark=dark)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            for tab in range(5):
                page.evaluate(f"document.querySelector('label[for=tab-{tab}]').click()")
                shown = page.evaluate("[...document.querySelectorAll('.panel')].map(p => p.offsetHeight > 0)")
                assert shown == [place == tab for place in range(5)]
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            page.evaluate("document.querySelector('svg[data-chart]').scrollIntoView()")
            x, y = page.evaluate(
                "(() => { const b = document.querySelector('svg[data-chart]').getBoundingClientRect();"
                " return [b.left + b.width / 2, b.top + b.height / 2]; })()"
            )
            page.move_mouse(x, y)
            tip = page.evaluate("document.querySelector('.tip:not([hidden])').textContent")
            assert re.match(r"step \d+\ndraft  0\.\d+", tip), tip
            assert page.complaints() == []
            assert page.requests() == [report.resolve().as_uri()]


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_dragging_over_a_chart_shows_those_steps_and_a_double_click_all_of_them(tmp_path, width):
    rows = [f'{{"step": {step}, "grad/cosine": {step / 1000}}}' for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    with open_browser(find_browser()) as page:
        page.open(write_report(tmp_path), width=width)
        page.evaluate("document.querySelector('svg[data-chart]').scrollIntoView()")
        left, top, across = page.evaluate(
            "(() => { const b = document.querySelector('svg[data-chart] > svg').getBoundingClientRect();"
            " return [b.left, b.top + b.height / 2, b.width]; })()"
        )
        words = "[...document.querySelectorAll('svg[data-chart] .step')].map(t => t.textContent)"
        tip = "document.querySelector('.tip:not([hidden])').textContent.split('\\n')[0]"
        assert page.evaluate(words)[:2] == ["step 1", "100"]

        page.drag((left + 0.25 * across, top), (left + 0.27 * across, top))
        assert page.evaluate(words)[:2] == ["step 1", "100"], "too short to be meant"

        page.drag((left + 0.25 * across, top), (left + 0.75 * across, top))
        first, last = (int(re.findall(r"\d+", text)[0]) for text in page.evaluate(words)[:2])
        assert 20 <= first <= 30 and 70 <= last <= 80
        page.move_mouse(left + 0.5 * across, top)
        assert abs(int(page.evaluate(tip).removeprefix("step ")) - 50) <= 2
        page.move_mouse(left + 0.25 * across, top)
        assert abs(int(page.evaluate(tip).removeprefix("step ")) - 38) <= 2, "the tip reads the steps in sight"

        page.evaluate("document.querySelector('svg[data-chart]').dispatchEvent(new MouseEvent('dblclick'))")
        assert page.evaluate(words)[:2] == ["step 1", "100"]
        assert page.complaints() == []


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_labels_of_small_negative_values_are_not_cut_off(tmp_path, width):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "grad/cosine": -0.00041}\n{"step": 2, "grad/cosine": -0.0005}\n'
    )
    with open_browser(find_browser()) as page:
        page.open(write_report(tmp_path), width=width)
        cut = page.evaluate(
            "[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().left"
            " < t.ownerSVGElement.getBoundingClientRect().left).map(t => t.textContent)"
        )
        assert page.evaluate("document.body.textContent.includes('-0.0004')")
        assert cut == []


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="needs chromium")
def test_the_browser_check_can_fail(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><img src='missing.png'><script>console.error('x'); undefined_name()</script>")
    with open_browser(find_browser()) as page:
        page.open(bad, width=800)
        assert len(page.complaints()) >= 2 and any("missing.png" in url for url in page.requests())
