"""Scores that need not be computed twice: the ones used last in memory, and JSON lines on disk in a given folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r3_rl.errors import InputError

FILE_NAME = "scores.jsonl"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CachedScore:
    """A score and the words that came with it."""

    score: float
    words: str = ""


def content_key(identity: str, sample: Mapping[str, Any], hashed: dict[int, bytes] | None = None) -> str | None:
    """Hash what a score depends on: key = sha256(identity, and name, kind and content of every argument).

    `identity` names the scorer, its version and its parameters; `sample` holds the arguments of one sample (texts,
    uint8 images [H, W, 3], columns). `hashed` remembers the hashes of arrays by their identity while they live, so that
    an image that samples share is read once. None means that an argument has no stable content: it is not cached.

    >>> content_key("a:1", {"prompts": "a dog"}) == content_key("a:2", {"prompts": "a dog"})
    False
    >>> content_key("a:1", {"callback": print}) is None
    True
    """
    digest = hashlib.sha256()
    _feed(digest, b"identity", identity.encode())
    for name in sorted(sample):
        value = sample[name]
        if isinstance(value, np.ndarray) and value.dtype != object:
            _feed(digest, f"{name}:array:{value.dtype.str}:{value.shape}".encode(), _array_hash(value, hashed))
            continue
        try:
            _feed(digest, f"{name}:json".encode(), json.dumps(value, sort_keys=True).encode())
        except (TypeError, ValueError):
            return None
    return digest.hexdigest()


def _array_hash(value: np.ndarray, hashed: dict[int, bytes] | None) -> bytes:
    known = None if hashed is None else hashed.get(id(value))
    if known is None:
        known = hashlib.sha256(np.ascontiguousarray(value).data).digest()
        if hashed is not None:
            hashed[id(value)] = known
    return known


def _feed(digest: Any, label: bytes, content: bytes) -> None:
    # Lengths go first, so that no two different samples can run together into the same bytes.
    digest.update(f"{len(label)}:{len(content)}:".encode() + label)
    digest.update(content)


class ScoreCache:
    """Keeps the `max_items` scores used last; with a `folder` they outlive the run.

    The file holds one JSON object a line and at most twice `max_items` lines: past that it is written anew, aside, and
    renamed. Runs may share a folder, since lines are appended whole. A line that a crash tore, or that is not as it was
    written (each holds a checksum), is skipped: its score is computed again.

    >>> cache = ScoreCache(max_items=1)
    >>> cache.put({"k1": CachedScore(score=0.5), "k2": CachedScore(score=1.0)})
    >>> cache.get("k1"), cache.get("k2")
    (None, CachedScore(score=1.0, words=''))
    """

    def __init__(self, *, max_items: int = 100_000, folder: str | Path | None = None) -> None:
        if max_items < 1:
            raise ValueError(f"ScoreCache.max_items must be at least 1, not {max_items}")
        self._max_items = max_items
        self._items: OrderedDict[str, CachedScore] = OrderedDict()
        self._lock = threading.Lock()  # the training and the held-out panel may share one cache
        self._path = Path(folder) / FILE_NAME if folder is not None else None
        self._num_lines = 0
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._read()
            except OSError as error:
                hint = "choose another folder with training.score_cache"
                raise InputError(f"{self._path} cannot be used: {error.strerror}", hint=hint) from error

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> CachedScore | None:
        """Return the score under a key, or None."""
        with self._lock:
            found = self._items.get(key)
            if found is not None:
                self._items.move_to_end(key)
            return found

    def put(self, scores: Mapping[str, CachedScore]) -> None:
        """Keep scores under their keys, and drop what was used longest ago."""
        if not scores:
            return
        with self._lock:
            for key, score in scores.items():
                self._keep(key, score)
            if self._path is None:
                return
            try:
                self._append(self._path, scores)
            except OSError as error:  # a full disk costs scores that are computed again, and no run
                _LOG.warning("scores are no longer kept in %s: %s", self._path, error.strerror)
                self._path = None

    def _keep(self, key: str, score: CachedScore) -> None:
        self._items[key] = score
        self._items.move_to_end(key)
        while len(self._items) > self._max_items:
            self._items.popitem(last=False)

    def _append(self, path: Path, scores: Mapping[str, CachedScore]) -> None:
        self._num_lines += len(scores)
        if self._num_lines > 2 * self._max_items:
            aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            aside.write_bytes(_lines(self._items))
            os.replace(aside, path)
            self._num_lines = len(self._items)
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, _lines(scores))
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        assert self._path is not None
        if not self._path.exists():
            return
        line = b"\n"
        with self._path.open("rb") as file:
            for line in file:
                self._num_lines += 1
                parsed = _parse(line)
                if parsed is not None:
                    self._keep(*parsed)
        if not line.endswith(b"\n"):  # torn: the next score must not run into it
            with self._path.open("ab") as file:
                file.write(b"\n")


def _lines(scores: Mapping[str, CachedScore]) -> bytes:
    rows = (
        {"key": key, "score": entry.score, "words": entry.words, "check": _check(key, entry)}
        for key, entry in scores.items()
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parse(line: bytes) -> tuple[str, CachedScore] | None:
    try:
        row = json.loads(line)
        key, score, words, check = row["key"], float(row["score"]), row["words"], row["check"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if not (isinstance(key, str) and isinstance(words, str) and math.isfinite(score)):
        return None
    entry = CachedScore(score=score, words=words)
    return (key, entry) if check == _check(key, entry) else None


def _check(key: str, entry: CachedScore) -> str:
    return hashlib.sha256(json.dumps([key, entry.score, entry.words]).encode()).hexdigest()[:16]
