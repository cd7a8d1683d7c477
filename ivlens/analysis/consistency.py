"""Do the tables of a run and its vectors belong together?

What may stand in a table by itself, `storage.table_schema` says. Here is what several of them have to agree in, so that
figures and sentences can be made of a folder that somebody else hands over.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from ivlens.errors import RunError
from ivlens.patching.head_effects import HeadEffects
from ivlens.storage.table_schema import check_below
from ivlens.vectors.instruction_vector import InstructionVector

_AGAIN = "run again into a new --out"


def check_audit(
    folder: Path, effects: HeadEffects, vector: InstructionVector, tables: dict[str, pd.DataFrame | None]
) -> None:
    """Raises RunError where tables of an audit are of other layers than its vector, or lack lines that others have."""
    _check_heads(effects, vector, folder / "effects.parquet")
    there = {name: (folder / f"{name}.parquet", table) for name, table in tables.items() if table is not None}
    for path, table in there.values():
        check_below(table, {"layer": len(vector.measured()[0])}, str(path), _AGAIN)
    for name in ("places", "instructions"):
        if name in there and there[name][1]["chosen"].sum() != 1:
            raise RunError(f"{there[name][0]} has not one line that is chosen; {_AGAIN}")
    path, heads = there["heads"]
    for count, kinds in heads.groupby("n_heads")["heads"]:
        if lacking := {"chosen", "random"} - set(kinds):
            raise RunError(f"{path} has no line of n_heads {count}, heads {min(lacking)!r}; {_AGAIN}")


def check_comparison(
    folder: Path,
    effects: dict[str, HeadEffects],
    vectors: dict[str, InstructionVector],
    tables: dict[str, pd.DataFrame],
) -> None:
    """Raises RunError where tables of a comparison are of other heads or prompts, or lack lines that others have."""
    for name, vector in vectors.items():
        _check_heads(effects[name], vector, folder / f"{name}_effects.parquet")
    base, tuned = effects["base"], effects["tuned"]
    if base.cie.shape != tuned.cie.shape or not torch.equal(base.queries, tuned.queries):
        raise RunError(f"{folder} holds effects of base and tuned model on other prompts or heads; {_AGAIN}")
    n_layers, n_heads = base.cie.shape[1:]
    if len(tables["aie"]) != 3 * n_layers * n_heads:
        raise RunError(f"{folder}/aie.parquet is not of {n_layers} layers and {n_heads} heads; {_AGAIN}")
    check_below(tables["aie"], {"layer": n_layers, "head": n_heads}, f"{folder}/aie.parquet", _AGAIN)
    own = tables["measures"].query("vector != 'tuned'")
    for key, models in own.groupby(["measure", "heads"])["model"]:
        if set(models) not in ({"base"}, {"base", "tuned", "difference"}) or len(models) != models.nunique():
            raise RunError(f"{folder}/measures.parquet has not one line of {key} for each model; {_AGAIN}")
    lines = set(zip(tables["recovery"]["measure"], tables["recovery"]["heads"], strict=True))
    for kind in ("instruction", "zero-shot"):
        regained = any(measure == f"regained {kind} accuracy" for measure, _ in lines)
        if regained and (f"lost {kind} accuracy", "") not in lines:
            raise RunError(f"{folder}/recovery.parquet has no line of measure 'lost {kind} accuracy'; {_AGAIN}")


def _check_heads(effects: HeadEffects, vector: InstructionVector, path: Path) -> None:
    ours, theirs = tuple(effects.cie.shape[1:]), tuple(vector.measured()[0].shape[:2])
    if ours != theirs:
        raise RunError(f"{path} is of {ours} layers and heads, but the vector beside it of {theirs}; {_AGAIN}")
