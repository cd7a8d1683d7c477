"""What did a comparison find, as text: tables for a terminal, and one for a notebook.

Names come from files. Whatever is in them, markup and terminal escapes among it, is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ivlens.tables import INTERVAL, UNMEASURED, Line, Table, folded, plain, print_table, safe, table_html

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.patching.head_effects import HeadEffects
    from ivlens.steering.verdict import Verdict
    from ivlens.vectors.instruction_vector import InstructionVector

COLUMNS = ("before", "after", "change", INTERVAL)
_ABILITIES = {
    "instruction probability": "P with the instruction",
    "knowledge probability": "P of the plain statement",
    "zero-shot probability": "P of the query alone",
    "instruction accuracy": "accuracy with the instruction",
    "knowledge accuracy": "accuracy of the statement",
    "zero-shot accuracy": "accuracy of the query alone",
}
_DEPENDENCE = {
    "sufficiency": "sufficiency",
    "necessity": "necessity",
    "shift": "shift (nats)",
}
_RECOVERY = {
    "instruction": "with the instruction",
    "zero-shot": "query alone",
}
_NEEDED = {
    "instruction": "a written instruction (abilities, necessity, shift): add "
    '"instructions": ["Write the opposite."] to the task',
    "knowledge": 'a plain statement: add "statement": "The opposite of {input} is" to the task',
}
"""What an ability is read off, and how a task gets it."""
_HEADS = {"chosen": "", "random": "  random heads", "unscaled": "  chosen heads, scale 1"}
"""How the line of each kind of heads is called below that of the measure."""
_DRIFT = {
    ("cosine", "own"): "cosine of the vectors, each of its own heads",
    ("cosine", "base"): "cosine, heads of the base model in both",
    ("cosine", "random"): "cosine, random heads",
    ("jaccard", "chosen"): "top heads shared (Jaccard)",
    ("jaccard", "random"): "  by chance",
    ("spearman", ""): "rank correlation of the AIE grids",
}


@runtime_checkable
class Findings(Protocol):
    """What a `Comparison` holds, so far as it is shown here."""

    @property
    def title(self) -> str: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def base(self) -> HeadEffects: ...
    @property
    def tuned(self) -> HeadEffects: ...
    def how_many_clear(self) -> str: ...
    @property
    def base_vector(self) -> InstructionVector: ...
    @property
    def tuned_vector(self) -> InstructionVector: ...
    @property
    def measures(self) -> pd.DataFrame: ...
    @property
    def drift(self) -> pd.DataFrame: ...
    @property
    def recovery(self) -> pd.DataFrame: ...


def print_comparison(found: Findings) -> None:
    """Abilities and dependence before and after, then how far heads and vector moved."""
    print(folded(f"{plain(found.title)}\n\nBefore: {found.verdict.sentence}\n{found.verdict.advice}\n"))
    for table in comparison_tables(found):
        print_table(table)
        print(folded(f"\n{table.note}\n") if table.note else "")


def comparison_html(found: Findings) -> str:
    """Abilities, dependence and drift, for a notebook."""
    shown = "".join(map(table_html, comparison_tables(found)[:2]))
    told = f"{safe(found.title)}</b><br>Before: {safe(found.verdict.sentence)}<br>{safe(found.verdict.advice)}"
    return f"<p><b>{told}</p>{shown}<p>{safe(_lacking(found).strip())}</p>"


def comparison_tables(found: Findings) -> list[Table]:
    """Abilities and dependence; heads and vector; accuracy lost and regained."""
    queries = max(found.measures["n"].tolist())
    return [
        Table(
            "Abilities, and dependence on the vector",
            (f"{queries} queries", *COLUMNS),
            (_abilities(found), _dependence(found)),
            f"Dependence is on the base model's vector of {len(found.base_vector.heads)} heads, added at layer "
            f"{found.base_vector.layer}, {found.base_vector.scale:g} times.\n"
            "Sufficiency: P gained by adding it to the query alone; necessity: P lost with\n"
            "the instruction by ablating its heads; shift: KL by which taking it away moves\n"
            "the next token. P is of the answer's first token."
            + ("\nAccuracy without a score in brackets is greedy match." if _scored(found) else "")
            + _lacking(found),
        ),
        Table(
            "Heads and vector",
            ("heads and vector", "value", INTERVAL),
            (_drift(found),),
            f"{found.how_many_clear()}.\n{corrupted_sentence(found)}".rstrip(),
        ),
        Table(
            "Accuracy lost, and regained by the vector",
            ("accuracy", "lost", "regained", INTERVAL),
            (_recovery(found),),
            "Regained by the tuned model with the base model's vector added, or with one of\n"
            "as many random heads, of the same length.",
        ),
    ]


def sentence(found: Findings) -> str:
    """What became of the two abilities and of the vector, with intervals."""
    told = []
    for label, name in {"with the instruction": "instruction", "of the plain statement": "knowledge"}.items():
        before, after, change, bounds = _change(found.measures, f"{name} probability", "")
        told.append(
            f"P(answer) {label}: " + (f"{before} → {after} (change {change} {bounds})" if bounds else UNMEASURED)
        )
    ((_, value, bounds), *_) = _drift(found)
    return f"{'; '.join(told)}; cosine of the vectors before and after: {value} {bounds}".rstrip() + "."


def corrupted_sentence(found: Findings) -> str:
    """What both models still make of the prompts that heads were patched on; nothing where that is no probability."""
    if found.base.unit != "probability":
        return ""
    before, after = (float(effects.baseline.mean()) for effects in (found.base, found.tuned))
    return (
        f"AIE is of prompts with the task corrupted ({found.base.settings.corruption}), where P(answer) is still "
        f"{before:.2f} before, {after:.2f} after."
    )


def _abilities(found: Findings) -> list[Line]:
    labels = _ABILITIES | _scored(found)
    return _measured((label, *_change(found.measures, name, "")) for name, label in labels.items())


def _measured(lines: Iterable[Line]) -> list[Line]:
    """Without those that hold no number: what they lack is said once, in a note."""
    return [line for line in lines if {*line[1:]} - {UNMEASURED, ""}]


def _lacking(found: Findings) -> str:
    """What could not be asked of the task, and what to add to it; nothing where all was measured."""
    measured = set(found.measures.query("model == 'base' and value == value")["measure"])
    lacking = [how for name, how in _NEEDED.items() if f"{name} probability" not in measured]
    return f"\nNot measured: what is read off {'; what is read off '.join(lacking)}." if lacking else ""


def _scored(found: Findings) -> dict[str, str]:
    """Labels of accuracies of replies, whose names end in the score; none where none was asked for."""
    labels = {}
    for name in dict.fromkeys(found.measures["measure"]):
        ability, bracket, score = name.partition(" (")
        if bracket and ability in _ABILITIES:
            labels[name] = _ABILITIES[ability].replace("accuracy", f"accuracy ({score}", 1)
    return labels


def _dependence(found: Findings) -> list[Line]:
    measured = set(zip(found.measures["measure"], found.measures["heads"], strict=True))
    return _measured(
        (below or label, *_change(found.measures, name, heads))
        for name, label in _DEPENDENCE.items()
        for heads, below in _HEADS.items()
        if (name, heads) in measured
    )


def _change(measures: pd.DataFrame, name: str, heads: str) -> Line:
    """Before, after, and the change with its interval."""
    lines = measures.query(f"measure == {name!r} and heads == {heads!r} and vector != 'tuned'")
    by_model = {line["model"]: line for line in lines.to_dict("records")}
    values = [_number(by_model[model], signed=model == "difference") for model in ("base", "tuned", "difference")]
    return (*values, _bounds(by_model["difference"], signed=True))


def _drift(found: Findings) -> list[Line]:
    lines = {(line["measure"], line["heads"]): line for line in found.drift.to_dict("records")}
    return [(label, _number(lines[key]), _bounds(lines[key])) for key, label in _DRIFT.items()]


def _recovery(found: Findings) -> list[Line]:
    lines = {(line["measure"], line["heads"]): line for line in found.recovery.to_dict("records")}
    shown = list[Line]()
    for kind, label in _RECOVERY.items():
        for heads, below in _HEADS.items():
            if back := lines.get((f"regained {kind} accuracy", heads)):
                gone = "" if below else _number(lines[f"lost {kind} accuracy", ""])
                shown.append((below or label, gone, _number(back, signed=True), _bounds(back, signed=True)))
    return _measured(shown)


def _number(line: Mapping[Any, Any], *, signed: bool = False) -> str:
    if math.isnan(line["value"]):
        return UNMEASURED
    return _text(line["value"], signed)


def _bounds(line: Mapping[Any, Any], *, signed: bool = False) -> str:
    if math.isnan(line["low"]) or math.isnan(line["high"]):
        return ""
    return f"[{_text(line['low'], signed)}, {_text(line['high'], signed)}]"


def _text(value: float, signed: bool) -> str:
    # Adding 0 takes the sign from a negative zero; what is below 0 keeps it, however small.
    return f"{value + 0.0:{'+' if signed else ''}.3f}"
