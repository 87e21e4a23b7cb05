"""Batches and third-party packages that the scoring tests share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from r3_rl.scoring.batch import ScoreBatch
from r3_rl.types import Prompt


@pytest.fixture
def text_batch() -> Callable[..., ScoreBatch]:
    def build(*texts: str, **fields: object) -> ScoreBatch:
        prompts = [Prompt(text=f"prompt {index}") for index in range(len(texts))]
        return ScoreBatch(prompts=prompts, texts=texts, **fields)

    return build


@pytest.fixture
def image_batch() -> Callable[..., ScoreBatch]:
    def build(*greys: int, **columns: object) -> ScoreBatch:
        prompts = [Prompt(text=f"prompt {index}", columns=columns) for index in range(len(greys))]
        return ScoreBatch(prompts=prompts, images=[np.full((4, 6, 3), grey, dtype=np.uint8) for grey in greys])

    return build


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Install a distribution that provides scorers: its module and its metadata as pip would leave them."""
    site = tmp_path / "site"
    modules: list[str] = []

    def install(module: str, source: str, entry_points: str) -> None:
        info = site / f"{module}-2.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[r3_rl.scorers]\n{entry_points}\n")
        (site / f"{module}.py").write_text(source)
        modules.append(module)

    monkeypatch.syspath_prepend(str(site))
    yield install
    for module in modules:
        sys.modules.pop(module, None)
