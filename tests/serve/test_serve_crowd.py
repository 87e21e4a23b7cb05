"""Many senders together: nobody hangs, nobody gets another's answer, and too many are told when to come again."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from r3_rl.evaluate.loading import Loaded
from r3_rl.evaluate.refiner import Refiner
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.serve.command import running
from r3_rl.serve.limits import ServeLimits
from r3_rl.serve.studio import Studio, StudioSettings
from r3_rl.web.refusals import Refusal
from r3_rl.worlds.base import find_world
from tests.serve.conftest import data_url, levels_apart, picture_of


class Held(BagelPolicy):
    """Writes only when it is let, and fails on a prompt that asks for it."""

    def __init__(self, policy):
        super().__init__(policy.model, policy.reader)
        self.entered, self.go = threading.Semaphore(0), threading.Event()
        self.written = []

    def write(self, contexts, sampling, seeds, heard=None):
        self.entered.release()
        assert self.go.wait(60)
        texts = [piece.text for context in contexts for piece in context if hasattr(piece, "text")]
        self.written += texts
        if "purple" in " ".join(texts):
            raise RuntimeError("a fault of the model")
        return super().write(contexts, sampling, seeds, heard)


@contextmanager
def held_server(loaded, **limits):
    """A server whose model waits to be let go."""
    policy = Held(loaded.policy)
    settings = StudioSettings(rounds=0, limits=ServeLimits(**limits))
    with running(Studio(Loaded(policy=policy, loop=loaded.loop, adapted=False), settings)) as url:
        try:
            yield policy, url
        finally:
            policy.go.set()


def ask(url, prompt="a cross", **fields):
    return httpx.post(f"{url}/v1/images/generations", json={"prompt": prompt, "seed": 0, **fields}, timeout=120)


@pytest.mark.slow
def test_64_senders_at_once_each_get_their_own_answer(loaded):
    pipe = Refiner(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)
    prompts = find_world().prompts(32, split="held_out", seed=0)
    rows = [(prompt.text, seed) for seed, prompt in enumerate(prompts)]
    expected = [pipe(prompt, num_rounds=1, seed=seed) for prompt, seed in rows]
    studio = Studio(loaded, StudioSettings(adapter="shipped"))
    with running(studio) as url, OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=120) as client:

        def draw(number):
            prompt, seed = rows[number]
            return client.images.generate(prompt=prompt, extra_body={"seed": seed, "rounds": 1}).data[0]

        def question(number):
            image = {"type": "image_url", "image_url": {"url": data_url(expected[number].images[0])}}
            parts = [image, {"type": "text", "text": "how many circles ?"}]
            return client.chat.completions.create(
                model="base", messages=[{"role": "user", "content": parts}], max_tokens=64
            ).choices[0]

        thoughts = [question(number) for number in range(32)]  # alone, one after the other
        calls, made = studio.worker.num_calls, studio.worker.num_rows
        with ThreadPoolExecutor(64) as pool:
            drawn = [pool.submit(draw, number) for number in range(32)]
            answered = [pool.submit(question, number) for number in range(32)]
            images = [each.result(timeout=120) for each in drawn]
            answers = [each.result(timeout=120) for each in answered]
        batch = (studio.worker.num_rows - made) / (studio.worker.num_calls - calls)
    assert len({out.images[0].tobytes() for out in expected}) == 32
    for image, out in zip(images, expected, strict=True):
        assert levels_apart(picture_of(image.b64_json), out.images[0]) <= 2
        assert image.model_extra["r3"]["critiques"] == out.critiques[0]
    assert [each.message for each in answers] == [each.message for each in thoughts]
    assert len({str(each.message) for each in answers}) > 5
    assert batch > 3


def wait_until(happened):
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("limits", "status", "kind"),
    [({"max_waiting": 2}, 503, "server_error"), ({"per_address": 2}, 429, "rate_limit_error")],
)
def test_one_request_too_many_is_told_when_to_come_again(loaded, limits, status, kind):
    with held_server(loaded, **limits) as (policy, url), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url) for _ in range(8)]
        assert policy.entered.acquire(timeout=60)
        wait_until(lambda: sum(each.done() for each in asked) == 6)  # while the model is held, all but two are answered
        for each in asked:
            if each.done():
                late = each.result()
                assert late.status_code == status
                assert late.json()["error"]["type"] == kind
                assert late.json()["error"]["message"].endswith("requests are waiting") or status == 429
                assert 1 <= int(late.headers["retry-after"]) <= 60
        assert httpx.get(f"{url}/health").status_code == 200
        policy.go.set()
        assert sorted(each.result().status_code for each in asked) == [200, 200, *[status] * 6]
        assert ask(url).status_code == 200


def test_the_openai_client_comes_again_by_itself(loaded):
    with held_server(loaded, max_waiting=1) as (policy, url), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, url)
        assert policy.entered.acquire(timeout=60)
        with OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=4, timeout=120) as client:
            second = pool.submit(client.images.generate, prompt="a cross")
            time.sleep(0.3)
            policy.go.set()
            assert first.result().status_code == 200
            assert second.result(timeout=120).data[0].b64_json


def test_who_hangs_up_is_not_worked_for(loaded):
    with held_server(loaded) as (policy, url), ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, url, "a cross")
        assert policy.entered.acquire(timeout=60)
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port))) as leaving:
            body = b'{"prompt": "two red circles"}'
            head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            leaving.sendall(head.encode() + body)
            time.sleep(0.5)
        time.sleep(0.5)
        policy.go.set()
        assert first.result().status_code == 200
        assert ask(url, "one blue square").status_code == 200
    assert "a cross" in policy.written and "two red circles" not in policy.written


def test_a_row_that_fails_takes_no_other_with_it(loaded):
    with held_server(loaded) as (policy, url), ThreadPoolExecutor(5) as pool:
        first = pool.submit(ask, url, "a cross")
        assert policy.entered.acquire(timeout=60)
        rest = [pool.submit(ask, url, prompt) for prompt in ("a circle", "a purple cross", "a square", "a triangle")]
        time.sleep(0.5)
        policy.go.set()
        assert first.result().status_code == 200
        answers = [each.result() for each in rest]
        assert [each.status_code for each in answers] == [200, 500, 200, 200]
        assert answers[1].json()["error"] == {
            "message": "the model failed on this request; the server's log says why",
            "type": "server_error",
            "param": None,
            "code": None,
        }


def test_a_stream_that_fails_ends_with_an_error(loaded):
    question = {"messages": [{"role": "user", "content": "a purple cross"}], "stream": True}
    with held_server(loaded) as (policy, url):
        policy.go.set()
        answer = httpx.post(f"{url}/v1/chat/completions", json=question, timeout=60)
    assert answer.status_code == 200 and answer.text.count("data: ") == 1
    assert "the model failed on this request" in answer.text


def test_images_beyond_the_room_for_all_are_told_to_come_again(loaded):
    image = Image.new("RGB", (30, 30))
    settings = StudioSettings(limits=replace(ServeLimits(), held_pixels=800))
    studio = Studio(Loaded(policy=loaded.policy, loop=loaded.loop, adapted=False), settings)
    with running(studio) as url:
        parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": "how many ?"}]
        answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_what_waits_when_the_server_ends_is_refused(loaded):
    policy = Held(loaded.policy)
    studio = Studio(Loaded(policy=policy, loop=loaded.loop, adapted=False), StudioSettings())
    clients = [studio.worker.client(base=False) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool, clients[0], clients[1]:
        pipe = Refiner(policy, loaded.loop, tokenizer=policy.tokenizer)
        first = pool.submit(pipe.with_policy(clients[0]), "a cross", num_rounds=0, seed=0)
        assert policy.entered.acquire(timeout=60)
        second = pool.submit(pipe.with_policy(clients[1]), "a circle", num_rounds=0, seed=0)
        time.sleep(0.2)
        closing = threading.Thread(target=studio.close)
        closing.start()
        with pytest.raises(Refusal, match="the server is stopping"):
            second.result(timeout=60)
        policy.go.set()
        with pytest.raises(Refusal, match="the server is stopping"):  # its plan was written, its draft is refused
            first.result(timeout=60)
        closing.join(timeout=60)
        assert not closing.is_alive()
