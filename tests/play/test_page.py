"""The page of `r3 play`, with the real gradio: by its own client and in a browser. Skipped where gradio is missing."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time

import httpx
import pytest
from PIL import Image

gradio_client = pytest.importorskip("gradio_client", reason="needs gradio: pip install 'r3-rl[play]'")

from r3_rl.evaluate.loading import SHIPPED, load  # noqa: E402
from r3_rl.play.command import running  # noqa: E402
from r3_rl.play.player import Player, scorers_named  # noqa: E402
from tests.observe.browser import find_browser, open_browser  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of gradio and of what it imports
PROMPT = "two red circles and a blue cross"
SCALES = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def url():
    player = Player(load(None, SHIPPED, dtype="float32"), name="shipped", scorers=scorers_named(["sharpness"]))
    with running(player, title="shipped") as url:
        yield url
    gc.collect()  # here, where the event loops that gradio leaves open are no error


@pytest.fixture
def client(url):
    client = gradio_client.Client(url, verbose=False, analytics_enabled=False)
    yield client
    client.close()


def test_the_page_s_own_client_draws_and_asks(client, tmp_path):
    job = client.submit(PROMPT, 1, 1, *SCALES, ["sharpness"], True, api_name="/draw")
    sides = job.result(timeout=60)
    assert len(job.outputs()) > 4, "stage by stage"
    first = [output[0] for output in job.outputs() if "data:image" not in output[0]]
    assert any('busy">plan: ' in side for side in first), "the plan is read before there is an image"
    for name, side in zip(("shipped", "base"), sides, strict=True):
        assert f"<h3>{name}</h3>" in side and "data:image/png;base64," in side and "drawing" not in side
        assert "draft: score 0." in side, "the scorer's, not the world's"
    assert client.predict(PROMPT, 1, 0, *SCALES, [], False, api_name="/draw")[1] == "<div><h3>base</h3></div>"
    image = tmp_path / "red.png"
    Image.new("RGB", (36, 36), (200, 0, 0)).save(image)
    said = client.predict(gradio_client.handle_file(image), "how many circles ?", api_name="/ask")
    assert [f"<h3>{name}</h3><p><strong>" in side for name, side in zip(("shipped", "base"), said, strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("prompt", "said"), [("a zebra", "the model does not know 'zebra'; its words are"), (" ", "an empty prompt")]
)
def test_what_cannot_be_drawn_is_told(client, prompt, said):
    with pytest.raises(gradio_client.exceptions.AppError, match=said):
        client.predict(prompt, 0, 1, *SCALES, [], True, api_name="/draw")


@pytest.mark.skipif(find_browser() is None, reason="needs chromium")
def test_a_browser_draws_at_both_widths_and_asks_nobody_else(url):
    with open_browser(find_browser()) as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(url, width=width, dark=dark)
            wait(page, "!!document.querySelector('button.primary')")
            page.evaluate("document.querySelector('button.primary').click()")
            wait(page, "document.querySelectorAll('.side img').length > 1 && !document.querySelector('.busy')")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate("[...document.querySelectorAll('.side h3')].map(h => h.innerText).slice(0, 2)") == [
                "shipped",
                "base",
            ]
            assert [address for address in page.requests() if not address.startswith(url)] == []
            assert page.complaints() == []


def wait(page, condition, seconds=30):
    until = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < until, f"never: {condition}"
        time.sleep(0.1)


WATCHED = """
import sys
reached = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        reached.append(arguments[1] if event == "socket.connect" else arguments[0])
sys.addaudithook(hook)
from r3_rl.play.command import play
play(model=None, adapter="shipped", port=0, rounds=1, scorers=[])
print([place for place in reached if "127.0.0.1" not in str(place)])
"""


@pytest.mark.processes
def test_the_server_reaches_no_other_machine_and_ends_in_order(tmp_path):
    command = [sys.executable, "-c", WATCHED]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            first = process.stdout.readline()
            url = first.split()[1]
            assert first == f"open {url} in a browser; Ctrl-C ends\n" and url.startswith("http://127.0.0.1:")
            page = httpx.get(url, timeout=60)
            assert page.status_code == 200 and "r3 play: shipped" in page.text
            assert "googleapis" not in page.text and "gstatic" not in page.text
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == "stopped\n[]\n"
            assert process.wait(30) == 0
        finally:
            process.kill()
