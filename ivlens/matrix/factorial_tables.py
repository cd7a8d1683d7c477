"""What did a factorial find, as text?"""

from __future__ import annotations

import itertools
import math
import sys
from typing import TYPE_CHECKING, Any

from ivlens.matrix.factorial import FACTORS, LOST, Factorial
from ivlens.matrix.main_effects import MEAN
from ivlens.tables import UNMEASURED, Table, folded, interval_text, print_table

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
    """The effects on each measure, then the tasks of every cell."""
    for table in (*effect_tables(found), cell_table(found)):
        print(f"{table.heading}:\n")
        print_table(table)
        print(folded(f"\n{table.note}\n"))


_NOTE = (
    "Effects are differences of cells' means, over tasks; p after Holm over the factors and methods of the measure, "
    "controls aside."
)


def effect_tables(found: Factorial) -> list[Table]:
    """A table a measure: the mean of all cells and the effects, down; methods across."""
    effects = found.effects().set_index(["measure", "method", "factor"])
    methods = list(dict.fromkeys(effects.index.get_level_values("method")))
    tables = []
    for measure, called in LOST.items():
        rows = []
        for factor, name in {MEAN: "mean of the cells", **FACTORS}.items():
            lines = [effects.loc[(measure, method, factor)] for method in methods]
            rows.append((name, *map(_effect, lines)))
        tables.append(Table(called, ("", *methods), (rows,), _NOTE))
    return tables


def _effect(line: Any) -> str:
    told = interval_text(line["value"], line["low"], line["high"], digits=2)
    return told if math.isnan(line["adjusted"]) else f"{told}, p {line['adjusted']:.2g}"


def cell_table(found: Factorial) -> Table:
    """Tasks of every combination of levels, what the base model has of them, and what each method lost."""
    table, rows = found.table(), []
    for levels in itertools.product((False, True), repeat=len(FACTORS)):
        own = [one for one in found.tasks if tuple(getattr(one, name) for name in FACTORS) == levels]
        names = [one.name for one in own]
        means = [
            table[(table["method"] == method) & (table["measure"] == measure) & table["task"].isin(names)]["value"]
            for measure in LOST
            for method in found.methods
        ]
        told = [f"{values.mean():.2f}" if len(values) else UNMEASURED for values in means]
        tasks = ", ".join(f"{one.name} ({one.accuracy:.2f})" for one in own) or "none"
        rows.append((cell_name(levels), *told, tasks))
    columns = tuple(f"{measure}, {method}" for measure in LOST for method in found.methods)
    return Table("Lost by cell", ("cell", *columns, "tasks (base accuracy)"), (rows,))


def cell_name(levels: tuple[bool, ...]) -> str:
    able, labels, long = levels
    return f"{'can' if able else 'cannot'}, {'labels' if labels else 'function'}, {'long' if long else 'short'}"
