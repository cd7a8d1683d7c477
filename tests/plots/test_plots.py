import inspect
import itertools
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from ivlens import plots
from ivlens.errors import FigureError
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.plots import marks, style

HOSTILE = '<a href="javascript:x">T</a> & $x$ %{y}'
SHOWN = '&lt;a href="javascript:x"&gt;T&lt;/a&gt; &amp; &#36;x&#36; %{y}'


def lines(across: str = "layer") -> pd.DataFrame:
    rows = itertools.product(("random", "chosen"), (2, 1, 5))
    frame = pd.DataFrame(rows, columns=["heads", across])
    frame["accuracy"] = [0.2, 0.1, 0.3, 0.6, 0.5, 0.7]
    return frame.assign(low=frame["accuracy"] - 0.05, high=frame["accuracy"] + 0.05)


def measures() -> pd.DataFrame:
    columns = {"measure": ["zero-shot", "steered"], "value": [0.25, math.nan]}
    return pd.DataFrame(columns | {"low": [0.2, math.nan], "high": [0.3, math.nan]})


def heatmap(figure: go.Figure) -> go.Heatmap:
    (trace,) = figure.data
    assert isinstance(trace, go.Heatmap)
    return trace


def named(figure: go.Figure, name: str) -> go.Scatter:
    (trace,) = (trace for trace in figure.data if trace.name == name)
    return trace


def test_a_heatmap_shows_the_numbers_as_they_came():
    aie = np.array([[0.1, -0.3], [0.0, 0.2], [0.05, 0.06]])
    figure = plots.head_heatmap(aie)
    assert np.array_equal(heatmap(figure).z, aie)
    assert figure.layout.xaxis.title.text == "head" and figure.layout.yaxis.title.text == "layer"
    assert figure.layout.yaxis.range == (2.5, -0.5), "layer 0 is on top"
    assert [note.text for note in figure.layout.annotations] == ["AIE (probability)"]


def test_the_colours_are_symmetric_about_a_white_zero():
    trace = heatmap(plots.head_heatmap([[0.1, -0.3]]))
    assert (trace.zmin, trace.zmax) == (-0.3, 0.3)
    assert trace.colorscale[len(trace.colorscale) // 2] == (0.5, "#FFFFFF")
    shared = heatmap(plots.head_heatmap([[0.1, -0.3]], bound=0.5))
    assert (shared.zmin, shared.zmax) == (-0.5, 0.5)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_grid_of_nothing_can_be_drawn(value):
    trace = heatmap(plots.head_heatmap(np.full((4, 4), value)))
    assert (trace.zmin, trace.zmax) == (-1, 1)


@pytest.mark.slow
def test_what_chance_gives_is_pale_and_a_clear_grid_stays_as_it_is():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.05, (20, 6, 8))
    aie, chance = noise.mean(0), 0.04
    trace = heatmap(plots.head_heatmap(aie, chance=chance))
    pale = dict(style.EFFECTS)[0.5 + 0.5 / 16]
    assert pale == "#F4A582" and trace.zmax == -trace.zmin == pytest.approx(16 * chance)
    assert heatmap(plots.head_heatmap(aie)).zmax == np.abs(aie).max()
    assert heatmap(plots.head_heatmap([[0.9]], chance=chance)).zmax == 0.9
    assert plots.head_heatmap(aie, chance=chance).layout.annotations[0].text == "AIE (probability), by chance ±0.04"
    grid = pd.MultiIndex.from_product([("base", "tuned", "difference"), range(6), range(8)])
    frame = grid.to_frame(index=False, name=["model", "layer", "head"]).assign(aie=0.01, low=0.0, high=0.2)
    panels = plots.aie_panels(frame, (6, 8), chance=chance)
    assert panels.layout.coloraxis.cmax == pytest.approx(16 * chance)
    assert "by chance ±0.04" in [note.text for note in panels.layout.annotations][-1]


def noise_effects(seed: int, added: float = 0.0) -> HeadEffects:
    generator = torch.Generator().manual_seed(seed)
    cie = 0.05 * torch.randn(16, 6, 8, generator=generator)
    cie[:, 3, 3] += added
    names = dict.fromkeys(("task", "task_digest", "model", "model_digest"), "noise")
    about = {"baseline": torch.zeros(16), "queries": torch.arange(16), "mean_z": torch.zeros(6, 8, 2)}
    return HeadEffects(cie=cie, **about, settings=Settings(), **names)


@pytest.mark.slow
def test_a_grid_of_noise_has_no_saturated_cell():
    grids = [noise_effects(seed) for seed in range(20)]
    # Of twenty grids one has a head that is clear of 0 by chance.
    traces = [heatmap(grid.figure()) for grid in grids if not grid.clear()]
    assert len(traces) >= 17
    # Between white, 0, and the darkest colour, 1; the palest colour of the scale is at a quarter.
    assert all(math.sqrt(np.abs(np.asarray(trace.z)).max() / trace.zmax) <= 0.25 for trace in traces)


def test_a_grid_with_a_clear_head_is_drawn_as_without_a_null():
    effects = noise_effects(0, added=0.4)
    assert effects.chance() is None and heatmap(effects.figure()).zmax == pytest.approx(float(effects.aie.abs().max()))


def test_a_head_that_was_not_measured_is_a_gap_and_not_0():
    figure = plots.head_heatmap([[0.1, math.nan], [0.0, 0.2]], low=[[0.0, 0.1], [0.0, 0.1]], high=[[1, 1], [1, 1]])
    assert math.isnan(heatmap(figure).z[0][1])
    assert heatmap(figure).text[0][1] == "L0H1: not measured"
    assert heatmap(figure).text[1][0].startswith("L1H0: 0.000 [")
    assert figure.layout.plot_bgcolor not in ("white", "#FFFFFF"), "a gap must not look like 0"


def test_hover_gives_the_head_its_effect_and_its_interval():
    grid = np.full((4, 6), 0.01)
    grid[3, 5] = 0.042
    trace = heatmap(plots.head_heatmap(grid, low=grid - 0.011, high=grid + 0.013))
    assert trace.text[3][5] == "L3H5: 0.042 [0.031, 0.055]"
    assert trace.hovertemplate == "%{text}<extra></extra>"
    assert heatmap(plots.head_heatmap(grid)).text[3][5] == "L3H5: 0.042"


def test_small_effects_keep_two_digits_on_hover():
    assert heatmap(plots.head_heatmap([[0.00042, 0.0]])).text[0][0] == "L0H0: 0.00042"


@pytest.mark.slow
@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (4, 4), (5, 8), (12, 12), (30, 9), (32, 32), (48, 12), (80, 64)])
def test_grids_of_every_size_fit_with_few_numbers_on_the_axes(layers, heads, width):
    figure = plots.head_heatmap(np.ones((layers, heads)), width=width)
    assert figure.layout.width == plots.WIDTHS[width]
    assert 150 < figure.layout.height < 9 * 96, "no higher than a page"
    most = 16 if width == "page" else 10
    assert math.ceil(heads / figure.layout.xaxis.dtick) <= most
    assert math.ceil(layers / figure.layout.yaxis.dtick) <= most


def test_marked_heads_are_outlined():
    figure = plots.head_heatmap(np.ones((3, 4)), marked=[(2, 3)])
    (box,) = figure.layout.shapes
    assert (box.x0, box.x1, box.y0, box.y1) == (2.5, 3.5, 1.5, 2.5)
    with pytest.raises(FigureError, match="L3H0 is marked but the grid has 3 layers of 4 heads"):
        plots.head_heatmap(np.ones((3, 4)), marked=[(3, 0)])


def test_an_outline_goes_round_a_small_cell_and_not_over_it():
    cell = (plots.WIDTHS["column"] - 48 - 88) / 64
    (box,) = plots.head_heatmap(np.ones((80, 64)), marked=[(2, 3)], width="column").layout.shapes
    assert (box.x1 - box.x0) * cell == pytest.approx(cell + 2) and box.line.width == 1


@pytest.mark.parametrize(("heads", "rows"), [(8, 1), (32, 3)])
def test_in_a_column_panels_of_many_heads_stand_below_each_other(heads, rows):
    grid = pd.MultiIndex.from_product([("base", "tuned", "difference"), range(4), range(heads)])
    frame = grid.to_frame(index=False, name=["model", "layer", "head"]).assign(aie=0.1, low=0.0, high=0.2)
    figure = plots.aie_panels(frame, (4, heads), width="column")
    assert len({tuple(axis.domain) for axis in figure.select_yaxes()}) == rows
    assert [note.text for note in figure.layout.annotations][:2] == ["before", "after"]


def test_only_the_heads_of_largest_effect_are_named_among_many_and_no_name_touches_another():
    grid = pd.MultiIndex.from_product([("base", "tuned"), range(30), range(30)])
    frame = grid.to_frame(index=False, name=["model", "layer", "head"])
    frame = frame.assign(aie=np.tile(np.linspace(0, 1, 900), 2), low=0.0, high=1.0)
    (points, _) = plots.aie_scatter(frame).data
    named = {name: (x, side) for name, x, side in zip(points.text, points.x, points.textposition, strict=True) if name}
    assert "L29H29" in named and 1 < len(named) < 10 and set(named) <= {f"L29H{head}" for head in range(20, 30)}
    for side in ("top center", "bottom center"):
        # Pixels of a name, of the panel, and of what the axis holds.
        there = sorted(x * (672 - 60) / 1.16 for x, where in named.values() if where == side)
        assert all(b - a >= style.text_width("L29H29", 8.5) for a, b in itertools.pairwise(there))
    assert len(points.x) == 900 and points.customdata[0].startswith("L0H0: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"aie": np.ones((2, 3, 4))}, r"aie is \(2, 3, 4\); a heatmap needs \(layer, head\)"),
        ({"aie": np.ones((0, 4))}, r"aie is \(0, 4\)"),
        ({"aie": [[0.0, math.inf]]}, "aie is infinite at L0H1"),
        ({"aie": [[0.0]], "low": [[0.0]]}, "pass both or neither"),
        ({"aie": [[0.0]], "low": [[0.0, 1.0]], "high": [[0.0]]}, "they must agree"),
        ({"aie": [[0.0]], "bound": 0.0}, "bound is 0.0"),
        ({"aie": [[0.0]], "bound": math.nan}, "bound is nan"),
    ],
)
def test_grids_that_cannot_be_drawn_are_refused(arguments, sentence):
    with pytest.raises(FigureError, match=sentence):
        plots.head_heatmap(**arguments)


def test_each_kind_of_head_has_a_line_in_the_order_of_layers():
    figure = plots.steering_by_layer(lines())
    assert [trace.name for trace in figure.data if trace.showlegend is None] == ["chosen heads", "random heads"]
    assert list(named(figure, "chosen heads").x) == [1, 2, 5] and list(named(figure, "chosen heads").y) == [
        0.5,
        0.6,
        0.7,
    ]
    assert named(figure, "chosen heads").text[1] == "chosen heads, layer 2: 0.600 [0.550, 0.650]"
    assert "accuracy" in figure.layout.yaxis.title.text and "layer" in figure.layout.xaxis.title.text


def test_an_interval_band_goes_up_one_side_and_down_the_other():
    band = plots.steering_by_layer(lines()).data[0]
    assert list(band.x) == [1, 2, 5, 5, 2, 1, None] and band.fill == "toself"
    assert np.allclose(list(band.y[:-1]), [0.55, 0.65, 0.75, 0.65, 0.55, 0.45])


def test_a_layer_that_was_not_measured_breaks_line_and_band():
    frame = lines()
    frame.loc[(frame["heads"] == "chosen") & (frame["layer"] == 2), ["accuracy", "low", "high"]] = math.nan
    figure = plots.steering_by_layer(frame)
    assert math.isnan(named(figure, "chosen heads").y[1]) and not named(figure, "chosen heads").connectgaps
    assert named(figure, "chosen heads").text[1] == "chosen heads, layer 2: not measured"
    assert list(figure.data[0].x) == [1, 1, None, None, 5, 5, None], "two polygons"


@pytest.mark.parametrize("across", ["layer", "n_heads"])
def test_baselines_are_dashed_and_carry_their_value(across):
    plot = plots.steering_by_layer if across == "layer" else plots.accuracy_by_heads
    figure = plot(lines(across), baselines={"zero-shot": 0.125, "few-shot": math.nan})
    line = named(figure, "zero-shot 0.12")
    assert list(line.y) == [0.125, 0.125] and line.line.dash == "dash"
    assert all(math.isnan(value) for value in named(figure, "few-shot (not measured)").y)


def test_what_is_not_steered_has_one_look_whatever_else_is_drawn():
    values = {"zero-shot": 0.1, "instructed": 0.9, "few-shot": 0.8, "another": 0.5}
    drawn = marks.baselines(values, 0, 1)
    usual = {name: (line.line.color, line.line.dash) for name, line in zip(values, drawn, strict=True)}
    assert len(set(usual.values())) == 4
    for name in ("zero-shot", "instructed", "few-shot"):
        (line,) = marks.baselines({name: 0.1}, 0, 1)
        assert (line.line.color, line.line.dash) == usual[name]


def test_where_draws_are_drawn_bands_are_those_of_chosen_and_random_heads_alone():
    controls = pd.concat([lines(), lines().query("heads == 'random'").assign(heads="gaussian")])
    draws = pd.DataFrame({"layer": [1, 2], "heads": "gaussian", "accuracy": [0.1, 0.2]})
    for drawn, bands in ((None, 3), (draws, 2)):
        figure = plots.steering_by_layer(controls, draws=drawn)
        assert sum(trace.fill == "toself" for trace in figure.data) == bands


def test_a_line_that_cannot_be_seen_to_move_says_where_it_stays():
    stages = pd.DataFrame({"panel": ["a", "a", "b", "b"], "line": "x", "stage": [0, 1, 0, 1]})
    figure = plots.stage_panels(stages.assign(value=[1.0, 0.97, 1.0, 0.2], low=0.0, high=1.0), unit="cosine")
    assert [note.text for note in figure.layout.annotations] == ["a", "b", "0.97 to 1.00"]


def test_where_a_line_stays_is_said_under_it_or_at_the_foot_where_another_one_falls_through():
    stages = pd.DataFrame({"panel": "a", "line": "x", "stage": [0, 1], "value": [1.0, 0.97], "low": 0.9, "high": 1.0})
    feet = []
    for beside in (1.0, 0.4):
        other = stages.assign(line="beside", value=[1.0, beside])
        figure = plots.stage_panels(pd.concat([stages, other]), unit="cosine", bounds=(0.0, 1.0), pale={"beside": "x"})
        (note,) = (note for note in figure.layout.annotations if note.text == "0.97 to 1.00")
        feet.append((note.y, note.yanchor))
    assert feet == [(0.97, "top"), (figure.layout.yaxis.range[0], "bottom")]


def test_a_panels_title_is_smaller_before_it_is_cut():
    for name, cut in (("lora+iv-general-random-0.3", False), ("lora+" + "very-" * 9 + "long", True)):
        cells = pd.DataFrame({"panel": [name, "b"], "stage": 0, "task": "a", "value": 0.5, "low": 0.4, "high": 0.6})
        title, short = plots.accuracy_heatmaps(cells, width="single").layout.annotations[:2]
        assert title.font.size == short.font.size < style.FONT and ("…" in title.text) == cut
        assert style.text_width(title.text, title.font.size) <= (plots.WIDTHS["single"] - style.LEFT - 76) / 2 + 8


def test_a_line_that_its_panel_names_is_not_in_the_legend_again():
    stages = pd.DataFrame(
        {"panel": ["lora", "ewc", "ewc"], "line": ["lora", "ewc", "beside"], "stage": 0, "value": 0.5}
    )
    figure = plots.stage_panels(stages.assign(low=0.4, high=0.6), unit="cosine")
    assert [trace.name for trace in figure.data if trace.name and trace.showlegend] == ["beside"]


@pytest.mark.slow
def test_in_a_column_the_panels_of_a_row_stand_two_by_two_beside_its_name():
    stages = pd.DataFrame([(row, panel) for row in ("lora", "ewc") for panel in "abcd"], columns=["row", "panel"])
    stages = stages.assign(line="x", stage=0, value=0.5, low=0.4, high=0.6)
    for width, names in (("double", ["lora", "ewc"]), ("single", ["lora", "lora", "ewc", "ewc"])):
        figure = plots.stage_panels(stages, unit="accuracy", width=width)
        titles = [axis.title.text for axis in figure.select_yaxes() if axis.title.text]
        assert [title.split("<br>")[0] for title in titles] == names
        assert figure.layout.width == plots.WIDTHS[width] == {"double": 648, "single": 312}[width]


def test_points_of_stages_are_drawn_by_method_and_nothing_without_a_value():
    frame = pd.DataFrame({"method": ["lora", "ewc", "lora"], "x": [0.9, 0.8, 0.7], "y": [1.0, 0.5, 0.2]})
    frame = frame.assign(task="<b>", stage=[1, 1, 2], seed=3)
    figure = plots.stage_points(frame, axes=("cosine", "accuracy"), names={"ewc": "ewc: r 0.1"})
    assert {trace.name: (trace.x, trace.y) for trace in figure.data} == {
        "lora": ((0.9, 0.7), (1.0, 0.2)),
        "ewc: r 0.1": ((0.8,), (0.5,)),
    }
    assert figure.data[0].text[1] == "&lt;b&gt;, stage 2, seed 3"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("cosine", "accuracy")
    for broken in (frame.assign(y=[1.0, math.nan, 0.0]), frame.head(0), frame.drop(columns="stage")):
        with pytest.raises(FigureError, match=r"nothing to draw|no column stage"):
            plots.stage_points(broken, axes=("cosine", "accuracy"))


def test_measures_have_the_colours_that_they_have_in_other_figures():
    looks = {measures()["measure"][0]: style.LOOKS["chosen"]}
    colours = plots.measures_bars(measures(), looks=looks).data[0].marker.color
    assert colours[0] == style.BLUE and style.BLUE not in colours[1:]


def test_numbers_of_heads_are_spaced_evenly_with_intervals():
    figure = plots.accuracy_by_heads(lines("n_heads"))
    assert figure.layout.xaxis.ticktext == ("1", "2", "5") and figure.layout.xaxis.tickvals == (0, 1, 2)
    chosen = named(figure, "chosen heads")
    assert np.allclose(np.round(np.array(chosen.x, dtype=float)), [0, 1, 2])
    assert np.allclose(chosen.error_y.array, 0.05) and np.allclose(chosen.error_y.arrayminus, 0.05)
    assert chosen.text[2] == "chosen heads, n = 5: 0.700 [0.650, 0.750]"


def test_an_interval_that_misses_its_value_by_rounding_is_no_negative_bar():
    frame = lines("n_heads").assign(low=lines()["accuracy"] + 1e-17, high=lines()["accuracy"] - 1e-17)
    bars = named(plots.accuracy_by_heads(frame), "chosen heads").error_y
    assert min(*bars.array, *bars.arrayminus) >= 0


def test_measures_are_bars_from_top_to_bottom_and_nan_is_said():
    figure = plots.measures_bars(measures(), unit="probability")
    (bars,) = figure.data
    assert bars.x[0] == 0.25 and math.isnan(bars.x[1])
    assert figure.layout.yaxis.ticktext == ("zero-shot", "steered")
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the first is on top"
    assert [note.text for note in figure.layout.annotations] == ["0.25", "not measured"]
    assert bars.customdata == ("zero-shot: 0.250 [0.200, 0.300]", "steered: not measured")
    assert figure.layout.xaxis.title.text == "probability"


def test_negative_values_stay_inside_the_axis():
    frame = measures().assign(value=[-0.5, 2.0], low=[-0.6, 1.0], high=[-0.4, 3.0])
    low, high = plots.measures_bars(frame, unit="nats").layout.xaxis.range
    assert low < -0.6 and high > 3.0


def test_text_is_never_read_as_markup():
    frame = lines().replace("chosen", HOSTILE[:20])
    shown = style.safe(HOSTILE[:20])
    texts = [
        plots.head_heatmap([[0.1]], title=HOSTILE).layout.title.text,
        plots.measures_bars(measures().replace("steered", HOSTILE)).layout.yaxis.ticktext[1],
        plots.measures_bars(measures().replace("steered", HOSTILE)).data[0].customdata[1],
    ]
    assert texts[0] == SHOWN and all("<" not in text and "$" not in text for text in texts)
    assert named(plots.steering_by_layer(frame), shown).text[0].startswith(shown)
    assert plots.head_heatmap([[0.1]], unit="<b>").layout.annotations[0].text == "AIE (&lt;b&gt;)"
    (line,) = marks.baselines({HOSTILE: 0.5}, 0, 1)
    assert line.name == f"{SHOWN} 0.50"


@pytest.mark.parametrize(("width", "breaks"), [("page", 2), ("double", 2), ("column", 5), ("single", 5)])
def test_a_long_title_is_broken_into_lines_and_the_figure_grows(width, breaks):
    short, long = (plots.head_heatmap([[0.1]], title="word " * n, width=width) for n in (3, 300))
    assert long.layout.title.text.count("<br>") == breaks and long.layout.title.text.endswith("…")
    assert long.layout.height > short.layout.height


@pytest.mark.parametrize(
    ("plot", "frame"),
    [
        (plots.steering_by_layer, lines()),
        (plots.accuracy_by_heads, lines("n_heads")),
        (plots.measures_bars, measures()),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(plot, frame):
    for column in frame.columns:
        with pytest.raises(FigureError, match=f"the table has no column {column}; it has "):
            plot(frame.drop(columns=column))
    with pytest.raises(FigureError, match="the table has no rows"):
        plot(frame.iloc[:0])
    for broken in (math.inf, "many"):
        with pytest.raises(FigureError, match="the column high must hold finite numbers"):
            plot(frame.assign(high=broken))
    with pytest.raises(FigureError, match="the table has 2 rows for"):
        plot(pd.concat([frame, frame.iloc[:1]]))


def test_an_unknown_width_is_refused():
    unchecked = inspect.unwrap(style.pixels)  # Under pytest the types would speak first.
    with pytest.raises(FigureError, match="width is 'poster'; it can be column or page"):
        unchecked("poster")


def test_percentages_and_nameless_layers_are_refused():
    with pytest.raises(FigureError, match="an accuracy is 20; pass shares between 0 and 1"):
        plots.steering_by_layer(lines().assign(accuracy=20.0))
    with pytest.raises(FigureError, match="layer is nan in a row"):
        plots.steering_by_layer(lines().assign(layer=[1, math.nan, 2, 1, 2, 3]))


def test_drawing_leaves_its_input_alone():
    frame, grid = lines(), np.ones((2, 2))
    plots.steering_by_layer(frame)
    plots.head_heatmap(grid, low=grid, high=grid)
    pd.testing.assert_frame_equal(frame, lines())
    assert np.array_equal(grid, np.ones((2, 2)))


def test_of_two_models_what_was_not_measured_is_said_where_it_would_stand():
    rows = [
        ("zero-shot probability", "", 0.1),
        ("instruction probability", "", math.nan),
        ("shift", "chosen", math.nan),
    ]
    rows += [("sufficiency", "chosen", 0.3), ("necessity", "chosen", 0.2)]
    one = pd.DataFrame(rows, columns=["measure", "heads", "value"]).assign(vector="base")
    frame = pd.concat([one.assign(model=model) for model in ("base", "tuned")])
    frame = frame.assign(low=frame["value"] - 0.1, high=frame["value"] + 0.1)
    (note,) = plots.ability_bars(frame).layout.annotations
    assert (note.text, note.x) == ("not measured", "with the instruction")
    *titles, note = plots.dependence_bars(frame).layout.annotations
    assert [title.text for title in titles] == ["sufficiency", "necessity", "shift"]
    assert (note.text, note.xref, note.yref) == ("not measured", "x3 domain", "y3 domain")


def test_the_box_of_a_head_at_the_edge_is_not_cut_off():
    figure = plots.head_heatmap(np.ones((80, 64)), marked=[(0, 0), (79, 63)], width="column")
    for box in figure.layout.shapes:
        assert -0.5 <= box.x0 < box.x1 <= 63.5 and -0.5 <= box.y0 < box.y1 <= 79.5


def test_necessity_stands_beside_the_aie_of_the_same_head():
    rows = [("L3H3", "AIE", 0.45, 0.4, 0.5), ("L3H1", "AIE", 0.0, 0.0, 0.1)]
    rows += [("L3H3", "instructed", 0.0, -0.1, 0.1), ("L3H1", "instructed", 0.2, 0.1, 0.3)]
    rows += [("L3H3", "few-shot", math.nan, math.nan, math.nan), ("all 2 heads", "instructed", 0.6, 0.5, 0.7)]
    frame = pd.DataFrame(rows, columns=["heads", "measure", "value", "low", "high"])
    figure = plots.necessity_by_head(frame.sample(frac=1, random_state=0).sort_index(), unit="nats")
    aie, instructed, few_shot = figure.data
    assert (aie.xaxis, instructed.xaxis, few_shot.xaxis) == ("x", "x2", "x2")
    assert figure.layout.yaxis.ticktext == ("L3H3", "L3H1", "all 2 heads") and figure.layout.yaxis.range[0] > 2
    assert list(aie.x) == [0.45, 0.0] and list(np.round(instructed.y)) == [0, 1, 2] and instructed.x[1] == 0.2
    assert instructed.text[1] == "L3H1, with the instruction: 0.200 [0.100, 0.300]"
    assert few_shot.text[0].endswith("not measured")
    assert figure.layout.xaxis.title.text == "AIE (nats)"
    with pytest.raises(FigureError, match="the table has 2 rows for heads L3H3 AIE"):
        plots.necessity_by_head(pd.concat([frame, frame.iloc[:1]]))
