"""What a recipe or a command names: worlds, benches, backbones, losses, aggregators, ours and those of other packages.

Names are known without importing what they stand for. Ours are listed here; a package adds its own under
`[project.entry-points."r3_rl.worlds"]` (or another group) in its pyproject.toml.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError, one_line
from r3_rl.importing import closest, imported, reason

WORLDS = "r3_rl.worlds"
BACKBONES = "r3_rl.backbones"
BENCHES = "r3_rl.benches"
LOSSES = "r3_rl.losses"
AGGREGATORS = "r3_rl.aggregators"
ITEM_BENCHES = "r3_rl.item_benches"
BUILT_IN = {
    BACKBONES: {
        "bagel": "r3_rl.policy.bagel.backbone:BAGEL",
        "bagel_shared": "r3_rl.policy.bagel.backbone:SHARED",
    },
    WORLDS: {
        "shapes": "r3_rl.worlds.shapes.world:WORLD",
        "mosaic": "r3_rl.worlds.shapes.mosaic.world:WORLD",
    },
    BENCHES: {"loop": "r3_rl.evaluate.loop_bench:LoopBench.of"},
    LOSSES: {
        "clip": "r3_rl.algorithm.surrogates:clip",
        "gspo": "r3_rl.algorithm.surrogates:gspo",
        "cispo": "r3_rl.algorithm.surrogates:cispo",
    },
    AGGREGATORS: {
        "sum": "r3_rl.balance.aggregators:total",
        "equal_norms": "r3_rl.balance.aggregators:equal_norms",
        "pcgrad": "r3_rl.balance.aggregators:pcgrad",
        "gradvac": "r3_rl.balance.aggregators:GradVac",
        "mgda": "r3_rl.balance.aggregators:mgda",
        "upgrad": "r3_rl.balance.aggregators:upgrad",
        "dual_proj": "r3_rl.balance.aggregators:dual_proj",
        "cagrad": "r3_rl.balance.aggregators:cagrad",
        "config": "r3_rl.balance.aggregators:config",
        "aligned_mtl": "r3_rl.balance.aggregators:aligned_mtl",
        "imtl_g": "r3_rl.balance.aggregators:imtl_g",
    },
    ITEM_BENCHES: {
        "geneval": "r3_rl.benches.judged:geneval",
        "geneval_plus": "r3_rl.benches.judged:geneval_plus",
        "tiif": "r3_rl.benches.judged:tiif",
        "dpg": "r3_rl.benches.judged:dpg",
        "coco": "r3_rl.benches.coco:coco",
        "vqav2": "r3_rl.benches.vqa:vqav2",
        "okvqa": "r3_rl.benches.vqa:okvqa",
        "pope": "r3_rl.benches.yes_no:pope",
        "mme": "r3_rl.benches.yes_no:mme",
        "choice": "r3_rl.benches.choice:choice",
        "ita": "r3_rl.benches.ita:ita",
    },
}
"""By group: `module:attribute` of each name. The first name of a group is its default."""


def default(group: str) -> str:
    """Return the name that is meant if none is given.

    >>> default(WORLDS) == names(WORLDS)[0]
    True
    """
    return next(iter(BUILT_IN[group]))


def names(group: str) -> tuple[str, ...]:
    """Return every known name of a group: ours first, then those of installed packages in alphabetical order."""
    return tuple(_points(group))


def find(group: str, name: str, folder: str | Path = ".") -> Any:
    """Import what a name stands for.

    Args:
        group: such as `WORLDS`.
        name: one of `names(group)`, `package.module:name`, or `./file.py:name`.
        folder: where a file's path begins.

    Raises:
        InputError: an unknown name, with the closest one, or a file or package that fails to import.

    >>> find(WORLDS, "nowhere")
    Traceback (most recent call last):
    ...
    r3_rl.errors.InputError: 'nowhere' is not in r3_rl.worlds; known: ...
    """
    if ":" in name:
        return imported(f"{group} '{one_line(name, 80)}'", name, folder)
    points = _points(group)
    if name not in points:
        raise InputError(f"'{one_line(name, 80)}' is not in {group}", hint=closest(name, points))
    try:
        return points[name].load()
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        place = one_line(points[name].value, 80)
        raise InputError(f"{group}: '{name}' ({place}) fails to import: {reason(error)}") from error


def _points(group: str) -> dict[str, EntryPoint]:
    """Ours win over a package's of the same name, so that a recipe means the same on every machine."""
    ours = {name: EntryPoint(name, value, group) for name, value in BUILT_IN[group].items()}
    others = {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}
    return ours | {name: point for name, point in others.items() if name not in ours}
