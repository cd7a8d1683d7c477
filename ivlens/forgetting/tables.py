"""What did a study find, as text: its methods beside each other, for a terminal and for a notebook.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ivlens.forgetting.metrics import BY_WORDING, DIFFERENCES
from ivlens.forgetting.recovery import BOUNDS, CORRELATED, COSINE, PROMPTS, VECTORS, correlations
from ivlens.measures import holm
from ivlens.prompts.choices import GREEDY_MATCH
from ivlens.tables import UNMEASURED, Line, Table, folded, interval_text, plain, print_table, safe, table_html

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.forgetting.plan import Plan

SEQUENCE = ("learned", "AP", "F")
GENERAL = {"GP": "GP", "IP": "IP", "P(instruction)": "instruction probability", "P(knowledge)": "knowledge probability"}
OVER = ("AP", "GP", "IP")
_NOTE = (
    "learned: accuracy on each new task right after its stage; AP: on all of them after the last stage; F: how far "
    "those before the last have fallen from their best; GP, IP: accuracy on general tasks, which are never trained "
    "on, with their instruction and with demonstrations; unguided: those of families of which the guidance has seen "
    "no task."
)
LEVEL = 0.05
"""A difference is told to be clear of 0 where its adjusted p is below it."""
UNSEEN_NOTE = "Reworded: the same queries, with the instruction in the wordings that no guide had (kept_back)."
RECOVERY_NOTE = (
    "Each vector is added at the base model's layer and scale; own: what the same heads write in the tuned model. "
    "Queries alone are not the form that was trained: that a vector still works on them says that what reads it is "
    "there, not that the model can be used as before. Of one seed, intervals are over queries and draws of random "
    "heads."
)


@runtime_checkable
class Findings(Protocol):
    """What a `Study` holds, so far as it is shown here."""

    @property
    def plan(self) -> Plan: ...
    @property
    def summary(self) -> pd.DataFrame: ...
    @property
    def recovery(self) -> pd.DataFrame: ...
    @property
    def similarity(self) -> pd.DataFrame: ...
    @property
    def unmeasured(self) -> Mapping[str, Sequence[str]]: ...


def print_study(found: Findings) -> None:
    """Measures of the sequence and of the general tasks, and what each guidance has over plain method and +kl."""
    print(f"{plain(where(found))}\n")
    for table in all_tables(found):
        print(f"{plain(table.heading)}:\n")
        print_table(table)
        print(f"\n{folded(table.note)}\n" if table.note else "")
    print(f"{folded(note(found))}\n")


def study_html(found: Findings) -> str:
    """The same tables for a notebook."""
    tables = "".join(
        f"<p>{safe(table.heading)}</p>{table_html(table)}<p>{safe(table.note)}</p>" for table in all_tables(found)
    )
    told = " ".join(note(found).split())
    return f"<p><b>{safe(where(found))}</b></p>{tables}<p>{safe(told)}</p>"


def all_tables(found: Findings) -> Iterator[Table]:
    """Those of the study, and the recovery of methods without guidance; that of the others is on its page."""
    yield from study_tables(found)
    yield from recovery_tables(found, [method for method in found.plan.methods if "+" not in method])
    yield from correlation_table(found)


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
    if (methods[0], BY_WORDING[1]) in values:
        found_by = lines(methods, BY_WORDING, signed=False)
        yield Table("General tasks by wording", ("method", *BY_WORDING), (found_by,), UNSEEN_NOTE)
    for family in families_of_differences(found):
        table, columns = family.cells(), family.measures
        if family.measures == OVER:
            kept = [values[row[0], "GP kept"] for row in table]
            lost = {row[0]: "nothing lost" if values[row[0], "GP"]["n"] else UNMEASURED for row in table}
            told = [_number(line) if line["n"] else lost[row[0]] for row, line in zip(table, kept, strict=True)]
            table, columns = [(*row, one) for row, one in zip(table, told, strict=True)], (*columns, "GP kept")
        yield _table(family.title, columns, table)
    if found.plan.order == "seed" and len(found.plan.tasks) > 1:
        stages = [f"stage {number}" for number in range(1, len(found.plan.tasks) + 1)]
        orders = [(f"seed {seed}", *found.plan.ordered(seed)) for seed in found.plan.seeds]
        yield Table("The order of tasks, drawn by every seed", ("", *stages), (orders,))


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Differences that are looked at together: the family that their p-values are corrected for."""

    name: str
    lines: Mapping[str, Mapping[str, Mapping[Any, Any]]]
    """Of a summary: by method and measure."""

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(next(iter(self.lines.values())))

    @property
    def size(self) -> int:
        """How many were tested."""
        return sum(not math.isnan(line["p"]) for own in self.lines.values() for line in own.values())

    @property
    def clear(self) -> list[tuple[str, str]]:
        """Method and measure of those whose p, adjusted by Holm's method, is below `LEVEL`."""
        keys = [(method, measure) for method, own in self.lines.items() for measure in own]
        adjusted = holm([self.lines[method][measure]["p"] for method, measure in keys])
        return [key for key, p in zip(keys, adjusted, strict=True) if p < LEVEL]

    @property
    def title(self) -> str:
        return f"{self.name} (*: clear of 0 by Holm over these {self.size})" if self.size else self.name

    def cells(self) -> list[Line]:
        clear = set(self.clear)
        return [
            (
                method,
                *(_number(line, signed=True) + "*" * ((method, measure) in clear) for measure, line in own.items()),
            )
            for method, own in self.lines.items()
        ]

    def sentence(self) -> str:
        """What of the family is clear of 0."""
        by_measure = {measure: [one for one, other in self.clear if other == measure] for measure in self.measures}
        told = "; ".join(f"{measure}: {', '.join(methods)}" for measure, methods in by_measure.items() if methods)
        return (
            f"{self.name}, in {', '.join(self.measures)}: of these {self.size} differences, {len(self.clear)} are "
            f"clear of 0 by Holm's correction for all of them{told and f' ({told})'}."
        )


def families_of_differences(found: Findings) -> Iterator[Differences]:
    """The reference against each other method; where there is none, guided methods against the unguided and +kl."""
    values = {(line["method"], line["measure"]): line for line in found.summary.to_dict("records")}
    methods, reference = list(dict.fromkeys(found.summary["method"])), found.plan.reference
    if reference in methods:
        others = [one for one in methods if one != reference]
        by_wording = BY_WORDING if (methods[0], BY_WORDING[1]) in values else ()
        for what, names in {"": DIFFERENCES, ", by wording": by_wording}.items() if others else ():
            lines = {one: {name: values[reference, f"{name} over {one}"] for name in names} for one in others}
            if names:
                yield Differences(name=f"{reference} minus each other method{what}", lines=lines)
        return
    for other in methods:
        columns = (*OVER, "GP, unguided") if "+" in other else OVER
        beside = [one for one in methods if "+" in one and (one, f"AP over {other}") in values]
        lines = {one: {name: values[one, f"{name} over {other}"] for name in columns} for one in beside}
        if lines:
            yield Differences(name=f"Difference from {other}", lines=lines)


def recovery_tables(found: Findings, methods: Sequence[str]) -> Iterator[Table]:
    """Of each method that was probed, a line for each form of prompts and stage."""
    table: Any = found.recovery
    probed = [method for method in methods if method in set(table["method"])]
    for method in probed:
        own = table[table["method"] == method]
        parts = [_recovery_lines(own, prompts) for prompts in [*PROMPTS, COSINE]]
        heading, note = f"Accuracy on probes by stage, {method}", RECOVERY_NOTE if method == probed[-1] else ""
        yield Table(heading, ("prompts, stage", *VECTORS), tuple(filter(None, parts)), note)


def correlation_table(found: Findings) -> Iterator[Table]:
    """One, or none where there are no probes."""
    table: Any = correlations(found.similarity)
    if len(table):
        told = [interval_text(*bounds, digits=2) for bounds in table[list(BOUNDS)].to_numpy()]
        lines = [*zip(table["method"], told, table["n"].map(str), strict=True)]
        heading = "Correlation of accuracy with the cosine of the vectors, over probes and stages"
        yield Table(heading, ("method", "r", "points"), (lines,), CORRELATED)


def _recovery_lines(own: Any, prompts: str) -> list[Line]:
    """None where no vector was tried on such prompts."""
    rows = own[own["prompts"] == prompts].to_dict("records")
    cells = {(row["vector"], row["stage"]): _recovered(row) for row in rows}
    blank = UNMEASURED if prompts in PROMPTS else ""
    stages = sorted({stage for _, stage in cells})
    return [(f"{prompts}, {stage}", *(cells.get((vector, stage), blank) for vector in VECTORS)) for stage in stages]


def _recovered(row: Mapping[Any, Any]) -> str:
    """Of a single seed the interval is over queries and draws, and not symmetric."""
    if row["n"] == 1:
        return interval_text(row["value"], row["low"], row["high"], digits=2)
    # Of an interval that ends at 0 or 1, the other side is half of Student's.
    half = max(row["high"] - row["value"], row["value"] - row["low"])
    return _number({"value": row["value"], "high": row["value"] + half})


def _table(heading: str, columns: Sequence[str], lines: list[Line]) -> Table:
    return Table(heading, ("method", *columns), (lines,))


def sentence(found: Findings) -> str:
    """What is left of the general tasks after the last stage: without guidance, and where most of them is kept."""
    values = {(line["method"], line["measure"]): line for line in found.summary.to_dict("records")}
    methods = list(dict.fromkeys(found.summary["method"]))
    kept = {one: values[one, "GP"]["value"] for one in methods if not math.isnan(values[one, "GP"]["value"])}
    if not kept:
        return "Accuracy on general tasks was not measured; what was learned stands in the tables."
    first, most = next(iter(kept)), max(kept, key=lambda one: kept[one])
    base = kept[first] - values[first, "GP change"]["value"]
    told = (
        f"Accuracy on general tasks, {base:.3f} before training, is after the last stage "
        f"{_number(values[first, 'GP'])} with {first} (learned: {_number(values[first, 'learned'])})"
    )
    if most != first:
        told += (
            f"; the highest of {len(kept)} methods is {_number(values[most, 'GP'])} with {most} "
            f"(learned: {_number(values[most, 'learned'])})"
        )
    return f"{told}."


def answer_table(found: Findings) -> Table:
    """What each method learned and what it kept, beside each other."""
    measures = {"learned": "learned", "GP": "GP", "change": "GP change"}
    values = {(line["method"], line["measure"]): line for line in found.summary.to_dict("records")}
    lines = [
        (one, *(_number(values[one, measure], signed=measure == "GP change") for measure in measures.values()))
        for one in dict.fromkeys(found.summary["method"])
    ]
    return Table(
        "Learned and kept",
        ("method", "learned", "general tasks after", "change from before"),
        (lines,),
        "learned: accuracy on each new task right after its own stage; general tasks: accuracy after the last stage.",
    )


def note(found: Findings) -> str:
    """What the measures are, and what their intervals are over."""
    score = found.plan.evaluation.score
    scored = "" if score == GREEDY_MATCH else f"Accuracy is {score} of the replies that are written.\n"
    unable = "; ".join(f"{measure}: {', '.join(tasks)}" for measure, tasks in found.unmeasured.items())
    unasked = (
        f"Not asked: the base model is not clear of the most frequent answer, or there is no such form ({unable}).\n"
        if unable
        else ""
    )
    return f"{_NOTE}\n{scored}{unasked}{interval_note(found)}"


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
    return (
        f"±: half of Student's 95 % interval over {len(found.plan.seeds)} seeds; differences are paired by seed.\n"
        f"*: clear of 0, p of the paired t-test below {LEVEL} by Holm's method for all differences of the table."
    )
