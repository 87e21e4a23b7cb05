"""What the documents show is run: Python as it stands, recipes checked, light verbs run, the others parsed.

A block whose first line is `# name.py` or `# name.yaml` is that file. Blocks of a page build on each other.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r3_rl.cli import app
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.recipe_io import load_recipe
from r3_rl.worlds.shapes import shipped
from tests.docs.documents import REPOSITORY, snippets
from tests.docs.world import world_folder

LIGHT = ("check", "recipes", "rewards", "schema")
TARGETS = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M)


@pytest.fixture
def place(workplace, tmp_path_factory, monkeypatch):
    """A folder with what the documents take for granted: weights, a prompt file, a picture."""
    world = world_folder(tmp_path_factory.mktemp("weights"))
    monkeypatch.setattr(shipped, "weights_folder", lambda *_, **__: world)
    BagelConfig().to_folder(workplace / "BAGEL-7B-MoT")  # checked, not loaded: the sizes are the real ones
    (workplace / "prompts.jsonl").write_text(json.dumps({"prompt": "a red cup"}) + "\n")
    Image.fromarray(np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8)).save(workplace / "picture.png")
    return workplace


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/balance.md",
        "docs/evaluation.md",
        "docs/rewards.md",
        "docs/troubleshooting.md",
        "r3_rl/flow/README.md",
        "r3_rl/algorithm/README.md",
    ],
)
def test_snippets_run(page, place, r3):
    namespace: dict[str, object] = {}
    for snippet in snippets(REPOSITORY / page):
        if snippet.file:
            Path(snippet.file).write_text(snippet.text, encoding="utf-8")
        if snippet.language == "yaml" and snippet.file:
            load_recipe(snippet.file)
        elif snippet.language == "python" and not snippet.file:
            exec(compile(snippet.text, page, "exec"), namespace)
        elif snippet.language == "sh":
            for line in snippet.text.replace("\\\n", " ").splitlines():
                _command(shlex.split(line, comments=True), r3)


def _command(words, r3):
    if words[:1] == ["make"]:
        assert words[1] in TARGETS, words
    elif words[:2] == ["r3", words[1]] and words[1] in LIGHT and words[2:3] != ["serve"]:  # which would not end
        done = r3(*words[1:])
        assert done.code == 0, done.err
    elif words[:1] == ["r3"]:
        app.parse_args(words[1:], print_error=False, exit_on_error=False)


def test_the_reward_of_the_readme_takes_ten_lines_and_scores():
    (snippet,) = [s for s in snippets(REPOSITORY / "README.md") if s.file == "my_reward.py"]
    lines = [line for line in snippet.text.splitlines()[1:] if line.strip()]
    assert len(lines) <= 10
    namespace: dict[str, object] = {}
    exec(snippet.text, namespace)
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    said = {}
    assert namespace["my_reward"](images=[dark, bright], log_extra=said.__setitem__) == [0.0, 1.0]
    assert said["reason"] == ["0 % bright", "100 % bright"]


def test_a_recipe_in_the_docs_is_one(place):
    Path("my_reward.py").write_text("def my_reward(images, **columns):\n    return [0.0] * len(images)\n")
    recipes = [s for s in snippets(REPOSITORY / "docs" / "recipes.md") if s.language == "yaml"]
    for number, snippet in enumerate(recipes):
        Path(f"{number}.yaml").write_text(snippet.text)
        assert load_recipe(f"{number}.yaml").training.max_steps == 60
    assert recipes
