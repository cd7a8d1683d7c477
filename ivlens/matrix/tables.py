"""What did a matrix of audits find, as text: its audits, and the heads that recur.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ivlens.matrix.recurrence import OUTCOMES, AuditedHeads
from ivlens.steering.verdict import MOST_FREQUENT
from ivlens.tables import INTERVAL, UNMEASURED, Line, Table, folded, print_table, safe, table_html

if TYPE_CHECKING:
    import pandas as pd

MOST_HEADS = 20
_CALLED = {"steered": "zero-shot + vector", "steered, random": "zero-shot + random heads", MOST_FREQUENT: MOST_FREQUENT}
_NOTE = (
    "among the top: of how many audits of models of this shape, and of how many tasks and models; by chance: how many "
    "heads would be in so many or more if every audit drew its top at random; clear: audits where the AIE is clear of "
    "0 (p <= 0.05 after Holm); AIE: mean over all of these audits, on the prompts that chose the heads."
)
_APART = "Across models, an address is the same head only where one was tuned from the other."


@runtime_checkable
class Findings(Protocol):
    """What an `AuditMatrix` holds, so far as it is shown here."""

    @property
    def audits(self) -> tuple[AuditedHeads, ...]: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def recurring(self) -> pd.DataFrame: ...


def print_matrix(found: Findings) -> None:
    """A line for each audit, then the heads."""
    for table in matrix_tables(found):
        if not table.parts[0]:
            print(f"{table.heading}.\n")
            continue
        print(f"{table.heading}:\n")
        print_table(table)
        print(folded(f"\n{table.note}\n") if table.note else "")


def matrix_html(found: Findings) -> str:
    """The same for a notebook."""
    shown = [f"<p><b>{safe(table.heading)}</b></p>{table_html(table)}" for table in matrix_tables(found)]
    return "".join(shown)


def matrix_tables(found: Findings) -> tuple[Table, Table]:
    """The audits, and the heads that recur."""
    lines = zip(found.names, found.audits, strict=True)
    audits = Table(
        heading="Accuracy in each audit",
        columns=("audit", *(_CALLED.get(name, name) for name in OUTCOMES), "top heads"),
        parts=(
            [
                (name, *(_number(one.accuracies[of], 2) for of in OUTCOMES), " ".join(map(str, one.top[:3])))
                for name, one in lines
            ],
        ),
    )
    table, several = found.recurring, len({one.shape for one in found.audits}) > 1
    shown = [_line(line, several) for line in table.head(MOST_HEADS).to_dict("records")]
    more = len(table) - len(shown)
    notes = [f"{more} more are in recurring_heads.csv." if more else "", _NOTE]
    notes += [_APART] if len({one.model for one in found.audits}) > 1 else []
    heads = Table(
        heading=f"{'Heads that are' if shown else 'No head is'} among the top of two audits or more",
        columns=("head", "among the top", "by chance", "tasks", "models", "clear", f"AIE ({_unit(found)})", INTERVAL),
        parts=(shown,),
        note=" ".join(filter(None, notes)),
    )
    return audits, heads


def _unit(found: Findings) -> str:
    return found.audits[0].unit


def _line(line: dict[Any, Any], several: bool) -> Line:
    shape = f" of {line['layers']}x{line['heads']}" if several else ""
    ends = f"[{line['low']:.3f}, {line['high']:.3f}]" if not math.isnan(line["low"]) else ""
    counts = (str(line[name]) for name in ("tasks", "models", "clear"))
    top = f"{line['top']} of {line['audits']}"
    return f"{line['head']}{shape}", top, f"{line['chance']:.2g}", *counts, f"{line['aie']:.3f}", ends


def _number(value: float, digits: int) -> str:
    return UNMEASURED if math.isnan(value) else f"{value:.{digits}f}"
