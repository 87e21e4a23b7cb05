"""The child of `isolated.py`: builds one scorer and calls it in its main thread until the parent hangs up.

    python -m r3_rl.scoring.isolated_child FD      (FD: the socket to the parent, already open)

The first message says what to build and is answered by what the scorer declares; each further one is a call.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import inspect
import json
import os
import pickle
import queue
import socket
import sys
import threading
from collections.abc import Awaitable, Mapping
from typing import Any

import numpy as np

from r3_rl.errors import R3Error
from r3_rl.scoring.answers import BrokenContract
from r3_rl.scoring.asked import Asked, ScorerSpec, cause_of
from r3_rl.scoring.asking import scorer_identity
from r3_rl.scoring.base import ScorerInfo, call_parameters, info_of
from r3_rl.scoring.frames import read_frame, write_frame
from r3_rl.scoring.memory import give_memory_back
from r3_rl.scoring.registry import load_scorer, short_name

_NO_LIMIT = 1 << 62
_LARGE_BYTES = 16 << 20


def main() -> None:
    """Serve the parent."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    messages: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    build = pickle.loads(messages.get())
    sys.path[:] = build["path"]
    try:
        scorer = load_scorer(build["scorer"], build["params"], build["base_folder"])
        spec = ScorerSpec(name=short_name(build["scorer"]), scorer=scorer, params=build["params"])
        info = info_of(scorer)
        card = _card(spec, info)
    except Exception as error:
        text = str(error) if isinstance(error, R3Error) else cause_of(error)
        _reply(connection, {"error": text, "exit_code": getattr(error, "exit_code", 1)})
        return
    _reply(connection, card)
    while True:
        message = messages.get()
        large, arguments = len(message) > _LARGE_BYTES, pickle.loads(message)
        del message
        _reply(connection, _call(spec, info, arguments))
        del arguments
        if large:
            give_memory_back()


def _receive(connection: socket.socket, messages: queue.SimpleQueue[bytearray]) -> None:
    """Hand on what the parent sends; when it is gone, so is this process, whatever the scorer is doing."""
    try:
        while True:
            messages.put(read_frame(connection.recv, _NO_LIMIT))
    except (EOFError, OSError):
        os._exit(0)


def _reply(connection: socket.socket, reply: Mapping[str, Any]) -> None:
    write_frame(connection.sendall, json.dumps(reply).encode())


def _card(spec: ScorerSpec, info: ScorerInfo) -> dict[str, Any]:
    fingerprint = hashlib.sha256(scorer_identity(spec, info).encode()).hexdigest()[:16]
    kinds = inspect.Parameter
    parameters = call_parameters(spec.scorer)
    return {
        # One process, one call at a time.
        "info": dataclasses.asdict(
            dataclasses.replace(info, version=f"{info.version}+{fingerprint}", thread_safe=False)
        ),
        "parameters": [
            [name, parameter.default is kinds.empty]
            for name, parameter in parameters.items()
            if parameter.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
        ],
        "takes_all": any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values()),
    }


def _call(spec: ScorerSpec, info: ScorerInfo, arguments: dict[str, Any]) -> dict[str, Any]:
    state = {name: arguments.pop(name) for name in ("trainer_state",) if name in arguments}  # not a sample's
    count = max((len(values) for values in arguments.values() if values is not None), default=0)
    for values in arguments.values():
        for value in values or ():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False  # as in the process that trains, though nobody else reads it here
    asked = Asked(spec, arguments | state, count=count, columns=sorted(arguments), copy=False)
    try:
        answer = asked.call()
        if inspect.isawaitable(answer):
            answer = asyncio.run(_finish(answer))
        answered = asked.read(answer, info.range)
    except BrokenContract as broken:
        return {"broken": broken.cause, "index": broken.index}
    except BaseException as error:
        return {"error": cause_of(error), "logged": asked.logged}
    causes = [answered.causes.get(place, "") for place in range(count)]
    return {
        "scores": answered.scores,
        "logged": answered.logged,
        "extras": {"reason": answered.words, "cause": causes},
    }


async def _finish(answer: Awaitable[Any]) -> Any:
    return await answer


if __name__ == "__main__":
    main()
