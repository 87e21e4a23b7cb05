"""What a stranger may send: every mistake is one line in OpenAI's shape, nothing is fetched, and nothing is a 500."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
import struct
import zlib

import httpx
import pytest
from PIL import Image

from r3_rl.evaluate.loading import Loaded
from r3_rl.serve.command import running
from r3_rl.serve.limits import ServeLimits
from r3_rl.serve.studio import Studio, StudioSettings
from tests.serve.conftest import data_url, png_of

DRAW, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
IMAGE = Image.new("RGB", (36, 36))
DOT = data_url(IMAGE)


def talk(*parts, **fields):
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 4, **fields}


def text(words="how many circles ?"):
    return {"type": "text", "text": words}


def shown(url):
    return {"type": "image_url", "image_url": {"url": url}}


def claiming(width, height):
    """A small PNG whose header claims any size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"none") + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(file).decode()


def said(answer):
    """The error of an answer: one line, in the four fields."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) <= 500
    return error


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (DRAW, b"", 400, "the body is not JSON"),
        (DRAW, b"[" * 200_000, 400, "the body is not JSON"),
        (DRAW, b'{"n": ' + b"9" * 5000 + b"}", 400, "the body is not JSON"),
        (DRAW, [], 400, "the body is not a JSON object"),
        (DRAW, {}, 400, "prompt: Field required"),
        (DRAW, {"prompt": None}, 400, "prompt: Field required"),
        (DRAW, {"prompt": 7}, 400, "prompt: Input should be a valid string"),
        (DRAW, {"prompt": "  "}, 400, "prompt: empty"),
        (DRAW, {"prompt": "a " * 2001}, 413, "prompt: 4002 letters; at most 4000 are taken"),
        (DRAW, b'{"prompt": "a \\ud800 cross"}', 400, "prompt: half of a surrogate pair is not a letter"),
        (DRAW, {"prompt": "a cross", "n": 0}, 400, "n: Input should be greater than or equal to 1"),
        (DRAW, {"prompt": "a cross", "n": 9}, 400, "n: 9; at most 8"),
        (DRAW, {"prompt": "a cross", "rounds": 9}, 400, "rounds: 9; at most 8"),
        (DRAW, {"prompt": "a cross", "rounds": -1}, 400, "rounds: Input should be greater than or equal to 0"),
        (DRAW, {"prompt": "a cross", "seed": -1}, 400, "seed: Input should be greater than or equal to 0"),
        (DRAW, {"prompt": "a cross", "seed": 2**63}, 400, "seed: Input should be less than"),
        (DRAW, {"prompt": "a cross", "size": "36"}, 400, "size: this model draws 36x36; leave it out, or say '36x36'"),
        (DRAW, b'{"prompt": "a cross", "temperature": NaN}', 400, "temperature: Input should be a finite number"),
        (DRAW, {"prompt": "a cross", "response_format": "url"}, 400, "'response_format' cannot be followed"),
        (DRAW, {"prompt": "a cross", "model": "dall-e-3"}, 404, "model: no model is called 'dall-e-3'"),
        (EDIT, {"prompt": "add a cross"}, 400, "image"),
        (EDIT, {"prompt": "add a cross", "image": "http://127.0.0.1/a.png"}, 400, "an image by address is not fetched"),
        (EDIT, {"prompt": "add a cross", "image": DOT, "mask": DOT}, 400, "'mask' cannot be followed"),
        (EDIT, {"prompt": "add a zebra", "image": DOT}, 400, "the model does not know 'zebra'"),
        (CHAT, {"messages": []}, 400, "messages: List should have at least 1 item"),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role: Input should be"),
        (CHAT, talk(), 400, "messages: empty"),
        (CHAT, talk({"type": "video"}), 400, "messages.0.content"),
        (CHAT, talk(text("how " * 8001)), 413, "messages: 32004 letters; at most 32000 are taken"),
        (CHAT, talk(shown("file:///etc/passwd"), text()), 400, "an image by address is not fetched"),
        (CHAT, talk(shown("data:image/png;base64,@@@"), text()), 400, "the data URL of an image is not base64"),
        (CHAT, talk(shown("data:image/png;base64,AAAA"), text()), 400, "an image that is not a PNG, JPEG or WebP file"),
        (CHAT, talk(shown(claiming(60_000, 600)), text()), 413, "an image of 60000 x 600 pixels; at most 16,777,216"),
        (CHAT, talk(shown(claiming(2**31 - 1, 2**31 - 1)), text()), 400, "an image that is not"),
        (CHAT, talk(shown(claiming(30, 30)), text()), 400, "a damaged image"),
        (CHAT, talk(*[shown(DOT)] * 17, text()), 400, "messages.0: more than 16 images in a conversation"),
        (CHAT, talk(text(), max_tokens=5000), 400, "max_tokens: 5000; at most 4096"),
        (CHAT, talk(text(), tools=[{"type": "function"}]), 400, "'tools' cannot be followed by this server"),
        (CHAT, talk(text("a zebra")), 400, "the model does not know 'zebra'"),
        (CHAT, talk(text(), model="x\n" * 2000), 404, "model: no model is called 'x"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            400,
            "messages: the last one is the assistant's, so nothing is asked",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_it(url, path, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(url + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert (answer.status_code, said(answer)["message"][: len(message)]) == (status, message)


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("multipart/form-data", b"--x\r\n", "the form names no boundary"),
        ("multipart/form-data; boundary=x", b"", "not a whole form"),
        ("multipart/form-data; boundary=x", b"--x\r\nhello\r\n--x--", "a part of the form has no headers"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: b\r\n\r\nhello\r\n--x--", "a part of the form has no name"),
        ("multipart/form-data; boundary=x", b"--x\r\n" * 100 + b"--x--", "not a whole form of at most 64 parts"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--',
            "a field of the form is not UTF-8",
        ),
        ("application/x-www-form-urlencoded", b"prompt=a", "the body is not JSON"),
    ],
)
def test_a_form_that_is_none_is_said(url, content_type, body, message):
    answer = httpx.post(url + EDIT, content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 400 and said(answer)["message"].startswith(message)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"POST {DRAW} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**9}\r\n\r\n".encode())
        with connection.makefile("rb") as answers:
            head = b"".join(iter(answers.readline, b"\r\n"))
            answer = head + answers.read(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"at most 20971520 are taken" in answer


def test_nothing_is_fetched_whatever_is_named(url):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        for place in (address, address.upper(), f"data:text/html,{address}", f"//{address[5:]}"):
            assert httpx.post(url + CHAT, json=talk(shown(place), text())).status_code == 400
        with pytest.raises(BlockingIOError):
            trap.accept()


@pytest.mark.slow
def test_mutants_of_good_requests_are_never_a_fault_of_the_server(url):
    rng = random.Random(0)
    good = [
        (DRAW, json.dumps({"prompt": "a cross", "n": 1, "rounds": 0, "seed": 1, "intermediate": True}).encode()),
        (CHAT, json.dumps(talk(shown(DOT), text(), stream=False, temperature=0.5, n=1)).encode()),
        (EDIT, json.dumps({"prompt": "add a red cross top left", "image": DOT, "seed": 1}).encode()),
    ]
    statuses = set()
    with httpx.Client(timeout=60) as client:
        for number in range(300):
            path, body = good[number % 3]
            mutant = bytearray(body)
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(len(mutant))
                mutant[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
            answer = client.post(url + path, content=bytes(mutant), headers={"Content-Type": "application/json"})
            statuses.add(answer.status_code)
            if answer.status_code != 200:
                said(answer)
    assert statuses <= {200, 400, 404, 413} and 400 in statuses


def test_paths_and_methods_that_are_none_are_errors_of_the_same_shape(url):
    for method, path, status in (("GET", "/v1/completions", 404), ("GET", CHAT, 405), ("GET", "/docs", 404)):
        answer = httpx.request(method, url + path)
        assert answer.status_code == status and said(answer)["message"].startswith(f"{method} {path}: ")


def test_a_token_is_asked_for_everywhere_but_for_the_health(loaded):
    studio = Studio(Loaded(policy=loaded.policy, loop=loaded.loop, adapted=False), StudioSettings())
    with running(studio, token="secret") as url:
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            for method, path in (("GET", "/v1/models"), ("POST", DRAW), ("POST", EDIT), ("POST", CHAT)):
                answer = httpx.request(method, url + path, headers=headers)
                assert (answer.status_code, said(answer)["type"]) == (401, "authentication_error")
                assert answer.headers["www-authenticate"] == "Bearer"
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer secret"})
        assert [model["id"] for model in answer.json()["data"]] == ["base"]


def test_limits_are_those_that_were_set(loaded):
    settings = StudioSettings(limits=ServeLimits(image_pixels=100, body_bytes=3000, n=1))
    with running(Studio(Loaded(policy=loaded.policy, loop=loaded.loop, adapted=False), settings)) as url:
        files = {"image": ("a.png", png_of(IMAGE), "image/png")}
        answer = httpx.post(url + EDIT, data={"prompt": "add a cross"}, files=files)
        assert (answer.status_code, said(answer)["message"]) == (
            413,
            "an image of 36 x 36 pixels; at most 100 in all are taken",
        )
        assert httpx.post(url + DRAW, content=b"x" * 3001).status_code == 413
        assert httpx.post(url + DRAW, json={"prompt": "a cross", "n": 2}).status_code == 400
