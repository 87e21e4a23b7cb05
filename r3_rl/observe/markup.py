"""HTML that cannot forget to escape: text is escaped unless it was made here.

Prompts, critiques and scorers' words come from outside, so nothing reaches the page except through `element`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"br", "hr", "img", "input", "meta"})


class Html(str):
    """A piece of HTML that is already escaped."""

    __slots__ = ()


Child = str | Html | Iterable["Child"] | None
Attribute = str | int | float | bool | None


def element(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """An element with escaped text and attributes.

    Args:
        tag: name of the element.
        children: text (escaped), elements, lists of both; None is left out.
        attributes: `class_` and `data_x` are written `class` and `data-x`; True is a bare attribute, None and False
            leave it out.

    >>> element("p", "1 < 2 ", element("b", "yes"), class_="note")
    '<p class="note">1 &lt; 2 <b>yes</b></p>'
    >>> element("input", type="radio", checked=True)
    '<input type="radio" checked>'
    """
    opening = tag
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        opening += f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"'
    if tag in VOID:
        assert not children
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Html:
    """Escape and string together.

    >>> join(["a & b", None, [element("br")]])
    'a &amp; b<br>'
    """
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(html.escape(child, quote=False))
        elif child is not None:
            parts.append(str(join(child)))
    return Html("".join(parts))
