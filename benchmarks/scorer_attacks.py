"""What senders of nonsense, slow senders and heavy requests cost a server of scorers, and what others notice of them.

The server is a process of its own, started with `r3 rewards serve` as its page shows. Meanwhile an honest client asks
for `/health` and scores one picture, again and again; the slowest of its answers is shown for each kind of attack.

    python benchmarks/scorer_attacks.py --help
"""

from __future__ import annotations

import argparse
import http.client
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from machine import Report

from r3_rl.scoring.png import encode_png

HANGS = "import time\n\n\ndef hangs(completions):\n    time.sleep(3600)\n"
TIMEOUT_S = 5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bodies", type=int, default=10_000, help="bodies of the fuzz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    return parser.parse_args()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server under attack."""

    host: str
    port: int
    pid: int

    def post(self, body: bytes, timeout: float = 60.0) -> tuple[int, bytes]:
        """Status and body of an answer to a request of its own connection."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request("POST", "/score", body=body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def resident_bytes(self) -> int:
        """Memory of the server and of the processes of its scorers."""
        return sum(_resident(pid) for pid in (self.pid, *_children(self.pid)))


def _resident(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return 0


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Start a server of two honest scorers and one that hangs."""
    (folder / "hangs.py").write_text(HANGS)
    command = [sys.executable, "-m", "r3_rl", "rewards", "serve", "shapes", "sharpness", "./hangs.py:hangs"]
    command += ["--port", "0", "--timeout-s", str(TIMEOUT_S)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().split(" at http://")[1].split()[0].partition(":")
        try:
            yield Server(host=host, port=int(port), pid=process.pid)
            assert process.poll() is None, "the server has ended"
        finally:
            process.terminate()


def packed(samples: list[Any], images: tuple[bytes, ...] = (), scorer: str = "shapes", **fields: Any) -> bytes:
    """The body of a request, right or wrong."""
    whole = {"schema": 1, "scorer": scorer, "samples": samples, "image_bytes": [len(i) for i in images], **fields}
    envelope = msgpack.packb(whole)
    return struct.pack(">I", len(envelope)) + envelope + b"".join(images)


SMALL = encode_png(np.zeros((36, 36, 3), np.uint8))
BLACK = encode_png(np.zeros((4096, 4096, 3), np.uint8))
CIRCLE = {"class": "circle", "count": 1}
HONEST = packed([{"images": 0, "include": [CIRCLE]}], (SMALL,))


@dataclass(kw_only=True)
class Honest:
    """The client that only wants to be served."""

    server: Server
    seconds: list[float] = field(default_factory=list)
    failures: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(0.05):
            start = time.perf_counter()
            try:
                while (status := self.server.post(HONEST)[0]) == 503:  # full: it asks again, and its clock runs on
                    time.sleep(0.2)
                self.failures += status != 200
            except OSError:
                self.failures += 1
            self.seconds.append(time.perf_counter() - start)

    @contextmanager
    def asking(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=120)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def fuzz_bodies(dice: random.Random) -> dict[str, Callable[[], bytes]]:
    """Kinds of bodies for the fuzz: each call gives another one."""

    def mutated() -> bytes:
        body = bytearray(HONEST)
        for _ in range(dice.randrange(1, 6)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        return bytes(body)

    def hostile() -> bytes:
        count = dice.choice([0, -1, 10, 10**9, 2**63 - 1, 1e300, True, None, "9", [9], nested(dice.randrange(200))])
        group = {"class": dice.choice(["circle", "zebra", "", 7]), "count": count, "color": dice.choice(["", "red", 1])}
        include = dice.choice([[group], [group] * 50, group, None, "circle", [CIRCLE, group]])
        return packed([{"images": dice.choice([0, 0, 0, 1, None]), "include": include}], (SMALL,))

    return {
        "random bytes": lambda: dice.randbytes(dice.randrange(300)),
        "a request with some bytes changed": mutated,
        "a request that is cut": lambda: HONEST[: dice.randrange(len(HONEST))],
        "metadata that ask for the impossible": hostile,
        "values of a wrong kind": lambda: packed(
            dice.choice([None, {}, [1], [{}], [nested(dice.randrange(500))], [{"images": dice.random()}]]),
            dice.choice([(), (SMALL,), (SMALL[:40],)]),
            schema=dice.choice([1, 2, "1", None]),
        ),
    }


def heavy_bodies() -> dict[str, list[bytes]]:
    """Requests that are small to send and were a lot of work, sent at once."""
    return {
        "a count of 10^9": [packed([{"images": 0, "include": [{"class": "circle", "count": 10**9}]}], (SMALL,))],
        "100,000 groups": [packed([{"images": 0, "include": [CIRCLE] * 100_000}], (SMALL,))],
        "256 samples of 3,000 keys": [packed([{f"{n}_{i}": 0 for i in range(3000)} for n in range(256)])],
        "a sample of 1,000,000 keys": [packed([{f"{i}": 0 for i in range(1_000_000)}])],
        "one image of 4096 x 4096, 256 times": [packed([{"images": 0}] * 256, (BLACK,), scorer="sharpness")],
        "1,000,000 images of no bytes": [packed([{}], image_bytes=[0] * 1_000_000)],
        "8 MB of empty maps, four at once": [packed([{"a": [{}] * 8_388_000}])] * 4,
        "lists that claim 10^9 values": [struct.pack(">I", 5000) + b"\xdd\x3b\x9a\xca\x00" * 1000],
        "4 images of 4096 x 4096, four at once": [
            packed([{"images": 0}, {"images": 1}, {"images": 2}, {"images": 3}], (BLACK,) * 4, scorer="sharpness")
        ]
        * 4,
        f"a scorer that hangs (limit {TIMEOUT_S} s)": [packed([{"completions": "a"}], scorer="hangs")],
    }


def fuzz(server: Server, count: int, seed: int) -> list[list[str]]:
    """Rows of the fuzz, one a kind."""
    dice, rows = random.Random(seed), []
    kinds = fuzz_bodies(dice)
    for kind, make in kinds.items():
        honest, statuses = Honest(server=server), Counter[int]()
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        start = time.perf_counter()
        with honest.asking():
            for _ in range(count // len(kinds)):
                connection.request("POST", "/score", body=make())
                answer = connection.getresponse()
                text = answer.read()
                statuses[answer.status] += 1
                assert b"Traceback" not in text
        connection.close()
        rows.append(_row(kind, count // len(kinds), statuses, start, honest))
    return rows


def slow(server: Server) -> list[list[str]]:
    """Rows of connections that do not hurry."""
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
    rows = []
    for kind, count, sent in (
        ("connections that send nothing", 300, b""),
        ("connections with half a head", 100, head),
        ("bodies that never end", 12, head + b"\r\nabc"),
    ):
        honest, statuses, start = Honest(server=server), Counter[int](), time.perf_counter()
        with honest.asking():
            idle = [socket.create_connection((server.host, server.port)) for _ in range(count)]
            for connection in idle:
                with suppress(OSError):
                    connection.sendall(sent)
            for connection in idle:
                statuses[_end_of(connection)] += 1
        rows.append(_row(kind, count, statuses, start, honest))
    return rows


def _end_of(connection: socket.socket) -> int:
    """The status that a connection got before the server hung up; 0 for none."""
    connection.settimeout(90)
    answer = b""
    with connection, suppress(ConnectionError):
        while chunk := connection.recv(4096):
            answer += chunk
    return int(answer.split()[1]) if answer else 0


def heavy(server: Server, numbers: dict[str, Any]) -> list[list[str]]:
    """Rows of heavy requests; also how much memory is left of them."""
    rows = []
    before = server.resident_bytes()
    peak = before
    for kind, bodies in heavy_bodies().items():
        honest, statuses, start = Honest(server=server), Counter[int](), time.perf_counter()
        with honest.asking(), ThreadPoolExecutor(len(bodies)) as pool:
            asked = [pool.submit(server.post, body) for body in bodies]
            while not all(each.done() for each in asked):
                peak = max(peak, server.resident_bytes())
                time.sleep(0.05)
            for each in asked:
                statuses[each.result()[0]] += 1
        rows.append(_row(kind, len(bodies), statuses, start, honest))
    ended = time.monotonic()
    while (after := server.resident_bytes()) > 1.1 * before and time.monotonic() - ended < 60:
        server.post(HONEST)
        time.sleep(0.5)
    numbers["memory_mb"] = {
        "before": before / 1e6, "peak": peak / 1e6, "after": after / 1e6, "seconds": time.monotonic() - ended
    }  # fmt: skip
    return rows


def _row(kind: str, count: int, statuses: Counter[int], start: float, honest: Honest) -> list[str]:
    said = ", ".join(f"{number} x {status or 'hung up'}" for status, number in sorted(statuses.items()))
    slowest = max(honest.seconds, default=0.0)
    served = f"{len(honest.seconds)} ({honest.failures} failed)"
    return [kind, str(count), said, f"{time.perf_counter() - start:.1f}", served, f"{slowest:.2f}"]


def main() -> None:
    args = arguments()
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server:
        for _ in range(20):
            server.post(HONEST)
            server.post(packed([{"images": 0}], (SMALL,), scorer="sharpness"))
        rows = [*fuzz(server, args.bodies, args.seed), *slow(server), *heavy(server, numbers)]
        status, _ = server.post(HONEST)
    numbers["rows"] = rows
    memory = numbers["memory_mb"]
    notes = [
        f"afterwards an honest request gets {status}",
        f"memory of the server and its scorers: {memory['before']:.0f} MB before the heavy requests, "
        f"{memory['peak']:.0f} at most, {memory['after']:.0f} after {memory['seconds']:.0f} s",
    ]
    columns = ["what is sent", "how many", "answers", "seconds", "others served", "slowest of them, s"]
    Report(title="attacks on a server of scorers", columns=columns, rows=rows, notes=notes, numbers=numbers).show(
        args.out
    )


if __name__ == "__main__":
    main()
