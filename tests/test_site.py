"""The site's own parts: each page has its place, and each public name its page. `make docs` fails on dead links."""

from __future__ import annotations

import re
from inspect import ismodule
from pathlib import Path

from test_docstrings import EVERYTHING

ROOT = Path(__file__).parents[1]
NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2].partition("exclude_docs:")[0]


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert not pages - set(re.findall(r": (\S+\.md)$", NAV, re.MULTILINE))


def test_every_notebook_is_in_the_navigation() -> None:
    assert {path.name for path in ROOT.glob("notebooks/*.ipynb")} == set(
        re.findall(r"(\w+\.ipynb)$", NAV, re.MULTILINE)
    )


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = [path.read_text(encoding="utf-8") for path in ROOT.glob("docs/reference/*.md")]
    shown = re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE)
    public = {str(one) for one in EVERYTHING if "." not in one.name and not ismodule(one.object)}
    assert len(shown) == len(set(shown)) and not public - set(shown)
