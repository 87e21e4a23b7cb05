"""Finding scorers: installed names, modules, files, factories; and what the user reads when one is wrong."""

import os
import sys

import pytest

from r3_rl.scoring import base
from r3_rl.scoring.base import info_of
from r3_rl.scoring.registry import ScorerInputError, check_scorer, find_scorer, list_scorers, load_scorer

SCORER_FILE = """
from r3_rl.scoring.base import ScorerInfo

CONSTANT = 3

def brightness(images, *, scale: float = 1.0, **columns):
    return [float(image.mean()) * scale for image in images]

class Distance:
    info = ScorerInfo(range=(0.0, 255.0), needs=("images",))

    def __init__(self, target: int, weights: tuple[float, ...] = ()):
        self.target = target

    def __call__(self, images, **columns):
        return [abs(float(image.mean()) - self.target) for image in images]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_score.py").write_text(SCORER_FILE)
    return tmp_path


def test_installed_module_and_file(folder, image_batch):
    assert load_scorer("jpeg_size").__name__ == "jpeg_size"
    assert load_scorer("r3_rl.rewards.sharpness:sharpness").__name__ == "sharpness"
    images = image_batch(10).images
    assert load_scorer("./my_score.py:brightness", {"scale": 2.0}, folder)(images=images) == [20.0]
    assert load_scorer("my_score.py:Distance", {"target": 4}, folder)(images=images) == [6.0]
    assert load_scorer(f"{folder}/my_score.py:Distance", {"target": 4})(images=images) == [6.0]


def test_a_trl_reward_and_a_trl_factory():
    reward = load_scorer("trl.rewards:think_format_reward")
    assert reward([[{"content": "<think>a</think> b"}], [{"content": "b"}]]) == [1.0, 0.0]
    penalty = load_scorer("trl.rewards:get_soft_overlong_punishment", {"max_completion_len": 4, "soft_punish_cache": 2})
    assert penalty(completion_ids=[[1], [1, 2, 3], [1] * 9]) == [0.0, -0.5, -1.0]


def test_a_changed_file_is_read_again(folder):
    assert not hasattr(find_scorer("my_score.py:brightness", folder), "changed")
    path = folder / "my_score.py"
    path.write_text(SCORER_FILE + "\nbrightness.changed = True\n")
    os.utime(path, ns=(1, 1))
    assert find_scorer("my_score.py:brightness", folder).changed


def test_a_third_party_package(installed, image_batch):
    source = "def constant(images, *, value: float = 0.5, **columns):\n    return [value] * len(images)\n"
    installed("some_scores", source, "constant_score = some_scores:constant")
    entry = next(entry for entry in list_scorers() if entry.name == "constant_score")
    assert entry.origin == "some_scores 2.5"
    assert entry.info.needs == ("images",)
    assert load_scorer("constant_score", {"value": 0.25})(images=image_batch(1, 2).images) == [0.25, 0.25]


def test_a_package_that_fails_to_import_is_listed_with_its_error(installed):
    installed("broken_scores", "import no_such_package_at_all\n", "broken = broken_scores:score")
    entries = {entry.name: entry for entry in list_scorers()}
    assert "no_such_package_at_all" in entries["broken"].error
    assert entries["jpeg_size"].info is not None
    assert "no_such_package_at_all" in check_scorer("broken")[0]


def test_a_package_that_exits_on_import_does_not_end_the_listing(installed):
    installed("exiting_scores", "import sys\nsys.exit(3)\n", "exiting = exiting_scores:score")
    assert next(entry for entry in list_scorers() if entry.name == "exiting").error.startswith("SystemExit")


@pytest.mark.parametrize(
    ("scorer", "params", "said"),
    [
        ("jpeg_siz", {}, "did you mean 'jpeg_size'? known: "),
        ("my_score", {}, "no scorer is called 'my_score'; for the file write './my_score.py:my_score'"),
        ("trl.rewards:think_format", {}, "no 'think_format' in it; did you mean 'think_format_reward'?"),
        ("shapes", {"strict_wieght": 1.0}, "did you mean 'strict_weight'? it takes: strict_weight"),
        (
            "p_yes",
            {"judge": {"base_urls": ["http://a/v1"], "modell": "x"}},
            "'judge': the key 'model' is missing; no key 'modell'; did you mean 'model'? it takes: backoff_s",
        ),
        ("p_yes", {"judge": {"base_urls": ["http://a/v1"], "model": "x", "api_key": "k"}}, "it takes: backoff_s, "),
        ("no_such_module_here:f", {}, "'no_such_module_here' fails to import: ModuleNotFoundError"),
        ("r3_rl.rewards.sharpness:sharpnes", {}, "no 'sharpnes' in it; did you mean 'sharpness'?"),
        ("./my_scor.py:brightness", {}, "did you mean 'my_score.py'?"),
        ("./my_score.py:brightnes", {}, "did you mean 'brightness'?"),
        ("./my_score.py", {}, "write './my_score.py:NAME'"),
        ("./my_score.py:CONSTANT", {}, "'CONSTANT' is a int, not a function or class"),
        ("./my_score.py:brightness", {"scal": 1.0}, "takes no parameter 'scal'; did you mean 'scale'? it takes: scale"),
        ("./my_score.py:brightness", {"scale": "much"}, "parameter 'scale' = 'much': Input should be a valid number"),
        ("./my_score.py:brightness", {"images": []}, "takes no parameter 'images'"),
        ("./my_score.py:Distance", {}, "needs the parameter 'target'"),
        ("./my_score.py:Distance", {"target": 1.5}, "parameter 'target' = 1.5"),
        ("a" * 5000, {}, "file name too long; a scorer of your own is './file.py:name'"),
        (f"./{'a' * 300}.py:f", {}, "file name too long; a scorer of your own is './file.py:name'"),
        (f"{'a' * 5000}.b:f", {}, "aaa.b' fails to import: ModuleNotFoundError: No module named"),
        ("jpeg_size", {"prefer": "medium"}, "Input should be 'small' or 'large'"),
        ("trl.rewards:get_soft_overlong_punishment", {"max_completion_len": 4}, "needs the parameter 'soft_punish"),
    ],
)
def test_what_the_user_reads(folder, scorer, params, said):
    problems = check_scorer(scorer, params, folder)
    assert len(problems) == 1
    assert said in problems[0]
    assert "\n" not in problems[0] and len(problems[0]) < 600
    with pytest.raises(ScorerInputError) as raised:
        load_scorer(scorer, params, folder)
    assert said in str(raised.value)
    assert raised.value.exit_code == 2


def test_every_wrong_parameter_is_named(folder):
    assert len(check_scorer("./my_score.py:Distance", {"targe": 1, "weights": [1.0, "x"]}, folder)) == 3


def test_a_list_from_a_recipe_fits_a_tuple(folder):
    assert check_scorer("./my_score.py:Distance", {"target": 1, "weights": [1.0, 2]}, folder) == []


def test_a_file_that_is_no_python(folder):
    (folder / "broken.py").write_text("def f(:\n")
    assert "fails to import: SyntaxError" in check_scorer("./broken.py:f", {}, folder)[0]


def test_checking_builds_nothing(folder):
    (folder / "heavy.py").write_text("class Heavy:\n    def __init__(self): raise MemoryError('built')\n"
                                     "    def __call__(self, images): return []\n")  # fmt: skip
    assert check_scorer("./heavy.py:Heavy", {}, folder) == []


def test_built_in_scorers_declare_themselves():
    for name in ("format", "length", "jpeg_size", "sharpness"):
        info = info_of(find_scorer(name))
        assert info.range == (0.0, 1.0)
        assert info.deterministic


JUDGE = {"base_urls": ["http://localhost:1/v1"], "model": "m"}


@pytest.mark.parametrize(
    ("scorer", "params", "package", "install"),
    [
        ("shapes", {}, "scipy", "train"),
        ("shapes_strict", {}, "scipy", "train"),
        ("clip_score", {}, "transformers", "clip"),
        ("clip_score", {"weights": "ViT-B-32:laion2b_s34b_b79k"}, "open_clip", "clip"),
        ("pickscore", {}, "torch", "clip"),
        ("hpsv2", {"weights": "HPS_v2.1.safetensors"}, "open_clip", "clip"),
        ("aesthetic", {"head": "aesthetic.safetensors"}, "transformers", "clip"),
        ("ocr_text", {}, "rapidocr", "rewards"),
        ("geneval", {}, "open_clip", "train,clip"),
        ("geneval", {}, "torchvision", "train,clip"),
        ("geneval_plus", {"judge": JUDGE}, "openai", "judge"),
        ("tiif", {"judge": JUDGE}, "openai", "judge"),
        ("vqa_questions", {"judge": JUDGE}, "openai", "judge"),
        ("p_yes", {"judge": JUDGE}, "openai", "judge"),
        ("p_yes", {"model": "Qwen/Qwen2.5-VL-7B-Instruct"}, "transformers", "train"),
        ("decomposed", {"model": "m", "writer": JUDGE}, "openai", "train,judge"),
        ("win_rate", {"scorer": "ocr_text"}, "rapidfuzz", "rewards"),
    ],
)
def test_a_package_that_a_scorer_declares_is_looked_for(scorer, params, package, install, monkeypatch):
    assert check_scorer(scorer, params) == []
    monkeypatch.setattr(base, "is_installed", lambda name: name != package)
    (problem,) = check_scorer(scorer, params)
    assert problem.endswith(f"needs the package {package}; pip install 'r3-rl[{install}]'")


def test_a_package_of_a_scorer_of_ones_own(folder):
    (folder / "mine.py").write_text(
        "from r3_rl.scoring.base import scorer_info\n"
        "@scorer_info(needs=('images',), packages=('no_such_a', 'json', 'no_such_b'))\n"
        "def mine(images): return [0.0] * len(images)\n"
    )
    (problem,) = check_scorer("./mine.py:mine", {}, folder)
    assert problem.endswith("needs the packages no_such_a, no_such_b; pip install no_such_a no_such_b")


def test_files_of_two_folders_have_each_their_own_helper(folder):
    for name, value in (("one", 0.25), ("two", 0.75)):
        (folder / name / "parts").mkdir(parents=True)
        (folder / name / "twice_named.py").write_text(
            f"from parts.inner import VALUE\ndef given(): return VALUE + {value}\n"
        )
        (folder / name / "parts" / "__init__.py").write_text("")
        (folder / name / "parts" / "inner.py").write_text(f"VALUE = {value}\n")
        (folder / name / "mine.py").write_text(
            "import json, twice_named\ndef r(completions): return [twice_named.given()] * len(completions)\n"
        )
    for _ in range(2):
        assert load_scorer("./one/mine.py:r", {}, folder)(completions=["a"]) == [0.5]
        assert load_scorer("./two/mine.py:r", {}, folder)(completions=["a"]) == [1.5]
    for name in ("twice_named", "parts", "parts.inner"):
        sys.modules.pop(name)


def test_a_helper_that_a_function_imports_is_found_when_it_runs(folder, monkeypatch):
    (folder / "later_helper.py").write_text("import packaged.inner\ndef half(n): return packaged.inner.HALF * n\n")
    (folder / "packaged").mkdir()
    (folder / "packaged" / "__init__.py").write_text("")
    (folder / "packaged" / "inner.py").write_text("HALF = 0.5\n")
    (folder / "broken_helper.py").write_text("raise RuntimeError('only when somebody asks')\n")
    (folder / "lazy.py").write_text(
        "def r(completions):\n"
        "    from later_helper import half\n"
        "    return [half(1)] * len(completions)\n"
        "class Never:\n"
        "    async def r(self):\n"
        "        import broken_helper, no_such_module\n"
    )
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", os.getcwd(), str(folder))])
    assert load_scorer("./lazy.py:r", {}, folder)(completions=["a"]) == [0.5]
    for name in ("later_helper", "packaged", "packaged.inner"):
        sys.modules.pop(name)


def test_a_helper_that_would_be_another_files_is_refused(folder):
    """`later_twice` would stand for the first folder's when the second one's function runs."""
    for name, value in (("one", 0.25), ("two", 0.75)):
        (folder / name).mkdir()
        (folder / name / "later_twice.py").write_text(f"VALUE = {value}\n")
        (folder / name / "mine.py").write_text(
            "def r(completions):\n    import later_twice\n    return [later_twice.VALUE] * len(completions)\n"
        )
    assert load_scorer("./one/mine.py:r", {}, folder)(completions=["a"]) == [0.25]
    with pytest.raises(ScorerInputError, match=r"imports 'later_twice' in a function.*") as refused:
        load_scorer("./two/mine.py:r", {}, folder)
    assert "import it at the top" in refused.value.hint
    assert load_scorer("./one/mine.py:r", {}, folder)(completions=["a"]) == [0.25]
    sys.modules.pop("later_twice")


def test_a_helper_beside_the_file_and_a_module_in_the_folder_are_found(folder, monkeypatch):
    (folder / "helpers_of_mine.py").write_text("def half(n): return n / 2\n")
    (folder / "sib.py").write_text(
        "from helpers_of_mine import half\ndef r(completions): return [half(1)] * len(completions)\n"
    )
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", os.getcwd(), str(folder))])
    before = list(sys.path)
    assert load_scorer("./sib.py:r", {}, folder)(completions=["a"]) == [0.5]
    assert load_scorer("sib:r", {}, folder)(completions=["a"]) == [0.5]
    assert sys.path == before
    for name in ("helpers_of_mine", "sib"):
        sys.modules.pop(name)
