"""What did a study find, as text: its methods beside each other, for a terminal and for a notebook.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from ivlens.markup import html_table, safe
from ivlens.tables import UNMEASURED, plain, print_table, text_table

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.plan import Plan

AFTER = ("AP", "F", "GP", "IP")
CHANGED = {
    "GP": "GP change",
    "IP": "IP change",
    "P(instruction)": "instruction probability change",
    "P(knowledge)": "knowledge probability change",
}
OVER = ("AP", "GP", "IP")
_NOTE = """AP: accuracy on all learned tasks after the last stage; F: how far those before
the last have fallen from their best; GP, IP: accuracy on general tasks, which
are never trained on, with their instruction and with demonstrations; unguided:
those that the guidance has seen nothing of."""


@runtime_checkable
class Findings(Protocol):
    """What a `Study` holds, so far as it is shown here."""

    @property
    def plan(self) -> Plan: ...
    @property
    def summary(self) -> pd.DataFrame: ...


class _Table(NamedTuple):
    heading: str
    columns: tuple[str, ...]
    lines: list[tuple[str, ...]]


def print_study(found: Findings) -> None:
    """AP, F, GP, IP; the change from the base model; and what each guidance has over the plain method and over +kl."""
    print(f"{plain(_where(found))}\n")
    for table in _tables(found):
        print(f"{plain(table.heading)}:\n")
        print_table(text_table("method", table.columns, table.lines))
        print()
    print(f"{_NOTE}\n{_interval(found)}\n")


def study_html(found: Findings) -> str:
    """The same tables for a notebook."""
    tables = "".join(
        f"<p>{safe(table.heading)}</p>{html_table(('method', *table.columns), table.lines)}" for table in _tables(found)
    )
    note = " ".join(_NOTE.split())
    return f"<p><b>{safe(_where(found))}</b></p>{tables}<p>{safe(note)} {safe(_interval(found))}</p>"


def _tables(found: Findings) -> Iterator[_Table]:
    summary = found.summary
    values = {(line["method"], line["measure"]): line for line in summary.to_dict("records")}
    methods = list(dict.fromkeys(summary["method"]))

    def lines(chosen: Sequence[str], measures: Sequence[str], *, signed: bool) -> list[tuple[str, ...]]:
        return [(one, *(_number(values[one, measure], signed=signed) for measure in measures)) for one in chosen]

    yield _Table("After the last stage", AFTER, lines(methods, AFTER, signed=False))
    yield _Table("Change from the base model", tuple(CHANGED), lines(methods, list(CHANGED.values()), signed=True))
    for other in methods:
        beside = [one for one in methods if "+" in one and (one, f"AP over {other}") in values]
        if not beside:
            continue
        columns = (*OVER, "GP, unguided") if "+" in other else OVER
        measures = [f"{name} over {other}" for name in columns]
        table = lines(beside, measures, signed=True)
        if "+" not in other:
            kept = [
                "nothing lost" if not values[one, "GP kept"]["n"] else _number(values[one, "GP kept"]) for one in beside
            ]
            table, columns = [(*line, one) for line, one in zip(table, kept, strict=True)], (*OVER, "GP kept")
        yield _Table(f"Difference from {other}", columns, table)


def _number(line: dict, *, signed: bool = False) -> str:
    """The value and half of its interval, which is symmetric."""
    if math.isnan(line["value"]):
        return UNMEASURED
    half = line["high"] - line["value"]
    return f"{line['value']:{'+' if signed else ''}.3f}" + ("" if math.isnan(half) else f" ±{half:.3f}")


def _where(found: Findings) -> str:
    counts = {"stage": len(found.plan.tasks), "seed": len(found.plan.seeds)}
    sizes = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items())
    return f"{found.plan.name} on {found.plan.model}: {sizes}"


def _interval(found: Findings) -> str:
    if len(found.plan.seeds) == 1:
        return "One seed: no intervals."
    return f"±: half of Student's 95 % interval over {len(found.plan.seeds)} seeds; differences are paired by seed."
