"""What the site takes from elsewhere in the repository: its pages, figures and notebooks, and links between them all.

Every document is written for the repository, where its links are paths. On the site those of pages lead to pages; what
is no page, such as a module, is named and not linked.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {f"{name}.md": f"{name.lower()}.md" for name in ("LOG", "CHANGELOG", "CONTRIBUTING", "SECURITY")}
"""Pages of the repository's root, and of the site."""
KEPT = ("figures/README.md", "figures/*.png", "figures/*.svg", "notebooks/*.ipynb")
UNDESCRIBED = 'alt="No description has been provided for this image"'
"""As nbconvert writes it, which reads no text of an image."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")


@event_priority(100)  # Before the plugin that turns notebooks into pages.
def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside of docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for source in (str(path.relative_to(ROOT)) for pattern in KEPT for path in sorted(ROOT.glob(pattern))):
        files.append(File(source, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    here = _in_repository(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        words = LINK.sub(link, words)
        path, anchor = re.fullmatch(r"([^#]*)(.*)", target).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if not path or "://" in path:
            return f"{mark}[{words}]({target})"
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        place = PAGES.get(meant, "README.md" if meant == "README.md" else meant.removeprefix("docs/"))
        if files.get_file_from_path(place) is None:
            return words
        return f"{mark}[{words}]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(link, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Give every image of a notebook's figure the figure's title as its text."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    cells = json.loads((ROOT / page.file.src_uri).read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for output in outputs:
        if title := output.get("metadata", {}).get("image/svg+xml", {}).get("alt"):
            html = html.replace(UNDESCRIBED, f'alt="{escape(title)}"', 1)
    if UNDESCRIBED in html:
        logging.getLogger("mkdocs.hooks").warning("%s: an image has no text", page.file.src_uri)
    return html


def on_post_build(config: Any) -> None:
    """Warn, which fails the build, of a name of the reference that the search does not find."""
    index = json.loads((Path(config.site_dir) / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[2] for entry in index["docs"]}
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            if name not in found:
                logging.getLogger("mkdocs.hooks").warning("%s: the search index lacks %s", page.name, name)


def _in_repository(page: str) -> str:
    roots = {place: source for source, place in PAGES.items()}
    return roots.get(page, page if page.startswith(("figures/", "notebooks/")) else f"docs/{page}")
