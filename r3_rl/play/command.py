"""What `r3 play` does: load a model, put its page on this machine, until it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from r3_rl.errors import InputError
from r3_rl.evaluate.loading import load
from r3_rl.play.page import make_app
from r3_rl.play.player import Player, scorers_named
from r3_rl.serve.command import adapter_name
from r3_rl.serve.limits import ServeLimits
from r3_rl.web.connections import ConnectionLimits
from r3_rl.web.listening import address, listen, run_until_stopped, running_app

HOST = "127.0.0.1"
"""Only this machine: the page has no token."""
_CONNECTIONS = ConnectionLimits(per_address=160, total=240)


@contextmanager
def running(player: Player, *, title: str, rounds: int = 2) -> Iterator[str]:
    """Serve the page from a thread of this process on a free port of this machine; gives the URL. The player ends with
    the block."""
    try:
        with running_app(make_app(player, title=title, rounds=rounds), _CONNECTIONS) as url:
            yield url
    finally:
        player.close()


def play(*, model: str | None, adapter: str | None, port: int, rounds: int, scorers: Sequence[str]) -> None:
    """Load a model and serve its page until Ctrl-C or SIGTERM.

    Raises `InputError` for a model, scorer, port or number that is wrong; what can be seen without the model is seen
    first.
    """
    if not 0 <= rounds <= (most := ServeLimits().rounds):
        raise InputError(f"--rounds {rounds}", hint=f"0 to {most}")
    specs = scorers_named(scorers)
    with listen(HOST, port, token="") as listening:
        loaded = load(model, adapter)
        named = [name for name in (model, adapter) if name]
        player = Player(loaded, name="adapter" if adapter is None else adapter_name(adapter), scorers=specs)
        app = make_app(player, title=" + ".join(named) or "the embedded model", rounds=rounds)
        print(f"open {address(listening)} in a browser; Ctrl-C ends", flush=True)
        try:
            run_until_stopped(app, listening, _CONNECTIONS)
        finally:
            player.close()
        print("stopped", flush=True)
