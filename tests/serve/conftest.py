"""The embedded model with its shipped adapter behind real servers on loopback."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from r3_rl.evaluate.loading import SHIPPED, Loaded, load
from r3_rl.serve.command import running
from r3_rl.serve.studio import Studio, StudioSettings


def picture_of(encoded: str) -> Image.Image:
    """The image of a `b64_json`."""
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def png_of(image: Image.Image) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    """As a message of a conversation names an image."""
    return f"data:image/png;base64,{base64.b64encode(png_of(image)).decode()}"


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two images, in levels of 255."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    return load(None, SHIPPED, dtype="float32")


@pytest.fixture(scope="module")
def url(loaded: Loaded) -> Iterator[str]:
    with running(Studio(loaded, StudioSettings(adapter="shipped"))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client
