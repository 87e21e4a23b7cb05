"""Files of a model on the hub: found in the cache without a network, and a clear word where they are not."""

from __future__ import annotations

import pytest
import torch

from r3_rl.errors import CheckpointError
from r3_rl.rewards.geneval_detector import MaskDetector
from r3_rl.rewards.hub_files import hub_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache as a download leaves it, and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache" / "models--r3--eyes" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize("pickled", [False, True])
def test_a_name_becomes_the_cached_folder(cache, pickled):
    (cache / "config.json").write_text("{}")
    assert hub_folder("r3/eyes", COMMIT, pickled=pickled) == str(cache)
    with pytest.raises(OSError, match="snapshot"):
        hub_folder("r3/eyes", "f" * 40, pickled=pickled)


def test_a_folder_stays_what_it_is(tmp_path):
    assert hub_folder(str(tmp_path), "any") == str(tmp_path)


def test_an_unreachable_hub_is_said_without_trying_every_file_again(monkeypatch, tmp_path):
    import huggingface_hub.constants
    from huggingface_hub.utils import _http

    waited = []  # an error here would be taken for the hub's and swallowed
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(_http.time, "sleep", waited.append)
    with pytest.raises(CheckpointError, match="no detector in 'r3/eyes'"):
        MaskDetector(weights="r3/eyes", revision=None, device=torch.device("cpu"), dtype="float32")
    assert waited == []
