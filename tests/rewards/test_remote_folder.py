"""`rewards/remote/`: the packages cannot be installed here, so what is checked is what does not need them."""

import re
import subprocess
from pathlib import Path

import pytest

from r3_rl.scoring.base import info_of
from r3_rl.scoring.registry import check_scorer, find_scorer

FOLDER = Path(__file__).resolve().parents[2] / "rewards" / "remote"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
PARAMS = {"geneval_mmdet": {"config": "a.py", "checkpoint": "a.pth"}}


def served_by(script):
    (name,) = re.findall(r'"\$here/(\w+\.py:\w+)"', script.read_text())
    return f"{FOLDER}/{name}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_serves_a_scorer_that_takes_its_parameters(script):
    subprocess.run(["sh", "-n", str(script)], check=True)
    scorer = served_by(script)
    assert check_scorer(scorer, PARAMS.get(script.stem, {})) == []
    info = info_of(find_scorer(scorer))
    assert info.range == (0.0, 1.0)
    assert "images" in info.needs
    assert not info.thread_safe


def test_the_page_names_every_script_and_port():
    page = (FOLDER / "README.md").read_text()
    for script in SCRIPTS:
        (port,) = re.findall(r"\{2:-(\d+)\}", script.read_text())
        row = next(line for line in page.splitlines() if f"`{script.name}`" in line)
        assert row.endswith(f"| {port} |")
    assert len(SCRIPTS) == 3
