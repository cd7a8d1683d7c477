"""Documents lead to files and commands that exist, and say of the package what it says of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ivlens
from ivlens.training.guidance import GUIDANCE
from ivlens.training.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("figures/*.md"), *ROOT.glob(".github/*.md")}
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:\.?\w+/)+[\w.-]*|\.?[\w-]+\.(?:md|yaml|toml|txt|cff))`")
# A page of the repository's host, which it alone knows, and pages of others.
ELSEWHERE = re.compile(r"https?://|#|\.\./\.\./security/")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def links(path: Path) -> Iterator[str]:
    yield from (link for link in LINK.findall(text(path)) if not ELSEWHERE.match(link))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_document_lead_to_files(path: Path) -> None:
    assert not [link for link in links(path) if not (path.parent / link.partition("#")[0]).exists()]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_every_path_that_contributors_are_sent_to_exists(name: str) -> None:
    named = set(NAMED.findall(text(ROOT / name)))
    assert named and not [path for path in named if not (ROOT / path).exists()]


def test_the_security_page_has_the_counts_of_what_was_tried() -> None:
    page = text(ROOT / "SECURITY.md").splitlines()
    for one in json.loads(text(ROOT / "tests" / "tried.json")):
        what, columns = one["what"], ("tried", "read", "refused", "ended", "broken")
        if "read" in one:
            assert one["read"] + one["refused"] + one["broken"] == one["tried"] and one["command"], what
        elif one["command"]:
            what = f"{what} (`{one['command']}`)"
        counts = [one[name] for name in columns if name in one]
        shown = [f"{count:,}" if isinstance(count, int) else count for count in counts]
        assert f"| {' | '.join([what, *shown])} |" in page, what


def test_every_name_that_contributors_are_sent_to_is_in_its_file() -> None:
    """Of a step such as: `ivlens/a/b.py`: a line of `NAMES`."""
    steps = re.findall(r"^\d\. `([\w./-]+\.py)`((?:.|\n {3})+)", text(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    assert len(steps) > 10
    for path, words in steps:
        for name in re.findall(r"`([A-Za-z_]+)`", words):
            places = [path, *re.findall(r"`([\w./-]+\.py)`", words)]
            assert any(re.search(rf"\b{name}\b", text(ROOT / place)) for place in places), (path, name)


def test_every_room_is_in_the_table_of_contributors() -> None:
    rooms = {path.parent.name for path in (ROOT / "ivlens").glob("*/__init__.py")}
    assert set(re.findall(r"\| `ivlens/(\w+)` \|", text(ROOT / "CONTRIBUTING.md"))) == rooms


def test_every_method_and_guidance_has_a_row_with_its_source() -> None:
    rows = [line.split(" | ") for line in text(ROOT / "docs" / "methods.md").splitlines() if line.startswith("| `")]
    sources = {name: cells[1] for cells in rows for name in re.findall(r"`([^`]+)`", cells[0])}
    known = [*METHODS, *(f"+{name}" for name in GUIDANCE)]
    assert not [name for name in known if not re.search(r"ours|arXiv:\d{4}\.\d{5}", sources.get(name, ""))]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", ".github/pull_request_template.md", ".github/workflows/test.yml"])
def test_every_make_target_that_is_named_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^|run: |^ +)make (?:-C \w+ )?([a-z0-9-]+)", text(ROOT / name), re.MULTILINE))
    lanes = re.findall(r"lane: \[(.*)\]", text(ROOT / name))
    named |= {lane for line in lanes for lane in line.split(", ")}
    assert named and named <= targets


def test_the_version_is_that_of_the_newest_release_everywhere() -> None:
    version = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["version"]
    released = re.findall(r"^## (\d\S*) \((\d{4}-\d\d-\d\d)\)$", text(ROOT / "CHANGELOG.md"), re.MULTILINE)
    (cited,), (date,) = (
        re.findall(rf"^{key}: (\S+)$", text(ROOT / "CITATION.cff"), re.MULTILINE)
        for key in ("version", "date-released")
    )
    assert released[0] == (version, date) == (cited, date)
    assert [date for _, date in released] == sorted((date for _, date in released), reverse=True)


@pytest.mark.command
def test_the_version_is_looked_up_when_it_is_asked_for() -> None:
    code = "import sys, ivlens; before = 'importlib.metadata' in sys.modules; print(ivlens.__version__, before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [ivlens.__version__, "False"]
    assert "__version__" in dir(ivlens) and "__version__" not in vars(ivlens)
    assert ivlens.__version__ == tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["version"]


def test_the_changelog_tells_of_each_thing_once() -> None:
    lines = re.findall(r"^- (.+)$", text(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert len(lines) == len(set(lines)) > 20
