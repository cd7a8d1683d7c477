"""Which property of a new task makes a model forget: that it cannot do the task yet, labels, or the answer's length?

Every task is learned alone, from the base model, in a study of its own, and is of one of two levels of three factors,
each measured, none declared: can the base model do it, are its answers labels, are they long? A factor's effect is over
tasks, which are its units: seeds, which all tasks share, are averaged within them first (see `main_effects`).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ivlens import plots
from ivlens.errors import RunError, StudyError
from ivlens.matrix.main_effects import EFFECTS, MEAN, main_effects
from ivlens.measures import holm
from ivlens.plots.style import method_looks
from ivlens.storage.atomic_files import write_whole
from ivlens.storage.json_files import as_type, read_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ivlens.plots.style import Width

KEPT = "factorial.json"
FACTORS: Mapping[str, str] = {
    "able": "base model can do the task",
    "labels": "answers are labels",
    "long": "answers are long",
}
"""Columns of the levels, and what is true at the upper one."""
LOST: Mapping[str, str] = {"GP lost": "accuracy lost, instructed", "IP lost": "accuracy lost, with demonstrations"}
"""Measures of a cell that are told: how much of the base model's accuracy on general tasks is gone."""
LABEL = 5.0
"""Inputs that share a label, on average, or more; a function has answers of its own for most inputs."""
ABLE = 0.5
"""Of the queries a model that can do the task answers more, beside more than the most frequent answer would."""
LONG = 1.5
"""Tokens of a long answer, on average, or more."""
CONTROL = "-random"
"""Ends the name of the method that is guided by random vectors in place of a method's own."""


@dataclass(frozen=True, kw_only=True)
class LearnedTask:
    """A task of the factorial, and its levels."""

    name: str
    able: bool
    """Wilson's interval of the base model's accuracy is above a half, and above the most frequent answer's share."""
    labels: bool
    """`LABEL` inputs or more share an answer, on average."""
    long: bool
    """Answers have more than one token, on average `LONG` or more."""
    accuracy: float
    """Of the base model, with the task's instruction."""
    share: float
    """Of the most frequent answer."""
    queries: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one method with one seed did while it learned one task."""

    task: str
    method: str
    seed: int
    loss: float
    """Of the first step, in nats: what there is to learn."""
    learned: float
    """Accuracy on the task's test queries, behind the last step."""
    lost: Mapping[str, float]
    """By `LOST`."""


@dataclass(frozen=True, kw_only=True)
class Factorial:
    """What was lost by what was learned, and the effects of the factors."""

    tasks: tuple[LearnedTask, ...]
    trained: tuple[Trained, ...]
    origin: Mapping[str, Any]
    """Command, settings, sources, seed and versions."""

    @classmethod
    def read(cls, folder: str | Path) -> Factorial:
        """What `write` wrote.

        Raises:
            RunError: there is none, or it is damaged.
        """
        path = Path(folder) / KEPT
        try:
            found = as_type(cls, read_json(path), KEPT)
        except (OSError, ValueError, StudyError) as error:
            raise RunError(f"{path} is no factorial ({error}); run it again") from error
        seeds = {one.seed for one in found.trained}
        wanted = Counter(itertools.product((one.name for one in found.tasks), found.methods, seeds))
        if Counter((one.task, one.method, one.seed) for one in found.trained) != wanted:
            raise RunError(f"{path} has not every task with every method and seed once; run it again")
        if any(one.lost.keys() != LOST.keys() for one in found.trained):
            raise RunError(f"{path} has measures that are not {', '.join(LOST)}; run it again")
        return found

    def write(self, folder: Path) -> None:
        """One file, a line for a task or a training."""
        parts = [f" {json.dumps(name)}: {_lines(value)}" for name, value in asdict(self).items()]
        write_whole(folder / KEPT, ("{\n" + ",\n".join(parts) + "\n}\n").encode())

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(one.method for one in self.trained))

    def table(self) -> Any:
        """A line a task, method and measure: its mean over seeds, with the task's levels."""
        levels = {one.name: {name: getattr(one, name) for name in FACTORS} for one in self.tasks}
        rows = [
            {"task": one.task, "method": one.method, "measure": name, **levels[one.task], "value": value}
            for one in self.trained
            for name, value in one.lost.items()
        ]
        keys = ["task", "method", "measure", *FACTORS]
        return pd.DataFrame(rows).groupby(keys, sort=False, as_index=False)["value"].mean()

    def effects(self, *, unable: bool = False) -> pd.DataFrame:
        """The effects of all factors on every measure under every method, and on what vectors have over random ones.

        Args:
            unable: Of the tasks that the base model cannot do alone, and of the other two factors.

        Returns:
            Columns `measure`, `method`, those of `main_effects`, and `adjusted`: p after Holm over the factors and
            methods of a measure; NaN of the means, and of controls and what is over them.
        """
        table, factors, found = self.table(), list(FACTORS), []
        if unable:
            table, factors = table[~table["able"]], [name for name in factors if name != "able"]
        for measure, own in table.groupby("measure", sort=False):
            for method, units in self._units(own):
                found.append(main_effects(units, factors).assign(measure=measure, method=method))
        lines: Any = pd.concat(found, ignore_index=True)
        controls = lines["method"].str.endswith(CONTROL)
        tested = lines["p"].where((lines["factor"] != MEAN) & ~controls)
        adjusted = tested.groupby(lines["measure"], sort=False).transform(lambda p: holm(p.to_numpy(float)))
        return lines.assign(adjusted=adjusted)[["measure", "method", *EFFECTS, "adjusted"]]

    def _units(self, own: Any) -> Iterator[tuple[str, pd.DataFrame]]:
        """Of every method its tasks; of a method that has a control also the difference, task by task."""
        by_method = {method: own[own["method"] == method].set_index("task") for method in self.methods}
        for method, units in by_method.items():
            yield method, units
            control = by_method.get(f"{method}{CONTROL}")
            if control is not None:
                yield f"{method} - {method}{CONTROL}", units.assign(value=units["value"] - control["value"])

    def cells(self) -> pd.DataFrame:
        """What was lost in every cell that has tasks: the mean over them, and the least and the most of one.

        Cells are small: intervals are for the effects, to which all cells contribute.

        Returns:
            Columns `cell` (see `cell_name`), `measure`, `method`, `value`, `low`, `high`, `tasks`.
        """
        lines = []
        for (*levels, measure, method), values in self.table().groupby([*FACTORS, "measure", "method"], sort=False):
            losses = values["value"].to_numpy(float)
            told = (losses.mean(), losses.min(), losses.max(), len(losses))
            lines.append((cell_name(*levels), measure, method, *told))
        return pd.DataFrame(lines, columns=["cell", "measure", "method", "value", "low", "high", "tasks"])

    def figures(self, *, width: Width = "page") -> dict[str, go.Figure]:
        """What was lost in every cell, by method."""
        cells: Any = self.cells()
        title = f"What general tasks lose by a new one, by its properties: {self.origin['settings']['name']}"
        frame = cells.assign(panel=cells["measure"].map(LOST), kind=cells["method"], method=cells["cell"])
        return {
            "cells": plots.method_dots(
                frame,
                units=dict.fromkeys(LOST.values(), "share of queries"),
                looks=method_looks(self.methods),
                zero=True,
                title=f"{title}; {len(self.tasks)} tasks, lines from the lowest to the highest",
                width=width,
            )
        }


def cell_name(able: bool, labels: bool, long: bool) -> str:
    """A combination of levels, in words."""
    return f"{'can' if able else 'cannot'}, {'labels' if labels else 'function'}, {'long' if long else 'short'}"


def _lines(value: Any) -> str:
    """A list with one member a line."""
    if not isinstance(value, tuple | list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(f"  {json.dumps(one, ensure_ascii=False)}" for one in value) + "\n ]"
