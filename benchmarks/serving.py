"""Throughput of `r3 serve` against the process itself, and what it answers under overload.

    python benchmarks/serving.py [--num 64] [--senders 16]

Measured with the embedded model and its shipped adapter: images (a draft and at most one round) and answers to a
question about an image. The process makes them one by one, then in one batch; the server gets them one by one, then
from many senders together. Then four times as many senders as the server takes ask at once.
"""

from __future__ import annotations

import argparse
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
from r3_rl.pixels import from_picture
from r3_rl.policy.base import Sampling
from r3_rl.rollout.rows import row_seeds
from r3_rl.serve.command import running
from r3_rl.serve.images import png_base64
from r3_rl.serve.limits import ServeLimits
from r3_rl.serve.studio import Studio, StudioSettings
from r3_rl.types import ImagePiece, TextPiece

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


def rate(what: str, count: int, work: Callable[[], object]) -> None:
    """Print how many a second."""
    start = time.perf_counter()
    work()
    print(f"{what:44} {count / (time.perf_counter() - start):7.1f} /s", flush=True)


def in_the_process(pipe: Refiner, image: Image.Image, num: int, batch: int) -> None:
    """Images and answers without a server."""
    context = (ImagePiece(image=from_picture(image)), TextPiece(text=QUESTION))
    sampling = Sampling(max_new_tokens=512, temperature=0.0)
    for size in (1, batch):
        calls = num // size
        rate(
            f"process: images, {size} together",
            calls * size,
            lambda size=size, calls=calls: [pipe([PROMPT] * size, num_rounds=1, seed=seed) for seed in range(calls)],
        )
        rate(
            f"process: answers, {size} together",
            calls * size,
            lambda size=size, calls=calls: [
                pipe.policy.write([context] * size, sampling, row_seeds(seed, 0, size)) for seed in range(calls)
            ],
        )


def behind_the_server(server: Server, num: int, senders: int) -> None:
    """The same over HTTP, from one sender and from many."""
    with httpx.Client(timeout=600) as client:
        for name, ask in (("images", server.draw), ("answers", server.ask)):
            for many in (1, senders):
                with ThreadPoolExecutor(many) as pool:
                    work = partial(all_of, pool, partial(ask, client), num)
                    rate(f"server: {name}, {many} sender{'s' * (many > 1)}", num, work)


def all_of(pool: ThreadPoolExecutor, ask: Callable[[int], httpx.Response], num: int) -> None:
    """Ask `num` times, with other seeds; everything must be answered."""
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
    parser.add_argument("--num", type=int, default=64, help="images and answers of a measurement")
    parser.add_argument("--senders", type=int, default=16)
    chosen = parser.parse_args()
    loaded = load(None, SHIPPED)
    pipe = Refiner(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)
    image = pipe(PROMPT, num_rounds=1, seed=0).images[0]
    print(f"embedded model, {torch.get_num_threads()} threads, n = {chosen.num} each")
    with torch.no_grad():
        in_the_process(pipe, image, chosen.num, chosen.senders)
    studio = Studio(loaded, StudioSettings())
    with running(studio) as url:
        behind_the_server(Server(url=url, image=image), chosen.num, chosen.senders)
        print(f"  mean batch {studio.worker.num_rows / studio.worker.num_calls:.1f} rows")
    with running(Studio(loaded, StudioSettings(limits=ServeLimits(max_waiting=8)))) as url:
        overloaded(Server(url=url, image=image), 8)


if __name__ == "__main__":
    main()
