"""What was measured of a base, kept for other runs that begin from it: the arms of a study differ in how they train.

A folder for each base and set of items, named by a digest of all that the figures depend on:

    DIGEST/values.json          values item by item, in full, and the world's own words
    DIGEST/drafts.safetensors   the base's own drafts in the fixed sets, which later phases read
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from r3_rl.errors import InputError
from r3_rl.evaluate.fixed_sets import FixedDrafts, FixedSets, LoopItems, OwnDrafts, digest
from r3_rl.evaluate.loop_bench import LoopBench
from r3_rl.evaluate.measured import Measured
from r3_rl.nodes import Node
from r3_rl.nodes_io import from_bytes, to_bytes
from r3_rl.observe.environment import environment
from r3_rl.recipe import Recipe

OF_TRAINING = ("num_prompts", "branch", "nodes_per_prompt")
"""Of the section `rollout`: what no measurement asks for."""


@dataclass(frozen=True, kw_only=True)
class KeptBase:
    """What one base, read by one bench, was measured as."""

    folder: Path
    bench: LoopBench
    items: LoopItems

    @classmethod
    def of(
        cls, below: Path, recipe: Recipe, bench: LoopBench, items: LoopItems, *, fingerprint: str, dtype: str
    ) -> KeptBase:
        """Where it is kept.

        Args:
            below: a folder for all bases.
            recipe: whose model, data and loop are measured.
            bench: of the recipe's world.
            items: that a first phase measures on.
            fingerprint: of the base's weights.
            dtype: of the base's weights.
        """
        rollout = recipe.rollout.model_dump(mode="json")
        known = {
            "model": [recipe.model.model_dump(mode="json"), fingerprint, dtype],
            "loop": {key: value for key, value in rollout.items() if key not in OF_TRAINING},
            "data": recipe.data.model_dump(mode="json"),
            "bench": [type(bench).__module__, type(bench).__qualname__, bench.rounds],
            "items": [repr(items.sizes), items.seed, {name: digest(texts) for name, texts in items.texts().items()}],
            "packages": environment(dtype=dtype)["packages"],
        }
        name = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return cls(folder=below / name, bench=bench, items=items)

    def read(self) -> Measured | None:
        """Return what was measured, with the items for later phases and without trajectories; None if it was not yet.

        Raises:
            InputError: the files are damaged.
        """
        if not self.folder.is_dir():
            return None
        try:
            document: Any = json.loads((self.folder / "values.json").read_text(encoding="utf-8"))
            nodes = iter(from_bytes((self.folder / "drafts.safetensors").read_bytes()))
            sets = [_drafts([next(nodes) for _ in range(count)]) for count in document["drafts"]]
            values, words = dict(document["values"]), dict(document["words"])
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise InputError(
                f"{self.folder} is damaged: {error!r}", hint="remove it; the base is measured anew"
            ) from None
        wrong, right, base_rights, base_wrongs = sets
        base = OwnDrafts(rights=base_rights, wrongs=base_wrongs)
        fixed = FixedSets.around(
            self.bench.world, wrong, right, base, self.items.sizes, tags=self.bench.tags, seed=self.items.seed
        )
        return Measured(values=values, words=words, items=replace(self.items, fixed=fixed))

    def write(self, measured: Measured) -> None:
        """Keep a first phase; one that another run has kept meanwhile stays."""
        assert isinstance(measured.items, LoopItems) and measured.items.fixed is not None
        fixed = measured.items.fixed
        sets = (fixed.own_wrong, fixed.own_right, fixed.base_drafts.rights, fixed.base_drafts.wrongs)
        partial = self.folder.with_name(f".{self.folder.name}.{uuid4().hex}")
        partial.mkdir(parents=True)
        nodes = [node for drafts in sets for node in drafts.nodes(slice(None))]
        (partial / "drafts.safetensors").write_bytes(to_bytes(nodes))
        document = {"values": measured.values, "words": measured.words, "drafts": [len(s.images) for s in sets]}
        (partial / "values.json").write_text(json.dumps(document), encoding="utf-8")
        try:
            partial.rename(self.folder)
        except OSError:
            shutil.rmtree(partial)
            if not self.folder.is_dir():
                raise


def _drafts(nodes: list[Node]) -> FixedDrafts:
    images = tuple(node.image for node in nodes if node.image is not None)
    return FixedDrafts(prompts=tuple(node.prompt for node in nodes), images=images)
