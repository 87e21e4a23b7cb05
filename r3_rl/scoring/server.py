"""The server of scorers: `r3 rewards serve`. `/score` takes and gives msgpack, `/info`, `/health` and errors are JSON.

It listens on this machine alone unless it has a token. A request waits in a queue of bounded length; past it the answer
is 503 with `Retry-After`. Nothing that a stranger sends gets further than an error of one line.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from r3_rl.errors import InputError, MissingPackageError, RunError
from r3_rl.scoring.asked import ScorerSpec
from r3_rl.scoring.calls import Caller
from r3_rl.scoring.isolated import START_S, IsolatedScorer, load_isolated
from r3_rl.scoring.memory import give_memory_back
from r3_rl.scoring.registry import load_scorer, short_name
from r3_rl.scoring.served import ServedScorer
from r3_rl.scoring.wire import MEDIA_TYPE, SCHEMA, Limits, ServerCard, WireError, pack_answer, unpack_request

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Request, Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException as StarletteHTTPException
    from starlette.requests import ClientDisconnect

    from r3_rl.scoring.connections import ConnectionLimits, guarded
except ImportError as error:
    raise MissingPackageError(
        "a server of scorers needs FastAPI and uvicorn", hint="pip install 'r3-rl[serve]'"
    ) from error


class ServerSettings(BaseModel):
    """What a server allows itself and others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: Limits = Limits()
    max_waiting: int = Field(8, ge=1)
    """Requests that are read, wait or are scored; the next one is sent away."""
    num_workers: int = Field(2, ge=1)
    """Calls that run at once; a scorer that is not thread-safe has one of them at most."""
    body_timeout_s: float = Field(60.0, gt=0)
    """Seconds that a sender has for the body of its request."""
    pause_timeout_s: float = Field(10.0, gt=0)
    """Seconds that a sender may pause within the body."""
    connections: ConnectionLimits = ConnectionLimits()


class _Busy:
    """Counts the requests inside, and guesses when there will be room."""

    def __init__(self, max_waiting: int, num_workers: int) -> None:
        self._room, self._num_workers = max_waiting, num_workers
        self._inside, self._seconds = 0, 1.0

    @contextmanager
    def place(self) -> Iterator[None]:
        if self._inside >= self._room:
            wait = min(60, max(1, math.ceil(self._seconds * self._inside / self._num_workers)))
            raise HTTPException(503, f"{self._inside} requests are waiting", headers={"Retry-After": str(wait)})
        self._inside += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._inside -= 1
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - start)


class _Tidy:
    """Gives memory back a little after requests have ended, and not more often than every `_TIDY_S` seconds."""

    def __init__(self) -> None:
        self._planned = False

    def soon(self) -> None:
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(_TIDY_S, self._now)

    def _now(self) -> None:
        self._planned = False
        asyncio.get_running_loop().run_in_executor(None, give_memory_back)


_TIDY_S = 2.0


def make_app(specs: Sequence[ScorerSpec], *, token: str = "", settings: ServerSettings | None = None) -> FastAPI:
    """Return the application that serves scorers, to be run by uvicorn or another ASGI server.

    With a `token` every request but `/health` must carry `Authorization: Bearer TOKEN`.
    """
    settings = settings or ServerSettings()
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise InputError(f"two scorers have one name: {', '.join(names)}", hint="serve them on two ports")
    served: dict[str, ServedScorer] = {}
    busy, tidy = _Busy(settings.max_waiting, settings.num_workers), _Tidy()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        caller = Caller(settings.num_workers)
        try:
            served.update({spec.name: ServedScorer(spec, caller, settings.limits) for spec in specs})
            yield
        finally:
            caller.close()

    def check_token(request: Request) -> None:
        sent = request.headers.get("authorization", "").encode()
        if token and not hmac.compare_digest(sent, f"Bearer {token}".encode()):
            raise HTTPException(401, "the token is missing or wrong", headers={"WWW-Authenticate": "Bearer"})

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(WireError, _wire_error)
    app.add_exception_handler(Exception, _own_error)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info", dependencies=[Depends(check_token)])
    async def info() -> ServerCard:
        cards = tuple(scorer.card() for scorer in served.values())
        return ServerCard(schema_version=SCHEMA, scorers=cards, limits=settings.limits)

    @app.post("/score", dependencies=[Depends(check_token)])
    async def score(request: Request) -> Response:
        with busy.place():
            body = await _body(request, settings)
            try:
                asked = await asyncio.to_thread(unpack_request, body, settings.limits)
                answer = await _find(served, asked.scorer).score(asked)
            finally:
                tidy.soon()
            return Response(pack_answer(answer), media_type=MEDIA_TYPE)

    return app


def _find(served: dict[str, ServedScorer], name: str | None) -> ServedScorer:
    if name is None and len(served) == 1:
        return next(iter(served.values()))
    if name not in served:
        asked = "no scorer is named" if name is None else f"no scorer is called {name[:80]!r}"
        raise WireError(f"{asked}; there are: {', '.join(served)}", status=404)
    return served[name]


async def _body(request: Request, settings: ServerSettings) -> bytes:
    most = settings.limits.body_bytes
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed) > most:  # refused before a byte of it is read
        raise WireError(f"a body of {claimed[:20]} bytes; at most {most} are taken", status=413)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            chunks = request.stream()
            while (chunk := await _chunk(chunks, settings.pause_timeout_s)) is not None:
                body += chunk
                if len(body) > most:
                    raise WireError(f"a body of more than {most} bytes", status=413)
    except ClientDisconnect:
        raise WireError("the sender hung up") from None
    except TimeoutError:
        raise WireError(f"the body did not arrive within {settings.body_timeout_s:g} s", status=408) from None
    return bytes(body)


async def _chunk(chunks: AsyncIterator[bytes], pause_s: float) -> bytes | None:
    waiting = asyncio.ensure_future(anext(chunks, None))
    done, _ = await asyncio.wait({waiting}, timeout=pause_s)
    if not done:
        waiting.cancel()
        raise WireError(f"the sender paused for {pause_s:g} s", status=408)
    return waiting.result()


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"status": status, "message": message}}, status_code=status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    headers = dict(error.headers) if error.headers else None
    return _error(error.status_code, str(error.detail), headers)


async def _wire_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return _error(error.status, str(error))


async def _own_error(request: Request, error: Exception) -> Response:
    return _error(500, "the server made a mistake; its log says which")


def listen(host: str, port: int, *, token: str) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises `InputError` for an address other machines reach when there is no token, and for a port that is taken.
    """
    if not token and not _is_loopback(host):
        raise InputError(
            f"--host {host} lets other machines in, and there is no token",
            hint="set one in an environment variable and name it with --token-env, or stay on 127.0.0.1",
        )
    if not 0 <= port <= 65535:
        raise InputError(f"cannot listen on {host} port {port}", hint="choose a --port from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=128)
        # asyncio does so for sockets of its own; without it every answer waits 40 ms for an acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error}", hint="choose another --port") from error


def address(listening: socket.socket) -> str:
    """Return the address of a listening socket as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI, limits: ConnectionLimits) -> uvicorn.Server:
    """Return uvicorn for an application: it ends what it is doing when told to stop, for at most 30 s."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=guarded(limits),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=30,
        )
    )


@contextmanager
def running(specs: Sequence[ScorerSpec], *, token: str = "", settings: ServerSettings | None = None) -> Iterator[str]:
    """Serve scorers from a thread of this process on a free port of this machine; gives the URL.

    >>> from urllib.request import urlopen
    >>> with running([ScorerSpec(name="zero", scorer=lambda completions: [0.0] * len(completions))]) as url:
    ...     print(urlopen(f"{url}/health", timeout=60).read().decode())
    {"status":"ok"}
    """
    settings = settings or ServerSettings()
    server = make_server(make_app(specs, token=token, settings=settings), settings.connections)
    with listen("127.0.0.1", 0, token=token) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="r3-server", daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            if not server.started:
                raise RunError("the server did not start", hint="its reason stands above")
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join(timeout=40)


def serve(
    scorers: Sequence[str],
    *,
    port: int,
    host: str,
    token_env: str | None,
    params: Mapping[str, Any],
    settings: ServerSettings,
    timeout_s: float,
    isolate: bool = True,
    memory_gb: float | None = None,
    base_folder: str | Path = ".",
) -> None:
    """Load scorers and serve them until Ctrl-C or SIGTERM; what is being scored then is finished.

    With `isolate` each scorer has its own process, which ends with a call that takes longer than `timeout_s` or more
    memory than `memory_gb`, and starts again with the next.

    Raises `InputError` for a name, parameter, address or token that is wrong, before it listens.
    """
    if not scorers or (params and len(scorers) > 1):
        problem = "parameters for several scorers" if scorers else "no scorer to serve"
        raise InputError(problem, hint="name one scorer, such as `r3 rewards serve sharpness`")
    token = os.environ.get(token_env, "") if token_env else ""
    if token_env and not token:
        raise InputError(f"--token-env {token_env}: this environment variable is not set")
    with listen(host, port, token=token) as listening:  # first: loading weights for a taken port would be a pity
        specs = []
        for name in scorers:
            if isolate:
                scorer: Any = load_isolated(name, params, base_folder, timeout_s=timeout_s, memory_gb=memory_gb)
            else:
                scorer = load_scorer(name, params, base_folder)
            limit_s = (
                timeout_s + START_S if isolate else timeout_s
            )  # its process keeps `timeout_s` and may have to start
            specs.append(ScorerSpec(name=short_name(name), scorer=scorer, params=params, timeout_s=limit_s))
        server = make_server(make_app(specs, token=token, settings=settings), settings.connections)
        who = "with the token" if token else "without a token"
        print(f"serving {', '.join(spec.name for spec in specs)} at {address(listening)} {who}", flush=True)
        print(f"recipe:  - {{scorer: remote, params: {{url: '{address(listening)}'}}}}", flush=True)
        # uvicorn ends in order and passes the signal on, unless whoever started this process ignores it.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        for spec in specs:
            if isinstance(spec.scorer, IsolatedScorer):
                spec.scorer.close()
        if not server.started:
            raise RunError("the server did not start", hint="its reason stands above")
        print("stopped", flush=True)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: what it stands for may change
        return False
