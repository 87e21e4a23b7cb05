"""What `r3 serve` does: load a model, listen, answer until it is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r3_rl.errors import InputError
from r3_rl.evaluate.loading import load
from r3_rl.serve.app import make_app
from r3_rl.serve.limits import ServeLimits
from r3_rl.serve.studio import Studio, StudioSettings
from r3_rl.web.connections import ConnectionLimits
from r3_rl.web.listening import address, listen, run_until_stopped, running_app, token_of

_CONNECTIONS = ConnectionLimits(per_address=160, total=240)
"""Room for senders that are to read a 429 or 503, not to be hung up on."""


def adapter_name(adapter: str) -> str:
    """Return what an adapter is called in requests: its folder, or the run that left it.

    >>> adapter_name("runs/demo"), adapter_name("runs/demo/adapter/"), adapter_name("shipped")
    ('demo', 'demo', 'shipped')
    """
    folder = Path(adapter).absolute()
    return (folder.parent.name if folder.name == "adapter" else folder.name) or "adapter"


@contextmanager
def running(studio: Studio, *, token: str = "") -> Iterator[str]:
    """Serve a model from a thread of this process on a free port of this machine; gives the URL. The studio ends with
    the block."""
    with running_app(make_app(studio, token=token), _CONNECTIONS) as url:
        yield url


def serve(
    *,
    model: str | None,
    adapter: str | None,
    rounds: int,
    host: str,
    port: int,
    token: str,
    token_env: str | None,
    max_batch: int,
    max_waiting: int,
) -> None:
    """Load a model and serve it until Ctrl-C or SIGTERM; requests that are inside then are finished.

    Raises `InputError` for a model, address or number that is wrong; what can be seen without the model is seen first.
    """
    limits = ServeLimits(max_batch=max_batch, max_waiting=max_waiting)
    if not 0 <= rounds <= limits.rounds:
        raise InputError(f"--rounds {rounds}", hint=f"0 to {limits.rounds}")
    if token and token_env:
        raise InputError("both --token and --token-env", hint="give one of them")
    token = token or token_of(token_env)
    with listen(host, port, token=token) as listening:  # first: loading weights for a taken port would be a pity
        loaded = load(model, adapter)
        name = StudioSettings().adapter if adapter is None else adapter_name(adapter)
        studio = Studio(loaded, StudioSettings(adapter=name, rounds=rounds, limits=limits))
        who = "with the token" if token else "without a token"
        print(f"serving {', '.join(studio.names)} at {address(listening)}/v1 {who}", flush=True)
        run_until_stopped(make_app(studio, token=token), listening, _CONNECTIONS)
        print("stopped", flush=True)
