"""How does a figure show in a notebook, and in the page that the notebook is exported to?

In Jupyter plotly hands out data alone, which an extension of Jupyter draws: `nbconvert --to html` leaves such a figure
out. Beside the data our figures hand out HTML that draws itself. The first one in a notebook brings plotly.js along,
packed, so that the page needs no net; where it is gone (its cell was deleted, say) the others fetch it.
"""

from __future__ import annotations

import base64
import gzip
import html
from collections.abc import Mapping
from functools import cache
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs, get_plotlyjs_version

DATA = "application/vnd.plotly.v1+json"
_FETCHED = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
_DRAW = """(async () => {
  const place = document.currentScript.previousElementSibling, figure = %s;
  window.ivlensPlotly ??= (async () => {
    const packed = document.getElementById("ivlens-plotly"), script = document.createElement("script");
    if (window.Plotly) return;
    if (packed) {
      const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
      const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      script.textContent = await new Response(plain).text();
      document.head.append(script);
    } else await new Promise((done, failed) => {
      Object.assign(script, {src: "%s", onload: done, onerror: failed});
      document.head.append(script);
    });
  })();
  try {
    await window.ivlensPlotly;
  } catch {
    window.ivlensPlotly = null;
    return;
  }
  place.replaceChildren();
  Plotly.newPlot(place, figure.data, figure.layout, {displaylogo: false});
})();"""


class Figure(go.Figure):
    """A plotly figure that also shows in the page that its notebook is exported to."""

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What plotly hands out, and HTML where that is data alone; a renderer of one's own choice stays as it is."""
        bundle = super()._repr_mimebundle_(*args, **kwargs)
        return {**bundle, "text/html": _notebook_html(self)} if bundle.keys() == {DATA} else bundle

    def _ipython_display_(self) -> None:
        """With its title as text: for a terminal, and for who does not see an image of it."""
        bundle = self._repr_mimebundle_()
        if bundle:
            from IPython.display import display

            display({"text/plain": self._text, **bundle}, metadata=self.alternatives(bundle), raw=True)
        else:
            super()._ipython_display_()

    def alternatives(self, bundle: Mapping[str, Any]) -> dict[str, Any]:
        """The title as the text of every image in what is displayed, as notebooks keep it."""
        return {kind: {"alt": self._text[1:-1]} for kind in bundle if kind.startswith("image/")}

    def show(self, *args: Any, **kwargs: Any) -> None:
        """As plotly's; without arguments as in the last line of a cell."""
        if args or kwargs:
            super().show(*args, **kwargs)
        else:
            self._ipython_display_()

    @property
    def _text(self) -> str:
        title = str(_layout(self).title.text or "figure")
        return f"[{html.unescape(title.replace('<br>', ' '))}]"


def figure_html(figure: Figure, *, library: bool) -> str:
    """HTML that draws a figure, for a place on a page.

    Args:
        library: Bring plotly.js along; once is enough for a page.
    """
    data = figure_json(figure)
    packed = f'<script type="text/plain" id="ivlens-plotly">{_pack()}</script>' if library else ""
    layout = _layout(figure)
    size = f"width:{layout.width}px;height:{layout.height}px"
    fallback = html.escape(figure._text)
    return f'{packed}<div style="{size}">{fallback}</div><script>{_DRAW % (data, _FETCHED)}</script>'


def figure_json(figure: go.Figure) -> str:
    """What is drawn and how, as JSON in which `<` is written as an escape."""
    written = plotly.io.to_json(figure, validate=False)
    assert written is not None  # As plotly's signature allows for engines that it no longer has.
    return written


def _layout(figure: go.Figure) -> Any:
    """What plotly's property is, its types do not say."""
    return figure.layout


@cache
def _pack() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


class _Bearer:
    """The output of this notebook that has plotly.js in it."""

    cell: str | None = None
    run: int | None = None


def _notebook_html(figure: Figure) -> str:
    """With plotly.js if no figure brought it yet, or the cell of the one that did is run again."""
    cell, run = _place()
    first = _Bearer.run is None or (cell == _Bearer.cell is not None and run != _Bearer.run)
    if first:
        _Bearer.cell, _Bearer.run = cell, run
    return figure_html(figure, library=first)


def _place() -> tuple[str | None, int]:
    """The cell that is run, where the notebook says so, and how many were run before."""
    from IPython import get_ipython

    shell: Any = get_ipython()
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return message.get("metadata", {}).get("cellId"), getattr(shell, "execution_count", 0)
