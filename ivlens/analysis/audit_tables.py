"""What did an audit find, as text: tables for a terminal, and one for a notebook.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ivlens.patching.rounding import rounding_table
from ivlens.plots.steering import KINDS
from ivlens.steering.steered_replies import in_brackets, score_note
from ivlens.tables import INTERVAL, UNMEASURED, Line, Table, bounds_text, folded, plain, print_table, safe, table_html

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.patching.head_effects import HeadEffects
    from ivlens.steering.verdict import Verdict
    from ivlens.vectors.instruction_vector import InstructionVector
MOST_HEADS = 20
"""Heads of a vector that a table lists; the others are in the file of effects."""
_VALUES = ("accuracy", INTERVAL, "P(answer)", INTERVAL)
_BASELINES = {
    "zero-shot": "zero-shot",
    "instructed": "with the instruction",
    "few-shot": "{shots} shots",
    "shuffled": "{shots} shots, shuffled",
    "statement": "plain statement",
    "most frequent answer": "most frequent answer",
}
STEERED = {
    "steered" if kind == "chosen" else f"steered, {kind}": f"zero-shot + {called}" for kind, called in KINDS.items()
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
    def verdict(self) -> Verdict: ...
    @property
    def measures(self) -> pd.DataFrame: ...
    @property
    def heads(self) -> pd.DataFrame: ...
    @property
    def places(self) -> pd.DataFrame: ...
    @property
    def necessity(self) -> pd.DataFrame | None: ...
    @property
    def instructions(self) -> pd.DataFrame | None: ...
    @property
    def universal(self) -> pd.DataFrame | None: ...
    @property
    def ranking(self) -> pd.DataFrame | None: ...
    @property
    def rounding(self) -> pd.DataFrame | None: ...


def print_audit(found: Findings) -> None:
    """The verdict, the answer, all measures, accuracy by number of heads, and the heads."""
    measures, by_number, heads, *ablated = audit_tables(found)
    print(f"{plain(found.vector.task)} on {plain(found.vector.model)}\n")
    print(folded(f"{found.verdict.sentence}\n{found.verdict.advice}\n"))
    print(*sentence(found).split("; "), sep=",\n  ", end="\n\n")
    print_table(measures)
    print(f"\n{measures.note}\n\n{by_number.heading}:\n")
    print_table(by_number)
    print()
    print_table(heads)
    print_choices(found)
    print(folded(f"\n{heads.note}\n"))
    for table in ablated:
        print(f"{table.heading}:\n")
        print_table(table)
        print(f"\n{table.note}\n" if table.note else "")


def is_given(found: Findings) -> bool:
    """Whether the heads are others than those of largest AIE."""
    return list(found.vector.heads) != found.effects.top(len(found.vector.heads))


def _which(found: Findings) -> str:
    if found.ranking is not None:
        return "of the queries that ranked the heads in another way: expect less on others."
    return "which did not choose the heads." if is_given(found) else "that chose the heads: expect less on others."


def print_choices(found: Findings) -> None:
    """Which wording and which universal heads were chosen, and on what, where that was asked for."""
    if found.instructions is not None:
        best = found.instructions[found.instructions["chosen"]].iloc[0]
        print(
            f"\nInstruction: {plain(best['wording'])}\nThe best of {len(found.instructions)} on {best['prompts']} "
            f"validation pairs, of which it has {best['accuracy']:.2f} right."
        )
    if found.ranking is not None:
        print("\nHeads are ranked in another way than by AIE (ranking.parquet; rank in run.json).")
    if found.universal is not None:
        entered = found.universal["entered"]
        print(
            f"\nHeads are universal: ranked on {entered.sum()} of {len(entered)} other tasks (universal_tasks.parquet)."
        )


def audit_html(found: Findings) -> str:
    """The verdict, the answer, all measures, and what is lost without heads, for a notebook."""
    where = safe(f"{found.vector.task} on {found.vector.model}")
    tables = audit_tables(found)
    shown = [tables[0], *tables[3:4]]
    told = "<br>".join(map(safe, (found.verdict.sentence, found.verdict.advice, sentence(found))))
    return f"<p><b>{where}</b><br>{told}</p>{''.join(map(table_html, shown))}"


def audit_tables(found: Findings) -> list[Table]:
    """All measures, accuracy by number of heads, the heads, and what is lost without them where that was measured."""
    more = len(found.vector.heads) - MOST_HEADS
    return [
        Table(
            "Without and with a vector",
            (f"{found.measures['prompts'].max()} queries", *_VALUES),
            _measures(found),
            f"{score_note(found.measures)}{_length(found)}"
            "Controls have the norm of the vector; each has its own best layer and scale,\n"
            "found on validation pairs with as many tries. Below: all of them at scale 1.\n"
            "P(answer) is the probability of its first token.",
        ),
        Table(
            "Zero-shot accuracy by number of heads in the vector",
            ("heads", "chosen heads", INTERVAL, "random heads", INTERVAL),
            (_by_number(found),),
        ),
        Table(
            "Heads of the vector",
            ("head of the vector", f"AIE ({found.effects.unit})", INTERVAL),
            (_heads(found),),
            (f"{more} more are in effects.parquet. " if more > 0 else "")
            + f"AIE on the {len(found.effects.cie)} prompts {_which(found)}\n"
            f"{found.effects.how_many_clear()}.\n{corrupted_sentence(found)}".rstrip(),
        ),
        *ablation_tables(found),
        *([] if found.rounding is None else [rounding_table(found.rounding)]),
    ]


def sentence(found: Findings) -> str:
    """What the vector does, with intervals, beside random heads."""
    lines, count = found.measures.set_index("measure").to_dict("index"), len(found.vector.heads)
    alone, steered, random = (_accuracy(lines[name]) for name in ("zero-shot", "steered", "steered, random"))
    heads = "1 head" if count == 1 else f"{count} heads"
    return (
        f"Zero-shot accuracy{in_brackets(found.measures)}: {alone}; "
        f"with the vector of {heads} added {found.vector.scale:g} times at layer {found.vector.layer}: {steered}; "
        f"with vectors of as many random heads: {random}."
    )


def corrupted_sentence(found: Findings) -> str:
    """What the model still does where the task is corrupted, beside clean prompts; nothing where not measured."""
    settings = found.effects.settings
    corrupted = "shuffled" if settings.corruption == "shuffled" else "zero-shot"
    clean = "instructed" if settings.source == "instruction" else "few-shot"
    lines = found.measures.set_index("measure").to_dict("index")
    if any(math.isnan(lines[name]["accuracy"]) for name in (corrupted, clean)):
        return ""
    still, before = ((lines[name]["accuracy"], lines[name]["probability"]) for name in (corrupted, clean))
    return (
        f"Task corrupted ({corrupted} prompts): still right {still[0]:.2f} of the time, P(answer) {still[1]:.2f} "
        f"(clean: {before[0]:.2f}, {before[1]:.2f})."
    )


def ablation_tables(found: Findings) -> list[Table]:
    """P(answer) lost, and accuracy left, with heads of the vector ablated alone and together; none of older runs."""
    if found.necessity is None or found.necessity.empty:
        return []
    columns = tuple(cell for label in _prompts(found).values() for cell in (label, INTERVAL))
    aie, shown = found.effects.aie, set(map(str, found.vector.heads[:MOST_HEADS]))
    by_name = {str(head): f"{float(aie[head]):+.2f}" for head in found.vector.heads}
    lost, left = [], []
    for _, group in found.necessity.groupby(["heads", "ablated", "n_heads"], sort=False):
        lines = {line["prompt"]: line for line in group.to_dict("records")}
        first = next(iter(lines.values()))
        if first["heads"] == "chosen" and first["n_heads"] == 1 and first["ablated"] not in shown:
            continue
        label, both = ablated_label(first), [lines[prompt] for prompt in _prompts(found)]
        left.append((label, *(cell for line in both for cell in _interval(line, "accuracy"))))
        if first["heads"] != "none":
            cells = (cell for line in both for cell in _interval(line, "necessity", sign="+"))
            lost.append((label, by_name.get(label, ""), *cells))
    return [
        Table(
            "Necessity: P(answer) lost when heads are ablated",
            ("ablated", "AIE", *columns),
            (lost,),
            "Ablated at the last prompt token, by the mean over prompts of other tasks.\n"
            "AIE is what a head adds on a corrupted prompt, not what the model needs of it.",
        ),
        Table(
            "Accuracy with heads ablated",
            ("ablated", *columns),
            (left,),
            necessity_sentence(found).replace("; ", ";\n  "),
        ),
    ]


def ablated_label(line: Mapping[Any, Any]) -> str:
    """What is ablated in a line of `necessity`: `nothing`, `L3H3`, `a random head`, `all 10 heads`."""
    count = line["n_heads"]
    if line["heads"] == "random":
        return "a random head" if count == 1 else f"{count} random heads"
    return (line["ablated"] if count == 1 else f"all {count} heads") if count else "nothing"


def necessity_sentence(found: Findings) -> str:
    """Accuracy without the head of largest AIE, without all heads of the vector and without random ones."""
    assert found.necessity is not None
    ((kind, label), *_) = _prompts(found).items()
    lines = [line for line in found.necessity.to_dict("records") if line["prompt"] == kind]
    told = [f"{label}: accuracy {_accuracy(lines[0])}".capitalize()]
    # The first head, all of them, and random ones; of a single head the first two are one.
    for line in (lines[number] for number in sorted({1, len(lines) - 2, len(lines) - 1})):
        told.append(f"without {ablated_label(line)} {_accuracy(line)}")
    return "; ".join(told) + "."


def _prompts(found: Findings) -> dict[str, str]:
    """The kinds of prompts that heads were ablated on, as they are called in tables."""
    assert found.necessity is not None
    shots = found.effects.settings.shots
    return {kind: _BASELINES[kind].format(shots=shots) for kind in found.necessity["prompt"].unique()}


def _length(found: Findings) -> str:
    """How long what is added is beside what it is added to."""
    share = found.places["share"].to_numpy(float)[found.places["chosen"].to_numpy(bool)]
    return f"What is added is {share[0]:.2g} times as long as the residual stream there.\n" if len(share) else ""


def _measures(found: Findings) -> tuple[list[Line], ...]:
    """Lines without a vector, with one at its place, with one at scale 1."""
    lines = found.measures.set_index("measure").to_dict("index")
    called = measure_labels(found)
    return tuple(
        [
            (called[name], *_interval(lines[name], "accuracy"), *_interval(lines[name], "probability", 3))
            for name in labels
            if name in lines
        ]
        for labels in (_BASELINES, STEERED, _UNSCALED)
    )


def measure_labels(found: Findings) -> dict[str, str]:
    """How every line of `measures` is called, in tables and figures."""
    shots = found.effects.settings.shots
    return {name: label.format(shots=shots) for name, label in (_BASELINES | STEERED | _UNSCALED).items()}


def _by_number(found: Findings) -> list[Line]:
    table = found.heads.set_index(["n_heads", "heads"]).to_dict("index")
    counts = sorted({count for count, _ in table})
    return [
        (str(count), *(cell for kind in ("chosen", "random") for cell in _interval(table[count, kind], "accuracy")))
        for count in counts
    ]


def _interval(line: Mapping[Any, Any], name: str, digits: int = 2, sign: str = "") -> tuple[str, str]:
    if math.isnan(line[name]):
        return UNMEASURED, ""
    style = f"{sign}.{digits}f"
    return f"{line[name]:{style}}", bounds_text(line[f"{name}_low"], line[f"{name}_high"], style)


def _accuracy(line: Mapping[Any, Any]) -> str:
    return " ".join(_interval(line, "accuracy")).rstrip()


def _heads(found: Findings) -> list[Line]:
    heads, aie, (low, high) = found.vector.heads[:MOST_HEADS], found.effects.aie, found.effects.interval()
    largest = max(abs(float(aie[head])) for head in heads)
    style = "+.1e" if largest < 1e-3 else f"+.{max(2, 2 - math.floor(math.log10(largest)))}f"
    return [
        (str(head), f"{float(aie[head]):{style}}", bounds_text(float(low[head]), float(high[head]), style))
        for head in heads
    ]
