"""Trained apart, then merged: the changes of several adapters of one base, weighted and added up.

W0 + sum_i w_i d_i, where d_i = s_i B_i A_i is what adapter i adds to a layer; where it does not sit it adds
nothing. The sum is one plain LoRA, the ranks side by side, so it is exact: PEFT's `add_weighted_adapter`, `cat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn

from r3_rl.errors import InputError, RunError
from r3_rl.export_source import Source, base_words, find_source
from r3_rl.observe.model_card import CardFacts, write_model_card
from r3_rl.policy.adapter_files import base_fingerprint, read_config, write_adapter

_SUM = "sum"
_CLOSE = 1e-6
LOADING = """\
from r3_rl.evaluate.refiner import Refiner

pipe = Refiner.from_pretrained(adapter="{folder}")  # this folder
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """An adapter and how much of it is taken."""

    folder: str
    """Of a run, or of an adapter."""
    weight: float

    @classmethod
    def read(cls, text: str) -> Part:
        """Read `FOLDER:WEIGHT`; without a weight it is 1.

        >>> Part.read("runs/understanding:0.5"), Part.read("runs/drawing").weight
        (Part(folder='runs/understanding', weight=0.5), 1.0)
        """
        folder, colon, weight = text.rpartition(":")
        try:
            return cls(folder=folder, weight=float(weight)) if colon else cls(folder=text, weight=1.0)
        except ValueError:
            raise InputError(
                f"{text}: '{weight}' is no number", hint="write FOLDER:WEIGHT, such as runs/mine:0.5"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What was written."""

    folder: Path
    rank: int
    difference: float
    """Largest difference of an element between what the merged adapter adds to a weight and the weighted sum."""


def merge_adapters(parts: Sequence[Part], out: str | Path, *, base: str | Path | None = None) -> Merged:
    """Add up adapters that were trained on one base and write the sum as a plain adapter with its card.

    Args:
        parts: two or more.
        out: folder to write, new or empty.
        base: folder of the base; None takes that of the first adapter's recipe.

    Raises:
        InputError: fewer than two parts, adapters of unlike bases, routed by task or rank-stabilised, a folder that is
            not empty.
    """
    folder = Path(out)
    if len(parts) < 2:
        raise InputError("one adapter alone is nothing to merge", hint="name two or more, each as FOLDER:WEIGHT")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: already there and not empty", hint="name another folder")
    sources = [find_source(Path(part.folder), Path(base) if base is not None else None) for part in parts]
    first = sources[0]
    marks = first.backbone.fingerprint(first.base)
    for source in sources:
        _refuse(source, marks)
    module = first.policy(first.base).module
    names = [f"part_{place}" for place in range(len(parts))]  # no number alone: PEFT looks for them in layers' names
    model = PeftModel.from_pretrained(module, str(first.adapter), adapter_name=names[0])
    for name, source in zip(names[1:], sources[1:], strict=True):
        model.load_adapter(str(source.adapter), adapter_name=name)
    weights = [part.weight for part in parts]
    model.base_model.add_weighted_adapter(names, weights, _SUM, combination_type="cat")
    difference = _largest_gap(module, names, weights)
    config = model.peft_config[_SUM]
    assert isinstance(config, LoraConfig)
    tensors = get_peft_model_state_dict(model, adapter_name=_SUM, save_embedding_layers=False)
    write_adapter(folder, config, tensors, fingerprint=marks, recipe_text=first.recipe_text or None)
    done = Merged(folder=folder, rank=config.r, difference=difference)
    _write_card(done, parts, sources, marks)
    print(f"{_sum_words(parts)} -> {folder}: rank {config.r}, differs from the sum by at most {difference:.1e}")
    return done


def _refuse(source: Source, marks: str) -> None:
    if source.routed:
        raise InputError(
            f"{source.adapter}: routed by task, so it adds something else for each task",
            hint="`r3 export` writes plain adapters, one a task",
        )
    if read_config(source.adapter).use_rslora:  # the sum would be scaled by its own rank once more
        raise InputError(
            f"{source.adapter}: rank-stabilised (use_rslora), whose ranks are not put side by side",
            hint="set use_rslora to false and lora_alpha to lora_alpha * sqrt(r) in its adapter_config.json",
        )
    remembered = base_fingerprint(source.adapter)
    if remembered is not None and remembered != marks:
        raise InputError(
            f"{source.adapter}: trained on another base (weights {remembered[:12]}, not {marks[:12]}) than the first",
            hint="only changes of one and the same base can be added up",
        )


@torch.no_grad()
def _largest_gap(module: nn.Module, names: Sequence[str], weights: Sequence[float]) -> float:
    """Between what the sum adds to each weight and the weighted sum of what its parts add. Raises RunError if it is
    more than rounding."""
    largest, size = 0.0, 0.0
    for layer in (m for m in module.modules() if isinstance(m, LoraLayer) and _SUM in m.lora_A):
        there = [(n, w) for n, w in zip(names, weights, strict=True) if n in layer.lora_A]
        wanted = torch.stack([w * layer.get_delta_weight(n) for n, w in there]).sum(0)
        found = layer.get_delta_weight(_SUM)
        largest = max(largest, float((found - wanted).abs().max()))
        size = max(size, float(wanted.abs().max()))
    if not largest <= _CLOSE * max(1.0, size):
        raise RunError(f"the merged adapter is not the sum of its parts: an element differs by {largest:.3g}")
    return largest


def _sum_words(parts: Sequence[Part]) -> str:
    return " + ".join(f"{part.weight:g} x {part.folder}" for part in parts)


def _write_card(done: Merged, parts: Sequence[Part], sources: Sequence[Source], marks: str) -> None:
    made_of = []
    for part, source in zip(parts, sources, strict=True):
        algorithm, training = (source.recipe.get(section) or {} for section in ("algorithm", "training"))
        trained = {
            "schedule": algorithm.get("schedule"),
            "steps": training.get("max_steps"),
            "seed": training.get("seed"),
        }
        words = ", ".join(f"{name} {value}" for name, value in trained.items() if value is not None)
        made_of.append(f"{part.weight:g} of {source.name}" + (f": {words}" if words else ""))
    facts = CardFacts(
        title=f"{' + '.join(source.name for source in sources)}: merged adapters",
        base=base_words(sources[0]),
        base_fingerprint=marks,
        loading=LOADING.format(folder=done.folder.name),
        proof=(
            f"A plain LoRA of rank {done.rank}, the ranks of its parts side by side: what it adds to a weight differs "
            f"from the weighted sum by at most {done.difference:.1e}."
        ),
        merged=False,
        made_of=tuple(made_of),
    )
    write_model_card(done.folder, facts, None, {})
