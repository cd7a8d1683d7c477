"""What did an audit find, as text: tables for a terminal, and one for a notebook.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ivlens.effects import HeadEffects
    from ivlens.tasks import Task
    from ivlens.universal import Universal
    from ivlens.vectors import InstructionVector

UNMEASURED = "not measured"
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
_STEERED = {
    "steered": "zero-shot + vector",
    "steered, random": "zero-shot + random heads",
    "steered, bottom": "zero-shot + low-AIE heads",
    "steered, other-task": "zero-shot + other tasks",
}


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
    def instructions(self) -> pd.DataFrame | None: ...
    @property
    def universal(self) -> pd.DataFrame | None: ...


def plain(text: object) -> str:
    """One line of printable text; control characters and the like as Python writes them (`\\x1b`, `\\n`)."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


def print_audit(found: Findings) -> None:
    """The answer, all measures, accuracy by number of heads, and the heads."""
    vector, effects = found.vector, found.effects
    print(f"{plain(vector.task)} on {plain(vector.model)}\n")
    print(*_sentence(found).split("; "), sep=",\n  ", end="\n\n")
    print_table(text_table(f"{found.measures['prompts'].max()} queries", _VALUES, *_measures(found)))
    print("\nControls have the norm of the vector, and each its own best layer.")
    print("P(answer) is the probability of its first token.\n\nZero-shot accuracy by number of heads in the vector:\n")
    beside = ("vector", "95 % interval", "random heads", "95 % interval")
    print_table(text_table("heads", beside, _by_number(found)))
    print()
    print_table(text_table("head of the vector", (f"AIE ({effects.unit})", "95 % interval"), _heads(found)))
    print_choices(found)
    more = f"{len(vector.heads) - MOST_HEADS} more are in effects.parquet. " if len(vector.heads) > MOST_HEADS else ""
    chose = "which did not choose the heads." if is_given(found) else "that chose the heads: expect less on others."
    print(f"\n{more}AIE on the {len(effects.cie)} prompts {chose}\n")


def is_given(found: Findings) -> bool:
    """Whether the heads are others than those of largest AIE."""
    return list(found.vector.heads) != found.effects.top(len(found.vector.heads))


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
    print_table(text_table("task", ("accuracy", "majority answer", ""), lines))
    unit = "nats" if found.settings.effect == "nll" else "probability"
    print("\nA task enters if the model is right more often than its most frequent answer would be.\n")
    heads = [(str(head), f"{float(found.aie[head]):+.4f}") for head in found.heads[:MOST_HEADS]]
    print_table(text_table("universal head", (f"mean AIE ({unit})",), heads))
    print(f"\nVectors of these {len(found.heads)} heads are added best at layer {found.layer}.\n")


def audit_html(found: Findings) -> str:
    """The answer and all measures, for a notebook."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *_VALUES))
    lines = [line for part in _measures(found) for line in part]
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(plain(cell))}</td>' for cell in line)}</tr>" for line in lines)
    where = html.escape(f"{plain(found.vector.task)} on {plain(found.vector.model)}")
    return (
        f"<p><b>{where}</b><br>{html.escape(_sentence(found))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def print_tasks(tasks: Iterable[Task]) -> None:
    """One line a task."""
    lines = [(task.name, len(task.pairs), len(task.instructions), _example(task.pairs[0])) for task in tasks]
    print_table(text_table("task", ("pairs", "wordings", "example"), lines))


def print_task(task: Task) -> None:
    """One task in full, with its first pairs."""
    most = len(task.pairs) - 10
    lines = [
        ("pairs", f"{len(task.pairs)}: enough for up to {most} shots"),
        *(("instruction", wording) for wording in task.instructions or [f"none: {UNMEASURED}"]),
        ("statement", task.statement or f"none: {UNMEASURED}"),
        *(("example", _example(pair)) for pair in task.pairs[:3]),
    ]
    print_table(text_table(task.name, ("",), lines, justify="left"))


def _example(pair: Sequence[str]) -> str:
    return " → ".join(pair)


def _sentence(found: Findings) -> str:
    lines, count = found.measures.set_index("measure").to_dict("index"), len(found.vector.heads)
    alone, steered, random = (
        " ".join(_interval(lines[name], "accuracy")) for name in ("zero-shot", "steered", "steered, random")
    )
    heads = "1 head" if count == 1 else f"{count} heads"
    return (
        f"Zero-shot accuracy: {alone}; "
        f"with the vector of {heads} added at layer {found.vector.layer}: {steered}; "
        f"with vectors of as many random heads: {random}."
    )


def _measures(found: Findings) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Lines without and with a vector."""
    lines = found.measures.set_index("measure").to_dict("index")
    shots = found.vector.settings.shots
    unsteered, steered = (
        [
            (label.format(shots=shots), *_interval(lines[name], "accuracy"), *_interval(lines[name], "probability", 3))
            for name, label in labels.items()
            if name in lines
        ]
        for labels in (_BASELINES, _STEERED)
    )
    return unsteered, steered


def _by_number(found: Findings) -> list[tuple[str, ...]]:
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


def _heads(found: Findings) -> list[tuple[str, str, str]]:
    heads, aie, (low, high) = found.vector.heads[:MOST_HEADS], found.effects.aie, found.effects.interval()
    largest = max(abs(float(aie[head])) for head in heads)
    style = "+.1e" if largest < 1e-3 else f"+.{max(2, 2 - math.floor(math.log10(largest)))}f"
    return [
        (str(head), f"{float(aie[head]):{style}}", f"[{float(low[head]):{style}}, {float(high[head]):{style}}]")
        for head in heads
    ]


def text_table(first: str, others: Sequence[str], *parts: Iterable[Sequence[object]], justify: Any = "right") -> Table:
    """Parts are lines with a rule between."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(Text(plain(first)), overflow="fold")
    for column in others:
        table.add_column(Text(column), justify=justify, overflow="fold")
    for part in parts:
        for line in part:
            table.add_row(*(Text(plain(cell)) for cell in line))
        table.add_section()
    return table


def print_table(table: Table) -> None:
    from rich.console import Console

    Console().print(table)
