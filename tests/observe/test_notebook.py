"""What a notebook shows of trajectories: every image and word, escaped, with nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image

from r3_rl.modalities import TextSegment, still
from r3_rl.observe.notebook import notebook_html
from r3_rl.types import Critique, Prompt, Round, Trajectory, Verdict

BAD = "<script>alert(1)</script> & \"'"


class Page(HTMLParser):
    """The tags, sources and texts of a piece of HTML; every tag must be closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], set(), [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def said(words, **fields):
    text = TextSegment(context=(), token_ids=(), log_probs=torch.zeros(0), text=words, ended=True)
    return Critique(segment=text, **{"well_formed": True, "stop": False, "instruction": "", **fields})


def trajectory(words="a"):
    plan = said(f"plan {words}").segment
    draft = Round(image=still(torch.zeros(3, 4, 6)), plan=plan, verdict=Verdict(total=0.5, words=f"why {words}"))
    refined = Round(image=still(torch.ones(3, 4, 6)), critique=said(f"critique {words}"))
    return Trajectory(prompt=Prompt(text=f"prompt {words}"), rounds=(draft, refined), last_critique=said("done"))


def test_all_images_and_texts_are_there_and_escaped():
    page = Page(notebook_html([trajectory(BAD)]))
    assert page.tags == {"div", "section", "strong", "figure", "img", "figcaption", "em", "br"}
    for words in (
        f"prompt {BAD}",
        f"plan {BAD}",
        f"draft: score 0.5 (why {BAD})",
        f"critique {BAD}",
        "round 1",
        "done",
    ):
        assert words in page.text
    assert page.text.index("draft") < page.text.index("critique <") < page.text.index("round 1")
    head = "data:image/png;base64,"
    assert all(source.startswith(head) for source in page.sources)
    images = [Image.open(io.BytesIO(base64.b64decode(source.removeprefix(head)))) for source in page.sources]
    assert [image.size for image in images] == [(176, 117)] * 2  # enlarged, in their own shape
    assert [np.asarray(image).mean() for image in images] == [0, 255]


def test_of_many_the_first_are_shown_and_the_others_counted():
    page = Page(notebook_html([trajectory()] * 20))
    assert len(page.sources) == 32 and page.text.endswith("and 4 more")
