"""Mutants of the shipped recipes: what `r3 check` says of each, and whether what it passes starts.

Used by tests/test_recipe_fuzz.py and by benchmarks/recipe_fuzz.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.recipe import Recipe
from r3_rl.recipe_io import json_schema, load_recipe, shipped_recipes

BAD = (
    "[" * 500, "{a: " * 300, "!!int ''", "!!python/object:os.system {}", "!!set {a, b}", '"a\\0b"', '"\\ud83d"', "yes",
    "a" * 3000, "9" * 5000, "0x" + "f" * 4000, "1e999", ".nan", "-.inf", "2026-01-01", "null", "[]", "{}", "''", "true",
    "-1", "0", "1.5", "'8'", "[1, [2, [3]]]", "{a: {b: 1}}", "*nobody", "&a [*a]", "|", ">-", "%", "@", "`",
    "${HOME}/x", "/proc/x", "/dev/zero", ".", "..", "\t1", "é\u2028", "<<", "? x", "- - - -", "1_000", "0o17",
    "18:30:00", "~nobody/x", "# nothing",
)  # fmt: skip
GLYPHS = "{}[]:,-#&*!|>'\"%@`? \t\n\0\r\u2028\ufeff0aé\U0001f600"
_MOST_CPU_S = 2.0
_LONGEST = 200
TINY = {
    "rollout.num_prompts": 2,
    "rollout.branch.plan": 2,
    "rollout.branch.draft": 2,
    "rollout.branch.critique": 4,
    "rollout.branch.refinement": 1,
    "rollout.plan.max_new_tokens": 6,
    "rollout.critique.max_new_tokens": 6,
    "rollout.draft.num_steps": 4,
    "rollout.refine.num_steps": 4,
    "rollout.rounds": 1,
    "lora.rank": 4,
    "lora.rank_generation": 4,
    "training.eval_prompts": 4,
    "training.max_steps": 1,
    "observe.gallery": 0,
}
"""Counts of a start: a mutant's own are taken down to these where it remains a recipe."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A recipe, and overrides as on the command line."""

    base: str
    text: str
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.base}: {self.overrides}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What `r3 check` said."""

    code: int | None
    """None after a traceback."""
    lines: tuple[str, ...]
    cpu_s: float

    @property
    def fault(self) -> str:
        """Why the answer is not good enough, or ""."""
        if self.code is None:
            return f"traceback: {self.lines[-1]}"
        if self.cpu_s > _MOST_CPU_S:
            return f"{self.cpu_s:.1f} CPU seconds"
        if long := [line for line in self.lines if len(line) >= _LONGEST or not line.isprintable()]:
            return f"a line of {len(long[0])} letters: {long[0][:80]}"
        placed = all(
            ":" in line and (line.startswith("override") or ".yaml" in line or ".jsonl" in line) for line in self.lines
        )
        return "" if self.code == 0 or placed else f"no place: {self.lines[0]}"


def prepare(folder: Path) -> None:
    """Write what the shipped recipes ask of a user: sizes of weights, prompts."""
    for weights in ("BAGEL-7B-MoT", "tiny-bagel"):
        BagelConfig().to_folder(folder / weights)
    row: dict[str, Any] = {"prompt": "a red cup", "tag": "colors", "include": [{"class": "cup", "count": 1}]}
    for prompts in ("geneval_train", "geneval_plus_train", "geneval"):
        (folder / f"{prompts}.jsonl").write_text(json.dumps(row) + "\n")
    row = {"short_description": "a cup", "type": "color", "yn_question_list": ["Is it red?"], "yn_answer_list": ["yes"]}
    (folder / "tiif_train.jsonl").write_text(json.dumps(row) + "\n")


def leaves() -> dict[str, dict[str, Any]]:
    """Every setting by its dotted name, with its JSON schema."""
    schema = json_schema()

    def below(entry: dict[str, Any], dotted: str) -> Iterator[tuple[str, dict[str, Any]]]:
        choices = [entry, *entry.get("anyOf", ())]
        defined = (schema["$defs"][c["$ref"].rpartition("/")[2]] if "$ref" in c else c for c in choices)
        inner = next((c for c in defined if "properties" in c), None)
        if inner is None:
            yield dotted, entry
        else:
            for name, field in inner["properties"].items():
                yield from below(field, f"{dotted}.{name}" if dotted else name)

    found = {}
    for name, entry in schema["properties"].items():
        found.update(below(entry, name))
    return {dotted: entry for dotted, entry in found.items() if dotted != "extends"}


def wild(rng: random.Random, names: list[str]) -> Mutant:
    """A shipped recipe whose text was damaged, or with settings of any kind."""
    file = rng.choice(sorted(shipped_recipes().values()))
    lines = file.read_text(encoding="utf-8").split("\n")
    overrides: list[str] = []
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        match rng.randrange(10):
            case 0:
                del lines[at : at + rng.randint(1, 4)]
            case 1:
                lines.insert(at, rng.choice(lines or [""]))
            case 2:
                lines[at:at] = [lines[at]] * rng.choice([2, 300, 3000])
            case 3:
                lines[at] = " " * rng.randint(1, 3) + lines[at]
            case 4:
                cut = rng.randint(0, len(lines[at]))
                lines[at] = lines[at][:cut] + rng.choice(GLYPHS) + lines[at][cut + rng.randint(0, 1) :]
            case 5:
                lines = lines[: max(at, 1)]
            case 6 | 7:
                key, colon, _ = lines[at].partition(":")
                lines[at] = f"{key}{colon} {rng.choice(BAD)}"
            case 8:
                overrides.append(f"{rng.choice(names)}={rng.choice(BAD)}")
            case _:
                overrides.append(
                    f"{rng.choice(names)}{rng.choice(['', '.x', '.0', '.-1', '.' + '9' * 5000])}={rng.choice(BAD)}"
                )
        lines = lines or [""]
    return Mutant(base=file.stem, text="\n".join(lines), overrides=tuple(overrides))


def mild(rng: random.Random, settings: Mapping[str, dict[str, Any]], bases: Sequence[str] = ()) -> Mutant:
    """A shipped recipe with one to four settings of the right type, at and inside their bounds."""
    base = rng.choice(bases or sorted(shipped_recipes()))
    chosen = rng.sample(sorted(settings), rng.randint(1, 4))
    overrides = tuple(f"{name}={json.dumps(_value(rng, settings[name]))}" for name in chosen)
    return Mutant(base=base, text=f"extends: {base}\n", overrides=overrides)


def startable(rng: random.Random) -> Iterator[Mutant]:
    """Mutants without end of what trains the embedded model here: it is not sent elsewhere for weights or prompts."""
    elsewhere = ("model.path", "model.kind", "model.revision", "data.path", "data.kind", "data.prompt_key")
    sections = ("model", "data", "rollout", "algorithm", "balance", "training", "lora")
    settings = {k: v for k, v in leaves().items() if k.split(".")[0] in sections and k not in elsewhere}
    bases = [name for name in sorted(shipped_recipes()) if name.startswith("shapes_")]
    bases = [name for name in bases if load_recipe(name).pretrain is None]
    while True:
        yield mild(rng, settings, bases)


def _value(rng: random.Random, entry: dict[str, Any]) -> Any:
    entry = rng.choice([choice for choice in entry.get("anyOf", [entry])])
    if "enum" in entry or "const" in entry:
        return rng.choice(entry.get("enum") or [entry["const"]])
    low = entry.get("minimum", entry.get("exclusiveMinimum", 0))
    high = entry.get("maximum", entry.get("exclusiveMaximum"))
    match entry.get("type"):
        case "boolean":
            return rng.random() < 0.5
        case "integer":
            top = [high, high - 1] if high is not None else [1000, 10**6, 2**31, 2**62]
            return rng.choice([low, low + 1, low + 2, 3, 4, 6, 8, 12, 16, 32, 36, 48, 64, *top])
        case "number":
            top = [high, (low + high) / 2] if high is not None else [1e3, 1e30, 1e300]
            return float(rng.choice([low, low + 1e-30, low + 1e-7, low + 1e-3, low + 0.1, low + 0.5, low + 1, *top]))
        case "array":
            items = entry.get("prefixItems") or [entry.get("items", {})] * rng.randint(0, 2)
            return [_value(rng, item) for item in items]
        case "object":
            return {}
        case "null":
            return None
    return rng.choice(["runs", "a", "counting", "shapes", "sharpness", "é ü", "x/y", "0.0.0"])


def checked(mutant: Mutant) -> Answer:
    """Run `r3 check` in this process, in the working directory."""
    from r3_rl.cli import run

    Path("m.yaml").write_text(mutant.text, encoding="utf-8")
    out, begin = io.StringIO(), time.process_time()
    code: int | None = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = run(["check", "m.yaml", *mutant.overrides])
    except BaseException:  # whatever comes here is what a user would see
        out.write(traceback.format_exc())
    return Answer(code=code, lines=tuple(out.getvalue().splitlines()), cpu_s=time.process_time() - begin)


def tiny(mutant: Mutant) -> Recipe:
    """The mutant's recipe with small counts; a count that the rest of it does not allow is left alone."""
    Path("m.yaml").write_text(mutant.text, encoding="utf-8")
    overrides = [*mutant.overrides]
    recipe = load_recipe("m.yaml", overrides)
    values = recipe.model_dump()
    for dotted, most in TINY.items():
        value: Any = values
        for part in dotted.split("."):
            value = value[part]
        if value is not None and value > most:
            with contextlib.suppress(InputError):
                recipe = load_recipe("m.yaml", [*overrides, f"{dotted}={most}"])
                overrides.append(f"{dotted}={most}")
    return recipe


def start(recipe: Recipe) -> None:
    """Assemble everything, prove it on its own samples, and take one step; raises what a run would."""
    from r3_rl.assemble import load_policy
    from r3_rl.evaluate.build import build_trainer
    from r3_rl.observe.recorder import new_run_folder

    folder = new_run_folder(recipe.training.output_dir, "m")
    trainer = build_trainer(recipe, load_policy(recipe.model, world=recipe.data.world), folder)
    with contextlib.closing(trainer):
        trainer.self_check()
        trainer.train()
