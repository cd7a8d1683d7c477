"""Heads that recur are counted, within models of one shape, and chance is said beside it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ivlens import plots
from ivlens.errors import FigureError
from ivlens.matrix.audit_matrix import AuditMatrix
from ivlens.matrix.recurrence import OUTCOMES, AuditedHeads, expect_by_chance, find_recurring
from ivlens.matrix.tables import matrix_html, matrix_tables, print_matrix
from ivlens.shapes import Head


def audited(task: str, top: list[tuple[int, int]], *, model: str = "a", shape: tuple[int, int] = (2, 3)) -> Any:
    """An audit whose AIE is 0.1 times the place of a head from the end of its top, and 0 of all others."""
    aie = np.zeros(shape)
    for place, head in enumerate(reversed(top), 1):
        aie[head] = place / 10
    heads = tuple(Head(*head) for head in top)
    return AuditedHeads(
        model=model,
        task=task,
        aie=aie,
        unit="probability",
        top=heads,
        clear=frozenset(heads[:1]),
        accuracies=dict.fromkeys(OUTCOMES, 0.5),
    )


def matrix(*audits: AuditedHeads) -> AuditMatrix:
    return AuditMatrix.of(audits, [Path()] * len(audits))


@pytest.mark.parametrize("sizes", [[1], [2, 2], [1, 3, 2], [4, 1]])
def test_chance_is_that_of_all_sets_that_could_be_drawn(sizes: list[int]) -> None:
    draws = list(itertools.product(*(itertools.combinations(range(4), size) for size in sizes)))
    reached = np.zeros(len(sizes) + 1)
    for sets in draws:
        for head in range(4):
            reached[: sum(head in one for one in sets) + 1] += 1
    assert expect_by_chance(sizes, 4) == pytest.approx(reached / len(draws))


def test_heads_are_counted_over_tasks_and_models() -> None:
    first, second = (0, 1), (1, 2)
    audits = [
        audited("one", [first, second]),
        audited("two", [first, (0, 0)]),
        audited("one", [first, second], model="b"),
    ]
    table = find_recurring(audits).set_index("head")
    assert table.index.tolist() == ["L0H1", "L1H2"]
    assert table[["top", "audits", "tasks", "models", "clear"]].to_numpy().tolist() == [
        [3, 3, 2, 2, 3],
        [2, 3, 1, 2, 0],
    ]
    assert table["chance"].tolist() == pytest.approx([6 / 27, 6 * (3 * 2 / 27 + 1 / 27)])
    assert table["aie"].tolist() == pytest.approx([0.2, 0.2 / 3])
    line = table.loc["L1H2"]
    assert line["low"] < line["aie"] < line["high"]


def test_models_of_other_shapes_are_counted_apart() -> None:
    same, other = [(0, 1)], (2, 3)
    audits = [audited(task, same) for task in ("one", "two")]
    audits += [audited(task, same, model="b", shape=(2, 4)) for task in ("one", "two", "three")]
    audits += [audited("one", [other], model="c", shape=(3, 4))]
    table = find_recurring(audits)
    assert table[["layers", "heads", "head", "top", "audits"]].to_numpy().tolist() == [
        [2, 4, "L0H1", 3, 3],
        [2, 3, "L0H1", 2, 2],
    ]
    figure = matrix(*audits).figures()["recurring-heads"]
    grid = np.array(figure.data[0].z)
    assert figure.layout.yaxis.ticktext == ("L0H1 of 2x3", "L0H1 of 2x4") and grid.shape == (2, 6)
    assert np.isnan(grid).tolist() == [[False] * 2 + [True] * 4, [True] * 2 + [False] * 3 + [True]]
    assert len(figure.layout.shapes) == 5
    _, heads = matrix_tables(matrix(*audits))
    assert [line[0] for line in heads.parts[0]] == ["L0H1 of 2x4", "L0H1 of 2x3"]
    assert "only where one was tuned from the other" in heads.note


def test_where_nothing_recurs_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = matrix(audited("one", [(0, 0)]), audited("two", [(0, 1)]))
    assert found.recurring.empty and found.figures() == {}
    assert repr(found) == "AuditMatrix(a on one, two; no head recurs)"
    print_matrix(found)
    assert capsys.readouterr().out.endswith("\n\nNo head is among the top of two audits or more.\n\n")


def test_names_are_shown_as_text() -> None:
    assert "<b>x" not in matrix_html(matrix(audited("<b>x", [(0, 0)]), audited("y", [(0, 0)])))


def test_cells_that_cannot_be_drawn_are_refused() -> None:
    cells = pd.DataFrame([[0.1, 0.2]], index=["L0H0"], columns=["one", "two"])
    for aie, marked in ((cells, cells.iloc[:, :1] > 0), (cells / 0, cells > 0), (cells.iloc[:0], cells.iloc[:0] > 0)):
        with pytest.raises(FigureError, match="they need the same ones, of finite numbers or NaN"):
            plots.recurrence_heatmap(aie, marked=marked)
