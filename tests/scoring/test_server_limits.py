"""What one sender can cost a server: little time, little memory, and never the others' place."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import msgpack
import numpy as np
import psutil
import pytest

from r3_rl.process import MARKER
from r3_rl.scoring.asked import ScorerSpec
from r3_rl.scoring.base import scorer_info
from r3_rl.scoring.png import encode_png
from r3_rl.scoring.registry import load_scorer
from r3_rl.scoring.server import ServerSettings, running
from r3_rl.scoring.wire import Limits, Request, pack_request, unpack_answer
from r3_rl.web.connections import ConnectionLimits
from tests.scoring.test_scorer_server import asking, lengths, post, said

QUICK = ConnectionLimits(head_timeout_s=0.5, per_address=8, total=16)


def spec(scorer, **fields):
    return ScorerSpec(name=fields.pop("name", "s"), scorer=scorer, params={}, **fields)


def place(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def everything(connection, timeout=60.0):
    """What the server sends until it hangs up."""
    connection.settimeout(timeout)
    answer = b""
    try:
        while chunk := connection.recv(1 << 16):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize("start", [b"", b"G", HEAD[:30]])
def test_a_connection_without_a_request_is_closed(start):
    with running([spec(lengths)], settings=ServerSettings(connections=QUICK)) as url:
        with socket.create_connection(place(url)) as idle:
            idle.sendall(start)
            began = time.monotonic()
            assert everything(idle).startswith(b"HTTP/1.1 408 ")
            assert 0.3 < time.monotonic() - began < 30
        with socket.create_connection(place(url)) as again:  # a request, and then half of another one
            again.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert again.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            again.sendall(b"G")
            assert b"HTTP/1.1 408 " in everything(again)


def test_connections_that_drip_a_head_are_closed_too():
    with running([spec(lengths)], settings=ServerSettings(connections=QUICK)) as url:
        with socket.create_connection(place(url)) as slow, pytest.raises(OSError):
            began = time.monotonic()
            for letter in HEAD[:-4] * 100:
                slow.sendall(bytes([letter]))
                time.sleep(0.02)
        assert time.monotonic() - began < 30


def test_idle_connections_lock_nobody_out():
    limits = ConnectionLimits(head_timeout_s=600, per_address=8, total=16)
    with running([spec(lengths)], settings=ServerSettings(connections=limits)) as url:
        idle = [socket.create_connection(place(url)) for _ in range(40)]
        began = time.monotonic()
        for _ in range(5):
            assert urlopen(f"{url}/health", timeout=60).status == 200
            assert post(url, asking("abc"))[0] == 200
        assert time.monotonic() - began < 60
        for connection in idle:
            connection.close()


def test_a_request_under_way_keeps_its_place_and_further_connections_are_sent_away():
    entered, release = threading.Semaphore(0), threading.Event()

    def waits(completions):
        entered.release()
        release.wait(60)
        return [1.0] * len(completions)

    limits = ConnectionLimits(head_timeout_s=0.2, per_address=2, total=16)
    with running([spec(waits)], settings=ServerSettings(connections=limits)) as url, ThreadPoolExecutor(2) as pool:
        under_way = [pool.submit(post, url, asking(text)) for text in "ab"]
        for _ in under_way:
            assert entered.acquire(timeout=60)
        with socket.create_connection(place(url)) as late:
            assert everything(late).startswith(b"HTTP/1.1 503 ")
        release.set()
        assert [each.result()[0] for each in under_way] == [200, 200]
        assert post(url, asking("c"))[0] == 200


def test_a_body_that_pauses_is_given_up():
    with running([spec(lengths)], settings=ServerSettings(pause_timeout_s=0.3, max_waiting=1)) as url:
        with socket.create_connection(place(url)) as pausing:
            pausing.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\nConnection: close\r\n\r\nabc")
            answer = everything(pausing)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"the sender paused for 0.3 s" in answer
        assert post(url, asking("a"))[0] == 200


def body_of(samples, images=()):
    packed = msgpack.packb({"schema": 1, "scorer": None, "samples": samples, "image_bytes": [len(i) for i in images]})
    return struct.pack(">I", len(packed)) + packed + b"".join(images)


def test_equal_samples_of_a_request_are_scored_once():
    seen = []

    @scorer_info(deterministic=True)
    def mean(images, log_extra):
        seen.append(len(images))
        log_extra("reason", [str(image.mean()) for image in images])
        log_extra("cause", ["too dark" if not image.any() else "" for image in images])
        return [float(image.mean()) if image.any() else None for image in images]

    images = [encode_png(np.full((8, 8, 3), grey, np.uint8)) for grey in (9, 0)]
    numbers = [0, 1, 0, 0, 1]
    with running([spec(mean)]) as url:
        answer = unpack_answer(post(url, body_of([{"images": number} for number in numbers], images))[2])
    assert answer.scores == [9.0, None, 9.0, 9.0, None]
    assert answer.reasons == ["9.0", "0.0", "9.0", "9.0", "0.0"]
    assert answer.causes == {"1": "too dark", "4": "too dark"}
    assert seen == [2]


def test_columns_that_the_scorer_does_not_take_cost_nothing_and_others_have_a_limit():
    def everything_given(completions, **columns):
        return [float(len(columns))] * len(completions)

    samples = [{"completions": "a", **{f"k{n}_{i}": 0 for i in range(60)}} for n in range(200)]
    with running([spec(lengths, name="few"), spec(everything_given, name="all")]) as url:
        start = time.monotonic()
        asked = [pack_request(Request(scorer=name, samples=samples, images=[])) for name in ("few", "all")]
        few, everything_ = (post(url, body) for body in asked)
        assert time.monotonic() - start < 30
    assert unpack_answer(few[2]).scores == [1.0] * 200
    assert (everything_[0], said(everything_[2])) == (
        413,
        "12001 different columns in a request; at most 64 are taken",
    )


@pytest.mark.parametrize(
    "include",
    [
        [{"class": "circle", "count": 10**9}],
        [{"class": "circle", "count": 1}] * 50_000,
        [{"class": "circle", "count": -1}],
        [],
    ],
    ids=["a large count", "many groups", "a negative count", "nothing"],
)
def test_more_objects_than_the_grid_holds_are_not_judged(include):
    picture = encode_png(np.zeros((36, 36, 3), np.uint8))
    samples = [{"images": 0, "include": include}, {"images": 0, "include": [{"class": "circle", "count": 9}]}]
    with running([spec(load_scorer("shapes"))]) as url:
        start = time.monotonic()
        answer = unpack_answer(post(url, body_of(samples, [picture]))[2])
        assert time.monotonic() - start < 30
    assert answer.scores[0] is None and answer.scores[1] == 0.0
    assert answer.causes == {"0": "it asks for no object, or for more than the 9 cells hold"}


def test_the_limits_are_told_to_clients():
    with running([spec(lengths)], settings=ServerSettings(limits=Limits(keys=3))) as url:
        assert b'"keys":3' in urlopen(f"{url}/info", timeout=60).read()


@pytest.mark.processes
def test_what_a_large_request_took_goes_back_to_the_system(tmp_path):
    command = [sys.executable, "-m", "r3_rl", "rewards", "serve", "sharpness", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != MARKER and "MALLOC" not in name}
    small, large = (encode_png(np.zeros((side, side, 3), np.uint8)) for side in (36, 2048))
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split(" at ")[1].split()[0]
            server = psutil.Process(process.pid)
            for _ in range(5):
                assert post(url, body_of([{"images": 0}], (small,)))[0] == 200
            before = server.memory_info().rss
            with ThreadPoolExecutor(3) as pool:
                asked = [pool.submit(post, url, body_of([{"images": 0}], (large,))) for _ in range(3)]
                assert [each.result()[0] for each in asked] == [200] * 3
            deadline = time.monotonic() + 60
            while (after := server.memory_info().rss) > 1.1 * before and time.monotonic() < deadline:
                time.sleep(0.2)
            assert after <= 1.1 * before, f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB"
        finally:
            process.kill()
