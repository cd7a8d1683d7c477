"""What may stand in each table of a run, whoever wrote it?

Every table with its columns, what they hold within which bounds, and which lines must be there. A table is compared
with it before anything is made of its numbers: a layer of 10,000,000 would become a figure of as many rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ivlens.errors import RunError
from ivlens.storage.parquet import check_columns

if TYPE_CHECKING:
    import pandas as pd

# Characters of a value that a sentence quotes; how far rounding may carry a number beyond its bound.
_SHOWN, _SLACK = 40, 1e-6


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column holds."""

    kind: Literal["whole", "number", "text", "flag"]
    low: int | float = -math.inf
    high: int | float = math.inf
    """Bounds of a number (one without an upper bound may be infinite); of a text the most characters."""
    missing: bool = False
    """Whether a number may be NaN: not measured."""
    among: tuple[str, ...] = ()
    """All texts that there are; none named: any."""
    is_new: bool = False
    """Runs of before are without it."""

    def fault(self, values: Any) -> tuple[object, str] | None:
        """A value that cannot stand here, and what is needed in its place; None where there is none."""
        if self.kind == "text":
            return self._text_fault(values)
        kinds = {"whole": "iu", "number": "iuf", "flag": "b"}[self.kind]
        if values.dtype.kind not in kinds:
            return values.iloc[0], self._needed()
        if self.kind == "flag":
            return None
        wrong = ~values.between(self.low - _SLACK, self.high + _SLACK) & ~(values.isna() & self.missing)
        return (values[wrong].iloc[0], self._needed()) if wrong.any() else None

    def _text_fault(self, values: Any) -> tuple[object, str] | None:
        for value in values.unique():
            if not isinstance(value, str) or len(value) > self.high or (self.among and value not in self.among):
                return value, self._needed()
        return None

    def _needed(self) -> str:
        if self.kind == "text":
            return f"one of {', '.join(map(repr, self.among))}" if self.among else f"text of {self.high:g} characters"
        if self.kind == "flag":
            return "true or false"
        said = {"whole": "a whole number", "number": "a number"}[self.kind]
        return f"{said} from {self.low:g} to {self.high:g}{', or NaN' if self.missing else ''}"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a table holds."""

    columns: Mapping[str, Column]
    key: tuple[str, ...]
    """No two lines agree in these."""
    full: tuple[tuple[str, ...], ...] = ()
    """There is a line for every combination of what stands in these, such as every prompt, layer and head."""
    needed: tuple[tuple[Any, ...], ...] = ()
    """The first columns of the key, in lines that there must be."""
    single: str = ""
    """A column that is true in one line."""
    may_be_empty: bool = False
    most: int = 10**6
    """Lines."""

    def check(self, frame: Any, where: str, remedy: str) -> None:
        """Raises RunError, which names column and value, where a table holds something else."""
        if not len(frame) and self.may_be_empty:
            return
        if not 1 <= len(frame) <= self.most:
            raise RunError(f"{where} has {len(frame):,} lines; 1 to {self.most:,} are needed; {remedy}")
        for name, column in self.columns.items():
            if name in frame.columns and (fault := column.fault(frame[name])):
                shown = str(fault[0])[:_SHOWN]
                raise RunError(f"{where} has {shown!r} in the column {name}; needed is {fault[1]}; {remedy}")
        self._check_lines(frame, where, remedy)

    def _check_lines(self, frame: Any, where: str, remedy: str) -> None:
        key = list(self.key)
        repeated = frame.duplicated(key)
        if repeated.any():
            raise RunError(f"{where} has two lines of {_line(frame, repeated, key)}; one is needed; {remedy}")
        if self.full and len(frame) != math.prod(len(frame[list(part)].drop_duplicates()) for part in self.full):
            every = ", ".join(" and ".join(part) for part in self.full)
            raise RunError(
                f"{where} has {len(frame):,} lines; needed is one for every combination of {every}; {remedy}"
            )
        if self.single and frame[self.single].sum() != 1:
            raise RunError(
                f"{where} has {frame[self.single].sum()} lines that are {self.single}; needed is one; {remedy}"
            )
        for length in {len(wanted) for wanted in self.needed}:
            there = set(zip(*(frame[name] for name in key[:length]), strict=True))
            for wanted in self.needed:
                if len(wanted) == length and wanted not in there:
                    lacking = ", ".join(f"{name} {value!r}" for name, value in zip(key, wanted, strict=False))
                    raise RunError(f"{where} has no line of {lacking}; {remedy}")


def check_table(command: str, name: str, frame: pd.DataFrame, path: Path, remedy: str) -> None:
    """Raises RunError where a table that `ivlens COMMAND` writes, `name.parquet`, holds something else than it does."""
    schema = TABLES.get(command, {}).get(name)
    if schema is not None:
        check_columns(frame, [key for key, column in schema.columns.items() if not column.is_new], path, remedy)
        schema.check(frame, str(path), remedy)


def _line(frame: pd.DataFrame, chosen: pd.Series, key: Sequence[str]) -> str:
    first = frame.loc[chosen, list(key)].iloc[0]
    return ", ".join(f"{name} {str(first[name])[:_SHOWN]!r}" for name in key)


def _all(column: Column, *names: str) -> dict[str, Column]:
    return dict.fromkeys(names, column)


def _one_of(*texts: str) -> Column:
    return Column(kind="text", among=texts)


_TEXT, _LONG = Column(kind="text", high=10**4), Column(kind="text", high=10**6)
_COUNT, _INDEX = Column(kind="whole", low=0, high=10**9), Column(kind="whole", low=0, high=9_999)
_FLAG, _SHARE = Column(kind="flag"), Column(kind="number", low=0, high=1, missing=True)
_SIGNED = Column(kind="number", low=-1, high=1, missing=True)
_NUMBER = Column(kind="number", low=-1e9, high=1e9, missing=True)
_KNOWN = Column(kind="number", low=-1e9, high=1e9)
_ANY = Column(kind="number", missing=True)
_TOLD = _all(_NUMBER, "value", "low", "high")
# `bottom` is what version 0.1 called those of low AIE.
_KINDS = _one_of("chosen", "random", "low-AIE", "gaussian", "other-task", "bottom")
_SIDES, _PAIR, _LEVELS = ("base", "tuned", "difference"), ("chosen", "random"), ("accuracy", "probability")
_VALUES = _all(_SHARE, *(f"{name}{end}" for name in _LEVELS for end in ("", "_low", "_high"))) | {"prompts": _COUNT}

_EFFECTS = Schema(
    columns=_all(_COUNT, "prompt", "query") | _all(_INDEX, "layer", "head") | {"cie": _KNOWN, "baseline": _NUMBER},
    key=("prompt", "layer", "head"),
    full=(("prompt",), ("layer",), ("head",)),
    most=10**8,
)
_DRAWS = Schema(
    columns={"heads": _KINDS, "n_heads": _COUNT, "draw": _COUNT, "layer": _INDEX, "scale": _KNOWN}
    | _all(_SHARE, *_LEVELS),
    key=("heads", "n_heads", "draw"),
    most=10**5,
)
_ABILITIES = Schema(
    columns={"measure": _TEXT, **_VALUES, "score": Column(kind="text", high=100, is_new=True)},
    key=("measure",),
    needed=(("zero-shot",), ("instructed",), ("few-shot",), ("shuffled",)),
    most=1000,
)
_CHOICES = {
    "instructions": Schema(
        columns={"number": _COUNT, "wording": _LONG, "chosen": _FLAG, **_VALUES},
        key=("number",),
        single="chosen",
        most=10**5,
    ),
    "universal_tasks": Schema(
        columns=_all(_TEXT, "task", "digest")
        | _all(_SHARE, "accuracy", "majority")
        | {"entered": _FLAG, "reason": _LONG},
        key=("task", "digest"),
        most=10**5,
    ),
    "universal": Schema(columns=_all(_INDEX, "layer", "head") | {"aie": _NUMBER}, key=("layer", "head"), most=10**5),
    "ranking": Schema(columns=_all(_INDEX, "layer", "head") | {"score": _NUMBER}, key=("layer", "head"), most=10**5),
}
_AUDIT = {
    "effects": _EFFECTS,
    "measures": replace(_ABILITIES, needed=(*_ABILITIES.needed, ("steered",), ("steered, random",))),
    "parts/abilities": _ABILITIES,
    "steering": Schema(
        columns={"heads": _KINDS, "n_heads": _COUNT, "layer": _INDEX, "scale": _NUMBER, "draws": _COUNT, **_VALUES},
        key=("heads", "layer"),
        most=10**5,
    ),
    "heads": Schema(
        columns={"n_heads": _COUNT, "heads": _KINDS, **_all(_LONG, "layers", "scales"), "draws": _COUNT, **_VALUES},
        key=("n_heads", "heads"),
        most=1000,
    ),
    "places": Schema(
        columns={"layer": _INDEX, "scale": _KNOWN, "share": Column(kind="number", low=0, missing=True)}
        | {**_all(_SHARE, *_LEVELS), "prompts": _COUNT, "chosen": _FLAG},
        key=("layer", "scale"),
        full=(("layer",), ("scale",)),
        single="chosen",
        most=10**5,
    ),
    "draws": _DRAWS,
    "layer_draws": replace(_DRAWS, key=(*_DRAWS.key, "layer"), most=10**6),
    "by_query": Schema(
        columns={"heads": _one_of(*_PAIR), "draw": _COUNT, "query": _COUNT, "accuracy": _FLAG}
        | {"probability": Column(kind="number", low=0, high=1)},
        key=("heads", "draw", "query"),
        full=(("query",), ("heads", "draw")),
        needed=(("chosen", 0), ("random", 0)),
        most=10**7,
    ),
    "necessity": Schema(
        columns={"prompt": _one_of("instructed", "few-shot"), "heads": _one_of("none", *_PAIR), "ablated": _TEXT}
        | {**_all(_COUNT, "n_heads", "draws"), **_VALUES}
        | _all(_SIGNED, "necessity", "necessity_low", "necessity_high"),
        key=("heads", "prompt", "ablated", "n_heads"),
        full=(("prompt",), ("heads", "ablated", "n_heads")),
        needed=(("none",), ("chosen",), ("random",)),
        may_be_empty=True,
        most=10**5,
    ),
    "precision": Schema(
        columns={"dtype": _TEXT, "prompts": _COUNT, "reason": _LONG} | _all(_ANY, "largest_aie", "difference", "share"),
        key=("dtype",),
        most=1,
    ),
    **_CHOICES,
}
_COMPARED = (
    *((f"{kind} {level}", "") for kind in ("instruction", "knowledge", "zero-shot") for level in _LEVELS),
    *((name, heads) for name in ("sufficiency", "necessity", "shift") for heads in _PAIR),
    *((f"steered zero-shot {level}", heads) for level in _LEVELS for heads in _PAIR),
)
_DRIFTED = {"cosine": ("own", "base", "random"), "jaccard": _PAIR, "spearman": ("",)}
_COMPARE = {
    "base_effects": _EFFECTS,
    "tuned_effects": _EFFECTS,
    "aie": Schema(
        columns={"model": _one_of(*_SIDES), **_all(_INDEX, "layer", "head"), "aie": _KNOWN}
        | _all(_NUMBER, "low", "high"),
        key=("model", "layer", "head"),
        full=(("model",), ("layer",), ("head",)),
        needed=tuple((side,) for side in _SIDES),
    ),
    "measures": Schema(
        columns={"measure": _TEXT, "heads": _TEXT, "n_heads": _COUNT, "model": _one_of(*_SIDES)}
        | {"vector": _one_of("", "base", "tuned"), **_TOLD, "n": _COUNT},
        key=("measure", "heads", "model", "vector"),
        needed=tuple((*line, side, "base" if line[1] else "") for line in _COMPARED for side in _SIDES),
        most=10**4,
    ),
    "drift": Schema(
        columns={**_all(_TEXT, "measure", "heads"), **_all(_SIGNED, "value", "low", "high"), "n": _COUNT},
        key=("measure", "heads"),
        needed=tuple((measure, heads) for measure, own in _DRIFTED.items() for heads in own),
        most=1000,
    ),
    "recovery": Schema(
        columns=_all(_TEXT, "measure", "heads") | _all(_COUNT, "n_heads", "n") | _TOLD,
        key=("measure", "heads"),
        may_be_empty=True,
        most=1000,
    ),
    **_CHOICES,
}
_CELL = {"method": _TEXT, "seed": Column(kind="whole", low=0, high=2**63), "stage": _INDEX, "task": _TEXT}
_STUDY = {
    "evaluations": Schema(
        columns={**_CELL, "kind": _one_of("sequence", "general", "probe", "probe low", "probe high")}
        | {**_all(_TEXT, "measure", "heads"), "value": _NUMBER, "n": _COUNT, "learned": replace(_INDEX, is_new=True)},
        key=("method", "seed", "stage", "task", "kind", "measure", "heads"),
        most=10**7,
    ),
    "steps": Schema(
        columns=_CELL | {"step": _COUNT, **_all(_ANY, "loss", "penalty", "rate", "gradient")},
        key=("method", "seed", "stage", "step"),
        most=10**8,
    ),
    "aie": Schema(
        columns=_CELL | _all(_INDEX, "layer", "head") | {"aie": _NUMBER},
        key=("method", "seed", "stage", "task", "layer", "head"),
        full=(("method", "seed", "stage", "task"), ("layer",), ("head",)),
        may_be_empty=True,
        most=10**8,
    ),
}
_OF = ("part", "at", "kind")
_FINDINGS = Schema(columns=_all(_TEXT, *_OF) | _TOLD | _all(_COUNT, "draws", "queries"), key=_OF, most=10**4)
TABLES: Mapping[str, Mapping[str, Schema]] = {"audit": _AUDIT, "compare": _COMPARE, "study": _STUDY} | {
    "experiment": {"findings": _FINDINGS}
}
"""By command and by the table's name without `.parquet`."""
