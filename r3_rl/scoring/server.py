"""The server of scorers: `r3 rewards serve`. `/score` takes and gives msgpack, `/info`, `/health` and errors are JSON.

It listens on this machine alone unless it has a token. A request waits in a queue of bounded length; past it the answer
is 503 with `Retry-After`. Nothing that a stranger sends gets further than an error of one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from r3_rl.errors import InputError, MissingPackageError
from r3_rl.scoring.asked import ScorerSpec
from r3_rl.scoring.calls import Caller
from r3_rl.scoring.isolated import START_S, IsolatedScorer, load_isolated
from r3_rl.scoring.memory import give_memory_back
from r3_rl.scoring.registry import load_scorer, short_name
from r3_rl.scoring.served import ServedScorer
from r3_rl.scoring.wire import MEDIA_TYPE, SCHEMA, Limits, ServerCard, WireError, pack_answer, unpack_request
from r3_rl.web.bodies import BodyLimits, check_token, read_body
from r3_rl.web.places import Places
from r3_rl.web.refusals import Refusal

try:
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException as StarletteHTTPException

    from r3_rl.web.connections import ConnectionLimits
    from r3_rl.web.listening import address, listen, run_until_stopped, running_app, token_of
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

    @property
    def body(self) -> BodyLimits:
        """Limits of a body."""
        return BodyLimits(size=self.limits.body_bytes, total_s=self.body_timeout_s, pause_s=self.pause_timeout_s)


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
    places, tidy = Places(settings.max_waiting, at_once=settings.num_workers), _Tidy()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        caller = Caller(settings.num_workers)
        try:
            served.update({spec.name: ServedScorer(spec, caller, settings.limits) for spec in specs})
            yield
        finally:
            caller.close()

    def has_token(request: Request) -> None:
        check_token(request, token)

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(Exception, _own_error)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info", dependencies=[Depends(has_token)])
    async def info() -> ServerCard:
        cards = tuple(scorer.card() for scorer in served.values())
        return ServerCard(schema_version=SCHEMA, scorers=cards, limits=settings.limits)

    @app.post("/score", dependencies=[Depends(has_token)])
    async def score(request: Request) -> Response:
        with places.place():
            body = await read_body(request, settings.body)
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


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"status": status, "message": message}}, status_code=status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    headers = dict(error.headers) if error.headers else None
    return _error(error.status_code, str(error.detail), headers)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, str(error), error.headers)


async def _own_error(request: Request, error: Exception) -> Response:
    return _error(500, "the server made a mistake; its log says which")


@contextmanager
def running(specs: Sequence[ScorerSpec], *, token: str = "", settings: ServerSettings | None = None) -> Iterator[str]:
    """Serve scorers from a thread of this process on a free port of this machine; gives the URL.

    >>> from urllib.request import urlopen
    >>> with running([ScorerSpec(name="zero", scorer=lambda completions: [0.0] * len(completions))]) as url:
    ...     print(urlopen(f"{url}/health", timeout=60).read().decode())
    {"status":"ok"}
    """
    settings = settings or ServerSettings()
    with running_app(make_app(specs, token=token, settings=settings), settings.connections) as url:
        yield url


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
    token = token_of(token_env)
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
        who = "with the token" if token else "without a token"
        print(f"serving {', '.join(spec.name for spec in specs)} at {address(listening)} {who}", flush=True)
        print(f"recipe:  - {{scorer: remote, params: {{url: '{address(listening)}'}}}}", flush=True)
        try:
            run_until_stopped(make_app(specs, token=token, settings=settings), listening, settings.connections)
        finally:
            for spec in specs:
                if isinstance(spec.scorer, IsolatedScorer):
                    spec.scorer.close()
        print("stopped", flush=True)
