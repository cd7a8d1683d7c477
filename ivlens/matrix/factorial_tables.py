"""What did a factorial find, as text?"""

from __future__ import annotations

import itertools
import math
import sys
from typing import TYPE_CHECKING, Any

from ivlens.matrix.factorial import FACTORS, LOST, Factorial, cell_name
from ivlens.tables import Table, folded, interval_text, print_table

if TYPE_CHECKING:
    from ivlens.forgetting.plan import Plan
    from ivlens.forgetting.preparation import Cost
    from ivlens.forgetting.study import Study


def print_cost(asked: Plan, cost: Cost) -> None:
    """Before it begins."""
    total = (cost.once + len(asked.seeds) * cost.seed) / 60
    sizes = f"{len(asked.tasks)} tasks x {len(asked.methods)} methods x {len(asked.seeds)} seeds"
    print(f"ivlens: {sizes}: about {total:.0f} minutes of one worker", file=sys.stderr, flush=True)


def print_done(found: Study, number: int, total: int) -> None:
    """Behind each study."""
    print(f"{number} of {total}: {found!r}", file=sys.stderr, flush=True)


def print_factorial(found: Factorial) -> None:
    """What each cell lost; the effects of the factors, of all tasks and of those that the base model cannot do."""
    tables = [cell_table(found), *effect_tables(found)]
    if not all(one.able for one in found.tasks):
        tables += effect_tables(found, unable=True)
    for table in tables:
        print(f"{table.heading}:\n")
        print_table(table)
        print(folded(f"\n{table.note}\n"))


_NOTE = (
    "Effects are differences of cells' means, over tasks; p after Holm over the factors and methods of the measure, "
    "controls aside."
)


def effect_tables(found: Factorial, *, unable: bool = False) -> list[Table]:
    """A table a measure: the mean of all cells and the effects, down; methods across."""
    effects: Any = found.effects(unable=unable).set_index(["measure", "method", "factor"])
    methods = list(dict.fromkeys(effects.index.get_level_values("method")))
    factors = {
        name: FACTORS.get(name, "mean of the cells") for name in dict.fromkeys(effects.index.get_level_values("factor"))
    }
    which = " (tasks that the base model cannot do)" if unable else ""
    tables = []
    for measure, called in LOST.items():
        rows = [
            (name, *(_effect(effects.loc[(measure, method, factor)]) for method in methods))
            for factor, name in factors.items()
        ]
        tables.append(Table(f"{called}{which}", ("", *methods), (rows,), _NOTE))
    return tables


def _effect(line: Any) -> str:
    told = interval_text(line["value"], line["low"], line["high"], digits=2)
    return told if math.isnan(line["adjusted"]) else f"{told}, p {line['adjusted']:.2g}"


def cell_table(found: Factorial) -> Table:
    """What each method lost in every cell that has tasks, and of which tasks it is."""
    cells: Any = found.cells()
    tasks: dict[str, list[str]] = {}
    for one in found.tasks:
        tasks.setdefault(cell_name(one.able, one.labels, one.long), []).append(f"{one.name} ({one.accuracy:.2f})")
    told = {
        (line["cell"], line["measure"], line["method"]): interval_text(
            line["value"], line["low"], line["high"], digits=2
        )
        for line in cells.to_dict("records")
    }
    columns = [(measure, method) for measure in LOST for method in found.methods]
    rows = [(cell, *(told[(cell, *column)] for column in columns), ", ".join(names)) for cell, names in tasks.items()]
    headings = ("cell", *(f"{measure}, {method}" for measure, method in columns), "tasks (base accuracy)")
    return Table(
        "Lost in every cell [by the task that costs least, most]",
        headings,
        (rows,),
        f"Cells without tasks: {_empty(tasks)}.",
    )


def _empty(tasks: dict[str, list[str]]) -> str:
    every = [cell_name(*levels) for levels in itertools.product((False, True), repeat=len(FACTORS))]
    return "; ".join(cell for cell in every if cell not in tasks) or "none"
