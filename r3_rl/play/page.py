"""The page of `r3 play`: one tab draws, one asks about an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from r3_rl.errors import InputError, MissingPackageError, R3Error
from r3_rl.observe.markup import Html, element
from r3_rl.observe.notebook import notebook_html
from r3_rl.play.player import Player, Scales, Shown
from r3_rl.serve.conversation import Answer
from r3_rl.serve.limits import ServeLimits

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_GUIDANCE = 12.0
FONT, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
"""Of the reader's own machine: none is fetched."""
CSS = """
footer { display: none !important }
.side { min-height: 16rem }
.side h3 { margin: 0 0 .5rem }
.quiet { opacity: .65; font-size: .85rem }
img { image-rendering: pixelated }
.asked img { width: 100%; height: 100%; object-fit: contain }
"""
_SHOW_SIDES = "() => document.querySelector('.side').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
"""On a telephone they are below the settings."""
_NOTHING_IS_DRAWN = "() => document.querySelectorAll('.busy').forEach(words => words.remove())"


def make_app(player: Player, *, title: str, rounds: int = 2) -> FastAPI:
    """Return the application with the page at `/`. Nothing in it comes from another machine.

    Args:
        player: the model.
        title: what is played with.
        rounds: refinements at most, until somebody moves the slider.

    Raises:
        MissingPackageError: gradio is not installed.
    """
    gr = need_gradio()
    from fastapi import FastAPI

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    theme = gr.themes.Default(font=FONT, font_mono=MONO)
    page = _page(gr, player, title=title, rounds=rounds)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        max_file_size=ServeLimits().body_bytes,
    )
    return mounted


def need_gradio() -> Any:
    """Return gradio, which makes the page. Raises MissingPackageError if it is not installed."""
    # no statistics, and no look for a newer version of gradio
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise MissingPackageError("the page needs gradio", hint="pip install 'r3-rl[play,train]'") from error
    return gradio


def _page(gr: Any, player: Player, *, title: str, rounds: int) -> Any:
    with gr.Blocks(title=f"r3 play: {title}", analytics_enabled=False) as page:
        gr.Markdown(f"## r3 play: {title}")
        last = gr.State(None)  # the image that was drawn last, for the other tab
        with gr.Tab("Draw"):
            _drawing_tab(gr, player, last, rounds)
        with gr.Tab("Ask about an image"):
            _asking_tab(gr, player, last)
    page.queue(max_size=64, default_concurrency_limit=8)  # the model's own thread makes them one after the other
    return page


def _drawing_tab(gr: Any, player: Player, last: Any, rounds: int) -> None:
    own = Scales.of(player.loop)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(player.examples[len(player.examples) // 2], label="Prompt", lines=2, max_lines=6)
            with gr.Row():
                start = gr.Button("Draw", variant="primary", min_width=120)
                stop = gr.Button("Stop", variant="secondary", min_width=80)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            num_rounds = gr.Slider(0, ServeLimits().rounds, rounds, step=1, label="Rounds")
            with gr.Accordion("Guidance (1: none)", open=False):
                scales = [
                    _scale(gr, "Drafts, by the prompt", own.draft),
                    _scale(gr, "Refinements, by the text", own.refine),
                    _scale(gr, "Refinements, by the image", own.image),
                ]
            names = list(player.scorers)
            scorers = gr.CheckboxGroup(names, value=names, label="Scorers", visible=bool(names))
            two = len(player.sides) > 1
            compare = gr.Checkbox(two, label=f"Side by side with the {player.sides[-1]}", visible=two)
            gr.Examples([[text] for text in player.examples], inputs=prompt, label="Examples")
        shown = [_side(gr, _drawn(side, None)) for side in player.sides]

    def draw(
        prompt: str, seed: int, rounds: int, draft: float, refine: float, image: float, chosen: list[str], both: bool
    ) -> Iterator[list[Any]]:
        sides = player.sides if both else player.sides[:1]
        steps = player.draw(
            prompt,
            seed=int(seed or 0),
            rounds=int(rounds),
            scales=Scales(draft=draft, refine=refine, image=image),
            scorers=chosen,
            sides=sides,
        )
        yield [*(_drawn(side, None, busy=side in sides) for side in player.sides), None]
        try:
            so_far: dict[str, Shown] = {}
            for so_far in steps:
                yield [
                    *(_drawn(side, so_far.get(side), busy=side in sides) for side in player.sides),
                    _last_image(so_far[sides[0]]),
                ]
            yield [*(_drawn(side, so_far.get(side)) for side in player.sides), _last_image(so_far[sides[0]])]
        except R3Error as error:
            raise _told(gr, error) from error

    asked = [prompt, seed, num_rounds, *scales, scorers, compare]
    begun = gr.on([start.click, prompt.submit], draw, asked, [*shown, last], api_name="draw", show_progress="hidden")
    start.click(None, js=_SHOW_SIDES, api_visibility="private")
    stop.click(None, js=_NOTHING_IS_DRAWN, cancels=[begun], api_visibility="private")


def _scale(gr: Any, label: str, value: float) -> Any:
    return gr.Slider(min(1.0, value), max(MOST_GUIDANCE, value), value, step=0.1, label=label)


def _asking_tab(gr: Any, player: Player, last: Any) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = gr.Image(
                type="pil", sources=["upload", "clipboard"], label="Image", height=280, elem_classes="asked"
            )
            take = gr.Button("Take the image drawn last", size="sm")
            question = gr.Textbox(next(iter(player.questions), ""), label="Question", lines=2, max_lines=6)
            if player.questions:  # a world may ask none
                gr.Examples([[text] for text in player.questions], inputs=question, label="Examples")
            start = gr.Button("Ask", variant="primary")
        shown = [_side(gr, _answered(side, None)) for side in player.sides]

    def ask(image: Image.Image | None, question: str) -> list[str]:
        try:
            if image is None:
                raise InputError("no image", hint="upload one, or take the one that was drawn last")
            answers = player.ask(image, question)
        except R3Error as error:
            raise _told(gr, error) from error
        return [_answered(side, answers[side]) for side in player.sides]

    take.click(lambda drawn: drawn, last, image, api_visibility="private")
    gr.on([start.click, question.submit], ask, [image, question], shown, api_name="ask", show_progress="minimal")


def _side(gr: Any, content: Html) -> Any:
    """A column for what one model makes."""
    with gr.Column(scale=3, min_width=320):
        return gr.HTML(content, elem_classes="side", show_label=False)


def _told(gr: Any, error: R3Error) -> Any:
    return gr.Error(str(error), duration=None, title="Not done", print_exception=False)


def _last_image(shown: Shown) -> Image.Image | None:
    """For the other tab."""
    return None if shown.output is None else shown.output.images[0]


def _drawn(side: str, shown: Shown | None, *, busy: bool = False) -> Html:
    """What a side has drawn so far, and what it is writing."""
    words = f"{shown.stage}: {shown.text} …" if shown and shown.stage else "drawing …"
    state = element("p", words, class_="quiet busy") if busy else None
    rows = Html(notebook_html(shown.output.trajectories)) if shown and shown.output else None
    return element("div", element("h3", side), rows, state)


def _answered(side: str, answer: Answer | None) -> Html:
    """What a side has answered."""
    if answer is None:
        return element("div", element("h3", side))
    cut = element("p", "cut off at the limit of tokens", class_="quiet") if answer.finish_reason == "length" else None
    thought = element("p", answer.thought, class_="quiet") if answer.thought else None
    return element("div", element("h3", side), element("p", element("strong", answer.content)), thought, cut)
