"""Throughput of `r3 serve` against the process itself, and what it answers under overload.

    python benchmarks/serving.py [--num 32] [--senders 16] [--repeat 3]

Measured with the embedded model and its shipped adapter: images (a draft and at most one round) and answers to a
question about an image, in the process and over HTTP, one by one and many at once, in turns. Then four times as many
senders as the server takes ask at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import httpx
import torch
from PIL import Image

from r3_rl.evaluate.loading import SHIPPED, load
from r3_rl.evaluate.refiner import Refiner
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.pixels import from_picture
from r3_rl.policy.base import Sampling
from r3_rl.rollout.rows import row_seeds
from r3_rl.serve.command import running
from r3_rl.serve.images import png_base64
from r3_rl.serve.limits import ServeLimits
from r3_rl.serve.studio import Studio, StudioSettings

PROMPT, QUESTION = "one yellow triangle and two green circles", "how many circles ?"


@dataclass(frozen=True, kw_only=True)
class Server:
    """What senders ask a server."""

    url: str
    image: Image.Image

    def post(self, client: httpx.Client, path: str, body: dict[str, object]) -> httpx.Response:
        return client.post(f"{self.url}/v1/{path}", json=body)

    def draw(self, client: httpx.Client, seed: int) -> httpx.Response:
        body = {"prompt": PROMPT, "seed": seed, "rounds": 1, "intermediate": False}
        return self.post(client, "images/generations", body)

    def ask(self, client: httpx.Client, seed: int) -> httpx.Response:
        shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png_base64(self.image)}"}}
        parts = [shown, {"type": "text", "text": QUESTION}]
        return self.post(client, "chat/completions", {"messages": [{"role": "user", "content": parts}], "seed": seed})


def works(pipe: Refiner, server: Server, client: httpx.Client, num: int, senders: int) -> dict[str, Callable[[], None]]:
    """What is measured, by name: each makes `num` images or answers."""
    context = (ImagePiece(image=from_picture(server.image)), TextPiece(text=QUESTION))
    sampling = Sampling(max_new_tokens=512, temperature=0.0)

    def draw(size: int) -> None:
        for seed in range(num // size):
            pipe([PROMPT] * size, num_rounds=1, seed=seed)

    @torch.no_grad()
    def answer(size: int) -> None:
        for seed in range(num // size):
            pipe.policy.write([context] * size, sampling, row_seeds(seed, 0, size))

    found: dict[str, Callable[[], None]] = {}
    for size in (1, senders):
        found[f"images, process, {size} together"] = partial(draw, size)
        found[f"images, server, {size} at once"] = partial(all_of, size, partial(server.draw, client), num)
        found[f"answers, process, {size} together"] = partial(answer, size)
        found[f"answers, server, {size} at once"] = partial(all_of, size, partial(server.ask, client), num)
    return found


def all_of(senders: int, ask: Callable[[int], httpx.Response], num: int) -> None:
    """Ask `num` times, with other seeds, from so many senders; everything must be answered."""
    with ThreadPoolExecutor(senders) as pool:
        for answer in pool.map(ask, range(num)):
            answer.raise_for_status()


def overloaded(server: Server, room: int) -> None:
    """Four times as many senders as there is room for."""
    with ThreadPoolExecutor(4 * room) as pool, httpx.Client(timeout=600) as client:
        start = time.perf_counter()
        answers = list(pool.map(partial(server.draw, client), range(4 * room)))
    waits = sorted({int(a.headers["retry-after"]) for a in answers if "retry-after" in a.headers})
    refused = [a.elapsed.total_seconds() for a in answers if a.status_code != 200]
    print(f"overload: {4 * room} senders, room for {room}: {dict(Counter(a.status_code for a in answers))}")
    print(f"  Retry-After {waits} s; slowest refusal {max(refused, default=0):.2f} s")
    print(f"  all were answered within {time.perf_counter() - start:.1f} s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--num", type=int, default=32, help="images and answers of a measurement, a multiple of --senders"
    )
    parser.add_argument("--senders", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3, help="turns; medians are shown, and the range")
    chosen = parser.parse_args()
    loaded = load(None, SHIPPED)
    pipe = Refiner(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)
    image = pipe(PROMPT, num_rounds=1, seed=0).images[0]
    print(f"embedded model, {torch.get_num_threads()} threads, n = {chosen.num}, {chosen.repeat} turns")
    with running(Studio(loaded, StudioSettings())) as url, httpx.Client(timeout=600) as client:
        measured = works(pipe, Server(url=url, image=image), client, chosen.num, chosen.senders)
        rates: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(chosen.repeat):
            for name, work in measured.items():
                start = time.perf_counter()
                work()
                rates[name].append(chosen.num / (time.perf_counter() - start))
    for name, found in rates.items():
        print(f"{name:34} {statistics.median(found):6.1f} /s   ({min(found):.1f} to {max(found):.1f})", flush=True)
    with running(Studio(loaded, StudioSettings(limits=ServeLimits(max_waiting=8)))) as url:
        overloaded(Server(url=url, image=image), 8)


if __name__ == "__main__":
    main()
