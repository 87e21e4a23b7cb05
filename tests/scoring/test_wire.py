"""What travels between a run and a server: the same comes out as went in, and anything else ends in one clean error."""

import pickle
import random
import struct
import time
import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest

from r3_rl.errors import DataError
from r3_rl.scoring.parcels import pack_parcels
from r3_rl.scoring.png import decode_png, encode_png
from r3_rl.scoring.wire import (
    Answer,
    Limits,
    Request,
    ScorerCard,
    WireError,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)

SAMPLES = [{"prompts": "a dog", "include": [{"class": "dog", "count": 1}], "images": 0, "share": 0.25, "none": None}]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def envelope(images=(), **fields):
    whole = {"schema": 1, "scorer": None, "samples": [{}], "image_bytes": [len(image) for image in images], **fields}
    packed = msgpack.packb(whole)
    return struct.pack(">I", len(packed)) + packed + b"".join(images)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width, height, mode=2):
    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (64, 48)])
def test_an_image_comes_back_as_it_went(height, width):
    image = noise(height, width)
    assert (decode_png(encode_png(image), max_pixels=64 * 48) == image).all()


def test_an_image_in_pieces_of_memory_comes_back_as_it_went():
    image = noise(8, 8)[::2, ::-1]
    assert (decode_png(encode_png(image), max_pixels=64) == image).all()


def test_a_request_comes_back_as_it_went():
    images = [encode_png(noise(4, 6)), encode_png(noise(6, 4))]
    request = unpack_request(pack_request(Request(scorer="a", samples=SAMPLES, images=images)), Limits())
    assert (request.scorer, request.samples) == ("a", SAMPLES)
    assert [bytes(image) for image in request.images] == images


def test_an_answer_comes_back_as_it_went():
    answer = Answer(fingerprint="f", scores=[0.5, None], reasons=["", "red"], causes={"1": "why"}, metrics={"m": [1.0]})
    assert unpack_answer(pack_answer(answer)) == answer


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "a body of 0 bytes is no request"),
        (pickle.dumps({"prompts": ["a dog"]}), 413, "an envelope of"),
        (struct.pack(">I", 50) + b"short", 400, "an envelope of 50 bytes in a body of 9"),
        (struct.pack(">I", 1) + b"\xc1", 400, "the envelope is no msgpack (FormatError)"),
        (struct.pack(">I", 2) + b"\xc0\xc0", 400, "the envelope is no msgpack (ExtraData)"),
        (struct.pack(">I", 3000) + b"\x91" * 3000, 400, "the envelope is no msgpack"),
        (struct.pack(">I", 5) + b"\xdd\xff\xff\xff\xff", 400, "the envelope is no msgpack"),
        (struct.pack(">I", 4) + b"\x81\xa1\xff\xc0", 400, "the envelope is no msgpack (UnicodeDecodeError)"),
        (struct.pack(">I", 3) + b"\x81\x01\x01", 400, "the envelope is no msgpack (ValueError)"),
        (struct.pack(">I", 3) + b"\xd4\x05\x00", 400, "the envelope is no msgpack (ValueError)"),
        (envelope(schema=2), 400, "the envelope: schema: Input should be 1"),
        (envelope(extra=1), 400, "the envelope: extra: Extra inputs are not permitted"),
        (envelope(samples=[]), 413, "0 samples; 1 to 256 are taken"),
        (envelope(samples=[{}] * 257), 413, "257 samples; 1 to 256 are taken"),
        (envelope(samples=[1]), 400, "the envelope: samples.0: Input should be a valid dictionary"),
        (envelope(image_bytes=[-1]), 400, "image_bytes.0: Input should be greater than or equal to 0"),
        (envelope(image_bytes=[5]), 400, "0 bytes of images where the envelope counts 5"),
        (envelope(samples=[{"images": 0}]), 400, "sample 0: 'images' names no image of the 0 that came along"),
        (envelope(samples=[{"images": "../etc"}]), 400, "'images' names no image"),
        (envelope(samples=[{"draft_images": True}], images=[b"a", b"b"]), 400, "'draft_images' names no image"),
        (
            envelope(images=[png_that_claims(4096, 4096)] * 9, samples=[{"images": i} for i in range(9)]),
            413,
            "images of 150,994,944 pixels",
        ),
    ],
)
def test_what_is_no_request_is_refused(body, status, said):
    with pytest.raises(WireError) as raised:
        unpack_request(body, Limits())
    assert said in str(raised.value)
    assert raised.value.status == status


def test_a_body_over_its_limit_is_refused():
    with pytest.raises(WireError, match="a body of 11 bytes; at most 10 are taken"):
        unpack_request(b"x" * 11, Limits(body_bytes=10))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes are no PNG"),
        (b"GIF89a" + b"\0" * 40, "not a PNG"),
        (png_that_claims(100_000, 100_000), "an image of 100000 x 100000 pixels; at most 10,000 in all"),
        (png_that_claims(0, 5), "not a PNG"),
        (png_that_claims(50, 50), "a damaged PNG"),
        (png_that_claims(4, 4, mode=0), "mode L; RGB of 8 bits"),
        (encode_png(noise(20, 20))[:600], "a damaged PNG"),
        (encode_png(noise(20, 20)).replace(b"IDAT", b"IDAX"), "a damaged PNG"),
    ],
)
def test_what_is_no_image_is_refused(data, said):
    with pytest.raises(DataError, match=said):
        decode_png(data, max_pixels=10_000)


def test_a_second_head_does_not_bring_a_larger_size():
    small = png_that_claims(4, 4)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))
    with pytest.raises(DataError):
        decode_png(small[:33] + head + small[33:], max_pixels=10_000)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), "a"]
)
def test_only_images_are_sent(image):
    with pytest.raises(DataError, match=r"give uint8 arrays \[H, W, 3\]"):
        encode_png(image)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "the answer is no msgpack"),
        (msgpack.packb([0.5]), "the answer: Input should be a valid dictionary"),
        (msgpack.packb({"schema": 1, "fingerprint": "f"}), "the answer: scores: Field required"),
        (
            msgpack.packb({"schema": 1, "fingerprint": "f", "scores": 0.5}),
            "the answer: scores: Input should be a valid list",
        ),
        (msgpack.packb({"schema": 3, "fingerprint": "f", "scores": []}), "the answer: schema: Input should be 1"),
    ],
)
def test_what_is_no_answer_is_refused(body, said):
    with pytest.raises(WireError) as raised:
        unpack_answer(body)
    assert said in str(raised.value)


def test_random_bodies_end_in_an_error_of_ours():
    dice = random.Random(0)
    sound = pack_request(Request(scorer="a", samples=SAMPLES, images=[encode_png(noise(4, 4))]))
    refused = 0
    for _ in range(3000):
        body = bytearray(sound)
        for _ in range(dice.randrange(1, 6)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        try:
            request = unpack_request(bytes(body[: dice.choice((len(body), dice.randrange(len(body))))]), Limits())
            decode_png(request.images[0], max_pixels=1000)
        except (WireError, DataError):
            refused += 1
    assert refused > 2000


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (envelope(samples=[{f"k{i}": i for i in range(65)}]), "sample 0: 65 arguments; at most 64 are taken"),
        (envelope(samples=[{"a": nested(33)}]), "sample 0: 'a' is nested deeper than 32"),
        (envelope(samples=[{"a": nested(500)}]), "sample 0: 'a' is nested deeper than 32"),
        (envelope(samples=[{"a": [{}] * 300_000}]), "the envelope holds more than 300,000 values"),
        (envelope(samples=[{"a": {str(i): i for i in range(300_001)}}]), "the envelope holds more than 300,000 values"),
        (envelope(samples=[{"a": [0] * 300_001}]), "the envelope holds more than 300,000 values"),
        (envelope(image_bytes=[0] * 100_000), "100000 images; 2 are the most for so many samples"),
        (envelope([encode_png(noise(8, 8))], samples=[{"images": 0}] * 5), "images of 320 pixels in all; at most 300"),
    ],
    ids=["keys", "depth", "great depth", "empty maps", "a large map", "a large list", "no images", "one image often"],
)
def test_work_is_bounded_before_it_is_done(body, said):
    start = time.perf_counter()
    with pytest.raises(WireError) as raised:
        unpack_request(body, Limits(total_pixels=300))
    assert said in str(raised.value)
    assert raised.value.status == 413
    assert time.perf_counter() - start < 2


def test_lists_that_claim_more_than_is_there_are_not_laid_out():
    claims = b"\xdd\x00\x04\x93\xdf" * 1000  # lists of 299,999, each the first value of the one before
    body = struct.pack(">I", len(claims)) + claims
    tracemalloc.start()
    with pytest.raises(WireError, match="no msgpack"):
        unpack_request(body, Limits())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def card(**fields):
    told = {"name": "a", "version": "1", "fingerprint": "f", "range": None, "needs": (), "takes": None}
    flags = dict.fromkeys(("deterministic", "thread_safe", "group_wise", "conversational"), False)
    return ScorerCard(**{**told, **flags, "weights_licence": "", "memory": "", **fields})


def opened(arguments, limits=None, batch_size=64, **fields):
    limits = limits or Limits()
    parcels = pack_parcels(arguments, card(**fields), limits, batch_size)
    return [unpack_request(parcel.body, limits) for parcel in parcels]


def test_a_shared_image_travels_once():
    first, second = noise(4, 4), noise(4, 4, seed=1)
    (request,) = opened(
        {"prompts": ["a", "b", "c"], "images": [first, first, second], "draft_images": [None, second, first]}
    )
    assert len(request.images) == 2
    assert [sample["images"] for sample in request.samples] == [0, 0, 1]
    assert [sample["draft_images"] for sample in request.samples] == [None, 1, 0]


def test_samples_are_parted_by_number_bytes_and_pixels():
    images = [noise(10, 10, seed) for seed in range(6)]
    arguments = {"prompts": list("abcdef"), "images": images}
    size = len(encode_png(images[0]))
    for limits, batch_size in [
        (Limits(samples=2), 64),
        (Limits(), 2),
        (Limits(total_pixels=250), 64),
        (Limits(items=16 + 2 * 4), 64),
        (Limits(body_bytes=700 + int(2.5 * size)), 64),
    ]:
        requests = opened(arguments, limits, batch_size)
        assert [len(request.samples) for request in requests] == [2, 2, 2]
        assert [sample["prompts"] for request in requests for sample in request.samples] == list("abcdef")


def test_each_use_of_a_shared_image_counts_as_the_server_counts_it():
    image = noise(10, 10)
    requests = opened({"prompts": list("abcd"), "images": [image] * 4}, Limits(total_pixels=250))
    assert [(len(request.samples), len(request.images)) for request in requests] == [(2, 1), (2, 1)]


def test_a_scorer_is_sent_what_it_reads():
    (request,) = opened({"prompts": ["a"], "images": [noise(4, 4)], "unread": [object()]}, takes=("prompts",))
    assert request.samples == [{"prompts": "a"}]
    assert not request.images


@pytest.mark.parametrize(
    ("arguments", "limits", "fields", "said"),
    [
        ({"prompts": ["a", "b"]}, Limits(samples=1), {"group_wise": True}, "a group is larger than the server takes"),
        (
            {"images": [noise(10, 10)]},
            Limits(image_pixels=99),
            {},
            "a sample is larger than the server takes: 256 samples",
        ),
        ({"mask": [np.zeros(3)]}, Limits(), {}, "column 'mask' holds a ndarray that cannot be sent"),
        ({"deep": [nested(40)]}, Limits(), {}, "column 'deep' is nested deeper than the server takes, 32"),
        ({f"c{i}": ["x"] for i in range(70)}, Limits(), {}, "a sample of 70 columns; the server takes 64"),
        ({"number": [2**70]}, Limits(), {}, "column 'number' holds a int that cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_said(arguments, limits, fields, said):
    with pytest.raises(DataError) as raised:
        opened(arguments, limits, **fields)
    assert said in str(raised.value)
