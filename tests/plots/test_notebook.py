import html
import inspect
import re
import subprocess
from pathlib import Path
from types import FunctionType

import plotly.graph_objects
import plotly.io
import pytest
from choreographer.browsers.chromium import Chromium

import ivlens
from ivlens import plots, tables
from ivlens.plots import notebook
from ivlens.plots.notebook import DATA, figure_html

CHROME = Chromium.find_browser(skip_local=False)
PACKED = 'id="ivlens-plotly"'
HOSTILE = "</script><script>alert(1)</script>"


def figure(title: str = "AIE") -> notebook.Figure:
    return plots.head_heatmap([[0.1, -0.2]], title=title)


@pytest.fixture
def jupyter(monkeypatch):
    """As plotly finds itself in Jupyter; cells are run by setting `place`."""
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    monkeypatch.setattr(notebook._Bearer, "cell", None)
    monkeypatch.setattr(notebook._Bearer, "run", None)
    place = {"cell": "a", "run": 1}
    monkeypatch.setattr(notebook, "_place", lambda: (place["cell"], place["run"]))
    return place


def page_of(shown: notebook.Figure) -> str:
    return shown._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize("name", sorted(name for name, plot in vars(plots).items() if isinstance(plot, FunctionType)))
def test_every_plot_is_public_and_says_what_it_needs(name):
    written = str(inspect.getdoc(getattr(ivlens.plots, name)))
    assert "Args:" in written and "Raises:\n    FigureError:" in written


@pytest.mark.slow
def test_in_jupyter_a_figure_is_data_and_a_page_of_its_own(jupyter):
    bundle = figure()._repr_mimebundle_()
    assert bundle.keys() == {DATA, "text/html"}
    assert bundle[DATA]["layout"]["title"]["text"] == "AIE" and "Plotly.newPlot" in bundle["text/html"]


def test_the_first_figure_of_a_notebook_brings_plotly_js_and_the_others_do_not(jupyter):
    assert PACKED in page_of(figure())
    assert PACKED not in page_of(figure())
    jupyter.update(cell="b", run=2)
    assert PACKED not in page_of(figure()) and len(page_of(figure())) < 10_000


def test_a_first_cell_that_is_run_again_brings_it_again(jupyter):
    page_of(figure())
    jupyter.update(run=5)
    assert PACKED in page_of(figure()) and PACKED not in page_of(figure())
    jupyter.update(cell=None, run=6)
    assert PACKED not in page_of(figure()), "of unknown cells, none is the first one again"


def test_a_renderer_that_was_chosen_stays(jupyter, monkeypatch):
    monkeypatch.setattr(plotly.io.renderers, "default", "json")
    assert figure()._repr_mimebundle_().keys() == {"application/json"}


def test_what_ipython_displays_has_text_for_a_terminal(jupyter, monkeypatch):
    pytest.importorskip("IPython")
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, metadata, raw: shown.append(bundle))
    figure("Heads <1> & $x$")._ipython_display_()
    figure().show()
    assert [bundle["text/plain"] for bundle in shown] == ["[Heads <1> & $x$]", "[AIE]"]
    assert all(bundle.keys() == {DATA, "text/html", "text/plain"} for bundle in shown)


def test_an_image_of_a_figure_says_what_it_shows(jupyter, monkeypatch):
    pytest.importorskip("IPython")
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, metadata, raw: shown.append((bundle, metadata)))
    monkeypatch.setattr(plotly.graph_objects.Figure, "_repr_mimebundle_", lambda self: {DATA: {}, "image/svg+xml": ""})
    figure("Heads")._ipython_display_()
    assert shown == [({"text/plain": "[Heads]", DATA: {}, "image/svg+xml": ""}, {"image/svg+xml": {"alt": "Heads"}})]


@pytest.mark.browser
@pytest.mark.skipif(CHROME is None, reason="no Chrome or Chromium on this machine")
def test_figures_draw_themselves_without_the_net(tmp_path):
    page = tmp_path / "page.html"
    first, second = figure_html(figure(HOSTILE), library=True), figure_html(figure("second"), library=False)
    page.write_text(f"<!doctype html><meta charset=utf-8>{first}<p>between</p>{second}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    done = subprocess.run([CHROME, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout.count('class="main-svg"') == 6, "three of each figure"
    assert "alert(1)&lt;/script&gt;" in done.stdout and "<script>alert" not in done.stdout


def test_no_title_leaves_its_script():
    assert HOSTILE not in figure_html(figure(HOSTILE), library=False)


def test_tables_show_text_as_it_is():
    table = tables.html_table(("<b>", "n"), [("a\x1b[1m", "<i>1</i>")])
    assert "<b>" not in table and "<i>" not in table and "a\\x1b[1m" in table and "\x1b" not in table


def test_a_task_shows_its_wordings_statement_and_examples():
    task = ivlens.task("antonym")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", task._repr_html_())
    assert cells == [html.escape(cell) for line in task.lines() for cell in line]
    assert cells.count("instruction") == len(task.instructions) and task.statement in cells


def test_a_vector_shows_its_heads_and_what_they_carry():
    folder = Path(__file__).parents[2] / "figures" / "numbers" / "lab-tasks"
    vector = ivlens.InstructionVector.load(folder / "antonym.safetensors")
    shown = vector._repr_html_()
    assert (
        "<b>antonym of lab</b>" in shown
        and f"to be added {vector.scale:g} times after block {vector.layer}, 10 heads" in shown
    )
    assert (
        all(f">{head}</th>" in shown for head in vector.heads) and f">{vector.aie[vector.heads[0]]:+.3f}</td>" in shown
    )
