"""What a run and a server of scorers send each other: a msgpack envelope, followed by PNG images. Never pickle.

    request  = length of the envelope (4 bytes, big-endian), envelope, PNG, PNG, ...
    envelope = {schema: 1, scorer: name, samples: [{argument: value}, ...], image_bytes: [length of each PNG]}
    answer   = {schema: 1, fingerprint, scores: [number or nil], reasons: [text], causes: {index: text},
                metrics: {name: [number]}, fault: text}

In a sample the value of `images` and of `draft_images` is the number of a PNG, so an image that many samples share
travels once. `/info` and every error are JSON, to be read by people too. All that a stranger may send ends in a
`WireError`: the envelope has a limit of its own, because a byte of msgpack may become 64 bytes of Python objects.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r3_rl.errors import DataError, MissingPackageError
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.png import png_size
from r3_rl.web.refusals import Refusal

try:
    import msgpack
except ImportError as error:
    raise MissingPackageError("a server of scorers needs msgpack", hint="pip install 'r3-rl[serve]'") from error

SCHEMA = 1
MEDIA_TYPE = "application/x-msgpack"
IMAGE_ARGUMENTS = ("images", "draft_images")
_LENGTH = struct.Struct(">I")
_Size = Annotated[int, Field(ge=0)]
_Message = TypeVar("_Message", bound=BaseModel)


class WireError(Refusal):
    """Bytes from outside that are not what they should be."""


class Limits(BaseModel):
    """The most that a server takes in one request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    body_bytes: int = Field(64 << 20, ge=1)
    envelope_bytes: int = Field(8 << 20, ge=1)
    samples: int = Field(256, ge=1)
    items: int = Field(300_000, ge=1)
    """Values in the envelope, those within lists and mappings included."""
    keys: int = Field(64, ge=1)
    """Arguments of a sample."""
    depth: int = Field(32, ge=1)
    """Lists and mappings within each other, in a value of a sample."""
    image_pixels: int = Field(4096 * 4096, ge=1)
    total_pixels: int = Field(64 << 20, ge=1)
    """Of all images as samples use them: one that two samples name counts twice."""


class ScorerCard(BaseModel):
    """What `/info` says about a scorer: its `ScorerInfo`, and what decides its scores."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    name: str
    version: str
    fingerprint: str
    range: tuple[float, float] | None
    needs: tuple[str, ...]
    takes: tuple[str, ...] | None
    """Arguments that it reads; None means all."""
    deterministic: bool
    thread_safe: bool
    group_wise: bool
    conversational: bool
    weights_licence: str
    memory: str

    def info(self) -> ScorerInfo:
        """The declaration as the panel wants it; raises ValueError for a range that is none."""
        # The server itself lets a scorer that is not thread-safe do one call at a time.
        return ScorerInfo(
            range=self.range,
            needs=self.needs,
            version=f"{self.version}+{self.fingerprint}",
            deterministic=self.deterministic,
            weights_licence=self.weights_licence,
            thread_safe=True,
            group_wise=self.group_wise,
            memory=self.memory,
            conversational=self.conversational,
        )


class ServerCard(BaseModel):
    """The whole of `/info`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int
    scorers: tuple[ScorerCard, ...]
    limits: Limits


class Answer(BaseModel):
    """What a scorer said about the samples of a request, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    fingerprint: str
    scores: list[Any]
    """Numbers, and nil for what has none; the receiver checks count, type, finiteness and range."""
    reasons: list[str] = []
    """Words of the verdict, one for each sample, or nothing at all."""
    causes: dict[str, str] = {}
    """Why a sample has no score, by its index."""
    metrics: dict[str, list[float]] = {}
    fault: str = ""
    """How the scorer broke its contract; then there are no scores."""


class _Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = Field(alias="schema")
    scorer: str | None = None
    samples: list[dict[str, Any]]
    image_bytes: list[_Size]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scored; PNGs are not unpacked yet."""

    scorer: str | None
    """None asks the only scorer of the server."""
    samples: Sequence[Mapping[str, Any]]
    images: Sequence[bytes | memoryview]
    """PNG files; `samples` name them by their number."""


def pack_request(request: Request) -> bytes:
    """Return the body of a request; raises `DataError` that names the column that cannot travel.

    >>> body = pack_request(Request(scorer="length", samples=[{"completions": "a dog"}], images=[]))
    >>> unpack_request(body, Limits()).samples
    [{'completions': 'a dog'}]
    """
    fields = {"schema": SCHEMA, "scorer": request.scorer, "samples": list(request.samples)}
    lengths = [len(image) for image in request.images]
    try:
        envelope = msgpack.packb({**fields, "image_bytes": lengths})
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(_unsendable(request.samples, error), hint=_SENDABLE) from error
    return b"".join((_LENGTH.pack(len(envelope)), envelope, *request.images))


def unpack_request(body: bytes, limits: Limits) -> Request:
    """Return the request in a body; raises `WireError` for anything that is none, or that is beyond the limits.

    >>> unpack_request(b"pickle", Limits())
    Traceback (most recent call last):
    ...
    r3_rl.scoring.wire.WireError: an envelope of 1885954923 bytes; at most 8388608 are taken
    """
    if len(body) > limits.body_bytes:
        raise WireError(f"a body of {len(body)} bytes; at most {limits.body_bytes} are taken", status=413)
    if len(body) < _LENGTH.size:
        raise WireError(f"a body of {len(body)} bytes is no request")
    (length,) = _LENGTH.unpack_from(body)
    if length > limits.envelope_bytes:
        raise WireError(f"an envelope of {length} bytes; at most {limits.envelope_bytes} are taken", status=413)
    view = memoryview(body)[_LENGTH.size :]
    if length > len(view):
        raise WireError(f"an envelope of {length} bytes in a body of {len(body)}")
    envelope = _message(_Envelope, view[:length], "envelope", limits)
    if not 1 <= len(envelope.samples) <= limits.samples:
        raise WireError(f"{len(envelope.samples)} samples; 1 to {limits.samples} are taken", status=413)
    if len(envelope.image_bytes) > (most := len(IMAGE_ARGUMENTS) * len(envelope.samples)):
        raise WireError(f"{len(envelope.image_bytes)} images; {most} are the most for so many samples", status=413)
    images = _split(view[length:], envelope.image_bytes)
    for index, sample in enumerate(envelope.samples):
        _check_sample(f"sample {index}", sample, len(images), limits)
    _check_pixels(envelope.samples, images, limits)
    return Request(scorer=envelope.scorer, samples=envelope.samples, images=images)


def _check_sample(place: str, sample: Mapping[str, Any], num_images: int, limits: Limits) -> None:
    if len(sample) > limits.keys:
        raise WireError(f"{place}: {len(sample)} arguments; at most {limits.keys} are taken", status=413)
    for name in IMAGE_ARGUMENTS:
        number = sample.get(name)
        if number is not None and not (type(number) is int and 0 <= number < num_images):
            raise WireError(f"{place}: '{name}' names no image of the {num_images} that came along")
    for name, value in sample.items():
        if depth_of(value, limits.depth) > limits.depth:
            raise WireError(f"{place}: '{name[:80]}' is nested deeper than {limits.depth}", status=413)


def depth_of(value: Any, most: int) -> int:
    """Return how many lists and mappings stand within each other in a value, at most `most` + 1.

    >>> depth_of([{"a": [1]}], 10), depth_of("text", 10), depth_of([[[]]], 1)
    (3, 0, 2)
    """
    layer, depth = [value], 0
    while depth <= most and (within := [each for each in layer if isinstance(each, list | tuple | dict)]):
        layer, depth = [item for each in within for item in _items(each)], depth + 1
    return depth


def num_items(value: Any) -> int:
    """Return how many values a value holds, itself included, as `Limits.items` counts them.

    >>> num_items({"a": [1, 2], "b": None})
    5
    """
    return 1 + sum(num_items(item) for item in _items(value)) if isinstance(value, list | tuple | dict) else 1


def _items(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def pack_answer(answer: Answer) -> bytes:
    """Return the body of an answer."""
    packed: bytes = msgpack.packb(answer.model_dump(by_alias=True))
    return packed


def unpack_answer(body: bytes) -> Answer:
    """Return the answer in a body; raises `WireError` for anything that is none.

    >>> unpack_answer(pack_answer(Answer(fingerprint="f", scores=[0.5, None]))).scores
    [0.5, None]
    """
    return _message(Answer, body, "answer")


def _message(kind: type[_Message], data: bytes | memoryview, name: str, limits: Limits | None = None) -> _Message:
    hooks = {} if limits is None else _counting(limits)
    try:
        # A list is laid out as long as its head claims, so first see, without making anything, that all of it is there.
        looked = msgpack.Unpacker(max_buffer_size=len(data) or 1)
        looked.feed(data)
        looked.skip()
        # timestamp=1: a moment becomes a number; other extension types are refused by the hook.
        found = msgpack.unpackb(data, timestamp=1, ext_hook=_refuse, strict_map_key=True, **hooks)
        return kind.model_validate(found)
    except WireError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise WireError(f"the {name}: {place + ': ' if place else ''}{first['msg']}") from error
    except ValueError as error:
        if limits is not None and "exceeds max_" in str(error):  # one list or mapping alone has too many
            raise _too_many(limits) from error
        raise WireError(f"the {name} is no msgpack ({type(error).__name__})") from error
    except Exception as error:  # msgpack's documentation: bad input may raise other errors than its own
        raise WireError(f"the {name} is no msgpack ({type(error).__name__})") from error


def _too_many(limits: Limits) -> WireError:
    return WireError(f"the envelope holds more than {limits.items:,} values", status=413)


def _counting(limits: Limits) -> dict[str, Any]:
    """Options of msgpack that stop at too many values, before they fill the memory: each map is 64 bytes at least."""
    left = limits.items

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1 + len(container)
        if left < 0:
            raise _too_many(limits)
        return container

    return {"list_hook": count, "object_hook": count, "max_array_len": limits.items, "max_map_len": limits.items}


def _refuse(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _split(data: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    if sum(lengths) != len(data):
        raise WireError(f"{len(data)} bytes of images where the envelope counts {sum(lengths)}")
    images, start = [], 0
    for length in lengths:
        images.append(data[start : start + length])
        start += length
    return images


def _check_pixels(samples: Sequence[Mapping[str, Any]], images: Sequence[memoryview], limits: Limits) -> None:
    sizes: list[int] = []
    for image in images:
        try:
            width, height = png_size(image)
        except DataError:
            sizes.append(0)  # the samples that use it hear of it; the others are scored
            continue
        sizes.append(width * height if width * height <= limits.image_pixels else 0)  # a larger one is never unpacked
    named = [sample.get(name) for sample in samples for name in IMAGE_ARGUMENTS]
    total = sum(sizes[number] for number in named if number is not None)
    if total > limits.total_pixels:
        raise WireError(f"images of {total:,} pixels in all; at most {limits.total_pixels:,} are taken", status=413)


_SENDABLE = "texts, numbers, true, false, null, lists and mappings with text keys can be sent to a server"


def _unsendable(samples: Sequence[Mapping[str, Any]], error: Exception) -> str:
    for sample in samples:
        for name, value in sample.items():
            try:
                msgpack.packb(value)
            except (TypeError, ValueError, OverflowError):
                return f"column '{name}' holds a {type(value).__name__} that cannot be sent to a server ({error})"
    return f"the samples cannot be sent to a server ({error})"
