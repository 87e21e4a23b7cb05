"""The frame of every page that is written: style, script, and a policy under which nothing leaves the page."""

from __future__ import annotations

import base64
import hashlib

from r3_rl.observe.charts import NUM_COLOURS
from r3_rl.observe.markup import Child, Html, element
from r3_rl.observe.script import SCRIPT
from r3_rl.observe.style import STYLE, colour_rules, tab_rules

NUM_TABS = 5
"""Most tabs of a page's gallery."""


def page(title: str, content: Child) -> Html:
    """Return a complete page that needs no network.

    Args:
        title: of the window.
        content: of the page, section by section.

    >>> page("a run", element("p", "done")).startswith("<!doctype html>")
    True
    """
    style = Html(STYLE + colour_rules(NUM_COLOURS) + tab_rules(NUM_TABS))
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    # The page carries texts from strangers (prompts, critiques). Escaping keeps them text; this policy is the second
    # lock: no request leaves the page and no script runs but ours.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    body = element("body", element("main", content), element("script", Html(SCRIPT)))
    return Html("<!doctype html>\n" + element("html", head, body, lang="en") + "\n")
