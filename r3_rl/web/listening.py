"""A socket to listen on, and uvicorn between an application and its connections: for a verb, or from a thread."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from r3_rl.errors import InputError, RunError
from r3_rl.web.connections import ConnectionLimits, guarded


def token_of(variable: str | None) -> str:
    """Return the token in an environment variable; empty without a variable. Raises InputError if it is not set.

    >>> token_of(None)
    ''
    """
    token = os.environ.get(variable, "") if variable else ""
    if variable and not token:
        raise InputError(f"--token-env {variable}: this environment variable is not set")
    return token


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


def run_until_stopped(app: FastAPI, listening: socket.socket, limits: ConnectionLimits) -> None:
    """Serve an application until Ctrl-C or SIGTERM. Raises RunError if it did not start."""
    server = make_server(app, limits)
    # uvicorn ends in order and passes the signal on, unless whoever started this process ignores it.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if not server.started:
        raise RunError("the server did not start", hint="its reason stands above")


@contextmanager
def running_app(app: FastAPI, limits: ConnectionLimits) -> Iterator[str]:
    """Run an application in a thread of this process, on a free port of this machine; gives the URL."""
    server = make_server(app, limits)
    with listen("127.0.0.1", 0, token="") as listening:
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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: what it stands for may change
        return False
