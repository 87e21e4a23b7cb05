"""Prompt files as published, and what is said about broken ones."""

from __future__ import annotations

import json
import time

import pytest

from r3_rl.errors import DataError, InputError
from r3_rl.types import Prompt
from r3_rl.worlds.files.load import load_prompts

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "kite", "count": 1}], "prompt": "a photo of a kite"},
    {
        "tag": "counting",
        "include": [{"class": "spoon", "count": 2}],
        "exclude": [{"class": "spoon", "count": 3}],
        "prompt": "a photo of two spoons",
    },
    {
        "tag": "position",
        "include": [{"class": "lamp", "count": 1}, {"class": "owl", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of an owl above a lamp",
    },
    {
        "tag": "size_spatial_attr",
        "include": [{"class": "drum", "count": 1, "region": "left", "size": "large", "color": "red"}],
        "prompt": "A photo of a large red drum on the left",
    },
]
TIIF = [
    {
        "type": "negation",
        "short_description": "A table without a plate.",
        "long_description": "In the quiet room a table stands, and nobody has set a plate on it.",
        "yn_question_list": ["Is there a table?  ", "Is there a plate?"],
        "yn_answer_list": ["yes", "No"],
    }
]


@pytest.fixture
def write(tmp_path):
    def call(rows, name="prompts.jsonl"):
        text = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return call


def test_geneval_keeps_its_metadata(write):
    prompts = load_prompts("geneval", write(GENEVAL))
    assert [p.text for p in prompts] == [row["prompt"] for row in GENEVAL]
    assert [dict(p.columns) for p in prompts] == GENEVAL


def test_tiif_chooses_a_description_and_hands_on_its_questions(write):
    (short,) = load_prompts("tiif", write(TIIF))
    (long,) = load_prompts("tiif", write(TIIF), prompt_key="long_description")
    assert short.text == "A table without a plate."
    assert long.text.startswith("In the quiet room")
    assert short.columns["yn_question_list"] == TIIF[0]["yn_question_list"]
    assert short.columns["yn_answer_list"] == ["yes", "No"]
    assert short.columns["tag"] == "negation"


def test_plain_lines_with_another_column_blank_lines_and_a_byte_order_mark(write):
    path = write('\ufeff{"caption": " a red cup ", "page": 3}\r\n\r\n{"caption": "a\u2028b"}\n')
    first, second = load_prompts("jsonl", path, prompt_key="caption")
    assert first == Prompt(text="a red cup", columns={"caption": " a red cup ", "page": 3})
    assert second.text == "a\u2028b"


def test_emoji_that_are_escaped_whole_are_read(write):
    (prompt,) = load_prompts("jsonl", write('{"prompt": "a \\ud83d\\ude00 cat"}'))
    assert prompt.text == "a \U0001f600 cat"


def test_a_text_holds_a_prompt_a_line(write):
    prompts = load_prompts("text", write('\ufeffa "red" cup \r\n\r\n[two cats]\n', "train.txt"))
    assert [prompt.text for prompt in prompts] == ['a "red" cup', "[two cats]"]


def test_a_table_is_not_taken_for_a_text(write):
    with pytest.raises(DataError, match=r"p.csv:1: a table, not JSON lines: 'id,prompt'; write \{\"prompt\": ...\} on"):
        load_prompts("jsonl", write("id,prompt\n1,a cup\n", "p.csv"))


def test_words_that_the_model_does_not_know_are_named(write):
    path = write('{"prompt": "a red cup"}\n{"prompt": "a zebra"}\n{"prompt": "a zebra, a zebra"}\n')
    with pytest.raises(DataError, match=r"prompts.jsonl:2: the model does not know 'zebra'; .*\(so in 2 lines\)"):
        load_prompts("jsonl", path, unknown_words=lambda text: ["zebra"] * ("zebra" in text))


def test_a_long_file_of_faults_is_refused_soon(write):
    columns = ", ".join(f'"column{number}": {number}' for number in range(40))
    path = write(f"{{{columns}}}\n" * 5_000)
    begin = time.process_time()
    with pytest.raises(DataError, match="so in 5000 lines"):
        load_prompts("jsonl", path)
    assert time.process_time() - begin < 2


def test_tags_choose(write):
    path = write(GENEVAL)
    tags = [p.columns["tag"] for p in load_prompts("geneval", path, tags=["position", "counting"])]
    assert tags == ["counting", "position"]
    rest = load_prompts("geneval", path, exclude_tags=["position", "counting"])
    assert [p.columns["tag"] for p in rest] == ["single_object", "size_spatial_attr"]
    assert [p.text for p in load_prompts("tiif", write(TIIF), tags=["negation"])] == ["A table without a plate."]


@pytest.mark.parametrize(
    "kind, content, message",
    [
        ("geneval", "", r"prompts.jsonl: no prompts in it; write one JSON object a line"),
        ("jsonl", "\n \n", "no prompts in it"),
        ("jsonl", '{"prompt": "a"}\n{"prompt": b}', r"prompts.jsonl:2: not JSON, expecting value at column 12"),
        ("jsonl", '{"prompt": "a"}\n"b"', r'prompts.jsonl:2: "b" is no object'),
        ("text", '[{"prompt": "a"},\n{"prompt": "b"}]', r"prompts.jsonl:1: a JSON array, not JSON lines; .*jq -c"),
        ("jsonl", '{"prompt": "a", "x": NaN}', r"prompts.jsonl:1: NaN is no number of JSON; write null"),
        ("jsonl", '{"prompt": "a", "x": [-1e999]}', r"prompts.jsonl:1: x: a number beyond 64 bits; write it as text"),
        ("jsonl", '{"prompt": "a", "prompt": "b"}', r"prompts.jsonl:1: 'prompt' stands twice in one object; keep one"),
        ("jsonl", '[{"prompt": "a"}]', r"prompts.jsonl:1: a JSON array, not JSON lines; .*jq -c"),
        (
            "jsonl",
            '{"promt": "a"}\n' * 3,
            r"prompts.jsonl:1: no column 'prompt'; did you mean 'promt'\?.*so in 3 lines",
        ),
        ("jsonl", '{"x": "a"}', r"no column 'prompt'; its columns are 'x' \(data.prompt_key chooses"),
        ("jsonl", '{"prompt": 3}', "prompt: 3 is no text"),
        ("jsonl", '{"prompt": " "}', "prompts.jsonl:1: prompt: the prompt is empty"),
        ("jsonl", '{"prompt": "a", "images": []}', "column 'images' has the name of an argument"),
        ("jsonl", "[1]", r"jq -c '\.\[\]' prompts\.jsonl > prompts\.lines\.jsonl"),
        (
            "jsonl",
            '{"prompt": "a \\ud83d cat"}',
            r"jsonl:1: prompt: half of a surrogate pair \(\\ud83d\); save the file",
        ),
        ("jsonl", '{"prompt": "a", "tag": ["\\udc00"]}', r"prompts.jsonl:1: tag: half of a surrogate pair"),
        ("jsonl", '{"prompt": "a", "\\udc00": 1}', r"the name of a column has half of a surrogate pair"),
        ("jsonl", '{"prompt": "a\\u0000"}', r"prompts.jsonl:1: prompt: a NUL character; save the file"),
        ("jsonl", '{"prompt": "a", "seed": ' + "9" * 5000 + "}", "prompts.jsonl:1: a number with thousands of digits"),
        ("jsonl", '{"prompt": "a", "x": ' + "[" * 200_000, "prompts.jsonl:1: nested deeper than 100"),
        ("jsonl", '{"prompt": "a", "x": ' + "[" * 200 + "]" * 200 + "}", "prompts.jsonl:1: x: nested deeper than 100"),
        ("jsonl", '{"prompt": "a", "x": [' + "1," * 20_000 + "1]}", "prompts.jsonl:1: x: more than 10000 values"),
        ("jsonl", '{"prompt": "' + "a" * 1_000_001 + '"}', "prompts.jsonl:1: longer than 1000000 letters"),
        (
            "jsonl",
            '{"prompt": "a", "include": [{"count": 1000000000}]}',
            "include: 1000000000 objects are more than an",
        ),
        ("geneval", [GENEVAL[0] | {"include": [{"class": "cup", "count": 1}] * 101}], "include: 101 objects are more"),
        (
            "jsonl",
            "a red cup\ntwo cats",
            "prompts.jsonl:1: not JSON lines: 'a red cup'; one prompt a line\\? set data.kind",
        ),
        (
            "jsonl",
            "version https://git-lfs.github.com/spec/v1\noid",
            "a git-lfs pointer, not the file itself; run git lfs",
        ),
        ("text", '{"prompt": "a"}', "prompts.jsonl:1: a JSON object, not a prompt; set data.kind: jsonl"),
        ("text", "\n", "no prompts in it; write one prompt a line"),
        ("text", "a\0b", "prompts.jsonl:1: a NUL character; leave it out"),
        ("tiif", GENEVAL, "not a tiif file, its first line reads as geneval; set data.kind: geneval"),
        ("geneval", TIIF, "first line reads as tiif"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(write, kind, content, message):
    with pytest.raises(DataError, match=message):
        load_prompts(kind, write(content))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"include": []}, r"include: \[\] is no list of objects"),
        ({"include": "cup"}, 'include: "cup" is no list of objects'),
        ({"include": ["cup"]}, r'include\[0\]: "cup" is no object'),
        ({"include": [{"count": 1}]}, r"include\[0\]\.class: missing"),
        ({"include": [{"class": "cup", "count": "2"}]}, r'include\[0\]\.count: "2" is no number of objects'),
        ({"include": [{"class": "cup", "count": 1, "color": 3}]}, r"include\[0\]\.color: 3 is no text"),
        ({"include": [{"class": "cup", "count": 1, "position": ["above", 4]}]}, r"include\[0\]\.position: .*index of"),
        ({"exclude": {}}, r"exclude: \{\} is no list"),
        ({"tag": None}, "tag: null is no text"),
    ],
)
def test_geneval_objects_are_checked(write, change, message):
    path = write([GENEVAL[0], GENEVAL[0] | change])
    with pytest.raises(DataError, match=rf"prompts\.jsonl:2: {message}"):
        load_prompts("geneval", path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"yn_answer_list": ["yes"]}, "2 questions in yn_question_list and 1 answers"),
        ({"yn_answer_list": ["yes", "maybe"]}, r'yn_answer_list\[1\]: "maybe" is neither yes nor no'),
        ({"yn_question_list": "Is it?"}, "yn_question_list: .* is no list of texts"),
    ],
)
def test_tiif_questions_are_checked(write, change, message):
    with pytest.raises(DataError, match=message):
        load_prompts("tiif", write([TIIF[0] | change]))


def test_many_faults_are_counted(write):
    lines = [json.dumps({"prompt": n}) for n in range(12)]
    with pytest.raises(DataError) as caught:
        load_prompts("jsonl", write("\n".join(lines)))
    shown = str(caught.value).splitlines()
    assert len(shown) == 9 and shown[-1] == "and 4 more"


def test_wrong_tags_and_files_are_named(write, tmp_path):
    path = write(GENEVAL)
    with pytest.raises(DataError, match=r"data\.tags: no prompt has the tag 'postion'; did you mean 'position'\?"):
        load_prompts("geneval", path, tags=["position", "postion"])
    with pytest.raises(DataError, match=r"data\.exclude_tags: no prompt has the tag 'x'; it has single_object, "):
        load_prompts("geneval", path, exclude_tags=["x"])
    with pytest.raises(DataError, match="no prompt is left"):
        load_prompts("geneval", path, tags=["position"], exclude_tags=["position"])
    with pytest.raises(DataError, match="no column 'tag', by which tags choose"):
        load_prompts("jsonl", write('{"prompt": "a"}', "plain.jsonl"), tags=["a"])
    with pytest.raises(DataError, match=r"promts\.jsonl: no such file; did you mean 'prompts\.jsonl'\?"):
        load_prompts("geneval", tmp_path / "promts.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load_prompts("geneval", tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "café"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl: not UTF-8 text \(byte 15\)"):
        load_prompts("jsonl", tmp_path / "latin.jsonl")
    with pytest.raises(InputError, match=r"'shapes' reads no file; use one of geneval, tiif, jsonl"):
        load_prompts("shapes", path)
