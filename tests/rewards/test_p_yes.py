"""The probability of yes: from a model of transformers, from a judge's log-probs, and averaged over questions."""

import asyncio
import json
import math
import shutil

import numpy as np
import pytest

from r3_rl.errors import InputError
from r3_rl.rewards.decomposed import Decomposed
from r3_rl.rewards.p_yes import PYes
from r3_rl.scoring.registry import check_scorer, load_scorer

NOISE = np.random.default_rng(0)
PICTURES = [NOISE.integers(0, 256, (20, 24, 3), dtype=np.uint8), np.zeros((16, 16, 3), dtype=np.uint8)]


def score(scorer, prompts, images, **arguments):
    extras = {}
    scores = asyncio.run(scorer(prompts=prompts, images=images, log_extra=extras.__setitem__, **arguments))
    return scores, extras


@pytest.fixture
def local(tiny_vlm):
    return PYes(model=str(tiny_vlm), dtype="float32", device="cpu", question="{prompt} yes", least_mass=0.01)


def by_hand(folder, text, image):
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    inputs = processor(images=[Image.fromarray(image)], text=[f"<image> {text} "], return_tensors="pt")
    with torch.no_grad():
        chances = model(**inputs).logits[0, -1].softmax(-1)
    vocabulary = processor.tokenizer.get_vocab()
    return float(chances[vocabulary["yes"]] + chances[vocabulary["Yes"]])


def test_a_local_model_says_what_its_logits_say(local, tiny_vlm):
    prompts = ["red dog", "blue cat"]
    scores, extras = score(local, prompts, PICTURES)
    expected = [by_hand(tiny_vlm, f"{prompt} yes", image) for prompt, image in zip(prompts, PICTURES, strict=True)]
    assert scores == pytest.approx(expected, rel=1e-5)
    assert extras["cause"] == ["", ""]


def test_a_local_score_depends_on_picture_and_prompt_and_on_nothing_beside_it(local):
    images, prompts = PICTURES * 2, ["red dog", "red dog", "blue cat", "blue cat maybe"]
    together, _ = score(local, prompts, images)
    alone = [score(local, [prompt], [image])[0][0] for prompt, image in zip(prompts, images, strict=True)]
    assert together == alone, "bit for bit"
    assert len(set(together)) == 4


def test_a_local_model_that_answers_something_else_gives_no_score(tiny_vlm):
    strict = PYes(model=str(tiny_vlm), dtype="float32", device="cpu", least_mass=1.0)
    scores, extras = score(strict, ["red dog"], PICTURES[:1])
    assert scores == [None]
    assert extras["cause"][0].startswith("the model answers neither yes nor no: its first token is ")


def test_models_that_cannot_answer_are_refused(tiny_vlm, tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        PYes(model=str(tmp_path))
    silent = shutil.copytree(tiny_vlm, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        PYes(model=str(silent))
    wordless = shutil.copytree(tiny_vlm, tmp_path / "wordless")
    words = (wordless / "tokenizer.json").read_text().replace('"no"', '"nay"').replace('"No"', '"Nay"')
    (wordless / "tokenizer.json").write_text(words)
    with pytest.raises(InputError, match="no single token for yes or none for no"):
        PYes(model=str(wordless))


def first_tokens(**chances):
    top = [{"token": token.replace("_", " "), "logprob": math.log(chance)} for token, chance in chances.items()]
    choice = {"logprobs": {"content": [{"token": "x", "top_logprobs": top}]}, "finish_reason": "length"}
    return {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}


@pytest.fixture
def served(chat_server):
    made = []

    def build(respond, kind=PYes, **params):
        server = chat_server(respond)
        judge = {"base_urls": [server.url], "model": "m", "timeout_s": 10.0, "backoff_s": 0.01, "num_retries": 1}
        made.append(kind(judge=judge, **params))
        return made[-1], server

    yield build
    for scorer in made:
        scorer.source.judge.close()
        if getattr(scorer, "writer", None):
            scorer.writer.judge.close()


def test_log_probs_of_a_judge(served):
    scorer, server = served(lambda request: first_tokens(Yes=0.5, yes=0.25, _YES=0.1, No=0.1, Yesterday=0.05))
    assert score(scorer, ["a red dog"], PICTURES[:1])[0] == [pytest.approx(0.85)]
    (request,) = server.requests
    assert (request["logprobs"], request["top_logprobs"], request["max_completion_tokens"]) == (True, 20, 1)
    assert request["messages"][0]["content"][1]["text"].startswith('Does this picture show "a red dog"?')


def test_a_clear_no_is_zero_and_not_missing(served):
    scorer, _ = served(lambda request: first_tokens(No=0.9, no=0.1))
    assert score(scorer, ["a"], PICTURES[:1])[0] == [0.0]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("yes", "the server gave no log-probs"),
        (first_tokens(The=0.8, Yes=0.2), "its first token is 'The' (0.80)"),
    ],
)
def test_without_a_probability_there_is_no_score(served, answer, cause):
    scorer, _ = served(lambda request: answer)
    scores, extras = score(scorer, ["a", "b"], PICTURES)
    assert scores == [None, None]
    assert cause in extras["cause"][0]


def about(request):
    return request["messages"][0]["content"][-1]["text"]


def chance_by_word(request):
    for word, chance in {"dog": 0.9, "red": 0.4, "tail": 0.5}.items():
        if word in about(request):
            return first_tokens(Yes=chance, No=1 - chance)
    return "not a chance"


def test_decomposed_is_the_mean_over_the_questions(served):
    scorer, _ = served(chance_by_word, Decomposed)
    questions = [["Is there a dog?", "Is it red?"], ["A tail?"], [], ["A dog?", "A cat?"]]
    scores, extras = score(scorer, ["p"] * 4, PICTURES * 2, questions=questions)
    assert scores == [pytest.approx(0.65), pytest.approx(0.5), None, None]
    assert extras["reason"] == ["least sure: Is it red? (0.40)", "least sure: A tail? (0.50)", "", ""]
    assert extras["cause"][:3] == ["", "", "the column 'questions' holds no question"]
    assert "no log-probs" in extras["cause"][3]


def test_decomposed_has_questions_written_once_a_prompt(served, chat_server):
    def write(request):
        if "dog" not in about(request):
            return "?"
        return json.dumps(["A dog?", "Is it red?" if "a red dog" in about(request) else "A tail?"])

    writer = chat_server(write)
    scorer, _ = served(chance_by_word, Decomposed, writer={"base_urls": [writer.url], "model": "w"})
    prompts = ["a red dog", "a dog", "a red dog", "a cow"]
    for _ in range(2):
        scores, extras = score(scorer, prompts, PICTURES * 2)
        assert scores == [pytest.approx(0.65), pytest.approx(0.7), pytest.approx(0.65), None]
        assert "no list of questions: '?'" in extras["cause"][3]
    assert len(writer.requests) == 4, "three prompts, and once more the one that could not be read"


def test_decomposed_with_a_local_model(tiny_vlm, local):
    scorer = Decomposed(model=str(tiny_vlm), dtype="float32", device="cpu", least_mass=0.01)
    scores, _ = score(scorer, ["p"], PICTURES[:1], questions=[["dog", "cat blue"]])
    single = PYes(
        model=str(tiny_vlm),
        dtype="float32",
        device="cpu",
        question="{prompt} Answer with yes or no only.",
        least_mass=0.01,
    )
    parts, _ = score(single, ["dog", "cat blue"], PICTURES[:1] * 2)
    assert scores == [sum(parts) / 2]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "either `judge`"),
        ({"model": "m", "judge": {"base_urls": ["http://a/v1"], "model": "m"}}, "either `judge`"),
        ({"model": "m", "question": "Is it good?"}, "question must hold {prompt}"),
        ({"model": "m", "least_mass": 0.0}, "least_mass"),
        ({"judge": {"base_urls": ["http://a/v1"]}}, "the key 'model' is missing"),
        ({"judge": {"base_urls": ["http://a/v1"], "xmodel": "m", "model": "m"}}, "xmodel"),
        ({"judge": {"base_urls": ["a"], "model": "m"}}, "no address"),
        ({"model": "m", "dtype": "int8"}, "dtype"),
    ],
)
def test_parameters_are_checked_before_anything_loads(params, words):
    (problem,) = check_scorer("r3_rl.rewards.p_yes:PYes", params)
    assert words in problem
    with pytest.raises(InputError) as raised:
        load_scorer("r3_rl.rewards.p_yes:PYes", params)
    assert words in str(raised.value)
