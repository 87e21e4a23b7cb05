"""The verbs that need no policy: what they print, their exit codes, and that they stay light."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r3_rl.cli import app
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.recipe_io import load_recipe, shipped_recipes
from r3_rl.scoring import base

HEAVY = ("torch", "transformers", "peft", "accelerate", "diffusers", "trl")
RECIPE = "version: 1\nrewards:\n  - scorer: sharpness\n"


@pytest.fixture
def recipe(workplace: Path) -> str:
    (workplace / "r.yaml").write_text(RECIPE)
    return "r.yaml"


def test_check_says_what_a_step_is_made_of(r3, recipe):
    done = r3("check", recipe, "rollout.num_prompts=4", "--processes", "2")
    assert done.code == 0
    assert done.out.splitlines() == [
        "4 prompts x 8 plans = 32 rollouts a reason step, 4 images x 8 critiques = 32 rollouts a refine step, "
        "2 processes of 2 prompts, micro-batches of at most 4096 tokens",
        "ok",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["check", "r.yaml", "training.sed=1"],
            "override 'training.sed=1': training.sed: unknown key; did you mean 'seed'?",
        ),
        (["check", "r.yaml", "--processes", "3"], "8 prompts do not divide over 3 processes; use 6 or 9"),
        (["check", "r.yaml", "--processes", "0"], "--processes 0: at least 1"),
        (["check", "r.yaml", "--processes", "two"], '--processes: unable to convert "two" into int'),
        (["check", "nothing.yaml"], "nothing.yaml: no such file and no shipped recipe"),
        (["check", "r.yaml", "rewards.0.scorer=sharpnes"], "did you mean 'sharpness'?"),
        (["check"], "r3: "),
        (["chek", "r.yaml"], 'r3: Unknown command "chek". Did you mean "check"?'),
        (["check", "r.yaml", "--fast"], "r3: Unknown option"),
        (["recipes", "show", "shapes_r4"], "did you mean 'shapes_r3'?"),
        (["recipes", "copy", "shapes_r3", "no/folder/r.yaml"], "no such folder"),
        (["rewards", "test", "sharpness", "no.png"], "no.png: no such file"),
        (["rewards", "test", "sharpness", "no.png", "--params", "3"], "'3' is no YAML mapping"),
        (["rewards", "test", "sharpness", "no.png", "--params", "{"], "cannot read '{' as a YAML value"),
        (["rewards", "new", "2nd"], "'2nd' cannot be the name of a function"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_exit_2(r3, recipe, arguments, said):
    done = r3(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert said in done.err


def test_several_mistakes_are_several_lines(r3, recipe):
    done = r3("check", recipe, "training.sed=1", "lora.rank=0")
    assert done.code == 2
    assert len(done.err.splitlines()) == 2


@pytest.mark.parametrize("verb", ["check", "train"])
def test_prompts_are_read_and_have_what_scorers_need(verb, r3, workplace):
    (workplace / "p.jsonl").write_text(
        '{"prompt": "a red circle", "tag": "colors"}\n{"prompt": "two circles", "tag": "counting"}\n'
    )
    (workplace / "r.yaml").write_text(RECIPE + "data: {kind: jsonl, path: p.jsonl}\n")
    dry = ["--dry-run"] if verb == "train" else []
    assert r3(verb, "r.yaml", *dry).code == 0
    done = r3(verb, "r.yaml", "data.tags=[countng]", *dry)
    assert done.code == 2 and "data.tags: no prompt has the tag 'countng'; did you mean 'counting'?" in done.err
    done = r3(verb, "r.yaml", "data.kind=geneval", *dry)
    assert done.code == 2 and len(done.err.splitlines()) <= 3
    (workplace / "mine.py").write_text("def mine(images, note, **columns):\n    return [0.0] * len(images)\n")
    for scorer, column in (("vqa_questions", "questions"), ("./mine.py:mine", "note")):
        params = (
            ["rewards.0.params={judge: {base_urls: [http://localhost:1/v1], model: m}}"] if column != "note" else []
        )
        done = r3(verb, "r.yaml", f"rewards.0.scorer={scorer}", *params, *dry)
        assert done.code == 2 and f"needs the column '{column}', which no prompt of the data 'jsonl' has" in done.err


def test_check_names_the_package_that_a_scorer_lacks(r3, workplace, monkeypatch):
    BagelConfig().to_folder(workplace / "BAGEL-7B-MoT")
    row = {"prompt": "a cup", "tag": "single_object", "include": [{"class": "cup", "count": 1}]}
    (workplace / "geneval_train.jsonl").write_text(json.dumps(row) + "\n")
    assert r3("check", "bagel_geneval_lora").code == 0
    monkeypatch.setattr(base, "is_installed", lambda name: name != "open_clip")
    done = r3("check", "bagel_geneval_lora")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "rewards.0.scorer: scorer 'geneval' needs the package open_clip; pip install 'r3-rl[train,clip]'" in done.err


def test_a_column_that_the_recipe_names_otherwise_is_looked_for_under_that_name(r3, workplace):
    (workplace / "p.jsonl").write_text('{"prompt": "a red circle", "asked": ["is it red?"]}\n')
    (workplace / "r.yaml").write_text(RECIPE + "data: {kind: jsonl, path: p.jsonl}\n")
    scorer = "{scorer: vqa_questions, params: {judge: {base_urls: [http://localhost:1/v1], model: m}, %s}}"
    assert r3("check", "r.yaml", f"rewards=[{scorer % 'questions: asked, answers: null'}]").code == 0
    assert "column 'answers'" in r3("check", "r.yaml", f"rewards=[{scorer % 'questions: asked'}]").err


def test_schema_is_json(r3):
    assert json.loads(r3("schema").out)["properties"]["training"]


def test_recipes_are_listed_shown_and_copied(r3, workplace):
    listed = r3("recipes", "ls").out.splitlines()
    assert [line.split()[0] for line in listed] == list(shipped_recipes())
    assert all(len(line.split()) > 3 for line in listed), "every recipe begins with a comment that says what it is for"
    assert r3("recipes", "show", "shapes_pretrain").out == shipped_recipes()["shapes_pretrain"].read_text()
    resolved = r3("recipes", "show", "shapes_pretrain", "--resolved").out
    assert "adam_beta2: 0.95" in resolved
    assert r3("recipes", "copy", "shapes_pretrain").code == 0
    assert load_recipe("shapes_pretrain.yaml") == load_recipe(str(shipped_recipes()["shapes_pretrain"]))
    assert "already there" in r3("recipes", "copy", "shapes_pretrain").err


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_copied_recipe_is_the_same_recipe(name, r3, workplace, monkeypatch):
    """Shipped recipes name weights and prompts that the user brings: into the folder where he works."""
    work, copies = workplace / "work", workplace / "copies"
    for folder in (work, copies):
        folder.mkdir()
    monkeypatch.chdir(work)
    judge = [f"rewards.0.scorer={'jpeg_size'}", "rewards.0.params={}"] if name.startswith("bagel_") else []
    for weights in ("BAGEL-7B-MoT", "tiny-bagel"):
        BagelConfig().to_folder(work / weights)
    for prompts in ("geneval_train", "geneval_plus_train", "geneval", "tiif_train"):
        (work / f"{prompts}.jsonl").write_text('{"prompt": "a red cup"}\n')
    bare = name == "bagel_base"
    changes = ["rewards=[{scorer: jpeg_size}]", "data={kind: jsonl, path: geneval.jsonl}"] if bare else judge
    before = load_recipe(name, changes)
    assert r3("recipes", "copy", name, str(copies)).code == 0
    assert load_recipe(copies / f"{name}.yaml", changes) == before


def test_a_copied_recipe_finds_what_stands_beside_the_original(r3, workplace):
    (workplace / "there").mkdir()
    (workplace / "here").mkdir()
    (workplace / "there" / "base.yaml").write_text("version: 1\nlora: {rank: 3}\n")
    (workplace / "there" / "p.jsonl").write_text('{"prompt": "a red circle"}\n')
    (workplace / "there" / "mine.py").write_text("def mine(images, **columns):\n    return [0.0] * len(images)\n")
    text = (
        "# mine\nextends: base.yaml  # a comment\ndata: {kind: jsonl, path: p.jsonl}\n"
        "rewards:\n  - scorer: ./mine.py:mine\n    weight: 2.0\n"
    )
    (workplace / "there" / "r.yaml").write_text(text)
    assert r3("recipes", "copy", "there/r.yaml", "here").code == 0
    assert r3("check", "here/r.yaml").code == 0
    assert load_recipe("here/r.yaml") == load_recipe("there/r.yaml")
    copy = (workplace / "here" / "r.yaml").read_text()
    assert copy.startswith("# mine\n") and "  # a comment" in copy and "weight: 2.0" in copy
    (workplace / "there" / "again.yaml").write_text(text)
    r3("recipes", "copy", "there/r.yaml", "there/copy.yaml")
    assert (workplace / "there" / "copy.yaml").read_text() == text, "in the same folder nothing changes"


def test_what_a_shipped_recipe_asks_for_may_stand_beside_the_copy(r3, workplace):
    (workplace / "mine").mkdir()
    r3("recipes", "copy", "bagel_geneval_lora", "mine")
    BagelConfig().to_folder(workplace / "mine" / "BAGEL-7B-MoT")
    (workplace / "mine" / "geneval_train.jsonl").write_text('{"prompt": "a red cup"}\n')
    recipe = load_recipe("mine/bagel_geneval_lora.yaml", ["rewards.0.scorer=jpeg_size"])
    assert recipe.data.path == str(workplace / "mine" / "geneval_train.jsonl")
    assert recipe.model.path == str(workplace / "mine" / "BAGEL-7B-MoT")


def test_rewards_new_writes_a_scorer_that_a_recipe_can_name(r3, workplace):
    assert r3("rewards", "new", "redness").code == 0
    (workplace / "r.yaml").write_text("version: 1\nrewards:\n  - scorer: ./redness.py:redness\n")
    assert r3("check", "r.yaml").code == 0
    assert "redness" not in r3("rewards", "ls").out


def test_every_verb_has_a_line_of_help(r3):
    trains = ("demo", "train", "pretrain", "refine", "export", "report", "compare")
    for verb in (*trains, "check", "schema", "doctor", "recipes", "rewards", "prompts"):
        assert app[verb].help, verb
        assert f"{verb}  " in r3("--help").out
    assert "Usage: r3" in r3("--help").out
    assert r3("--version").out.strip() == "0.1.0"


def test_interrupt_leaves_with_130(r3, recipe, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("r3_rl.recipe.geometry", interrupted)
    done = r3("check", recipe)
    assert (done.code, done.err) == (130, "r3: interrupted\n")


@pytest.mark.processes
def test_reader_that_leaves_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "r3_rl", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) in (0, -signal.SIGPIPE)


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["check", "r.yaml"],
        ["check", "shapes_r3"],
        ["recipes", "ls"],
        ["recipes", "show", "shapes_r3"],
        ["rewards", "ls"],
        ["prompts", "geneval", "--num", "2"],
        ["schema"],
    ],
)
def test_light_verbs_load_no_heavy_package(arguments, python, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    seen = python(
        f"import sys; from r3_rl.cli import run; code = run({arguments!r}); assert code == 0, code\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert seen.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["torch", "peft"])
def test_a_verb_whose_packages_are_not_installed_says_what_to_install(package, tmp_path):
    """As after `pip install r3-rl` without an extra: every verb that needs torch, in one process."""
    verbs = [["demo", "--out", "x"]]
    if package == "torch":
        verbs += [
            ["refine", "a red circle"], ["eval", "shipped", "--bench", "shapes"], ["serve"], ["play"], ["export", "x"],
            ["pretrain", "shapes_pretrain"], ["merge", "a:1", "b:1", "--out", "x"], ["train", "shapes_r3"],
        ]  # fmt: skip
    code = (
        "import sys\n"
        "class Away:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == sys.argv[1]:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Away())\n"
        "from r3_rl.cli import run\n"
        f"print([run(words) for words in {verbs!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [2] * len(verbs), done.stderr
    assert done.stderr.splitlines() == [
        f"r3: the package {package} is not installed; pip install 'r3-rl[train]'"
    ] * len(verbs)
