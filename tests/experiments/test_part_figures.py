"""The figure of an update's parts: each at its layer and matrix, and all of them on one page."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import pytest

import ivlens
from ivlens import plots
from ivlens.errors import FigureError
from ivlens.experiments import overshadowing
from ivlens.experiments.findings import CHOSEN, FINDINGS, NONE, RANDOM
from ivlens.experiments.update_parts import AFTER, ALONE, BASE, BUT, TUNED
from ivlens.models.weights import TARGETS

LOST, LEFT = (f"{overshadowing.PROBABILITY}, {way}" for way in (ALONE, BUT))
BEFORE_AFTER = [(part, *whole) for part in (LOST, LEFT) for whole in ((BASE, NONE, 0.85), (TUNED, AFTER, 0.25))]
Lines = list[tuple[str, str, str, float]]


def experiment(lines: Lines) -> ivlens.Experiment:
    frame = pd.DataFrame(lines, columns=["part", "at", "kind", "value"])
    table = frame.assign(low=0.2, high=0.9, draws=1, queries=8).filter(FINDINGS)
    return ivlens.Experiment(name="overshadowing", model="m", task="t", table=table)


def parts(layers: int, matrices: Any) -> list[str]:
    single = [f"L{layer} {matrix}" for layer in range(layers) for matrix in matrices]
    return [*single, *(f"layer {layer}" for layer in range(layers)), *(f"all {matrix}" for matrix in matrices)]


def test_every_part_of_an_update_is_drawn_at_its_layer_and_matrix() -> None:
    """In the panel of its matrix, in the row of its layer; the whole update alone is the tuned model."""
    names = parts(30, ("W_Q", "W_V"))
    values = {name: 0.3 + number / 1000 for number, name in enumerate(names)}
    lines = [*BEFORE_AFTER, *((LOST, name, CHOSEN, value) for name, value in values.items())]
    lines += [(LEFT, "10 heads", CHOSEN, 0.7), (LEFT, "10 heads", RANDOM, 0.6), (LOST, "L4 W_V", RANDOM, 0.8)]
    figures = experiment(lines).figures()
    layout: Any = figures["parts"].layout
    assert list(figures) == ["parts"]
    assert list(layout.yaxis.ticktext) == [*map(str, range(30)), "all layers", "10 heads"]
    rows = dict(zip(layout.yaxis.ticktext, layout.yaxis.tickvals, strict=True))
    titles = [note.text for note in layout.annotations]
    assert titles == ["queries W_Q", "values W_V", "all matrices"]
    drawn = {
        (matrix, trace.name, min(rows, key=lambda name, y=y: abs(rows[name] - y))): x
        for trace in figures["parts"].data
        for matrix in [titles[int((trace.xaxis or "x")[1:] or 1) - 1]]
        for x, y in zip(trace.x, trace.y, strict=True)
        if trace.mode == "markers"
    }
    own, random = "this part alone", "random part of equal rank and norm, alone"
    assert drawn.pop(("values W_V", random, "4")) == 0.8
    assert drawn.pop(("all matrices", "all but this part", "10 heads")) == 0.7
    assert drawn.pop(("all matrices", "all but random heads' part", "10 heads")) == 0.6
    assert drawn.pop(("all matrices", "all but this part", "all layers")) == 0.85
    assert drawn.pop(("all matrices", own, "all layers")) == 0.25
    assert drawn.pop(("values W_V", own, "17")) == values["L17 W_V"]
    assert drawn.pop(("queries W_Q", own, "all layers")) == values["all W_Q"]
    assert drawn.pop(("all matrices", own, "29")) == values["layer 29"]
    assert len(drawn) == len(names) - 3 and {kind for _, kind, _ in drawn} == {own}
    levels = {trace.name: set(trace.x) for trace in figures["parts"].data if trace.mode == "lines"}
    assert levels == {"before fine-tuning": {0.85}, "after fine-tuning": {0.25}}


@pytest.mark.parametrize("width", ["page", "single"])
@pytest.mark.parametrize("layers", [2, 30, 80, 126])
@pytest.mark.parametrize("matrices", [("W_V",), TARGETS])
def test_parts_of_an_update_of_any_depth_stand_on_one_page(layers: int, matrices: Any, width: plots.Width) -> None:
    kinds = [(LOST, CHOSEN), (LEFT, CHOSEN), (LOST, RANDOM)]
    lines = [(part, name, kind, 0.5) for part, kind in kinds for name in [*parts(layers, matrices), "10 heads"]]
    figure = experiment([*BEFORE_AFTER, *lines]).figures(width=width)["parts"]
    layout: Any = figure.layout
    assert layout.height <= 9 * 96 and layout.width == plots.WIDTHS[width]
    of_panel = (layout.yaxis.domain[1] - layout.yaxis.domain[0]) * (layout.height - layout.margin.t - layout.margin.b)
    foot, top = layout.yaxis.range
    apart = [(low - high) / (foot - top) * of_panel for high, low in itertools.pairwise(layout.yaxis.tickvals)]
    assert min(apart) >= 12, "names of rows lie on each other"
    assert layout.yaxis.ticktext[-2:] == ("all layers", "10 heads") and "0" in layout.yaxis.ticktext
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(dots) == 3 * (len(matrices) + 1)
    for trace in dots:
        named = zip(trace.y, trace.text, strict=True)
        rows = sorted((y, int(text.split()[1][:-1])) for y, text in named if text.startswith("layer "))
        assert [row for _, row in rows] == list(range(layers)) and len(rows) < len(trace.x) <= len(rows) + 2
        assert top < min(trace.y) and max(trace.y) < foot
    words = ["before fine-tuning", "after fine-tuning", "this part alone", "all but this part"]
    legend = [trace.name for trace in figure.data if trace.showlegend]
    assert legend == [*words, "random part of equal rank and norm, alone"]


def test_parts_of_no_known_name_are_drawn_as_they_are_called() -> None:
    learned = f"{overshadowing.LEARNED}, {BUT}"
    found = experiment([(learned, name, CHOSEN, 0.5) for name in ("layer x", "L1 W_X", "all", "L3 W_O", "")])
    layout: Any = found.figures()["learned"].layout
    assert layout.yaxis.ticktext == ("3", "layer x", "L1 W_X", "all", "")
    many = experiment([(learned, f"part {number}", CHOSEN, 0.5) for number in range(200)])
    rows: Any = many.figures()["learned"].layout.yaxis
    assert len(rows.ticktext) == 200


def test_a_table_without_any_part_is_refused() -> None:
    with pytest.raises(FigureError, match="there is nothing to draw"):
        experiment([(LOST, BASE, NONE, 0.85)]).figures()
