"""What did a study find, as text: its methods beside each other, for a terminal and for a notebook.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ivlens.prompts.choices import GREEDY_MATCH
from ivlens.tables import UNMEASURED, Line, Table, plain, print_table, safe, table_html

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.forgetting.plan import Plan

SEQUENCE = ("learned", "AP", "F")
GENERAL = {
    "GP": "GP",
    "IP": "IP",
    "P(instruction)": "instruction probability",
    "P(knowledge)": "knowledge probability",
}
OVER = ("AP", "GP", "IP")
MOST_METHODS = 8
"""That the sentence names."""
_NOTE = """learned: accuracy on each new task right after its stage; AP: on all of them after
the last stage; F: how far those before the last have fallen from their best;
GP, IP: accuracy on general tasks, which are never trained on, with their
instruction and with demonstrations; unguided: those that the guidance has seen
nothing of."""


@runtime_checkable
class Findings(Protocol):
    """What a `Study` holds, so far as it is shown here."""

    @property
    def plan(self) -> Plan: ...
    @property
    def summary(self) -> pd.DataFrame: ...


def print_study(found: Findings) -> None:
    """Measures of the sequence and of the general tasks, and what each guidance has over plain method and +kl."""
    print(f"{plain(where(found))}\n")
    for table in study_tables(found):
        print(f"{plain(table.heading)}:\n")
        print_table(table)
        print()
    print(f"{note(found)}\n")


def study_html(found: Findings) -> str:
    """The same tables for a notebook."""
    tables = "".join(f"<p>{safe(table.heading)}</p>{table_html(table)}" for table in study_tables(found))
    told = " ".join(note(found).split())
    return f"<p><b>{safe(where(found))}</b></p>{tables}<p>{safe(told)}</p>"


def study_tables(found: Findings) -> Iterator[Table]:
    """Each kind of number, the methods beside each other."""
    summary = found.summary
    values = {(line["method"], line["measure"]): line for line in summary.to_dict("records")}
    methods = list(dict.fromkeys(summary["method"]))

    def lines(chosen: Sequence[str], measures: Sequence[str], *, signed: bool) -> list[Line]:
        return [(one, *(_number(values[one, measure], signed=signed) for measure in measures)) for one in chosen]

    changes = [f"{measure} change" for measure in GENERAL.values()]
    yield _table("New tasks", SEQUENCE, lines(methods, SEQUENCE, signed=False))
    yield _table("General tasks after the last stage", [*GENERAL], lines(methods, [*GENERAL.values()], signed=False))
    yield _table("General tasks, change from the base model", [*GENERAL], lines(methods, changes, signed=True))
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
        yield _table(f"Difference from {other}", columns, table)


def _table(heading: str, columns: Sequence[str], lines: list[Line]) -> Table:
    return Table(heading, ("method", *columns), (lines,))


def sentence(found: Findings) -> str:
    """What is left of the general tasks after the last stage and how well the new ones were learned, by method."""
    summary = found.summary
    values = {(line["method"], line["measure"]): line for line in summary.to_dict("records")}
    methods = list(dict.fromkeys(summary["method"]))
    base = values[methods[0], "GP"]["value"] - values[methods[0], "GP change"]["value"]
    shown, rest = methods[:MOST_METHODS], len(methods) - MOST_METHODS
    after = [f"{_number(values[one, 'GP'])} with {one} (learned: {_number(values[one, 'learned'])})" for one in shown]
    more = f"; {rest} more are in the tables" if rest > 0 else ""
    return (
        f"Accuracy on general tasks, {base:.3f} before training, is after the last stage {', '.join(after)}{more}. "
        "Learned: accuracy on each new task right after its stage."
    )


def note(found: Findings) -> str:
    """What the measures are, and what their intervals are over."""
    score = found.plan.evaluation.score
    scored = "" if score == GREEDY_MATCH else f"Accuracy is {score} of the replies that are written.\n"
    return f"{_NOTE}\n{scored}{interval_note(found)}"


def _number(line: Mapping[Any, Any], *, signed: bool = False) -> str:
    """The value and half of its interval, which is symmetric."""
    if math.isnan(line["value"]):
        return UNMEASURED
    half = line["high"] - line["value"]
    return f"{line['value']:{'+' if signed else ''}.3f}" + ("" if math.isnan(half) else f" ±{half:.3f}")


def where(found: Findings) -> str:
    """The study, its model and its size."""
    counts = {"stage": len(found.plan.tasks), "seed": len(found.plan.seeds)}
    sizes = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items())
    return f"{found.plan.name} on {found.plan.model}: {sizes}"


def interval_note(found: Findings) -> str:
    """What an interval is over."""
    if len(found.plan.seeds) == 1:
        return "One seed: no intervals."
    return f"±: half of Student's 95 % interval over {len(found.plan.seeds)} seeds; differences are paired by seed."
