"""Drawing benchmarks: official aggregates on recorded verdicts, and small sets judged by real scorers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from r3_rl import registered
from r3_rl.benches.base import Request
from r3_rl.benches.judged import dpg_prompts
from r3_rl.benches.made import write_sets
from r3_rl.benches.resampling import estimate, values_of
from r3_rl.benches.run import EvalSettings, evaluate
from r3_rl.benches.scorers_file import read_scorers
from r3_rl.errors import InputError, ScorerError
from r3_rl.rewards.dpg import Dpg, counts
from tests.benches.test_drawing import measured

DPG_HEAD = "item_id,text,proposition_id,dependency,question_natural_language"
EXACT = {"geneval": {"scorer": "shapes_strict"}}
"""The world's own inspector in the place of the detector: its prompts have GenEval's columns."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"), count=6)


def made(name: str, path: Path, **options):
    request = Request(name=name, path=path, tags=None, world=None, rounds=[0], **options)
    return registered.find(registered.ITEM_BENCHES, name)(request)


def test_geneval_is_the_mean_over_tasks_of_four_images_a_prompt(tmp_path):
    # two prompts of one task and one of another: 5 of 8 images right and 1 of 4
    rows = [("counting", "two cups"), ("counting", "three cups"), ("colors", "a red cup")]
    include = [{"class": "cup", "count": 1}]
    lines = [json.dumps({"tag": tag, "include": include, "prompt": text}) for tag, text in rows]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(lines))
    (bench,) = made("geneval", tmp_path / "evaluation_metadata.jsonl", scorers=EXACT)
    assert len(bench.items) == 12 and bench.facts["images a prompt"] == "4"
    recorded = [1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 0]
    samples = [
        (0, sample)
        for sample, right in zip(measured_without_judge(bench), recorded, strict=True)
        if sample.values.update({"draft/" + sample.shown["tag"]: float(right)}) is None
    ]
    values = values_of(samples)
    (row,) = [figure for figure in bench.figures(list(values.arrays)) if figure.name == "overall_draft"]
    assert estimate(values, row).over_items.mean == pytest.approx((5 / 8 + 1 / 4) / 2)
    assert len(values.items) == 3 and len(values.seeds) == 4, "a prompt is the unit, its images are its columns"


def measured_without_judge(bench):
    from dataclasses import replace

    from r3_rl.evaluate.gallery import by_judge
    from tests.benches.test_drawing import judge

    return measured(replace(bench, verdicts=by_judge(judge)), said={}, images=[0.9] * len(bench.items))


def test_a_limit_takes_every_kind_in_turn(tmp_path):
    rows = [
        {"tag": tag, "include": [{"class": "cup", "count": 1}], "prompt": f"{tag} {n}"} for tag in "abc" for n in "12"
    ]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (bench,) = made("geneval", tmp_path / "g.jsonl", limit=4, scorers=EXACT)
    assert [p.text for p in bench.prompts] == ["a 1", "a 2", "b 1", "c 1"]


@pytest.mark.parametrize(
    ("said", "parents", "counted"),
    [
        ([True, True], [[], [0]], [True, True]),
        ([False, True, True], [[], [0], []], [False, False, True]),
        ([False, True, True], [[], [0], [1]], [False, False, False]),  # a chain falls as a whole
        ([True, False, True], [[], [], [0, 1]], [True, False, False]),
    ],
)
def test_a_question_of_dpg_counts_if_its_parents_do(said, parents, counted):
    assert counts(said, parents) == counted


def test_dpg_reads_a_line_for_each_question(tmp_path):
    lines = ['d1,"A cup, red.",1,0,"Is there a cup?"', 'd1,"A cup, red.",2,1,"Is it red?"', 'd2,"A dog.",1,0,"A dog?"']
    (tmp_path / "dpg_bench.csv").write_text("\n".join([DPG_HEAD, *lines]))
    first, second = dpg_prompts(tmp_path / "dpg_bench.csv")
    assert (first.text, first.columns["questions"]) == ("A cup, red.", ["Is there a cup?", "Is it red?"])
    assert first.columns["parents"] == [[], [0]] and second.columns["parents"] == [[]]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["item_id,text"],
            "dpg.csv:1: no column proposition_id, dependency, question_natural_language; fetch dpg_bench",
        ),
        ([DPG_HEAD, "d1,A cup.,x,0,Is it?"], "dpg.csv:2: proposition_id or dependency is not a number"),
        ([DPG_HEAD, "d1,A cup.,2,0,Is it?"], "dpg.csv:2: question 2 of d1 is out of order"),
        ([DPG_HEAD, "d1,A cup.,1,1,Is it?"], "dpg.csv:2: question 1 of d1 is out of order or has a later parent"),
        ([DPG_HEAD], "dpg.csv: no prompt in it"),
    ],
)
def test_a_broken_dpg_file_is_one_line(tmp_path, lines, said):
    (tmp_path / "dpg.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=re.escape(said)):
        dpg_prompts(tmp_path / "dpg.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("genevel: {}", "no bench 'genevel'; did you mean 'geneval'?"),
        ("geneval: 3", "geneval: not a mapping of scorer, params"),
        ("geneval: {weights: {}}", "geneval: not a mapping of scorer, params"),
        ("geneval: {params: 3}", "geneval.params: not a mapping"),
        ("geneval: {", "s.yaml:1"),
    ],
)
def test_a_wrong_file_of_scorers_is_one_line(tmp_path, text, said):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        read_scorers(tmp_path / "s.yaml")


def test_a_judge_without_its_server_is_told_before_anything_is_drawn(sets):
    with pytest.raises(InputError, match=r"bench 'tiif': .*judge.*set its parameters in the file of --scorers"):
        made("tiif", sets / "tiif.jsonl")


@pytest.mark.slow
def test_genevals_rules_on_prompts_of_a_world(sets, tmp_path):
    (tmp_path / "s.yaml").write_text("geneval: {scorer: shapes_strict}")
    settings = EvalSettings(
        benches=[f"geneval={sets / 'geneval.jsonl'}"], rounds=[0, 1], limit=2, scorers=tmp_path / "s.yaml"
    )
    (result,) = evaluate("shipped", tmp_path / "out", settings)
    rows = {row.figure.name: row.cells["greedy"] for row in result.rows}
    assert rows["overall_draft"].models["trained"].over_items.count == 2
    kept = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    drawn = [r for r in kept if r["model"] == "trained" and r["decoding"] == "greedy"]
    assert len(drawn) == 8, "two prompts, four images"
    by_tag: dict[str, list[float]] = {}
    for row in drawn:
        by_tag.setdefault(row["tag"], []).append(row["values"]["draft"])
    assert rows["overall_draft"].models["trained"].over_items.mean == pytest.approx(
        np.mean([np.mean(v) for v in by_tag.values()])
    )


def answer(request):
    """Yes to every question, in the form that is asked for."""
    text = next(part["text"] for part in request["messages"][-1]["content"] if part["type"] == "text")
    count = int(re.search(r"Reply with (?:a JSON list of )?(\d+)", text)[1])
    if "lines, one for each" in text:
        return "\n".join(f"{n}. yes" for n in range(1, count + 1))
    if '"seen"' in text:
        return json.dumps([{"item": n, "seen": "it", "answer": "yes"} for n in range(1, count + 1)])
    return json.dumps(["yes"] * count)


def settings_with_judge(sets, tmp_path, url, names):
    judge = {"base_urls": [url], "model": "m", "num_retries": 0}
    document = {name: {"params": {"judge": judge}} for name in ("tiif", "geneval_plus")}
    document["dpg"] = {"scorer": "r3_rl.rewards.dpg:Dpg", "params": {"judge": judge}}
    (tmp_path / "s.yaml").write_text(json.dumps(document))
    files = {"tiif": "tiif.jsonl", "geneval_plus": "geneval.jsonl", "dpg": "dpg.csv"}
    benches = [f"{name}={sets / files[name]}" for name in names]
    return EvalSettings(benches=benches, rounds=[0], limit=2, scorers=tmp_path / "s.yaml")


@pytest.mark.slow
def test_judged_benchmarks_ask_their_judge(sets, tmp_path, chat_server):
    settings = settings_with_judge(sets, tmp_path, chat_server(answer).url, ("tiif", "geneval_plus", "dpg"))
    results = evaluate(None, tmp_path / "out", settings)
    found = {r.bench.name: {row.figure.name: row.cells["greedy"].models["model"] for row in r.rows} for r in results}
    assert list(found) == ["tiif.short", "tiif.long", "geneval_plus", "dpg"]
    assert found["dpg"]["overall_draft"].over_items.mean == 1, "every answer is yes"
    assert found["geneval_plus"]["draft"].over_items.mean == 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    tiif = [row for row in rows if row["bench"] == "tiif.short" and row["decoding"] == "greedy"]
    assert found["tiif.short"]["score_0"].over_items.mean == pytest.approx(
        np.mean([row["values"]["score_0"] for row in tiif])
    )
    assert "judge | " not in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.slow
def test_an_evaluation_stops_when_its_judge_is_gone_and_goes_on(sets, tmp_path, chat_server):
    broken = settings_with_judge(sets, tmp_path, chat_server(lambda request: (500, {}, b"crash")).url, ("dpg",))
    with pytest.raises(ScorerError, match="scores are missing"):
        evaluate(None, tmp_path / "out", broken)
    assert not list((tmp_path / "out").glob("parts/**/*.jsonl")), "nothing without a score is kept"
    whole = settings_with_judge(sets, tmp_path, chat_server(answer).url, ("dpg",))
    (result,) = evaluate(None, tmp_path / "out", whole)
    assert result.rows[0].cells["greedy"].models["model"].over_items.mean == 1


def test_dpg_says_what_did_not_hold(chat_server):
    import asyncio

    from r3_rl.scoring.judge_settings import JudgeSettings

    server = chat_server(lambda request: '["yes", "no", "yes"]')
    scorer = Dpg(judge=JudgeSettings(base_urls=(server.url,), model="m"))
    extras = {}
    call = scorer([np.zeros((4, 4, 3), np.uint8)], [["a?", "b?", "c?"]], [[[], [], [1]]], log_extra=extras.__setitem__)
    assert asyncio.run(call) == [pytest.approx(1 / 3)]
    assert extras["reason"] == ["b?; c?"] and extras["cause"] == [""]
