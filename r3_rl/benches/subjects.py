"""The models that are compared: what a command names, and always the base that it was trained from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError
from r3_rl.evaluate.loading import Loaded, find_adapter, load, load_base_of
from r3_rl.observe.course import BEST, BEST_FILE
from r3_rl.policy.adapter_files import RECIPE_FILE
from r3_rl.policy.adapters import adapter_merged
from r3_rl.policy.base import Policy
from r3_rl.recipe.sampling import world_named_in
from r3_rl.worlds.base import World, chosen_tags, find_world, world_speaking

BASE, TRAINED, MODEL, OTHER = "base", "trained", "model", "other"


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One model."""

    key: str
    """`base`, `trained` (or `model`, if there is only one), `other`, `other-base`."""
    loaded: Loaded
    switched_off: bool = False
    """Whether it is the base below `loaded`'s adapter."""
    source: str = ""
    """As it was named."""

    @property
    def marks(self) -> str:
        """Fingerprint of its weights."""
        return self.loaded.marks.partition("+")[0] if self.switched_off else self.loaded.marks

    @property
    def short_name(self) -> str:
        """The last part of what it was named by: of a run rather than of the adapter/ in it."""
        place = Path(self.source)
        if place.name == BEST and place.parent.name:
            return f"{place.parent.name} {BEST}"
        return place.parent.name if place.name in ("adapter", "model") and place.parent.name else place.name

    @property
    def dtype(self) -> str:
        """The number format of its weights, such as `float32`."""
        return str(next(self.loaded.policy.module.parameters()).dtype).removeprefix("torch.")

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        """Inside, the policy is this model."""
        policy = self.loaded.policy
        if self.switched_off:
            with policy.reference():
                yield policy
        else:
            with adapter_merged(policy.module):
                yield policy


@dataclass(frozen=True, kw_only=True, eq=False)
class Subjects:
    """All models, and which are compared."""

    models: Sequence[Subject]
    comparisons: Sequence[tuple[str, str]]
    """Keys: the second one less the first one."""

    @property
    def first(self) -> Loaded:
        """What the command names first."""
        return next(s.loaded for s in self.models if s.key in (TRAINED, MODEL))

    @property
    def world(self) -> World[Any] | None:
        """Whose words the first model speaks."""
        return world_speaking(self.first.policy.tokenizer.get_vocab())

    @property
    def tags(self) -> tuple[str, ...] | None:
        """The kinds of prompts of a world that the first model was trained on; None if no recipe says them."""
        name, data = world_named_in(self.first.sections), self.first.sections.get("data")
        if name is None or not isinstance(data, Mapping):
            return None
        return chosen_tags(find_world(name), data.get("tags"), data.get("exclude_tags") or ())


def find_subjects(name: str | None, *, against: str | None = None) -> Subjects:
    """Load what `r3 eval` compares.

    Args:
        name: a run, an adapter (`shipped` is the one that ships), or a model: a folder, a name on the hub or that
            of a world; None is the embedded model.
        against: another one, measured on the same items.

    Raises:
        InputError: something that is none of these, or two models that do not speak the same words.
    """
    models = list(_subjects(name))
    pairs = [(BASE, TRAINED)] if len(models) == 2 else []
    if against is not None:
        others = {s.key: s for s in _subjects(against)}
        other = others.get(TRAINED) or others[MODEL]
        _refuse_other_words(models[-1], other)
        pairs.append((models[-1].key, OTHER))
        known = {s.marks: s.key for s in models}
        base = others.get(BASE)
        if base is not None and base.marks not in known:
            models.append(Subject(key=f"{OTHER}-{BASE}", loaded=base.loaded, switched_off=True, source=base.source))
        if base is not None:
            pairs.append((known.get(base.marks, f"{OTHER}-{BASE}"), OTHER))
        models.append(Subject(key=OTHER, loaded=other.loaded, source=other.source))
    return Subjects(models=models, comparisons=pairs)


def _subjects(name: str | None) -> Iterator[Subject]:
    folder = None if name is None else Path(name)
    adapter = None if folder is None else find_adapter(folder)
    if adapter is not None:
        loaded = load(None, adapter)
        yield Subject(key=BASE, loaded=loaded, switched_off=True, source=f"{name} without its adapter")
        yield Subject(key=TRAINED, loaded=loaded, source=str(name))
    elif folder is not None and (folder / "model").is_dir() and (folder / RECIPE_FILE).is_file():
        trained = load(folder / "model", None)
        yield Subject(key=BASE, loaded=load_base_of(trained), source=f"the base of {name}")
        yield Subject(key=TRAINED, loaded=trained, source=str(name))
    elif folder is not None and (folder / BEST_FILE).is_file():
        trained = load(folder, None)
        yield Subject(key=BASE, loaded=load_base_of(trained), source=f"the base of {name}")
        yield Subject(key=TRAINED, loaded=trained, source=str(name))
    elif folder is not None and (folder / RECIPE_FILE).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{folder}: the run has left neither adapter/ nor model/", hint="let it end first")
    else:
        yield Subject(key=MODEL, loaded=load(name, None), source=name or "the embedded model")


def _refuse_other_words(one: Subject, other: Subject) -> None:
    first, second = (s.loaded.policy.tokenizer.get_vocab() for s in (one, other))
    if first != second:
        raise InputError(f"{other.source} and {one.source} do not read the same words", hint="evaluate them one by one")
