"""The numbers drawn, and printed, are those of a study's tables."""

import itertools
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from ivlens.errors import FigureError
from ivlens.forgetting import figures, metrics, recovery
from ivlens.forgetting import tables as study_tables
from ivlens.forgetting.method_run import EVALUATIONS, GRIDS
from ivlens.forgetting.plan import Plan
from ivlens.plots import layout, marks, stage_heatmaps, stages
from ivlens.plots import methods as method_plots
from ivlens.training.guidance import GUIDANCE, Guidance

NAN = math.nan
METHODS = ("lora", "lora+iv", "lora+kl", "lora+kl-1")
LEARNED = ("kind-language", "class-letter", "kind-form")
STATED, UNSTATED = "country-capital", "uppercase"
PROBE = (
    ("sufficiency", "chosen"),
    ("sufficiency", "random"),
    ("necessity", "chosen"),
    ("necessity", "random"),
    ("shift", "chosen"),
    ("shift", "random"),
    ("cosine", "chosen"),
    ("instruction accuracy", ""),
    ("zero-shot accuracy", ""),
    ("steered instruction accuracy", "chosen"),
    ("steered instruction accuracy", "random"),
    ("steered zero-shot accuracy", "chosen"),
    ("steered zero-shot accuracy", "random"),
)


def value(method: int, seed: int, stage: int, line: int) -> float:
    """Every cell, stage and measure has a number of its own."""
    return 0.9 - 0.002 * line - stage * (0.03 + 0.004 * method + 0.001 * seed * (line % 3))


def evaluations(methods=METHODS, seeds=(0, 1, 2), learned=LEARNED, probed=True) -> pd.DataFrame:
    lines = [(task, "sequence", measure, "") for task in learned for measure in ("accuracy", "trained accuracy")]
    for task in (STATED, UNSTATED):
        for measure in (*figures._KNOWLEDGE, "few-shot accuracy"):
            lines.append((task, "general", measure, ""))
    lines += [(STATED, "probe", *key) for key in PROBE] if probed else []
    rows = []
    for seed, (m, method), stage in itertools.product(seeds, enumerate(methods), range(len(learned) + 1)):
        for index, (task, kind, measure, heads) in enumerate(lines):
            unmeasured = task == UNSTATED and measure.startswith("knowledge")
            # Base model and probes are the same for every seed and method.
            number = NAN if unmeasured else value(*((m, seed) if stage else (0, 0)), stage, index)
            rows.append((method, seed, stage, task, kind, measure, heads, number, 0 if unmeasured else 16))
    return pd.DataFrame(rows, columns=list(EVALUATIONS))


def grids(methods=METHODS, seeds=(0, 1, 2), last=3) -> pd.DataFrame:
    rows = itertools.product(methods, seeds, (0, last), ("antonym", STATED), range(2), range(3))
    frame = pd.DataFrame(rows, columns=list(GRIDS[:-1]))
    moved = frame["stage"] * (frame["seed"] - 1) * 0.01
    return frame.assign(aie=0.1 * frame["layer"] - 0.05 * frame["head"] + moved + 0.02 * (frame["task"] == STATED))


def study(methods=METHODS, seeds=(0, 1, 2), learned=LEARNED, probed=True, **changes) -> SimpleNamespace:
    forms = {"kl-1": Guidance(vector="zero", kl=1.0)}
    plan = Plan(name="tiny", tasks=learned, methods=methods, seeds=seeds, guidance=forms)
    table = changes.get("evaluations", evaluations(methods, seeds, learned, probed))
    found = {
        "evaluations": table,
        "grids": grids(methods, seeds, len(learned)) if probed else pd.DataFrame(columns=list(GRIDS)),
        "plan": plan,
        "summary": metrics.summary(table, guided=(STATED,)),
        "recovery": recovery.by_stage(table),
        "similarity": recovery.similarity(table),
        "unmeasured": {},
    }
    return SimpleNamespace(**(found | changes))


def draw(found: SimpleNamespace) -> dict[str, go.Figure]:
    return figures.figures(found, found.summary) | recovery.figures(found)


@pytest.fixture(scope="module")
def found() -> SimpleNamespace:
    return study()


@pytest.fixture(scope="module")
def drawn(found) -> dict[str, go.Figure]:
    return draw(found)


def titles(figure: go.Figure) -> list[str]:
    return [note.text for note in figure.layout.annotations if note.yanchor == "bottom" and note.textangle is None]


def in_panel(figure: go.Figure, panel: int) -> list:
    axis = "x" if panel == 0 else f"x{panel + 1}"
    return [trace for trace in figure.data if (trace.xaxis or "x") == axis]


def line(figure: go.Figure, panel: int, name: str) -> go.Scatter:
    (trace,) = (one for one in in_panel(figure, panel) if one.name == name)
    return trace


def cells(frame: pd.DataFrame, method: str, stage: int, **chosen: str) -> pd.Series:
    """A number a seed: the mean over tasks."""
    own = frame[(frame["method"] == method) & (frame["stage"] == stage)]
    for column, wanted in chosen.items():
        own = own[own[column] == wanted]
    return own.groupby("seed")["value"].mean()


@pytest.mark.slow
def test_every_figure_is_there_and_says_model_study_and_seeds(drawn):
    assert list(drawn) == [
        "accuracy",
        "r-matrix",
        "instruction-knowledge",
        "dependence",
        "drift",
        "aie",
        "methods",
        "trade-off",
        "recovery-by-stage",
        "recovery",
        "similarity",
    ]
    for figure in drawn.values():
        text = figure.layout.title.text.replace("<br>", " ")
        assert "lab, study tiny" in text and "3 seeds" in text and figure.layout.width == 672


@pytest.mark.slow
def test_accuracy_is_of_the_tasks_learned_so_far_and_of_general_tasks(found, drawn):
    assert titles(drawn["accuracy"]) == list(METHODS)
    frame = found.evaluations
    for panel, method in enumerate(METHODS):
        learned = line(drawn["accuracy"], panel, "tasks learned so far")
        assert list(learned.x) == [1, 2, 3], "the base model has learned nothing"
        for stage in (1, 2, 3):
            so_far = frame[frame["task"].isin(LEARNED[:stage])]
            wanted = cells(so_far, method, stage, kind="sequence", measure="accuracy").mean()
            assert learned.y[stage - 1] == pytest.approx(wanted)
        asked = {"with the instruction (GP)": "instruction accuracy", "few-shot (IP)": "few-shot accuracy"}
        for name, measure in asked.items():
            general = line(drawn["accuracy"], panel, f"general tasks, {name}")
            wanted = [cells(frame, method, stage, kind="general", measure=measure).mean() for stage in range(4)]
            assert list(general.x) == [0, 1, 2, 3] and general.y == pytest.approx(wanted)


@pytest.mark.slow
def test_the_last_stage_of_accuracy_is_what_the_table_of_methods_says(found, drawn):
    summary = found.summary.set_index(["method", "measure"])
    for panel, method in enumerate(METHODS):
        for measure, name in (("AP", "tasks learned so far"), ("GP", "general tasks, with the instruction (GP)")):
            told = summary.loc[(method, measure)]
            drawn_line = line(drawn["accuracy"], panel, name)
            assert drawn_line.y[-1] == pytest.approx(told["value"])
            assert (
                drawn_line.text[-1] == f"{name}, stage 3: {told['value']:.3f} [{told['low']:.3f}, {told['high']:.3f}]"
            )


def test_instruction_and_knowledge_are_of_the_same_tasks(found, drawn):
    figure = drawn["instruction-knowledge"]
    assert "1 general task with a statement" in figure.layout.title.text
    stated = found.evaluations[found.evaluations["task"] == STATED]
    for panel, method in enumerate(METHODS):
        for measure in figures._KNOWLEDGE:
            wanted = [cells(stated, method, stage, kind="general", measure=measure).mean() for stage in range(4)]
            assert line(figure, panel, measure).y == pytest.approx(wanted)
    accuracy, probability = line(figure, 0, "knowledge accuracy"), line(figure, 0, "knowledge probability")
    assert accuracy.line.dash == "dot" and accuracy.line.color == probability.line.color


@pytest.mark.slow
def test_knowledge_that_was_not_measured_is_no_line_and_not_0():
    frame = evaluations()
    frame.loc[frame["measure"].str.startswith("knowledge"), "value"] = NAN
    figure = draw(study(evaluations=frame))["instruction-knowledge"]
    assert {trace.name for trace in figure.data if trace.name} == {"instruction probability", "instruction accuracy"}
    assert "2 general tasks (knowledge: not measured): lab" in figure.layout.title.text.replace("<br>", " ")


def test_every_cell_of_r_has_its_mean_and_what_seeds_gave(found, drawn):
    assert titles(drawn["r-matrix"]) == list(METHODS)
    for panel, method in enumerate(METHODS):
        trace, numbers = in_panel(drawn["r-matrix"], panel)
        of_seeds = np.array([metrics.r_matrix(found.evaluations, method, seed) for seed in (0, 1, 2)])
        assert np.allclose(trace.z, of_seeds.mean(0)) and np.array(trace.z).shape == (4, 3)
        low, high = of_seeds.min(0)[2, 1], of_seeds.max(0)[2, 1]
        told = f"class-letter, stage 2: {of_seeds.mean(0)[2, 1]:.3f} (seeds {low:.3f} to {high:.3f})"
        assert trace.customdata[2][1] == told
        assert list(numbers.text) == [f"{value:.2f}" for value in of_seeds.mean(0).ravel()]
        assert list(numbers.x) == [1, 2, 3] * 4 and list(numbers.y) == np.repeat(range(4), 3).tolist()
    figure = drawn["r-matrix"]
    assert figure.layout.yaxis.range == (3.5, -0.5), "stage 0 is on top"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert any("1 kind-language, 2 class-letter, 3 kind-form" in note.text for note in figure.layout.annotations)
    first = figure.layout.shapes[0]
    assert (first.x0, first.y0) == (0.5, 0.5), "the first stage learns the first task"


@pytest.mark.slow
def test_a_task_that_was_not_measured_is_a_gap_in_r():
    frame = evaluations()
    frame.loc[(frame["task"] == LEARNED[1]) & (frame["stage"] == 2), "value"] = NAN
    trace, numbers = in_panel(draw(study(evaluations=frame))["r-matrix"], 0)
    assert math.isnan(trace.z[2][1]) and trace.customdata[2][1] == "class-letter, stage 2: not measured"
    assert not np.isnan(np.delete(np.array(trace.z).ravel(), 7)).any() and len(numbers.text) == 11


def test_dependence_is_before_and_after_beside_random_heads(found, drawn):
    figure, probes = drawn["dependence"], found.evaluations.query("kind == 'probe'")
    assert titles(figure) == ["sufficiency", "necessity", "shift"]
    for panel, measure in enumerate(titles(figure)):
        for heads, (side, stage) in itertools.product(("chosen", "random"), (("before", 0), ("after", 3))):
            dots = line(figure, panel, f"{heads} heads, {side}")
            wanted = [cells(probes, method, stage, measure=measure, heads=heads).mean() for method in METHODS]
            assert dots.x == pytest.approx(wanted)
            assert [round(place) for place in dots.y] == [0, 1, 2, 3]
    before = line(figure, 0, "chosen heads, before").error_x
    assert np.isnan(before.array).all(), "the base model is the same for every seed: no bar"
    assert list(figure.layout.yaxis.ticktext) == list(METHODS) and figure.layout.yaxis.range == (3.5, -0.5)


def test_recovery_puts_the_tuned_model_with_and_without_the_vector_beside_the_base_model(found, drawn):
    figure, probes = drawn["recovery"], found.evaluations.query("kind == 'probe'")
    assert titles(figure) == ["with the instruction", "zero-shot"]
    for panel, kind in enumerate(("instruction", "zero-shot")):
        for name, measure, heads, stage in (
            ("base", f"{kind} accuracy", "", 0),
            ("tuned", f"{kind} accuracy", "", 3),
            ("tuned + base vector", f"steered {kind} accuracy", "chosen", 3),
            ("tuned + random vector", f"steered {kind} accuracy", "random", 3),
        ):
            wanted = [cells(probes, method, stage, measure=measure, heads=heads).mean() for method in METHODS]
            assert line(figure, panel, name).x == pytest.approx(wanted)


def test_drift_has_the_first_method_beside_every_other(found, drawn):
    probes = found.evaluations.query("kind == 'probe'")
    cosines = [[cells(probes, m, s, measure="cosine").mean() for s in range(4)] for m in METHODS]
    for panel, method in enumerate(METHODS):
        assert line(drawn["drift"], panel, method).y == pytest.approx(cosines[panel])
        beside = [trace for trace in in_panel(drawn["drift"], panel) if trace.name == "lora, beside the others"]
        assert len(beside) == (method != "lora") and all(trace.y == pytest.approx(cosines[0]) for trace in beside)


def test_grids_of_aie_are_means_over_probes_and_seeds_on_one_scale(found, drawn):
    figure = drawn["aie"]
    shown = titles(figure)
    assert shown[:3] == ["lora: before", "lora: after", "lora: difference"] and len(shown) == 9
    means = found.grids.groupby(["method", "stage", "layer", "head"])["aie"].mean()
    for row, method in enumerate(METHODS[:3]):
        before, after = (means[method, stage].to_numpy().reshape(2, 3) for stage in (0, 3))
        for column, wanted in enumerate((before, after, after - before)):
            (trace,) = in_panel(figure, 3 * row + column)
            assert np.allclose(trace.z, wanted) and trace.coloraxis == "coloraxis"
    scale = figure.layout.coloraxis
    assert scale.cmin == -scale.cmax and scale.cmax == pytest.approx(means.abs().max())
    assert in_panel(figure, 1)[0].text[1][0] == "L1H0: 0.110 [0.035, 0.185]"


def test_methods_stand_beside_each_other_with_the_numbers_of_the_summary(found, drawn):
    figure, summary = drawn["methods"], found.summary.set_index(["measure", "method"])
    assert titles(figure) == ["AP", "F", "GP", "IP"]
    for panel, measure in enumerate(titles(figure)):
        (dots,) = in_panel(figure, panel)
        told = summary.loc[measure].loc[list(METHODS)]
        assert dots.x == pytest.approx(told["value"]) and list(dots.y) == [0, 1, 2, 3]
        for end, wanted in (("array", told["high"] - told["value"]), ("arrayminus", told["value"] - told["low"])):
            assert dots.error_x[end] == pytest.approx(wanted)
    base = cells(found.evaluations, "lora", 0, kind="general", measure="instruction accuracy").mean()
    assert figure.layout.shapes[0].x0 == pytest.approx(base)


def with_unseen_wordings() -> SimpleNamespace:
    """Every tenth less is right in the wordings that are kept back."""
    frame = evaluations(probed=False)
    asked = frame[frame["measure"] == "instruction accuracy"]
    unseen = asked.assign(measure="unseen wording accuracy", value=0.9 * asked["value"])
    return study(probed=False, evaluations=pd.concat([frame, unseen], ignore_index=True))


@pytest.mark.slow
def test_what_guides_have_seen_stands_beside_what_they_have_not():
    found = with_unseen_wordings()
    figure, summary = draw(found)["wordings"], found.summary.set_index(["measure", "method"])["value"]
    assert titles(figure) == ["learned", *metrics.BY_WORDING]
    for panel, measure in enumerate(titles(figure)):
        (dots,) = in_panel(figure, panel)
        assert dots.x == pytest.approx(summary[measure].loc[list(METHODS)])
    assert summary["GP, reworded, guided"].to_numpy() == pytest.approx(0.9 * summary["GP, guided"].to_numpy())
    base = cells(found.evaluations, "lora", 0, kind="general", measure="instruction accuracy").mean()
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx([base, 0.9 * base, base, 0.9 * base])


@pytest.mark.slow
def test_the_trade_off_joins_forms_that_differ_in_their_weight_only(found, drawn):
    figure, summary = drawn["trade-off"], found.summary.set_index(["measure", "method"])["value"]
    assert [trace.name for trace in figure.data] == ["lora", "lora+iv", "lora+kl"]
    joined = figure.data[2]
    assert list(joined.text) == ["0.05", "1"] and "lines" in joined.mode and "lines" not in figure.data[0].mode
    assert list(joined.x) == [summary["learned", "lora+kl"], summary["learned", "lora+kl-1"]]
    assert list(joined.y) == [summary["GP", "lora+kl"], summary["GP", "lora+kl-1"]]
    numbered = "Learned against kept (numbers: weight of the guidance):"
    assert figure.layout.title.text.replace("<br>", " ").startswith(numbered)
    plain = draw(study(methods=("lora",)))["trade-off"].layout.title.text
    assert plain.replace("<br>", " ").startswith("Learned against kept: lab")


@pytest.mark.parametrize("name", GUIDANCE)
def test_every_form_of_guidance_is_joined_with_the_same_form_of_another_weight(name):
    form = GUIDANCE[name]
    other = replace(form, heads=3.0) if form.heads else replace(form, kl=3.0)
    plan = Plan(name="x", tasks=("a",), methods=(f"lora+{name}", "lora+other-3"), guidance={"other-3": other})
    joined = figures._forms(plan, plan.methods)
    assert len({one.kind for one in joined}) == 1
    assert [one.strength for one in joined] == [form.heads or form.kl, 3.0]


def test_a_line_of_forms_without_the_bare_name_is_called_by_what_they_share():
    names = [("lora+iv-0.3", 0.3), ("lora+iv-1", 1.0)]
    assert figures._common(names) == "lora+iv"
    assert figures._common(names[:1]) == "lora+iv-0.3"
    assert figures._common([("lora+2", 0.3), ("lora+10", 1.0)]) == "lora+2"


@pytest.mark.slow
def test_without_probes_their_figures_are_left_out():
    names = list(draw(study(probed=False)))
    assert names == ["accuracy", "r-matrix", "instruction-knowledge", "methods", "trade-off"]


@pytest.mark.slow
def test_a_probe_without_instruction_has_no_panel_of_what_was_not_measured():
    frame = evaluations()
    asked = frame["measure"].isin(["necessity", "shift", "instruction accuracy", "steered instruction accuracy"])
    frame.loc[asked & (frame["kind"] == "probe"), "value"] = NAN
    drawn = draw(study(evaluations=frame))
    assert titles(drawn["dependence"]) == ["sufficiency"] and titles(drawn["recovery"]) == ["zero-shot"]


@pytest.mark.slow
def test_one_seed_has_values_but_no_intervals():
    drawn = draw(study(seeds=(4,)))
    assert "1 seed, no intervals" in drawn["methods"].layout.title.text
    dots = in_panel(drawn["methods"], 0)[0]
    assert not np.isnan(dots.x).any() and np.isnan(dots.error_x.array).all()
    learned = line(drawn["accuracy"], 0, "tasks learned so far")
    assert learned.text[0].count("[") == 0
    for trace in drawn["accuracy"].data:
        assert trace.fill is None or not [x for x in trace.x if x is not None], "no band"


@pytest.mark.slow
def test_a_study_of_one_stage_has_no_forgetting_and_one_method_nothing_beside_it():
    drawn = draw(study(methods=("lora",), learned=LEARNED[:1]))
    assert titles(drawn["methods"]) == ["AP", "GP", "IP"]
    assert {trace.name for trace in drawn["drift"].data if trace.name} == {"lora"}


@pytest.mark.slow
def test_many_methods_and_stages_fit_a_page():
    methods = ("lora", *(f"{name}+{form}" for name in ("lora", "ewc", "lwf") for form in ("iv", "kl", "iv-random")))
    tasks = tuple(f"task-{number}" for number in range(15))
    drawn = draw(study(methods=methods[:8], learned=tasks))
    for name, figure in drawn.items():
        assert figure.layout.width == 672 and 200 < figure.layout.height < 864, name
    assert drawn["accuracy"].layout.xaxis.dtick >= 2
    assert len(titles(drawn["r-matrix"])) == 8


@pytest.mark.slow
def test_names_are_never_read_as_markup():
    tasks = ("<b>bold</b>", "class-letter")
    figure = draw(study(learned=tasks))["r-matrix"]
    assert in_panel(figure, 0)[0].customdata[1][0].startswith("&lt;b&gt;bold&lt;/b&gt;")
    assert any("1 &lt;b&gt;bold" in note.text for note in figure.layout.annotations)


@pytest.mark.slow
def test_over_seeds_agrees_with_the_summary(found):
    per_cell = metrics.cells(found.evaluations, guided=(STATED,))
    again = metrics.over_seeds(per_cell, ["method", "measure"]).set_index(["method", "measure"])
    told = found.summary.set_index(["method", "measure"]).drop(columns="p")
    pd.testing.assert_frame_equal(again, told.loc[again.index])


def test_an_axis_holds_every_value_and_every_interval():
    points = [method_plots.Point("", "", value, value - 9, value + 0.01) for value in (0.4, 0.6)]
    low, high = marks.axis_range(points)
    assert low < -8.6 and 0.61 < high < 1.5
    assert marks.axis_range([points[0]._replace(low=0.3)], zero=True)[0] < 0


@pytest.mark.parametrize(
    ("count", "width", "rows"), [(1, "page", 1), (4, "page", 1), (6, "page", 2), (8, "page", 2), (3, "column", 2)]
)
def test_panels_stand_in_rows(count, width, rows):
    found = layout.arrange([f"panel {number}" for number in range(count)], width=width)
    assert max(row for row, _ in found.places) == rows and len(found.places) == count
    assert all(found.is_lowest(place) for place in found.places if place[0] == rows)


def test_tables_that_cannot_be_drawn_are_refused():
    lines = pd.DataFrame({"panel": ["a", "a"], "line": ["b", "b"], "stage": [0, 0], "value": 0.5, "low": 0, "high": 1})
    with pytest.raises(FigureError, match="the table has 2 rows for stage 0 b; keep one"):
        stages.stage_panels(lines, unit="accuracy")
    with pytest.raises(FigureError, match="the table has no column panel"):
        stages.stage_panels(lines.drop(columns="panel"), unit="accuracy")
    with pytest.raises(FigureError, match="no column task"):
        stage_heatmaps.accuracy_heatmaps(lines)
    with pytest.raises(FigureError, match="no column kind, method"):
        method_plots.method_dots(lines, units={})
    with pytest.raises(FigureError, match="there is nothing to draw"):
        layout.arrange([])


def printed(capsys, found) -> dict[str, dict[str, list[str]]]:
    """By the heading of a table and the method, the cells."""
    study_tables.print_study(found)
    tables, heading = {}, ""
    for row in capsys.readouterr().out.splitlines()[1:]:
        heading = row[:-1] if row.endswith(":") else heading
        if row.startswith("lora"):
            tables.setdefault(heading, {})[row.split()[0]] = row.split()[1:]
    return tables


def test_the_printed_table_has_the_numbers_of_the_summary(capsys, found):
    tables = printed(capsys, found)
    assert list(tables) == [
        "New tasks",
        "General tasks after the last stage",
        "General tasks, change from the base model",
        "Difference from lora (*: clear of 0 by Holm over these 9)",
        "Difference from lora+kl (*: clear of 0 by Holm over these 8)",
        "Correlation of accuracy with the cosine of the vectors, over probes and stages",
    ]
    tables = {name.partition(" (")[0]: table for name, table in tables.items()}
    values = found.summary.set_index(["method", "measure"])

    def told(method: str, measure: str, *, signed: bool = False) -> str:
        line = values.loc[(method, measure)]
        return f"{line['value']:{'+' if signed else ''}.3f} ±{line['high'] - line['value']:.3f}"

    def shown(table: str, method: str) -> str:
        return " ".join(tables[table][method]).replace("*", "")

    for method in METHODS:
        wanted = [told(method, name) for name in ("learned", "AP", "F")]
        assert shown("New tasks", method) == " ".join(wanted)
        wanted = [told(method, name) for name in ("GP", "IP", "instruction probability", "knowledge probability")]
        assert shown("General tasks after the last stage", method) == " ".join(wanted)
        wanted = [told(method, f"{name} change", signed=True) for name in ("GP", "IP")]
        assert shown("General tasks, change from the base model", method).startswith(" ".join(wanted))
    assert list(tables["Difference from lora"]) == list(METHODS[1:])
    wanted = [told("lora+iv", f"{name} over lora+kl", signed=True) for name in ("AP", "GP", "IP", "GP, unguided")]
    assert shown("Difference from lora+kl", "lora+iv") == " ".join(wanted)
    wanted = [told("lora+iv", f"{name} over lora", signed=True) for name in ("AP", "GP", "IP")]
    assert shown("Difference from lora", "lora+iv") == " ".join([*wanted, told("lora+iv", "GP kept")])


def test_wordings_that_are_kept_back_have_a_table_and_a_family_of_differences():
    found = with_unseen_wordings()
    (shown,) = (one for one in study_tables.study_tables(found) if one.heading == "General tasks by wording")
    assert shown.columns[1:] == metrics.BY_WORDING and "that no guide had" in shown.note
    values = found.summary.set_index(["method", "measure"])["value"]
    for method, *numbers in shown.parts[0]:
        wanted = [f"{values[method, measure]:.3f}" for measure in metrics.BY_WORDING]
        assert [number.split()[0] for number in numbers] == wanted
    asked = found.plan.with_changes(reference="lora+iv")
    summary = metrics.summary(found.evaluations, guided=(STATED,), reference="lora+iv")
    told = SimpleNamespace(**(vars(found) | {"plan": asked, "summary": summary}))
    usual, by_wording = study_tables.families_of_differences(told)
    assert (usual.measures, by_wording.measures) == (metrics.DIFFERENCES, metrics.BY_WORDING)
    assert (usual.size, by_wording.size) == (3 * 5, 3 * 4), "each is corrected for itself"
    assert "by wording" in by_wording.title and "by wording" not in usual.title


@pytest.mark.slow
def test_a_reference_is_told_against_every_other_method_and_marked_where_it_is_clear_of_0(found):
    frame = found.evaluations
    frame = frame.assign(value=frame["value"] + 0.002 * np.random.default_rng(0).normal(size=len(frame)))
    summary = metrics.summary(frame, guided=(STATED,), reference="lora+iv")
    asked = found.plan.with_changes(reference="lora+iv")
    told = SimpleNamespace(**(vars(found) | {"plan": asked, "summary": summary}))
    (family,) = study_tables.families_of_differences(told)
    wanted = metrics.comparisons(frame, "lora+iv", guided=(STATED,))
    assert family.size == len(wanted) == 3 * len(metrics.DIFFERENCES)
    below = wanted[wanted["adjusted"] < 0.05]
    assert set(family.clear) == set(zip(below["other"], below["measure"], strict=True))
    assert 0 < len(below) < (wanted["p"] < 0.05).sum(), "some are clear of 0 only where nothing is corrected"
    tables = study_tables.study_tables(told)
    heading = f"lora+iv minus each other method (*: clear of 0 by Holm over these {family.size})"
    (shown,) = (one for one in tables if one.heading == heading)
    cells_of = {row[0]: dict(zip(metrics.DIFFERENCES, row[1:], strict=True)) for row in shown.parts[0]}
    for (other, measure), line in wanted.set_index(["other", "measure"]).iterrows():
        mark = "*" if line["adjusted"] < 0.05 else ""
        assert cells_of[other][measure] == f"{line['value']:+.3f} ±{line['high'] - line['value']:.3f}{mark}"
    sentence = family.sentence()
    assert f"of these {family.size} differences, {len(below)} are clear of 0 by Holm's correction for all" in sentence


def test_the_order_that_every_seed_drew_is_shown(capsys, found):
    study_tables.print_study(found)
    out = capsys.readouterr().out
    for seed in found.plan.seeds:
        assert re.search(rf"^seed {seed} +{' +'.join(found.plan.ordered(seed))}$", out, re.MULTILINE)
    study_tables.print_study(SimpleNamespace(**(vars(found) | {"plan": found.plan.with_changes(order="given")})))
    assert "order" not in capsys.readouterr().out


@pytest.mark.slow
def test_where_seeds_have_orders_of_their_own_r_is_by_the_stage_in_which_a_task_was_learned():
    frame = evaluations(methods=("lora",), seeds=(0, 1))
    order = {(seed, task): 1 + (number + seed) % 3 for seed in (0, 1) for number, task in enumerate(LEARNED)}
    learned = [order.get(key, 0) for key in zip(frame["seed"], frame["task"], strict=True)]
    found = study(methods=("lora",), seeds=(0, 1), evaluations=frame.assign(learned=learned))
    drawn = draw(found)
    own = [metrics.r_matrix(found.evaluations, "lora", seed).to_numpy() for seed in (0, 1)]
    trace, _ = in_panel(drawn["r-matrix"], 0)
    assert np.allclose(trace.z, np.mean(own, axis=0))
    assert trace.customdata[2][1].startswith("task of stage 2, stage 2: ")
    assert drawn["r-matrix"].layout.xaxis.title.text == "task of stage"
    assert not [note.text for note in drawn["r-matrix"].layout.annotations if "task" in note.text], "no list of names"
    so_far = [np.mean([r[stage, :stage].mean() for r in own]) for stage in (1, 2, 3)]
    assert np.allclose(line(drawn["accuracy"], 0, "tasks learned so far").y, so_far)


@pytest.mark.slow
def test_what_one_seed_and_one_stage_do_not_tell_is_said(capsys):
    study_tables.print_study(study(seeds=(4,), learned=LEARNED[:1]))
    out = capsys.readouterr().out
    assert "tiny on lab: 1 stage, 1 seed" in out and "One seed: no intervals." in out and "±" not in out
    assert "not measured" in out, "F of one stage"


@pytest.mark.slow
def test_the_table_of_a_notebook_has_the_same_numbers_and_no_markup_of_others(found):
    shown = study_tables.study_html(found)
    line = found.summary.set_index(["method", "measure"]).loc[("lora+iv", "GP")]
    assert f"<td>{line['value']:.3f} ±{line['high'] - line['value']:.3f}</td>" in shown
    hostile = study_tables.study_html(study(plan=Plan(name="<b>", tasks=LEARNED)))
    assert "&lt;b&gt; on lab" in hostile and "<b><b>" not in hostile
