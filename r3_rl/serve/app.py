"""The HTTP side of `r3 serve`: OpenAI's endpoints, with its shape of errors. Each request holds a place until its work
is over, so that what is inside stays bounded even if senders hang up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from r3_rl.errors import InputError, MissingPackageError, one_line
from r3_rl.serve.conversation import Answers, check_conversation, completion, images_of
from r3_rl.serve.forms import fields_of
from r3_rl.serve.images import PixelRoom, file_in, opened
from r3_rl.serve.requests import Asked, BadField, ChatAsked, EditAsked, GenerationAsked, parsed
from r3_rl.serve.streaming import Chunks, Hearing
from r3_rl.serve.studio import Studio
from r3_rl.serve.worker import WorkerClient
from r3_rl.web.bodies import BodyLimits, check_token, read_body
from r3_rl.web.places import Places
from r3_rl.web.refusals import Refusal

try:
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingPackageError(
        "a server of a model needs FastAPI and uvicorn", hint="pip install 'r3-rl[serve,train]'"
    ) from error

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ALIVE_S = 10.0
"""Seconds between signs of life in a stream that has nothing to say yet."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """A request that was read and checked: what is left to do in its thread."""

    asked: Asked
    client: WorkerClient
    run: Callable[[], Any]
    """Blocks until the model has answered."""
    hearing: Hearing | None = None
    """Of a streamed answer: its texts while they are written."""


class Desk:
    """Takes requests in: a place, the body, the checks, then the work in a thread of its own."""

    def __init__(self, studio: Studio) -> None:
        limits = studio.limits
        self.studio = studio
        self._places = Places(limits.max_waiting, per_sender=limits.per_address, at_once=limits.max_batch)
        self._room = PixelRoom(limits.held_pixels)
        self._body = BodyLimits(size=limits.body_bytes)
        self._pool = ThreadPoolExecutor(limits.max_waiting, thread_name_prefix="r3-request")

    async def start(self, request: Request, prepare: Callable[[dict[str, Any]], _Work]) -> _Started:
        """Read and check a request and start its work. Raises `Refusal` or InputError."""
        loop = asyncio.get_running_loop()
        with ExitStack() as held:
            held.enter_context(self._places.place(request.client.host if request.client else ""))
            body = await read_body(request, self._body)
            content_type = request.headers.get("content-type", "")
            work = await loop.run_in_executor(self._pool, lambda: prepare(fields_of(body, content_type)))
            done = loop.run_in_executor(self._pool, work.run)
            place = held.pop_all()
            done.add_done_callback(partial(_over, place))
            return _Started(work=work, done=done, request=request, default_model=self.studio.names[0])
        raise AssertionError("no block above passes an error over")

    def generation(self, fields: dict[str, Any]) -> _Work:
        """Check a request for images."""
        asked = parsed(GenerationAsked, fields)
        client = self.studio.client(asked)
        self.studio.check_image_request(asked)
        return _Work(asked=asked, client=client, run=lambda: self.studio.generate(asked, client))

    def edit(self, fields: dict[str, Any]) -> _Work:
        """Check a request for an edit."""
        asked = parsed(EditAsked, fields)
        client = self.studio.client(asked)
        self.studio.check_image_request(asked)
        file = asked.image if isinstance(asked.image, bytes) else file_in(asked.image)
        image = opened(file, most=self.studio.limits.image_pixels)

        def run() -> dict[str, Any]:
            with self._room.hold([image]):
                return self.studio.edit(asked, image, client)

        return _Work(asked=asked, client=client, run=run)

    def chat(self, fields: dict[str, Any]) -> _Work:
        """Check a conversation."""
        asked = parsed(ChatAsked, fields)
        client = self.studio.client(asked)
        check_conversation(asked, self.studio.limits)
        images = images_of(asked, self.studio.limits)
        hearing = Hearing(asked.n) if asked.stream else None

        def run() -> Answers:
            with self._room.hold(images):
                return self.studio.chat(asked, images, client, hearing.listeners() if hearing else None)

        return _Work(asked=asked, client=client, run=run, hearing=hearing)

    def close(self) -> None:
        """Refuse what waits and end the threads."""
        self.studio.close()
        self._pool.shutdown()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Started:
    """A request whose work has begun."""

    work: _Work
    done: asyncio.Future[Any]
    request: Request
    default_model: str
    """What is served to requests that name no model."""

    async def result(self) -> Any:
        """What the work gives. Raises what it raised; gives the request up if its sender hangs up."""
        gone = asyncio.ensure_future(self.request.receive())  # the body was read: all that can come is the end
        try:
            await asyncio.wait({self.done, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not self.done.done():
                self.work.client.cancel()
                raise Refusal("the sender hung up", status=499)
            return self.done.result()
        finally:
            gone.cancel()

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events, as it is written; signs of life while there is nothing new."""
        asked, hearing = self.work.asked, self.work.hearing
        assert isinstance(asked, ChatAsked) and hearing is not None
        loop, grown = asyncio.get_running_loop(), asyncio.Event()
        hearing.wakes(lambda: loop.call_soon_threadsafe(grown.set))
        self.done.add_done_callback(lambda done: grown.set())
        chunks = Chunks(asked.model or self.default_model, asked.n)
        try:
            while not self.done.done():
                for event in chunks.grown(hearing.texts):
                    yield event
                try:
                    await asyncio.wait_for(grown.wait(), _ALIVE_S)
                    grown.clear()
                except TimeoutError:
                    yield ": the model is at work\n\n"
            for event in chunks.ended(self.done.result(), include_usage=asked.stream_options.include_usage):
                yield event
        except (Refusal, InputError) as error:
            yield f"data: {json.dumps(_error_body(error))}\n\n"
        finally:
            self.work.client.cancel()  # of no effect once it is done


def make_app(studio: Studio, *, token: str = "") -> FastAPI:
    """Return the application that serves a model, to be run by uvicorn or another ASGI server with one process.

    With a `token` every request but `/health` must carry `Authorization: Bearer TOKEN`.
    """
    desk = Desk(studio)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.close)

    def has_token(request: Request) -> None:
        check_token(request, token)

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    for kind, answer in ((HTTPException, _http_error), (Refusal, _refusal), (InputError, _refusal)):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, _own_error)
    guarded = [Depends(has_token)]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "r3-rl"} for name in studio.names]
        return {"object": "list", "data": listed}

    @app.post("/v1/images/generations", dependencies=guarded)
    async def generations(request: Request) -> Response:
        started = await desk.start(request, desk.generation)
        return JSONResponse(await started.result())

    @app.post("/v1/images/edits", dependencies=guarded)
    async def edits(request: Request) -> Response:
        started = await desk.start(request, desk.edit)
        return JSONResponse(await started.result())

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(request: Request) -> Response:
        started = await desk.start(request, desk.chat)
        assert isinstance(started.work.asked, ChatAsked)
        if started.work.asked.stream:
            return StreamingResponse(started.events(), media_type="text/event-stream")
        return JSONResponse(completion(await started.result()))

    return app


def _over(place: ExitStack, done: asyncio.Future[Any]) -> None:
    """The work of a request has ended, whether anybody still waits for it or not."""
    place.close()
    done.exception()  # looked at, so that asyncio does not report the failure of a request that was given up


def _error(error: Exception) -> Response:
    headers = error.headers if isinstance(error, Refusal) else None
    return JSONResponse(_error_body(error), status_code=_status(error), headers=headers)


def _status(error: Exception) -> int:
    return error.status if isinstance(error, Refusal) else 400


def _error_body(error: Exception) -> dict[str, Any]:
    status = _status(error)
    param = error.param if isinstance(error, BadField) else None
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = "model_not_found" if (status, param) == (404, "model") else None
    return {"error": {"message": one_line(str(error), 500), "type": kind, "param": param, "code": code}}


async def _refusal(request: Request, error: Exception) -> Response:
    return _error(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.url.path}"
    return _error(
        Refusal(f"{place}: {error.detail}", status=error.status_code, hint="see /v1/models and docs/serving.md")
    )


async def _own_error(request: Request, error: Exception) -> Response:
    return _error(Refusal("the server made a mistake; its log says which", status=500))
