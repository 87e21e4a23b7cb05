"""The notebooks in examples/: their code runs, in small, and what is stored in them is small and shows images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.docs.documents import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
TINY = {
    "train_in_five_minutes": {
        "STEPS": 1,
        "SIZES": {"num_prompts": 2, "num_fixed": 2, "num_right": 2, "num_questions": 2, "num_swap": 2,
                  "num_pairs": 2, "num_plans": 2, "num_edits": 2, "num_own_questions": 2, "num_others": 2},
    },
    "write_a_reward": {"STEPS": 1, "DRAFTS": 2},
}  # fmt: skip
"""What the cell with the tag `parameters` says, in small."""
MOST_BYTES = 300_000


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(notebook, workplace):
    namespace: dict[str, Any] = {}
    for cell in code_cells(notebook):
        exec(compile("".join(cell["source"]), notebook.name, "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert TINY[notebook.stem].keys() <= namespace.keys()
            namespace |= TINY[notebook.stem]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_whole_and_of_no_machine(notebook):
    cells = code_cells(notebook)
    assert notebook.stat().st_size < MOST_BYTES
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "executed once, from the top"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = ["".join(output["data"]["text/html"]) for output in outputs if "text/html" in output.get("data", {})]
    assert sum("data:image/png;base64," in html for html in shown) == 2, "before and after"
    assert not [word for word in ("/tmp/", "/home/", "/root/", "/work/") if word in json.dumps(outputs)]


def test_there_are_two():
    assert [notebook.stem for notebook in NOTEBOOKS] == sorted(TINY)
