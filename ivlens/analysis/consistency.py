"""Do the tables of a run belong together?

What may stand in a table by itself, `storage.table_schema` says. Here is what several of them have to agree in, so that
figures and sentences can be made of a folder that somebody else hands over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ivlens.errors import RunError
from ivlens.patching.head_effects import HeadEffects

_AGAIN = "run again into a new --out"


def check_audit(folder: Path, n_layers: int, tables: dict[str, pd.DataFrame | None]) -> None:
    """Raises RunError where tables of an audit are of other layers than the model, or lack lines that others have."""
    there = {name: (folder / f"{name}.parquet", table) for name, table in tables.items() if table is not None}
    for path, table in there.values():
        check_below(table, {"layer": n_layers}, str(path), _AGAIN)
    path, heads = there["heads"]
    for count, kinds in heads.groupby("n_heads")["heads"]:
        if lacking := {"chosen", "random"} - set(kinds):
            raise RunError(f"{path} has no line of n_heads {count}, heads {min(lacking)!r}; {_AGAIN}")


def check_comparison(folder: Path, effects: dict[str, HeadEffects], tables: dict[str, pd.DataFrame]) -> None:
    """Raises RunError where tables of a comparison are of other heads or prompts, or lack lines that others have."""
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


def check_below(frame: Any, bounds: Mapping[str, int], where: str, remedy: str) -> None:
    """Raises RunError where a number, such as of a layer, is not below what the model has of it."""
    for name, bound in bounds.items():
        if name in frame.columns and len(frame) and frame[name].max() >= bound:
            found = int(frame[name].max())
            raise RunError(f"{where} has {found} in the column {name}, but there are {bound} (from 0); {remedy}")
