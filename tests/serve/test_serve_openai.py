"""The official client against a real server: it draws, edits, asks, streams, and gets what `Refiner` gives."""

from __future__ import annotations

import json
import threading

import httpx
import openai
import pytest
import torch

from r3_rl.evaluate.loading import Loaded
from r3_rl.evaluate.refiner import Refiner
from r3_rl.modalities import ImagePiece, TextPiece, TextSegment
from r3_rl.pixels import from_picture
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.base import Sampling
from r3_rl.rollout.rows import row_seeds
from r3_rl.serve.command import running
from r3_rl.serve.conversation import Answers, answer_of
from r3_rl.serve.streaming import Chunks
from r3_rl.serve.studio import Studio, StudioSettings
from tests.serve.conftest import data_url, levels_apart, picture_of, png_of

PROMPT = "one yellow triangle and two green circles"
QUESTION = "how many circles ?"
GREEDY = Sampling(max_new_tokens=64, temperature=0.0)


@pytest.fixture(scope="module")
def pipe(loaded):
    return Refiner(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)


@pytest.fixture(scope="module")
def drawn(pipe):
    """An image that the model can be asked about."""
    return pipe(PROMPT, num_rounds=0, seed=1).images[0]


def asked(image, question=QUESTION):
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def test_the_adapter_and_its_base_are_two_models(client):
    assert [model.id for model in client.models.list()] == ["shipped", "base"]


@pytest.mark.parametrize("model", ["shipped", "base"])
def test_images_are_those_of_the_refiner_with_the_way_they_were_made(client, pipe, loaded, model):
    answer = client.images.generate(model=model, prompt=PROMPT, n=2, extra_body={"seed": 0, "rounds": 2})
    if model == "base":
        with loaded.policy.reference():
            out = pipe([PROMPT] * 2, num_rounds=2, seed=0)
    else:
        out = pipe([PROMPT] * 2, num_rounds=2, seed=0)
    assert answer.model_extra["r3"] == {"model": model, "seed": 0, "rounds": 2}
    for number, item in enumerate(answer.data):
        made = item.model_extra["r3"]
        shown = [picture_of(each["b64_json"]) for each in made["images"]] + [picture_of(item.b64_json)]
        assert len(shown) == len(out.rounds[number]) == made["num_rounds"] + 1
        assert max(map(levels_apart, shown, out.rounds[number])) <= 1  # sums of a batch round differently
        assert made["critiques"] == out.critiques[number]
        assert made["stopped_after"] == out.stopped_after[number]
        assert made["scores"] == out.scores[number]
        assert made["plan"].startswith("<think>")


def test_adapter_and_base_draw_differently(client):
    one, other = (
        client.images.generate(model=model, prompt=PROMPT, extra_body={"seed": 0, "rounds": 0}).data[0].b64_json
        for model in ("shipped", "base")
    )
    assert levels_apart(picture_of(one), picture_of(other)) > 5


def test_without_a_seed_the_answer_says_which_was_taken(client):
    first = client.images.generate(prompt=PROMPT, extra_body={"rounds": 0, "intermediate": False})
    seed = first.model_extra["r3"]["seed"]
    again = client.images.generate(prompt=PROMPT, extra_body={"rounds": 0, "seed": seed})
    assert levels_apart(picture_of(first.data[0].b64_json), picture_of(again.data[0].b64_json)) == 0
    assert "images" not in first.data[0].model_extra["r3"] and again.data[0].model_extra["r3"]["images"] == []


def test_an_edit_is_one_refinement_from_a_form_and_from_json(client, pipe, drawn):
    asked_for = {"prompt": "remove yellow triangle top left", "n": 2}
    answer = client.images.edit(image=("a.png", png_of(drawn), "image/png"), **asked_for, extra_body={"seed": 4})
    expected = pipe.edit(drawn, asked_for["prompt"], num_images=2, seed=4)
    shown = [picture_of(item.b64_json) for item in answer.data]
    assert max(map(levels_apart, shown, expected)) <= 1
    by_json = client.post(
        "/images/edits", body={**asked_for, "image": data_url(drawn), "seed": 4}, cast_to=openai.types.ImagesResponse
    )
    assert [item.b64_json for item in by_json.data] == [item.b64_json for item in answer.data]


def test_a_question_about_an_image_is_answered_by_the_policy(client, loaded, drawn):
    answer = client.chat.completions.create(model="shipped", messages=asked(drawn), max_tokens=64, temperature=0)
    context = (ImagePiece(image=from_picture(drawn)), TextPiece(text=QUESTION))
    (text,) = loaded.policy.write([context], Sampling(max_new_tokens=64, temperature=0.0), row_seeds(0, 0, 1))
    thought, _, word = text.text.removeprefix("<think>").partition("</think>")
    message = answer.choices[0].message
    assert (message.content, message.model_extra["reasoning_content"]) == (word.strip(), thought.strip())
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(text.token_ids)
    assert answer.usage.prompt_tokens == loaded.policy.num_tokens([text]) - len(text.token_ids) > 9  # 9 of the image


def test_max_tokens_ends_an_answer_and_temperature_with_a_seed_is_repeated(client, drawn):
    short = client.chat.completions.create(model="shipped", messages=asked(drawn), max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    hot = {"model": "shipped", "messages": asked(drawn), "n": 4, "temperature": 2.0, "max_tokens": 32}
    one, again, other = (client.chat.completions.create(**hot, seed=seed) for seed in (1, 1, 2))
    said = [[(c.message.content, c.message.model_extra) for c in each.choices] for each in (one, again, other)]
    assert said[0] == said[1] != said[2]
    assert len({content for content, _ in said[0]}) > 1


def test_a_stream_brings_what_the_whole_answer_says(client, drawn):
    question = {"model": "shipped", "messages": asked(drawn), "max_tokens": 64}
    whole = client.chat.completions.create(**question)
    events = list(client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True}))
    deltas = [event.choices[0].delta for event in events if event.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert deltas[0].role == "assistant"
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].usage == whole.usage


class Halting(BagelPolicy):
    """Goes on with a text only when somebody has let it."""

    def __init__(self, policy):
        super().__init__(policy.model, policy.reader)
        self.go = threading.Event()
        self.done = False

    def write(self, contexts, sampling, seeds, heard=None):
        def wait_and_hear(hear):
            def told(text):
                hear(text)
                assert len(text.split()) < 3 or self.go.wait(60)

            return told

        texts = super().write(contexts, sampling, seeds, [hear and wait_and_hear(hear) for hear in heard])
        self.done = True
        return texts


def test_words_arrive_while_the_text_is_still_written(loaded, drawn):
    policy = Halting(loaded.policy)
    question = {"messages": asked(drawn), "max_tokens": 64, "stream": True}
    studio = Studio(Loaded(policy=policy, loop=loaded.loop, adapted=False), StudioSettings())
    with (
        running(studio) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json=question, timeout=60) as answer,
    ):
        try:
            lines = filter(None, answer.iter_lines())
            first = next(line for line in lines if "reasoning_content" in line)
            assert not policy.done
        finally:
            policy.go.set()
        rest = list(lines)
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in [first, *rest[:-1]]]
    whole = policy.write([(ImagePiece(image=from_picture(drawn)), TextPiece(text=QUESTION))], GREEDY, [0], [None])[0]
    thought, content = ("".join(d.get(name, "") for d in deltas) for name in ("reasoning_content", "content"))
    assert f"<think> {thought} </think> {content}" == whole.text
    assert rest[-1] == "data: [DONE]" and len(deltas) > 5


@pytest.mark.parametrize(
    ("written", "ended", "thought", "content"),
    [
        (
            ["<think> a", "<think> a b </think", "<think> a b </think> c", "<think> a b </think> c d"],
            True,
            "a b",
            "c d",
        ),
        (["<think> a", "<think> a b"], False, "a b", "<think> a b"),
        (["c", "c d", "c", "c d e"], True, "", "c d e"),  # written again after its batch had failed
    ],
)
def test_the_pieces_of_a_stream_are_its_answer(written, ended, thought, content):
    text = TextSegment(context=(), token_ids=(1,), log_probs=torch.zeros(1), text=written[-1], ended=ended)
    found = Answers(model="m", answers=[answer_of(text)], prompt_tokens=1, completion_tokens=1)
    assert found.answers[0].content == content
    chunks = Chunks("m", 1)
    events = [e for text in written for e in chunks.grown([text])] + list(chunks.ended(found, include_usage=False))
    deltas = [json.loads(e.removeprefix("data: "))["choices"][0]["delta"] for e in events[:-1]]
    assert "".join(d.get("content", "") for d in deltas) == content
    assert "".join(d.get("reasoning_content", "") for d in deltas) == thought


def test_a_conversation_reads_system_words_and_earlier_answers(client, drawn):
    earlier = [*asked(drawn), {"role": "assistant", "content": "two"}]
    more = [*earlier, {"role": "user", "content": "how many triangles ?"}]
    answer = client.chat.completions.create(model="shipped", messages=more, max_tokens=64)
    assert answer.usage.prompt_tokens > 20


def test_an_error_is_one_of_the_client_s_classes_and_says_what_to_do(client, drawn):
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt-4o'; there are 'shipped', 'base'"):
        client.chat.completions.create(model="gpt-4o", messages=asked(drawn))
    with pytest.raises(openai.BadRequestError, match="does not know 'zebra'"):
        client.images.generate(prompt="a zebra")
    with pytest.raises(openai.BadRequestError, match="size: this model draws 36x36") as caught:
        client.images.generate(prompt="a cross", size="1024x1024")
    assert caught.value.param == "size" and caught.value.type == "invalid_request_error"


def test_an_image_is_read_as_a_viewer_shows_it(client, drawn):
    transparent = drawn.convert("RGBA")
    transparent.putalpha(255)
    answers = []
    for image in (drawn, transparent):
        answer = client.chat.completions.create(model="shipped", messages=asked(image), max_tokens=64)
        answers.append(answer.choices[0].message.model_extra["reasoning_content"])
    assert answers[0] == answers[1]
