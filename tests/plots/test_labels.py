"""What stands beside what in a figure: names of points, numbers of axes, legends; nothing lies on anything else."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from ivlens import plots
from ivlens.plots import layout, marks, style
from ivlens.plots.methods import Form
from ivlens.plots.notebook import figure_json

ENDS = ["learned", "learned_low", "learned_high", "kept", "kept_low", "kept_high"]


def trade_off(at: list[tuple[float, float]], room: float, strengths: bool = False, width: style.Width = "page"):
    """Methods at these places, with intervals of half the length `room`, all forms of one kind or each of its own."""
    rows = [(x, x - room, x + room, y, y - room, y + room) for x, y in at]
    methods = [f"lora+iv-{number}" if strengths else f"method {number}" for number in range(1, len(at) + 1)]
    forms = [Form(name, "lora+iv" if strengths else name, float(at)) for at, name in enumerate(methods, 1)]
    frame = pd.DataFrame(rows, columns=ENDS).assign(method=methods)
    return plots.trade_off(frame, forms, axes=("learned", "kept"), width=width)


def test_a_name_touches_no_other_no_point_and_no_bar():
    generator = np.random.default_rng(0)
    points = list(generator.uniform(20, 280, (40, 2)))
    bars = [(x - 20.0, y - 1.0, x + 20.0, y + 1.0) for x, y in points[:10]]
    names = [f"L{number}H{number}" for number in range(40)]
    edges = np.zeros(2), np.array([300.0, 300.0])
    found = marks.place_names(names, points, edges, size=9.0, points=points, bars=bars)
    placed = [at for at, side in enumerate(found) if side]
    assert 10 < len(placed) < 40 and len({found[at] for at in placed}) > 4
    boxes = []
    for at in placed:
        (x, y), wide, (up, aside) = points[at], style.text_width(names[at], 9.0), str(found[at]).split()
        gap = 7 if up == "middle" else 5
        left = {"left": x - gap - wide, "center": x - wide / 2, "right": x + gap}[aside]
        foot = {"top": y + 5, "middle": y - 5, "bottom": y - 15}[up]
        boxes.append((left, foot, left + wide, foot + 10))
    for box, other in itertools.combinations(boxes, 2):
        assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
    for box in boxes:
        assert min(box) >= 0 and max(box) <= 300
        for x, y in points:
            assert not (box[0] < x < box[2] and box[1] < y < box[3])
        for left, low, right, high in bars:
            assert box[2] <= left or right <= box[0] or box[3] <= low or high <= box[1]


@pytest.mark.parametrize("width", ["page", "single"])
def test_few_methods_are_named_at_their_points_and_many_in_a_legend(width):
    few = trade_off([(0.2, 0.8), (0.5, 0.5), (0.8, 0.2)], 0.05, width=width)
    assert [trace.text for trace in few.data] == [("method 1",), ("method 2",), ("method 3",)]
    assert not any(trace.showlegend for trace in few.data)
    many = trade_off([(0.5 + 0.002 * at, 0.5) for at in range(9)], 0.05, width=width)
    assert all(trace.showlegend and trace.text == ("",) for trace in many.data)
    assert many.layout.height > few.layout.height


def test_numbers_of_forms_stand_where_no_interval_crosses_them():
    (curve,) = trade_off([(0.3, 0.7), (0.5, 0.5), (0.7, 0.3)], 0.1, strengths=True).data
    assert curve.text == ("1", "2", "3") and curve.showlegend
    assert not set(curve.textposition) & {"top center", "bottom center", "middle left", "middle right"}


def test_a_narrow_legend_has_room_for_every_line():
    names = ["replay+iv-general"] * 10
    assert layout.legend_height(names, "single") == 190
    assert layout.legend_height(names, "page") == 19 * math.ceil(10 / 4)
    assert layout.legend_height(names, "page", sides=300) == 19 * math.ceil(10 / 2)


@pytest.mark.parametrize("low", [-0.035, -3.0, 0.0, 0.65])
@pytest.mark.parametrize("span", [1e-6, 0.04, 0.22, 1.08, 17.0, 4e4])
@pytest.mark.parametrize("across", [60.0, 86.0, 240.0])
def test_numbers_on_an_axis_stand_apart_and_are_no_fewer_than_need_be(low, span, across):
    step = layout.decimal_step(low, low + span, across)
    digits = -math.floor(math.log10(step) + 1e-9)
    assert round(step * 10.0**digits) in (1, 2, 5)
    room = max(style.text_width(f"{end:.{max(0, digits)}f}") for end in (low, low + span)) + 6
    assert step / span * across >= room * (1 - 1e-9)
    assert step / 2.5 / span * across < room


@pytest.mark.parametrize("values", [(0.0, 0.004, 0.0), (0.5, 0.5, math.nan)])
def test_a_level_line_has_its_value_in_its_name(values):
    frame = pd.DataFrame({"layer": [0, 1, 2], "heads": "random", "accuracy": values, "low": 0.0, "high": 1.0})
    moving = frame.assign(heads="chosen", accuracy=[0.1, 0.5, 0.9])
    figure = plots.steering_by_layer(pd.concat([frame, moving]))
    names = {trace.name for trace in figure.data if trace.name}
    assert names == {f"random heads {values[0]:.2f}", "chosen heads"}
    (alone,) = plots.accuracy_by_heads(frame.assign(n_heads=[1, 2, 5])[:1]).data
    assert alone.name == "random heads"


def test_what_has_no_interval_has_no_bar_of_no_length():
    frame = pd.DataFrame({"panel": "AP", "method": ["lora", "ewc"], "kind": "", "value": 0.5, "low": math.nan})
    figure = plots.method_dots(frame.assign(high=math.nan), units={})
    for end in json.loads(figure_json(figure))["data"][0]["error_x"].values():
        assert not isinstance(end, list), "in a list NaN is null, which plotly draws as 0"


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "methods"), [((30, 9), 3), ((80, 64), 3), ((6, 8), 3), ((32, 32), 1)])
def test_heads_of_a_deep_model_stand_on_one_page(shape, methods):
    rows = [
        (f"method {number}", side, layer, head, 0.1)
        for number in range(methods)
        for side in ("before", "after", "difference")
        for layer in range(shape[0])
        for head in range(shape[1])
    ]
    frame = pd.DataFrame(rows, columns=["panel", "side", "layer", "head", "value"]).assign(low=0.0, high=0.2)
    assert plots.aie_heatmaps(frame, title="AIE").layout.height <= 9 * 96
