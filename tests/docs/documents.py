"""What the documents hold: snippets with their language and file name, links, headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """One fenced block."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block is meant to be, from a first line `# name.py`."""
        found = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return found.group(1) if found else None


def documents() -> list[Path]:
    """Every page of the repository."""
    rooms = [path for room in ("docs", "r3_rl", "rewards", "recipes") for path in (REPOSITORY / room).rglob("*.md")]
    return sorted([*REPOSITORY.glob("*.md"), *rooms])


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of a page in order."""
    return [Snippet(language=lang, text=text) for lang, text in _FENCE.findall(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of a page's links, those into the net left out."""
    return [target for target in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What a link may name after `#`: the headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
