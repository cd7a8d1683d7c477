"""One thing has one colour in every figure, names fit their places, and nothing is drawn outside its panel."""

import html
import itertools
import math
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from bounds import bounded

import ivlens
from ivlens import plots
from ivlens.plots import marks, style
from ivlens.plots.methods import Form
from ivlens.training.guidance import GUIDANCE
from ivlens.training.methods import METHODS

PACKAGE = Path(ivlens.__file__).parent
NAMES = ("lora", "lora+iv-0.1", "lora+kl-0.3", "ewc+iv", "lora+iv-general-random-0.3", "replay+my-own", "mine+my-own")


def summary(methods) -> pd.DataFrame:
    frame = pd.DataFrame({"method": list(methods)})
    at = 0.5 + 0.01 * frame.index.to_numpy()
    return frame.assign(learned=at, learned_low=at - 0.1, learned_high=at + 0.1, kept=at, kept_low=at, kept_high=at)


def trade_off_colours(methods) -> dict[str, str]:
    figure = plots.trade_off(summary(methods), [Form(name, name, 0.0) for name in methods], axes=("learned", "kept"))
    return {trace.name: trace.marker.color for trace in figure.data}


def dot_colours(methods) -> dict[str, str]:
    frame = summary(methods).rename(columns={"kept": "value", "kept_low": "low", "kept_high": "high"})
    (dots,) = plots.method_dots(frame.assign(panel="GP", kind=""), units={}).data
    return dict(zip(methods, dots.marker.color, strict=True))


def line_frame(methods) -> pd.DataFrame:
    return pd.DataFrame({"line": list(methods), "panel": "cosine", "stage": 0, "value": 0.5, "low": 0.4, "high": 0.6})


def line_colours(methods) -> dict[str, str]:
    figure = plots.stage_panels(line_frame(methods), unit="cosine", looks=style.method_looks(methods))
    return {trace.name: trace.line.color for trace in figure.data if trace.name}


@pytest.mark.slow
@pytest.mark.parametrize("colours", [trade_off_colours, dot_colours, line_colours])
def test_a_method_has_one_colour_whatever_else_is_drawn(colours):
    everywhere = {name: look.colour for name, look in style.method_looks(NAMES).items()}
    for subset in (NAMES, NAMES[::-1], NAMES[3:], NAMES[-1:], NAMES[::2]):
        assert colours(subset) == {name: everywhere[name] for name in subset}


def test_a_kind_of_heads_has_one_colour_whatever_else_is_drawn():
    kinds = ("chosen", "unscaled", "random", "low-AIE", "gaussian", "other-task", "none")
    frame = pd.DataFrame({"heads": kinds, "accuracy": 0.5, "value": 0.5, "low": 0.4, "high": 0.6})
    called = {kind: style.NAMES.get(kind, kind) for kind in kinds}
    found: dict[str, set[str]] = {name: set() for name in called.values()}
    for subset in (list(kinds), ["random", "low-AIE"], ["none", "chosen", "unscaled"]):
        own = frame[frame["heads"].isin(subset)]
        for figure in (plots.steering_by_layer(own.assign(layer=0)), plots.accuracy_by_heads(own.assign(n_heads=1))):
            for trace in figure.data:
                if trace.name in found:
                    found[trace.name].add(trace.line.color)
        for kind in marks.kinds(marks.read_points(own.assign(at=0), at="at", value="value", heads="heads")):
            found[kind.name].add(kind.colour)
    assert all(len(colours) == 1 for colours in found.values())
    assert len({*itertools.chain(*found.values())}) == 6, "unscaled is the chosen heads', hollow"
    assert {called[kind]: {style.LOOKS[kind].colour} for kind in kinds} == found


def test_colours_stand_in_one_table():
    modules = [path for room in ("plots", "forgetting", "analysis") for path in (PACKAGE / room).glob("*.py")]
    coloured = [path.name for path in modules if re.search(r"#[0-9A-Fa-f]{6}|rgb", path.read_text(encoding="utf-8"))]
    assert coloured == ["style.py"]


def test_names_that_nobody_knows_are_told_apart_from_each_other_and_from_those_that_are_known():
    names = ["chosen", "random", "anybody's", "somebody's", "nobody's"]
    found = style.looks(names)
    assert list(found) == names and len({look.colour for look in found.values()}) == 5
    assert found["chosen"] == style.LOOKS["chosen"] and style.looks(names[2:3])["anybody's"] == found["anybody's"]


def test_no_two_methods_look_the_same_whatever_their_guidance():
    methods = [*METHODS, *(f"{method}+{form}" for method in METHODS for form in GUIDANCE)]
    methods += [f"lora+own-form-{letter}" for letter in "abcdefghij"]
    looks = style.method_looks(methods)
    assert len(set(looks.values())) == len(methods)
    for method, form in itertools.product(METHODS, GUIDANCE):
        assert looks[f"{method}+{form}"].colour == looks[f"lora+{form}"].colour
        assert style.method_looks([f"{method}+{form}-0.3"]) == {f"{method}+{form}-0.3": looks[f"{method}+{form}"]}


def test_a_control_is_hollow_and_dashed_in_the_colour_of_what_it_controls():
    for form in ("iv", "iv-general"):
        real, control = style.method_looks([f"lora+{form}", f"lora+{form}-random"]).values()
        assert control.colour == real.colour and (real.dash, real.symbol) == ("solid", "circle")
        assert control.dash == "dash" and control.symbol == "circle-open"


def test_before_something_was_done_a_thing_is_hollow_and_a_hollow_bar_is_pale():
    assert style.hollow(style.Look("#0072B2")) == style.Look("#0072B2", "circle-open")
    assert style.Look("#0072B2").fill == "#0072B2"
    assert style.Look("#0072B2", "circle-open").fill == "rgba(0,114,178,0.45)"


def test_text_is_as_wide_as_its_letters():
    assert style.text_width("Hello", 10.0) == pytest.approx(22.78)  # Adobe's Helvetica: 722, 556, 222, 222, 556.
    assert style.text_width("WWW") > 4 * style.text_width("lll") and style.text_width("") == 0
    assert style.text_width("国") == pytest.approx(style.FONT)


@pytest.mark.parametrize("text", ["lora+iv-general-random-0.3", "a few words, and a_word_that_is_far_too_long_to_fit"])
@pytest.mark.parametrize("pixels", [60.0, 110.0, 400.0])
def test_lines_and_names_are_no_wider_than_their_place(text, pixels):
    lines = style.break_text(text, pixels)
    assert max(map(style.text_width, [*lines, style.fit(text, pixels)])) <= pixels
    if pixels == 400:
        assert lines == [text] and style.fit(text, pixels) == text


def test_a_name_of_a_million_letters_is_fitted_at_once_and_as_letter_by_letter():
    drawn = random.Random(0)
    for length in (10, 100, 400):
        for pixels in (60.0, 300.0):
            name = "".join(drawn.choices("iW'l<&é ", k=length)).strip()
            shown = (style.safe(name, limit) for limit in range(len(" ".join(name.split())), 5, -1))
            slowly = next((one for one in shown if style.text_width(html.unescape(one)) <= pixels), style.safe(name, 5))
            assert style.fit(name, pixels) == slowly
    with bounded(2.0):
        assert style.text_width(style.fit("a" * 10**6, 300.0)) <= 300
        plots.stage_panels(line_frame(["a" * 10**6]), unit="x", title="b" * 10**6)


@pytest.mark.parametrize("width", ["column", "page"])
def test_no_name_of_a_method_is_cut(width):
    methods = ("lora", "lora+iv-general-random-0.3")
    frame = summary(methods).rename(columns={"kept": "value", "kept_low": "low", "kept_high": "high"})
    panels = pd.concat([frame.assign(panel=name, kind="") for name in ("AP", "F", "GP", "IP")])
    units = dict.fromkeys(("AP", "F", "GP", "IP"), "accuracy, general tasks")
    figure = plots.method_dots(panels, units=units, width=width)
    assert figure.layout.yaxis.ticktext == methods
    assert figure.layout.margin.l >= max(map(style.text_width, methods))
    for axis in figure.select_xaxes():
        panel = (axis.domain[1] - axis.domain[0]) * (
            plots.WIDTHS[width] - figure.layout.margin.l - figure.layout.margin.r
        )
        assert max(style.text_width(line) for line in axis.title.text.split("<br>")) <= panel
    assert figure.layout.width == plots.WIDTHS[width]


def test_no_interval_leaves_its_panel():
    frame = pd.DataFrame({"line": ["a", "b"], "panel": "x", "stage": 0, "value": 0.5})
    figure = plots.stage_panels(frame.assign(low=[-0.4, 0.2], high=[0.6, 1.7]), unit="effect", bounds=(0.0, 1.0))
    low, high = figure.layout.yaxis.range
    assert low < -0.4 and high > 1.7
    assert plots.stage_panels(frame.assign(low=0.4, high=0.6), unit="effect", bounds=(0.0, 1.0)).layout.yaxis.range == (
        0.0,
        1.0,
    )
    low, high = marks.axis_range([marks.Point("", "", 0.5, -3.0, 4.0)])
    assert low < -3 and high > 4
    assert marks.axis_range([marks.Point("", "", math.nan, math.nan, math.nan)]) == pytest.approx([-0.08, 1.08])


def test_an_effect_of_a_hundredth_of_the_largest_can_be_seen():
    """Its colour is that of a tenth of the way to the darkest, and the scale stays symmetric about a white 0."""
    (cells,) = plots.head_heatmap([[1.0, 0.01]]).data
    assert isinstance(cells, go.Heatmap)
    places = np.array([place for place, _ in cells.colorscale])
    assert np.allclose(places, 1 - places[::-1]) and cells.colorscale[4] == (0.5, "#FFFFFF")
    assert np.allclose(np.sqrt(2 * (places[5:] - 0.5)), [0.25, 0.5, 0.75, 1.0])
