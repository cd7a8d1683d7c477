"""What did an audit find, as text: tables for a terminal, and one for a notebook.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ivlens.tables import UNMEASURED, Line, Table, plain, print_table, safe, table_html

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.datasets.task import Task
    from ivlens.patching.head_effects import HeadEffects
    from ivlens.steering.universal_heads import Universal
    from ivlens.vectors.instruction_vector import InstructionVector
MOST_HEADS = 20
"""Heads of a vector that a table lists; the others are in the file of effects."""
_VALUES = ("accuracy", "95 % interval", "P(answer)", "95 % interval")
_BASELINES = {
    "zero-shot": "zero-shot",
    "instructed": "with the instruction",
    "few-shot": "{shots} shots",
    "shuffled": "{shots} shots, shuffled",
    "statement": "plain statement",
}
STEERED = {
    "steered": "zero-shot + vector",
    "steered, random": "zero-shot + random heads",
    "steered, bottom": "zero-shot + low-AIE heads",
    "steered, gaussian": "zero-shot + Gaussian",
    "steered, other-task": "zero-shot + other tasks",
}
_UNSCALED = {f"{name}, scale 1": f"{label.removeprefix('zero-shot + ')}, scale 1" for name, label in STEERED.items()}


@runtime_checkable
class Findings(Protocol):
    """What an `Audit` holds, so far as it is shown here."""

    @property
    def effects(self) -> HeadEffects: ...
    @property
    def vector(self) -> InstructionVector: ...
    @property
    def measures(self) -> pd.DataFrame: ...
    @property
    def heads(self) -> pd.DataFrame: ...
    @property
    def places(self) -> pd.DataFrame: ...
    @property
    def instructions(self) -> pd.DataFrame | None: ...
    @property
    def universal(self) -> pd.DataFrame | None: ...


def print_audit(found: Findings) -> None:
    """The answer, all measures, accuracy by number of heads, and the heads."""
    measures, by_number, heads = audit_tables(found)
    print(f"{plain(found.vector.task)} on {plain(found.vector.model)}\n")
    print(*sentence(found).split("; "), sep=",\n  ", end="\n\n")
    print_table(measures)
    print(f"\n{measures.note}\n\n{by_number.heading}:\n")
    print_table(by_number)
    print()
    print_table(heads)
    print_choices(found)
    print(f"\n{heads.note}\n")


def is_given(found: Findings) -> bool:
    """Whether the heads are others than those of largest AIE."""
    return list(found.vector.heads) != found.effects.top(len(found.vector.heads))


def _which(found: Findings) -> str:
    return "which did not choose the heads." if is_given(found) else "that chose the heads: expect less on others."


def print_choices(found: Findings) -> None:
    """Which wording and which universal heads were chosen, and on what, where that was asked for."""
    if found.instructions is not None:
        best = found.instructions[found.instructions["chosen"]].iloc[0]
        print(
            f"\nInstruction: {plain(best['wording'])}\nThe best of {len(found.instructions)} on {best['prompts']} "
            f"validation pairs, of which it has {best['accuracy']:.2f} right."
        )
    if found.universal is not None:
        entered = found.universal["entered"]
        print(
            f"\nHeads are universal: ranked on {entered.sum()} of {len(entered)} other tasks (universal_tasks.parquet)."
        )


def print_universal(found: Universal) -> None:
    """Every task that was tried, and the heads with their mean AIE over those that entered."""
    print(f"{len(found.tasks)} of {len(found.considered)} tasks entered on {plain(found.model)}:\n")
    lines = [
        (
            one.task,
            UNMEASURED if one.accuracy is None else f"{one.accuracy:.2f}",
            f"{one.majority:.2f}",
            "entered" if one.entered else f"left out: {one.reason}" if one.accuracy is None else "left out",
        )
        for one in found.considered
    ]
    print_table(Table("", ("task", "accuracy", "majority answer", ""), (lines,)))
    print("\nA task enters if the model is right more often than its most frequent answer would be.\n")
    heads = [(str(head), f"{float(found.aie[head]):+.4f}") for head in found.heads[:MOST_HEADS]]
    print_table(Table("", ("universal head", f"mean AIE ({found.settings.unit})"), (heads,)))
    print(
        f"\nVectors of these {len(found.heads)} heads are added best at layer {found.layer}, {found.scale:g} times.\n"
    )


def audit_html(found: Findings) -> str:
    """The answer and all measures, for a notebook."""
    where = safe(f"{found.vector.task} on {found.vector.model}")
    return f"<p><b>{where}</b><br>{safe(sentence(found))}</p>{table_html(audit_tables(found)[0])}"


def audit_tables(found: Findings) -> list[Table]:
    """All measures, accuracy by number of heads, and the heads."""
    more = len(found.vector.heads) - MOST_HEADS
    return [
        Table(
            "Without and with a vector",
            (f"{found.measures['prompts'].max()} queries", *_VALUES),
            _measures(found),
            f"{_length(found)}Controls have the norm of the vector; each has its own best layer and scale,\n"
            "found on validation pairs with as many tries. Below: all of them at scale 1.\n"
            "P(answer) is the probability of its first token.",
        ),
        Table(
            "Zero-shot accuracy by number of heads in the vector",
            ("heads", "vector", "95 % interval", "random heads", "95 % interval"),
            (_by_number(found),),
        ),
        Table(
            "Heads of the vector",
            ("head of the vector", f"AIE ({found.effects.unit})", "95 % interval"),
            (_heads(found),),
            (f"{more} more are in effects.parquet. " if more > 0 else "")
            + f"AIE on the {len(found.effects.cie)} prompts {_which(found)}",
        ),
    ]


def print_tasks(tasks: Iterable[Task]) -> None:
    """One line a task."""
    lines = [
        (task.name, str(len(task.pairs)), str(len(task.instructions)), " → ".join(task.pairs[0])) for task in tasks
    ]
    print_table(Table("", ("task", "pairs", "wordings", "example"), (lines,)))


def print_task(task: Task) -> None:
    """One task in full, with its first pairs."""
    print_table(Table("", (task.name, ""), (task.lines(),)), justify="left")


def sentence(found: Findings) -> str:
    """What the vector does, with intervals, beside random heads."""
    lines, count = found.measures.set_index("measure").to_dict("index"), len(found.vector.heads)
    alone, steered, random = (
        " ".join(_interval(lines[name], "accuracy")) for name in ("zero-shot", "steered", "steered, random")
    )
    heads = "1 head" if count == 1 else f"{count} heads"
    return (
        f"Zero-shot accuracy: {alone}; "
        f"with the vector of {heads} added {found.vector.scale:g} times at layer {found.vector.layer}: {steered}; "
        f"with vectors of as many random heads: {random}."
    )


def _length(found: Findings) -> str:
    """How long what is added is beside what it is added to."""
    share = found.places["share"].to_numpy(float)[found.places["chosen"].to_numpy(bool)]
    return f"What is added is {share[0]:.2g} times as long as the residual stream there.\n" if len(share) else ""


def _measures(found: Findings) -> tuple[list[Line], ...]:
    """Lines without a vector, with one at its place, with one at scale 1."""
    lines = found.measures.set_index("measure").to_dict("index")
    shots = found.effects.settings.shots
    return tuple(
        [
            (label.format(shots=shots), *_interval(lines[name], "accuracy"), *_interval(lines[name], "probability", 3))
            for name, label in labels.items()
            if name in lines
        ]
        for labels in (_BASELINES, STEERED, _UNSCALED)
    )


def _by_number(found: Findings) -> list[Line]:
    table = found.heads.set_index(["n_heads", "heads"]).to_dict("index")
    counts = sorted({count for count, _ in table})
    return [
        (str(count), *(cell for kind in ("chosen", "random") for cell in _interval(table[count, kind], "accuracy")))
        for count in counts
    ]


def _interval(line: Mapping[Any, Any], name: str, digits: int = 2) -> tuple[str, str]:
    if math.isnan(line[name]):
        return UNMEASURED, ""
    low, high = (f"{line[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
    return f"{line[name]:.{digits}f}", f"[{low}, {high}]"


def _heads(found: Findings) -> list[Line]:
    heads, aie, (low, high) = found.vector.heads[:MOST_HEADS], found.effects.aie, found.effects.interval()
    largest = max(abs(float(aie[head])) for head in heads)
    style = "+.1e" if largest < 1e-3 else f"+.{max(2, 2 - math.floor(math.log10(largest)))}f"
    return [
        (str(head), f"{float(aie[head]):{style}}", f"[{float(low[head]):{style}}, {float(high[head]):{style}}]")
        for head in heads
    ]
