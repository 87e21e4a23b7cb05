"""Images in requests and answers: data URLs and uploaded files in, PNG out. Nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import binascii
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from r3_rl.pixels import flat_rgb
from r3_rl.scoring.png import encode_png
from r3_rl.web.refusals import Refusal

_FORMATS = ("PNG", "JPEG", "WEBP")


def file_in(url: str) -> bytes:
    """Return the bytes in a data URL. Raises `Refusal` for another kind of address.

    >>> file_in("data:image/png;base64,aGVsbG8=")
    b'hello'
    >>> file_in("https://example.org/a.png")
    Traceback (most recent call last):
    ...
    r3_rl.web.refusals.Refusal: an image by address is not fetched; send it as data:image/png;base64,...
    """
    head, comma, data = url.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().endswith(";base64"):
        raise Refusal("an image by address is not fetched", hint="send it as data:image/png;base64,...")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal("the data URL of an image is not base64") from None


def opened(file: bytes, *, most: int) -> Image.Image:
    """Return an image whose header was read and whose pixels were not.

    Raises `Refusal` for what is not a PNG, JPEG or WebP file, and for more than `most` pixels.
    """
    try:
        picture = Image.open(io.BytesIO(file), formats=_FORMATS)
    except Exception:  # on a crafted file Pillow raises OSError, SyntaxError, struct.error, a warning, ...
        raise Refusal("an image that is not a PNG, JPEG or WebP file") from None
    width, height = picture.size
    if width * height > most:
        raise Refusal(f"an image of {width} x {height} pixels; at most {most:,} in all are taken", status=413)
    return picture


def unpacked(picture: Image.Image) -> Image.Image:
    """Return the pixels, RGB, as a viewer shows them. Raises `Refusal` for a damaged file."""
    try:
        return flat_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:
        raise Refusal(f"a damaged image ({type(error).__name__})") from None


def png_base64(picture: Image.Image) -> str:
    """Return an RGB image as a PNG file in base64.

    >>> len(file_in("data:image/png;base64," + png_base64(Image.new("RGB", (2, 2))))) > 50
    True
    """
    return base64.b64encode(encode_png(np.asarray(picture))).decode()


class PixelRoom:
    """Bounds the pixels that all requests hold together; thread-safe.

    >>> room = PixelRoom(100)
    >>> with room.hold([Image.new("RGB", (9, 9))]), room.hold([Image.new("RGB", (9, 9))]):
    ...     pass
    Traceback (most recent call last):
    ...
    r3_rl.web.refusals.Refusal: the images of other requests take all the room there is
    """

    def __init__(self, total: int) -> None:
        self._left, self._lock = total, threading.Lock()

    @contextmanager
    def hold(self, pictures: Sequence[Image.Image]) -> Iterator[None]:
        """Hold room for these images while the block runs. Raises `Refusal` (503) if there is not enough."""
        wanted = sum(picture.width * picture.height for picture in pictures)
        with self._lock:
            if wanted > self._left:
                raise Refusal("the images of other requests take all the room there is", status=503, retry_after_s=5)
            self._left -= wanted
        try:
            yield
        finally:
            with self._lock:
                self._left += wanted
