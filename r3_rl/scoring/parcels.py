"""Samples become the bodies of requests, as few as a server's limits allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r3_rl.errors import DataError
from r3_rl.scoring.png import encode_png
from r3_rl.scoring.wire import IMAGE_ARGUMENTS, Limits, Request, ScorerCard, depth_of, num_items, pack_request

_ENVELOPE_BYTES, _MORE_BYTES = 400, 32  # what stands around the samples and around each of them, generously
_ITEMS = 16


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """The body of one request."""

    count: int
    """Samples in it."""
    body: bytes


@dataclass(kw_only=True)
class _Box:
    """A parcel while it is filled."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    """Number of an image in this box, by its identity."""
    body_bytes: int = 0
    envelope_bytes: int = _ENVELOPE_BYTES
    items: int = _ITEMS
    pixels: int = 0


def pack_parcels(arguments: Mapping[str, Any], card: ScorerCard, limits: Limits, batch_size: int) -> list[Parcel]:
    """Return the requests that ask a scorer about samples, in their order; `arguments` are those of a call.

    An image that several samples share is packed once for each parcel. Peers are never parted: a group-wise scorer gets
    one parcel. Raises `DataError` for a sample (or a group) beyond the server's limits and for a value that cannot be
    sent.
    """
    columns = {
        name: values
        for name, values in arguments.items()
        if values is not None and (card.takes is None or name in card.takes)
    }
    count = max((len(values) for values in arguments.values() if values is not None), default=0)
    most = limits.samples if card.group_wise else min(batch_size, limits.samples)
    packed: dict[int, bytes] = {}
    boxes: list[_Box] = []
    for index in range(count):
        sample = {name: values[index] for name, values in columns.items()}
        images = {name: sample[name] for name in IMAGE_ARGUMENTS if sample.get(name) is not None}
        sample |= dict.fromkeys(images)  # numbers take their place once the parcel is known
        for image in images.values():
            if id(image) not in packed:
                packed[id(image)] = encode_png(image)
        text_bytes = _MORE_BYTES + len(pack_request(Request(scorer=None, samples=[sample], images=[])))
        _check(sample, limits)
        size = _Size(text_bytes=text_bytes, items=num_items(sample) + len(images), images=list(images.values()))
        if not boxes or (not card.group_wise and not _fits(boxes[-1], size, packed, limits, most)):
            boxes.append(_Box())
        if not _fits(boxes[-1], size, packed, limits, most):
            what = "a group" if card.group_wise else "a sample"
            raise DataError(f"{what} is larger than the server takes: {_limits(limits)}",
                            hint="raise the server's limits, or send smaller images")  # fmt: skip
        _put(boxes[-1], sample, images, size, packed)
    return [_parcel(box, card) for box in boxes]


def _parcel(box: _Box, card: ScorerCard) -> Parcel:
    request = Request(scorer=card.name, samples=box.samples, images=box.images)
    return Parcel(count=len(box.samples), body=pack_request(request))


def _new(box: _Box, images: Sequence[Any]) -> dict[int, Any]:
    return {id(image): image for image in images if id(image) not in box.numbers}


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What a sample adds to a parcel."""

    text_bytes: int
    items: int
    images: Sequence[Any]


def _check(sample: Mapping[str, Any], limits: Limits) -> None:
    if len(sample) > limits.keys:
        raise DataError(f"a sample of {len(sample)} columns; the server takes {limits.keys}", hint="drop some columns")
    for name, value in sample.items():
        if depth_of(value, limits.depth) > limits.depth:
            raise DataError(f"column '{name}' is nested deeper than the server takes, {limits.depth}")


def _fits(box: _Box, size: _Size, packed: Mapping[int, bytes], limits: Limits, most: int) -> bool:
    added = sum(len(packed[key]) for key in _new(box, size.images))
    pixels = [image.shape[0] * image.shape[1] for image in size.images]  # the server counts each use of an image
    return (
        len(box.samples) < most
        and box.envelope_bytes + size.text_bytes <= limits.envelope_bytes
        and box.items + size.items <= limits.items
        and box.body_bytes + box.envelope_bytes + size.text_bytes + added <= limits.body_bytes
        and max(pixels, default=0) <= limits.image_pixels
        and box.pixels + sum(pixels) <= limits.total_pixels
    )


def _put(
    box: _Box,
    sample: dict[str, Any],
    images: Mapping[str, Any],
    size: _Size,
    packed: Mapping[int, bytes],
) -> None:
    for key in _new(box, size.images):
        box.numbers[key] = len(box.images)
        box.images.append(packed[key])
        box.body_bytes += len(packed[key])
    box.pixels += sum(image.shape[0] * image.shape[1] for image in size.images)
    box.items += size.items
    box.samples.append(sample | {name: box.numbers[id(image)] for name, image in images.items()})
    box.envelope_bytes += size.text_bytes


def _limits(limits: Limits) -> str:
    return (
        f"{limits.samples} samples, {limits.body_bytes:,} bytes, {limits.items:,} values, "
        f"{limits.image_pixels:,} pixels an image, {limits.total_pixels:,} pixels in all"
    )
