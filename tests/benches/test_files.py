"""Benchmarks from files: their rules by hand, real small sets end to end, and what is said about broken ones."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from r3_rl import registered
from r3_rl.benches import yes_no
from r3_rl.benches.base import Request, Sample
from r3_rl.benches.choice import chosen
from r3_rl.benches.made import write_sets
from r3_rl.benches.resampling import estimate, values_of
from r3_rl.benches.run import EvalSettings, evaluate
from r3_rl.errors import InputError
from r3_rl.worlds.base import find_world


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"), count=8)


def made(name: str, path: Path | None, *, limit: int | None = None, world: bool = True):
    request = Request(name=name, path=path, tags=None, world=find_world() if world else None, limit=limit)
    return registered.find(registered.ITEM_BENCHES, name)(request)


def figures(bench, said: list[list[str]]) -> dict[str, float]:
    """The table's means, with answers given item by item."""
    samples = [
        (0, Sample(item=a.name, values=a.score(texts), shown={})) for a, texts in zip(bench.asked, said, strict=True)
    ]
    values = values_of(samples)
    found = {row.name: estimate(values, row) for row in bench.figures(sorted(values.arrays))}
    return {name: this.over_items.mean for name, this in found.items() if this}


def test_pope_counts_what_its_rule_reads(tmp_path, sets):
    rows = [json.loads(line) for line in (sets / "pope" / "coco_pope_random.json").read_text().splitlines()[:5]]
    labels = ["yes", "yes", "yes", "no", "no"]
    lines = [json.dumps({**row, "label": label}) for row, label in zip(rows, labels, strict=True)]
    (tmp_path / "coco_pope_popular.json").write_text("\n".join(lines))
    (tmp_path / "val2014").symlink_to(sets / "pope" / "val2014")
    (bench,) = made("pope", tmp_path)
    assert bench.name == "pope.popular"
    found = figures(bench, [["Yes"], ["yes, it is"], ["No."], ["I am not sure"], ["Maybe"]])
    # said yes: 1, 2 and 5 (neither no nor not); right: 1, 2 and 4
    assert found["accuracy"] == pytest.approx(3 / 5) and found["yes"] == pytest.approx(3 / 5)
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(2 / 3)


def test_mme_wants_both_answers_of_an_image(tmp_path, sets):
    for task in ("existence", "code_reasoning"):
        (tmp_path / task / "images").mkdir(parents=True)
        (tmp_path / task / "questions_answers_YN").mkdir()
        for number in range(2):
            picture = next((sets / "mme").glob("*/*.png")).read_bytes()
            (tmp_path / task / "images" / f"{number}.jpg").write_bytes(picture)
            text = "Is there a cup? Please answer yes or no.\tYes\nIs there a dog? Please answer yes or no.\tNo\n"
            (tmp_path / task / "questions_answers_YN" / f"{number}.txt").write_text(text)
    (bench,) = made("mme", tmp_path, world=False)
    assert bench.asked[0].texts[0] == "Is there a cup? Please answer yes or no.", "its files hold the instruction"
    said = [["yes", "no"], ["Yes, there is", "the answer is no"], ["no", "no"], ["yes", "no."]]
    found = figures(bench, said)  # code_reasoning first: 3 of 4 and 1 of 2; existence 3 of 4 and 1 of 2
    assert found["acc/code_reasoning"] == 0.75 and found["plus/code_reasoning"] == 0.5
    assert found["score/Cognition"] == 125 and found["score/Perception"] == 125
    assert found["acc"] == 0.75 and found["plus"] == 0.5


def test_multiple_choice_is_right_in_every_rotation_or_not_at_all(tmp_path, sets):
    picture = base64.b64encode(next((sets / "mme").glob("*/*.png")).read_bytes()).decode()
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"
    lines = [f"{n}\tWhat is it?\tnan\ta cup\ta dog\ta cat\t\tB\tobject\t{picture}" for n in range(3)]
    (tmp_path / "set.tsv").write_text("\n".join([head, *lines]))
    (bench,) = made("choice", tmp_path / "set.tsv", world=False)
    first = bench.asked[0].texts
    assert len(first) == 3 and first[0].splitlines()[1:4] == ["A. a cup", "B. a dog", "C. a cat"]
    assert first[1].splitlines()[1:4] == ["A. a dog", "B. a cat", "C. a cup"]
    # a model that always says B, one that sees the dog, one that is right in two of three rotations
    found = figures(bench, [["B", "B", "B"], ["B", "A", "C"], ["a dog", "a dog", "B"]])
    assert found["plain"] == 1 and found["circular"] == pytest.approx(1 / 3) == found["circular/object"]
    assert chosen("A dog is what I see", ["a cup", "a dog"]) == 1, "an article is not the letter A"


def test_vqa_is_reported_by_answer_type(sets):
    (bench,) = made("vqav2", sets / "vqav2")
    said = [[a.shown["answers"][0]] if number % 2 else ["nothing"] for number, a in enumerate(bench.asked)]
    found = figures(bench, said)
    kinds = {f"accuracy/{a.shown['answer_type']}" for a in bench.asked}
    assert found["accuracy"] == 0.5 and kinds == set(found) - {"accuracy"}


@pytest.mark.slow
def test_small_sets_of_a_world_run_end_to_end(sets, tmp_path):
    names = [f"{name}={sets / name}" for name in ("vqav2", "okvqa", "pope", "mme", "ita")]
    names.append(f"choice={sets / 'choice.tsv'}")
    results = evaluate("shipped", tmp_path / "out", EvalSettings(benches=names, rounds=[0], limit=3))
    found = {r.bench.name: {row.figure.name: row.cells["greedy"] for row in r.rows} for r in results}
    assert list(found) == ["vqav2", "okvqa", "pope.random", "mme", "ita", "choice"]
    assert found["vqav2"]["accuracy"].models["base"].over_items.count == 3
    assert all(
        set(rows) and all(set(c.models) == {"base", "trained"} for c in rows.values()) for rows in found.values()
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert any(row["said"] for row in rows if row["bench"] == "pope.random")
    right = [row["values"]["accuracy"] for row in rows if row["bench"] == "vqav2" and row["model"] == "base"]
    assert sum(right) > 0, "the embedded model answers questions of its world"


@pytest.mark.slow
def test_the_images_of_an_evaluation_are_a_pool(tmp_path):
    evaluate(None, tmp_path / "first", EvalSettings(benches=["shapes"], rounds=[0], limit=8))
    (bench,) = made("ita", tmp_path / "first")
    assert len(bench.pool) >= 2 and sum(one.right for one in bench.pool) == len(bench.pool) / 2
    assert all(one.image.is_file() and "round_0" in one.image.name for one in bench.pool)


def broken(folder: Path, name: str, content: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder


QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
ONE = {"question_id": 1, "image_id": 7, "question": "how many ?"}


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("vqav2", {}, f"{ANNOTATIONS} is missing; fetch it from visualqa.org/download.html"),
        ("vqav2", {ANNOTATIONS: "{", QUESTIONS: "{}"}, f"{ANNOTATIONS}:1: not JSON"),
        ("vqav2", {ANNOTATIONS: '{"annotation": []}'}, "no field 'annotations'; did you mean 'annotation'?"),
        ("vqav2", {ANNOTATIONS: '{"annotations": []}', QUESTIONS: '{"questions": []}'}, "no question in it"),
        (
            "vqav2",
            {ANNOTATIONS: '{"annotations": []}', QUESTIONS: json.dumps({"questions": [ONE]})},
            "questions[0]: question 1 has no annotation; are both files of one split?",
        ),
        (
            "vqav2",
            {
                ANNOTATIONS: json.dumps(
                    {"annotations": [{"question_id": 1, "answer_type": "other", "answers": [{"answer": "2"}]}]}
                ),
                QUESTIONS: json.dumps({"questions": [ONE]}),
            },
            "questions[0]: no image COCO_val2014_000000000007.jpg in",
        ),
        ("vqav2", {ANNOTATIONS: '{"annotations": [3]}'}, "annotations[0]: not an object"),
        ("pope", {}, "coco_pope_random.json is missing; fetch it from github.com/RUCAIBox/POPE"),
        ("pope", {"coco_pope_random.json": "[]"}, "coco_pope_random.json:1: not an object; one object a line"),
        ("pope", {"coco_pope_random.json": '{"text": 3, "label": "yes", "image": "a"}'}, ":1: text is 3, not text"),
        ("pope", {"coco_pope_random.json": '{"text": "x", "label": "?", "image": "a"}'}, "label is '?', neither yes"),
        ("mme", {}, "is missing; fetch one folder a task"),
        ("mme", {"count/1.txt": "Is it?\tYes\n"}, "no image 1.jpg or .png in"),
        ("mme", {"count/1.png": "", "count/1.txt": "Is it?\tYes\n"}, "1.txt: 1 questions, not two"),
        ("mme", {"count/1.png": "", "count/1.txt": "Is it?\tYes\nIs it? No\n"}, "1.txt:2: not a question, a tab"),
        ("ita", {"pool.jsonl": '{"image": "a.png", "prompt": "x", "right": 1}'}, "no image a.png"),
        ("ita", {"pool.jsonl": ""}, "pool.jsonl: nothing in it"),
        ("ita", {}, "pool.jsonl is missing"),
    ],
)
def test_a_broken_file_is_one_line_that_names_the_place(tmp_path, name, files, said):
    folder = tmp_path / "set"
    folder.mkdir()
    for file, content in files.items():
        broken(folder, file, content)
    with pytest.raises(InputError) as caught:
        made(name, folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(registered.BUILT_IN[registered.ITEM_BENCHES]))
def test_a_bench_without_its_files_says_what_to_fetch(name, tmp_path):
    how = "give JSON lines" if name == "ita" else "fetch .* from "  # the files of `ita` are a user's own
    with pytest.raises(InputError, match=f"bench '{name}' reads files: give {name}=PATH; {how}"):
        made(name, None)
    with pytest.raises(InputError, match=rf"bench '{name}': .*nowhere is missing; {how.partition(' ')[0]}"):
        made(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("index\tquestion\n", "set.tsv:1: no column A, B, answer, image; it has index, question"),
        ("question\tA\tB\tanswer\timage\nx\t1\t2\tC\t\n", "set.tsv:2: answer 'C' is not one of 2 options"),
        ("question\tA\tB\tanswer\timage\nx\t1\t2\tA\t###\n", "set.tsv:2: image is not base64"),
        ("question\tA\tB\tanswer\timage\n", "set.tsv: no question in it"),
    ],
)
def test_a_broken_table_is_one_line_too(tmp_path, content, said):
    (tmp_path / "set.tsv").write_text(content)
    with pytest.raises(InputError) as caught:
        made("choice", tmp_path / "set.tsv")
    assert said in str(caught.value)


def test_a_broken_image_and_a_foreign_word_are_told(sets, tmp_path):
    row = json.loads((sets / "pope" / "coco_pope_random.json").read_text().splitlines()[0])
    (tmp_path / row["image"]).write_bytes(b"no image")
    (tmp_path / "coco_pope_random.json").write_text(json.dumps({**row, "text": "is there a zebra ?"}))
    settings = EvalSettings(benches=[f"pope={tmp_path}"], rounds=[0])
    with pytest.raises(InputError, match="the model does not know 'zebra', asked 'is there a zebra"):
        evaluate(None, tmp_path / "out", settings)
    (tmp_path / "coco_pope_random.json").write_text(json.dumps(row))
    with pytest.raises(InputError, match="not an image; fetch it again"):
        evaluate(None, tmp_path / "other", settings)


def test_rules_of_the_official_tools():
    assert [yes_no.says_no(t) for t in ("NO", "no way", "Nothing", "is not there", "")] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert [yes_no.yes_or_no(t) for t in ("no.", "YES", "I see no", "")] == ["no", "yes", "other", "other"]
