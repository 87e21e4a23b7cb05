"""What docs/serving.md shows is run against a real server; only the tools of others are not."""

from __future__ import annotations

import ast
import base64
import csv
import json
import re
import runpy
import shlex
import shutil
import subprocess

import pytest

from r3_rl.benches.made import write_sets
from r3_rl.cli import app
from r3_rl.serve.limits import ServeLimits
from tests.docs.documents import REPOSITORY, snippets

PAGE = REPOSITORY / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8400"


def test_the_python_of_the_page_runs(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for snippet in snippets(PAGE):
        if snippet.language == "python":
            exec(compile(snippet.text.replace(ADDRESS, url), "serving.md", "exec"), namespace)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("<think>") and lines[1].split()[0] in ("one", "two") and lines[2] == "shipped"


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_shell_of_the_page_runs(url, tmp_path, monkeypatch):
    lines = [
        shlex.split(line, comments=True)
        for snippet in snippets(PAGE)
        if snippet.language == "sh"
        for line in snippet.text.replace("\\\n", " ").splitlines()
    ]
    for words in lines:
        if words[0] == "curl":
            done = subprocess.run([w.replace(ADDRESS, url) for w in words], capture_output=True, timeout=60, check=True)
            assert len(json.loads(done.stdout)["data"]) == 2
        elif words[0] == "r3":
            app.parse_args(words[1:], print_error=False, exit_on_error=False)
        elif words[0] == "python":
            monkeypatch.chdir(tmp_path)
            exec(compile(words[2], PAGE.name, "exec"), {})
            assert (tmp_path / "sets" / "pope" / "coco_pope_random.json").is_file()
    assert {words[0] for words in lines} == {"pip", "r3", "curl", "python"}


def test_the_example_of_vlmevalkit_writes_its_table_and_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sets("sets", count=4)
    runpy.run_path(str(REPOSITORY / "examples" / "vlmevalkit" / "shapes_pope.py"))
    with (tmp_path / "LMUData" / "shapes_POPE.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == 4 and {row["answer"] for row in rows} <= {"Yes", "No"}
    assert base64.b64decode(rows[0]["image"]).startswith(b"\x89PNG")
    model = json.loads((tmp_path / "shapes_pope.json").read_text())["model"]["shipped"]
    assert model["max_tokens"] <= ServeLimits().max_tokens and model["api_base"].endswith(":8400/v1/chat/completions")


def test_the_task_of_lmms_eval_names_functions_and_columns_that_are_there(tmp_path):
    folder = REPOSITORY / "examples" / "lmms_eval"
    task, module = (folder / f"shapes_pope.{kind}" for kind in ("yaml", "py"))
    named = set(re.findall(r"!function shapes_pope\.(\w+)", task.read_text()))
    nodes = ast.parse(module.read_text()).body
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert len(named) == 6 and named <= defined | imported
    row = json.loads((write_sets(tmp_path, count=2) / "pope" / "coco_pope_random.json").read_text().splitlines()[0])
    assert {"question_id", "image", "text", "label"} <= row.keys()
    assert (tmp_path / "pope" / "val2014" / row["image"]).is_file()


def test_the_limits_of_the_page_are_those_of_the_code():
    page, limits = PAGE.read_text(encoding="utf-8"), ServeLimits()
    said = {
        f"`--max-waiting`, {limits.max_waiting} ",
        f"address inside | {limits.per_address} ",
        f"inside | {limits.held_pixels / 1e6:.0f} million",
        f"{limits.body_bytes >> 20} MiB",
        f"{limits.image_pixels / 1e6:.1f} million pixels",
        f"{limits.num_images} images, {limits.chat_letters:,} letters",
        f"1 to {limits.prompt_letters:,} letters",
        f"| 1 to {limits.n} |",
        f"0 to {limits.rounds};",
        f"{limits.max_tokens} at most",
    }
    assert not {each for each in said if each not in page}
    assert re.search(r"not run", page)
