"""The scorer `remote`: a scorer that another process serves with `r3 rewards serve`, on this machine or another one.

    rewards:
      - scorer: remote
        name: image_reward
        params: {url: "http://127.0.0.1:8500"}

What the server's `/info` declares (range, needs, version) becomes its own. An answer of the wrong count, type or range
stops the run, as it does beside the trainer; a server that cannot be reached leaves scores missing, never 0.
Weights, memory and what it cannot judge are those of the scorer behind it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from r3_rl.errors import InputError
from r3_rl.scoring.answers import BrokenContract, CheckedAnswer, check_answer
from r3_rl.scoring.base import ScorerInfo

if TYPE_CHECKING:  # optional packages and numpy: `r3 rewards ls` imports this file
    import httpx

    from r3_rl.scoring.parcels import Parcel
    from r3_rl.scoring.wire import Answer, ScorerCard, ServerCard

_INFO_TIMEOUT_S = 20.0
_MAX_INFO_BYTES = 1 << 20
_ANSWER_BYTES, _ANSWER_BYTES_PER_SAMPLE = 1 << 20, 1 << 14
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """What came back for one parcel."""

    checked: CheckedAnswer
    reasons: Sequence[str]
    causes: Mapping[int, str]
    metrics: Mapping[str, Sequence[float]]


class RemoteScorer:
    """Asks a scorer behind a server. The address is looked at when it is built, which fails when nobody answers there.

    `url` is the server's address; `name` the scorer's, needed when the server has several; `token_env` the environment
    variable that holds the bearer token (the token itself never stands in a recipe). A call gives up after `timeout_s`
    seconds or `attempts` failures, sends at most `batch_size` samples in a request and `concurrency` requests at once.
    Raises `InputError` for parameters that cannot be right and `RemoteScorerError` when the server cannot be used.
    """

    info = ScorerInfo(weights_licence="the server's", memory="none here")

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        token_env: str | None = None,
        timeout_s: float = 240.0,
        attempts: int = 4,
        batch_size: int = 64,
        concurrency: int = 2,
    ) -> None:
        numbers = {"timeout_s": timeout_s, "attempts": attempts, "batch_size": batch_size, "concurrency": concurrency}
        problems = self.check_params({"url": url, "token_env": token_env, **numbers})
        if problems:
            raise InputError(f"scorer 'remote': {problems[0]}")
        from r3_rl.scoring.exchange import Exchange

        self._exchange = Exchange(
            url=url.rstrip("/"),
            token=os.environ[token_env] if token_env else "",
            timeout_s=timeout_s,
            attempts=attempts,
            tls=ssl.create_default_context() if url.startswith("https") else None,
        )
        self._batch_size, self._concurrency = batch_size, concurrency
        self._server: ServerCard = _wait_for(self._info())
        self._card = self._choose(name)
        self.info = self._card.info()

    @staticmethod
    def check_params(params: Mapping[str, Any]) -> list[str]:
        """Say what is wrong with parameters, one line each, without asking the server.

        >>> RemoteScorer.check_params({"url": "localhost:8500"})
        ["url 'localhost:8500' is no address; write http://HOST:PORT"]
        """
        problems = [f"{name} must be above 0, not {params[name]}" for name in _POSITIVE if params.get(name, 1) <= 0]
        url, token_env = params.get("url", ""), params.get("token_env")
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            sound = False
        if not sound:
            problems.append(f"url {url!r} is no address; write http://HOST:PORT")
        elif parts.username or parts.password:
            problems.append("url holds a password; put the token into an environment variable and name it: token_env")
        elif parts.query or parts.fragment:
            problems.append(f"url {url!r} ends in a query; write http://HOST:PORT")
        if token_env and not os.environ.get(token_env):
            problems.append(f"token_env: the environment variable {token_env} is not set")
        return problems

    async def __call__(
        self, *, trainer_state: Any = None, log_metric: Any = None, log_extra: Any = None, **arguments: Any
    ) -> list[float | None]:
        """Send the samples in as many requests as the server's limits ask for; raises when no sample has a score.

        A server is not told how far the run is: `trainer_state` is not sent.
        """
        from r3_rl.scoring.parcels import pack_parcels

        # Packing images takes a while, and this event loop belongs to other scorers too.
        parcels = await asyncio.to_thread(pack_parcels, arguments, self._card, self._server.limits, self._batch_size)
        turns = asyncio.Semaphore(self._concurrency)

        async def send(client: httpx.AsyncClient, parcel: Parcel) -> _Scored:
            async with turns:
                return await self._send(client, parcel)

        async with self._exchange.client() as client:
            results = await asyncio.gather(*(send(client, parcel) for parcel in parcels), return_exceptions=True)
        return self._collect(parcels, results, log_metric, log_extra)

    def _collect(
        self, parcels: Sequence[Parcel], results: Sequence[_Scored | BaseException], log_metric: Any, log_extra: Any
    ) -> list[float | None]:
        broken = [error for error in results if isinstance(error, BaseException)]
        severe = [error for error in broken if not isinstance(error, Exception) or isinstance(error, BrokenContract)]
        if severe or len(broken) == len(results):
            raise (severe or broken)[0]
        scores: list[float | None] = []
        reasons: list[str] = []
        causes: list[str] = []
        for parcel, result in zip(parcels, results, strict=True):
            if isinstance(result, BaseException):
                scores += [None] * parcel.count
                reasons += [""] * parcel.count
                causes += [str(result)] * parcel.count
                continue
            scores += result.checked.scores
            reasons += result.reasons
            causes += [result.causes.get(i, result.checked.causes.get(i, "")) for i in range(parcel.count)]
            for metric, values in result.metrics.items():
                for value in values if log_metric else ():
                    log_metric(metric, value)
        if log_extra:
            log_extra("reason", reasons)
            log_extra("cause", causes)
        return scores

    async def _send(self, client: httpx.AsyncClient, parcel: Parcel) -> _Scored:
        from r3_rl.scoring.exchange import RemoteScorerError
        from r3_rl.scoring.wire import WireError, unpack_answer

        most = _ANSWER_BYTES + _ANSWER_BYTES_PER_SAMPLE * parcel.count
        body = await self._exchange.fetch(client, "/score", max_bytes=most, body=parcel.body)
        try:
            answer = unpack_answer(body)
        except WireError as error:
            raise RemoteScorerError(f"{self._exchange.url}: not an answer of a server of scorers: {error}") from error
        if answer.fault:
            raise BrokenContract(_line(answer.fault))
        if answer.fingerprint != self._card.fingerprint:
            raise RemoteScorerError(
                f"{self._exchange.url}: the scorer '{self._card.name}' behind it has changed since this run began",
                hint="start the run again",
            )
        return _check(answer, parcel.count, self.info.range)

    async def _info(self) -> ServerCard:
        from dataclasses import replace

        from pydantic import ValidationError

        from r3_rl.scoring.exchange import RemoteScorerError
        from r3_rl.scoring.wire import SCHEMA, ServerCard

        exchange = replace(self._exchange, timeout_s=min(_INFO_TIMEOUT_S, self._exchange.timeout_s))
        async with exchange.client() as client:
            body = await exchange.fetch(client, "/info", max_bytes=_MAX_INFO_BYTES)
        try:
            schema = json.loads(body)["schema_version"]
            if schema != SCHEMA:
                raise RemoteScorerError(
                    f"{exchange.url}: the server speaks schema {schema!r} and this program {SCHEMA}",
                    hint="use the same version of r3-rl on both sides",
                )
            server = ServerCard.model_validate_json(body)
            for card in server.scorers:
                card.info()
        except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, RemoteScorerError):
                raise
            raise RemoteScorerError(f"{exchange.url}: its /info is not that of a server of scorers") from error
        return server

    def _choose(self, name: str | None) -> ScorerCard:
        names = [card.name for card in self._server.scorers]
        if name is None and len(names) == 1:
            return self._server.scorers[0]
        if name not in names:
            asked = "the parameter 'name' is missing" if name is None else f"no scorer is called '{name}' there"
            raise InputError(f"scorer 'remote': {self._exchange.url}: {asked}", hint=f"it serves {', '.join(names)}")
        return self._server.scorers[names.index(name)]


_POSITIVE = ("timeout_s", "attempts", "batch_size", "concurrency")


def _check(answer: Answer, count: int, range: tuple[float, float] | None) -> _Scored:
    checked = check_answer(answer.scores, count=count, range=range)
    if answer.reasons and len(answer.reasons) != count:
        raise BrokenContract(f"it gave {len(answer.reasons)} reasons for {count} samples")
    metrics = {_line(name): [v for v in values if math.isfinite(v)] for name, values in answer.metrics.items()}
    return _Scored(
        checked=checked,
        reasons=[_line(reason) for reason in answer.reasons] or [""] * count,
        causes={
            int(index): _line(cause) for index, cause in answer.causes.items() if index.isdecimal() and len(index) < 9
        },
        metrics=metrics,
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:2000]


def _wait_for(work: Coroutine[Any, Any, _T]) -> _T:
    # In a thread of its own: the caller may itself stand in an event loop, as in a notebook.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
