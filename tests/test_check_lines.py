"""`r3 check` answers whatever it is given in short lines with a place, soon, and never with a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from r3_rl.errors import one_line
from r3_rl.recipe_io import load_recipe

GOOD = "version: 1\nrewards:\n  - scorer: sharpness\n"
DEEP = 1000
LONG = "a" * 5000
MOST_CALLS = 12_000_000
"""Of functions, about two seconds of an idle core. Seconds say little beside busy neighbours."""


class Work:
    """Counts the calls of functions, Python's and C's, that are made inside."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> Work:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        self.calls += event in ("call", "c_call")


@pytest.fixture
def check(r3, workplace):
    """Writes a recipe, checks it, and returns what was said on stderr."""

    Path("m.yaml").write_text(GOOD + "deep: 1", encoding="utf-8")
    r3("check", "m.yaml")  # what it imports is not counted

    def run(text: str, *overrides: str) -> list[str]:
        Path("m.yaml").write_text(text, encoding="utf-8")
        with Work() as work:
            done = r3("check", "m.yaml", *overrides)
        assert work.calls < MOST_CALLS
        assert (done.code, done.out) == (2, "")
        lines = done.err.splitlines()
        for line in lines:
            assert len(line) < 200, line
            assert line.isprintable(), line
        return lines

    return run


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpso", "m.yaml:5: algorithm.text_loss: 'gpso' is not in r3_rl.losses; did you mean 'gspo'?"),
        ("./absent.py:loss", "no file "),
        ("./m.py:absent", "no 'absent' in it; known: loss"),
        ("./m.py:loss", ""),
        ("r3_rl.nowhere:loss", "'r3_rl.nowhere' fails to import: ModuleNotFoundError"),
        ("./" + "n" * 300 + ".py:loss", "file name too long"),
        ('"\\0:loss"', "m.yaml:5:"),
    ],
)
def test_a_loss_is_looked_up_before_anything_starts(r3, workplace, name, said):
    Path("m.py").write_text("def loss(inputs):\n    return inputs\n", encoding="utf-8")
    Path("m.yaml").write_text(f"{GOOD}algorithm:\n  text_loss: {name}\n", encoding="utf-8")
    done = r3("check", "m.yaml", "model.path=shapes", "data.world=shapes")
    assert said in done.err and len(done.err.splitlines()) <= 3 and "Traceback" not in done.err
    assert all(len(line) < 200 for line in done.err.splitlines())
    assert bool(said) == ("text_loss" in done.err)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deep: " + "[" * DEEP + "]" * DEEP, "m.yaml:4: nested deeper than 100"),
        ("deep: " + "[" * DEEP, "m.yaml:4: nested deeper than 100"),
        ("deep: " + "{a: " * DEEP + "}" * DEEP, "m.yaml:4: nested deeper than 100"),
        ("deep:\n  " + "- " * DEEP, "m.yaml:5: nested deeper than 100"),
        ("a:\n" + "".join(f"{' ' * depth}a:\n" for depth in range(1, 300)), "m.yaml:103: nested deeper than 100"),
        ("a: " + "[" * 60 + "&b 1" + "]" * 60, "m.yaml:4: a: unknown key"),
        ("training: {seed: !!int ''}", "m.yaml:4: training.seed: no valid YAML: '' cannot be read as int"),
        ("training: {learning_rate: !!float ''}", "m.yaml:4: training.learning_rate: no valid YAML: '' cannot be read"),
        ("lora: {enabled: !!bool foo}", "m.yaml:4: lora.enabled: no valid YAML: 'foo' cannot be read as bool"),
        ("training: {seed: !!set {a}}", "m.yaml:4: training.seed: the tag 'tag:yaml.org,2002:set' has no meaning here"),
        ("training: {seed: !mine 1}", "m.yaml:4: training.seed: the tag '!mine' has no meaning here"),
        ("training: {seed: 2026-01-01}", "m.yaml:4: training.seed: '2026-01-01' is read as timestamp; put it in quo"),
        (f"training: {{seed: {'9' * 5000}}}", "m.yaml:4: training.seed: no valid YAML: "),
        (f"training: {{seed: 0x{'f' * 5000}}}", "m.yaml:4: training.seed: a number of more than 64 bits"),
        ("training: {seed: 4294967296}", "m.yaml:4: training.seed: must be at most 4294967295, not 4294967296"),
        ("rollout: {refine: {<<: {eta: 1.0}}}", "m.yaml:4: rollout.refine.<<: unknown key; YAML 1.2 has no merge key"),
        ("? {a: b}\n: 1", "m.yaml:4: a key that is no word; write `name: value`"),
        ("data: {kind: jsonl, path: ${oc.env:D}/p.jsonl}", "variables such as ${oc.env:D} are not filled in"),
        ("data: {kind: jsonl, path: $HOME/p.jsonl}", "variables such as $HOME are not filled in, write the value"),
        ("training: {save_steps: '${training.max_steps}'}", "such as ${training.max_steps} are not filled in"),
        ("data: {tags: []}", "m.yaml:4: data.tags: the list is too short; give 1 or more"),
        ("training: {output_dir: ''}", "m.yaml:4: training.output_dir: the text is empty"),
        ("training: {output_dir: m.yaml}", "m.yaml:4: training.output_dir: 'm.yaml' is a file; name a folder"),
        ("training: {score_cache: m.yaml/x}", "is a file; name a folder"),
        (
            "training: {output_dir: $HOME/runs}",
            "training.output_dir: '$HOME/runs' is no folder; variables such as",
        ),
        (
            "training: {score_cache: s3://mine/x}",
            "training.score_cache: an address that begins with 's3://'; name a folder of",
        ),
        (
            'training: {output_dir: "a\\tb"}',
            "m.yaml:4: training.output_dir: a name with characters that cannot be",
        ),
        ("training: {warmup_steps: 100000}", "m.yaml:4: training.warmup_steps: the 100 steps end before the learning"),
        ("training: {output_dir: /proc/x}", "m.yaml:4: training.output_dir: '/proc/x' cannot be made"),
    ],
)
def test_a_fault_of_the_text_is_one_line(text, said, check):
    (line,) = check(GOOD + text + "\n")
    assert said in line


@pytest.mark.parametrize("setting", ["data.path", "model.path", "pretrain.start", "training.output_dir", "scorer"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (LONG, "file name too long"),
        ('"a\\0b"', "a NUL character in the text; leave it out"),
        ('"\\ud800"', "half of a surrogate pair (\\ud800) in the text; leave it out"),
        ("~nobody-at-all/x.py:f", "'~nobody-at-all' is not a home folder here"),
        ("./" + LONG + ".py:f", "file name too long"),
    ],
)
def test_a_name_that_no_file_has(setting, value, said, check):
    if setting == "scorer":
        lines = check(f"version: 1\nrewards:\n  - scorer: {value}\n")
        place = "m.yaml:3: rewards.0.scorer: "
    else:
        section, key = setting.split(".")
        kind = {"data.path": "kind: jsonl, ", "model.path": "kind: bagel, "}.get(setting, "")
        lines = check(f"{GOOD}{section}: {{{kind}{key}: {value}}}\n")
        place = f"m.yaml:4: {setting}: "
    assert lines[0].startswith(place) and said in lines[0]
    assert len(lines) == 1


@pytest.mark.parametrize("value", [LONG, '"a\\0b"', '"\\ud800"', "~nobody-at-all/x", "5", "[a]"])
def test_extends_that_leads_nowhere(value, check):
    (line,) = check(f"extends: {value}\n")
    assert line.startswith("m.yaml:1: extends: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.seed=" + "[" * 3000, "nested deeper than 100"),
        (f"rewards.{'9' * 5000}.weight=1", "rewards is a list of 1; give a position from 0 to 0"),
        ("training.seed=" + "x" * 100_000, "training.seed: expected a whole number, got 'xxx"),
        ("x" * 100_000 + "=1", "unknown key"),
        ("a." * 3000 + "a=1", "nested deeper than 100"),
        ("data.tags=" + f"[{'1,' * 30_000}]", "more than 20000 values"),
        ("rewards=[]", "no scorer to learn from"),
        ("training.seed=\ud800", "training.seed"),
    ],
)
def test_a_fault_of_an_override_is_one_line(override, said, check):
    (line,) = check(GOOD, override)
    assert line.startswith("override '") and said in line


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "a: [" + "1," * 500_000 + "1]",
        GOOD + "a: [" + "1," * 30_000 + "1]",
        "".join(f"k{number}: 1\n" for number in range(55_000)),
        GOOD + "".join(f"k{number}: 1\n" for number in range(5_000)),
        GOOD + "training:\n" + "".join(f"  k{number}: 1\n" for number in range(5_000)),
        GOOD + "data: {tags: [" + ",".join(f"t{number}" for number in range(5_000)) + "]}",
        "version: 1\nrewards:\n" + "  - scorer: sharpnes\n" * 3_000,
        "version: 1\nrewards:\n" + "  - {}\n" * 3_000,
        "extends: shapes_r3\ntraining:\n" + "".join(f"  k{number}: 1\n" for number in range(5_000)),
        GOOD + "a: [" + "&a 1, " * 5_000 + "1]",
    ],
    ids=range(10),
)
def test_what_is_huge_is_answered_soon_and_shortly(text, check):
    lines = check(text)
    assert 1 <= len(lines) <= 21
    assert all(line.startswith("m.yaml:") for line in lines)


def test_a_file_that_is_no_recipe_is_not_repeated(check):
    Path("shadow").write_text("root: $6$secret\ndaemon: '*'\n")
    (line,) = check("extends: shadow\n")
    assert line == "shadow:1: not a recipe: none of its keys is one of a recipe's; begin with 'version: 1'"


def test_recipes_that_extend_one_another_without_end(check):
    for number in range(400):
        Path(f"r{number}.yaml").write_text(f"extends: r{number + 1}.yaml\n")
    (line,) = check("extends: r0.yaml\n")
    assert "more than 20 recipes extend one another" in line


def test_what_a_scorer_prints_at_import_is_not_the_answer(r3, workplace):
    Path("noisy.py").write_text("print('n' * 10_000_000)\ndef f(images, **columns):\n    return [0.0] * len(images)\n")
    Path("m.yaml").write_text("version: 1\nrewards:\n  - scorer: ./noisy.py:f\n")
    done = r3("check", "m.yaml")
    assert done.code == 0 and len(done.out) < 200


def test_home_folders_are_those_of_the_user(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))
    Path("m.yaml").write_text(GOOD + "training: {output_dir: ~/runs}\n")
    Path("n.yaml").write_text("extends: ~/m.yaml\n")
    assert load_recipe("~/n.yaml").training.output_dir == str(workplace / "runs")
    assert not Path("~").exists()


def test_a_folder_that_is_tried_leaves_nothing(workplace):
    Path("m.yaml").write_text(GOOD)
    load_recipe("m.yaml")
    assert [path.name for path in workplace.iterdir()] == ["m.yaml"]


def test_several_processes_are_refused_at_the_line(check):
    (line,) = check(GOOD + "rollout:\n  num_prompts: 3\n", "--processes", "2")
    assert line == "m.yaml:5: rollout.num_prompts: 3 prompts do not divide over 2 processes; use 2 or 4"


def test_columns_that_a_scorer_needs_are_asked_for_at_its_line(check):
    Path("p.jsonl").write_text('{"prompt": "a red circle"}\n')
    Path("mine.py").write_text("def mine(images, note, **columns):\n    return [0.0] * len(images)\n")
    (line,) = check("version: 1\nrewards:\n  - scorer: ./mine.py:mine\ndata: {kind: jsonl, path: p.jsonl}\n")
    assert line.startswith("m.yaml:3: rewards.0.scorer: ") and "needs the column 'note'" in line


def test_one_line_keeps_the_place_and_the_fix():
    line = one_line(
        "r.yaml:3: model.path: no such folder: '/" + "x/" * 300 + "'; name the weights with model.path=FOLDER"
    )
    assert len(line) < 200 and line.startswith("r.yaml:3: ") and line.endswith("with model.path=FOLDER")
    words = one_line("r.yaml:3: a: unknown key; the keys here are " + ", ".join(f"key{n}" for n in range(300)))
    assert len(words) < 200 and words.startswith("r.yaml:3: a: unknown key") and words.endswith("key299")
    assert one_line("x" * 10_000_000).startswith("xxx")


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ('{"prompt": "a red circle"}\n{"promt": "x"}\nnot json', "p.jsonl:3: not JSON, expecting value at column 1"),
        ('{"prompt": "a \\ud83d circle"}', "p.jsonl:1: prompt: half of a surrogate pair (\\ud83d)"),
        ('{"prompt": "a photo of a zebra"}', "p.jsonl:1: the model does not know 'photo', 'zebra'"),
        ("a red circle", "one prompt a line? set data.kind: text"),
        ('{"prompt": "a red circle", "x": ' + "[" * 100_000, "p.jsonl:1: nested deeper than 100"),
        ('{"prompt": "' + "circle " * 200_000 + '"}', "p.jsonl:1: longer than 1000000 letters"),
        (f'{{"prompt": "a {"z" * 9000}"}}', "p.jsonl:1: the model does not know 'zzz"),
    ],
)
def test_a_fault_of_the_prompts_is_one_line(prompts, said, check):
    Path("p.jsonl").write_text(prompts)
    (line,) = check(GOOD + "data: {kind: jsonl, path: p.jsonl}\n")
    assert said in line
