"""The notebooks read well, were run from top to bottom, and show their figures in the page that they are exported to.

That they still run is tested by nbmake, which runs them all beside these tests.
"""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path

import nbformat
import pytest
from choreographer.browsers.chromium import Chromium
from nbconvert import HTMLExporter
from playwright.sync_api import sync_playwright
from test_docstrings import EVERYTHING

CHROME = Chromium.find_browser(skip_local=False)
FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
DATA, IMAGE = "application/vnd.plotly.v1+json", "image/svg+xml"
MOST_LINES = 12
MOST_BYTES = 5 * 2**20

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code(path) for output in cell.outputs]


def test_the_six_notebooks_are_small() -> None:
    names = ["01_audit", "02_vectors", "03_before_after", "04_forgetting", "05_your_own_model", "06_recovery"]
    assert [path.stem for path in PATHS] == names
    assert sum(path.stat().st_size for path in PATHS) < MOST_BYTES


@every_notebook
def test_no_cell_is_long_or_defines_a_function(path: Path) -> None:
    for cell in code(path):
        assert 1 <= len(cell.source.splitlines()) <= MOST_LINES, cell.source
        defining = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        for node in ast.walk(ast.parse(cell.source)):
            named = isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and isinstance(node.value, ast.Lambda)
            assert not isinstance(node, defining) and not named, cell.source


@every_notebook
def test_it_was_run_once_from_top_to_bottom(path: Path) -> None:
    counts = [cell.execution_count for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_outputs_are_there_and_hold_neither_errors_nor_progress_nor_places(path: Path) -> None:
    found = outputs(path)
    assert len(found) > len(code(path)) / 2
    for output in found:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        texts = [output.get("text", "")] + [text for kind, text in output.get("data", {}).items() if "text/" in kind]
        for text in texts:
            assert "it/s]" not in text
            assert not re.search(r"(?<![\w<:/.])/[A-Za-z]\w*/", text), text


@every_notebook
def test_figures_are_kept_as_data_and_as_images(path: Path) -> None:
    figures = [output.data.keys() for output in outputs(path) if DATA in output.get("data", {})]
    assert figures and all(IMAGE in kinds for kinds in figures)


@every_notebook
def test_images_have_the_title_of_their_figure_as_text(path: Path) -> None:
    images = [output for output in outputs(path) if IMAGE in output.get("data", {})]
    assert images and all(
        image.metadata[IMAGE].alt == html.unescape(image.data[DATA]["layout"]["title"]["text"].replace("<br>", " "))
        for image in images
    )


@every_notebook
def test_it_imports_nothing_that_is_not_public(path: Path) -> None:
    public = {str(one) for one in EVERYTHING}
    for node in (node for cell in code(path) for node in ast.walk(ast.parse(cell.source))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "ivlens":
            assert {f"{node.module}.{name.name}" for name in node.names} <= public, ast.unparse(node)
        if isinstance(node, ast.Import):
            assert not [name.name for name in node.names if name.name.startswith("ivlens.")], ast.unparse(node)


@every_notebook
def test_it_asks_for_any_python_3(path: Path) -> None:
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}


@every_notebook
def test_it_leads_to_notebooks_that_exist(path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    linked = set(re.findall(r"\]\(([^)]+\.ipynb)\)", text))
    assert linked and all((FOLDER / name).is_file() for name in linked)


@pytest.fixture(scope="module")
def browser():
    if CHROME is None:
        pytest.skip("no Chrome or Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.browser
@every_notebook
def test_its_figures_show_in_the_exported_page_without_the_net(path: Path, browser, tmp_path: Path) -> None:
    page_path = tmp_path / "page.html"
    page_path.write_text(HTMLExporter().from_filename(str(path))[0], encoding="utf-8")
    page = browser.new_context(offline=True).new_page()
    page.goto(page_path.as_uri())
    images = page.locator(".jp-RenderedSVG img, .jp-RenderedSVG > svg").all()
    shown = [(round(box["width"]), round(box["height"])) for box in (image.bounding_box() for image in images)]
    layouts = [output.data[DATA]["layout"] for output in outputs(path) if DATA in output.get("data", {})]
    assert shown == [(layout["width"], layout["height"]) for layout in layouts]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    page.context.close()
