"""The documents hold together: links lead somewhere, verbs exist, written pages are what their sources write."""

from __future__ import annotations

import re

import pytest

from r3_rl.cli import app
from r3_rl.observe.metrics import metrics_page
from r3_rl.recipe.page import recipes_page
from r3_rl.recipe_io import load_recipe, shipped_recipes
from r3_rl.worlds.shapes.board import NINE
from r3_rl.worlds.shapes.language import vocabulary
from tests.docs.documents import REPOSITORY, anchors, documents, links

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_verb_that_is_named_exists(page):
    for words in re.findall(r"`r3 ([a-z][a-z ]*)", page.read_text(encoding="utf-8")):
        verb, *rest = words.split()
        assert verb in app, words
        if verb in ("recipes", "rewards") and rest:
            assert rest[0] in app[verb], words


def test_every_page_of_the_docs_is_linked_from_the_readme():
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README, page.name


@pytest.mark.parametrize(("name", "written"), [("recipes", recipes_page), ("metrics", metrics_page)])
def test_written_pages_are_up_to_date(name, written):
    assert (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8") == written()


def test_the_readme_lists_every_recipe():
    table = README.partition("## Recipes")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(shipped_recipes())


@pytest.mark.parametrize(
    "kept", sorted((REPOSITORY / "docs" / "studies").glob("*/recipe.yaml")), ids=lambda kept: kept.parent.name
)
def test_the_recipe_of_a_study_that_is_kept_still_loads(kept):
    assert load_recipe(kept).training.max_steps > 0


def test_the_readme_counts_the_words_of_the_embedded_model():
    assert f"The embedded model knows {len(vocabulary(NINE))} words" in README


def test_the_changelog_names_the_version_or_says_that_it_is_not_released():
    assert re.search(r"^## (Unreleased|\d+\.\d+\.\d+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
