"""What did the audits of a matrix find together?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ivlens.analysis.audit import Audit
from ivlens.errors import IvlensError, list_choices
from ivlens.matrix.recurrence import AuditedHeads, find_recurring

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ivlens.plots.style import Width

MOST_SHOWN = 30
"""Heads of a figure."""


@dataclass(frozen=True, kw_only=True)
class AuditMatrix:
    """Audits of models on tasks, and the heads that recur.

    >>> matrix
    AuditMatrix(lab on antonym, synonym; ... heads recur, first L3H3, among the top of 2 of 2 audits)
    >>> matrix.recurring[["head", "top", "audits"]].values.tolist()[0]
    ['L3H3', 2, 2]
    """

    audits: tuple[AuditedHeads, ...]
    """Model by model, task by task."""
    folders: tuple[Path, ...]
    """The run folder of each."""

    recurring: pd.DataFrame
    """Heads that are among the top of two audits or more; see `ivlens.matrix.recurrence.find_recurring`."""

    @classmethod
    def of(cls, audits: Sequence[AuditedHeads], folders: Sequence[Path]) -> AuditMatrix:
        """What audits have in common.

        Args:
            folders: The run folder of each.

        >>> type(matrix).of(matrix.audits[:1], matrix.folders[:1])
        AuditMatrix(lab on antonym; no head recurs)
        """
        return cls(audits=tuple(audits), folders=tuple(folders), recurring=find_recurring(audits))

    @property
    def names(self) -> list[str]:
        """What tells each audit from the others: its task, and its model where there are several.

        >>> matrix.names
        ['antonym', 'synonym']
        """
        models = {one.model for one in self.audits}
        return [one.task if len(models) == 1 else f"{one.model}, {one.task}" for one in self.audits]

    def audit(self, task: str, model: str | None = None) -> Audit:
        """One audit, whole, from its folder.

        Args:
            model: As it was asked for; may be left out where there is one.

        Raises:
            IvlensError: there is no such audit, or several; those that there are, are named.

        >>> matrix.audit("antonym").vector.task
        'antonym'
        """
        pairs = zip(self.audits, self.folders, strict=True)
        found = [place for one, place in pairs if one.task == task and model in (None, one.model)]
        if len(found) != 1:
            known = [f"{one.task} on {one.model}" for one in self.audits]
            raise IvlensError(f"{task!r} on {model or 'any model'} is {len(found)} audits; {list_choices(task, known)}")
        return Audit.read(found[0])

    def figures(self, *, width: Width = "page") -> dict[str, go.Figure]:
        """The figure over all audits: the AIE of recurring heads in each; without any, none.

        Args:
            width: See `ivlens.plots.WIDTHS`.

        >>> matrix.figures()["recurring-heads"].data[0].z.shape[1]
        2
        """
        from ivlens import plots

        if self.recurring.empty:
            return {}
        lines = self.recurring.head(MOST_SHOWN).sort_values(["layers", "heads"], kind="stable").to_dict("records")
        shapes = [one.shape for one in self.audits]
        aie, top = [], []
        for line in lines:
            layer, head = map(int, line["head"][1:].split("H"))
            own = [shape == (line["layers"], line["heads"]) for shape in shapes]
            cells = zip(self.audits, own, strict=True)
            aie.append([one.aie[layer, head] if is_own else float("nan") for one, is_own in cells])
            marks = zip(self.audits, own, strict=True)
            top.append([is_own and (layer, head) in one.top for one, is_own in marks])
        several = len(set(shapes)) > 1
        rows = [f"{line['head']} of {line['layers']}x{line['heads']}" if several else line["head"] for line in lines]
        which = "" if len(rows) == len(self.recurring) else f" most of {len(self.recurring)}"
        title = f"AIE of the {len(rows)} heads that recur{which} (outlined: among the top of the audit)"
        return {
            "recurring-heads": plots.recurrence_heatmap(
                pd.DataFrame(aie, index=rows, columns=self.names),
                marked=pd.DataFrame(top, index=rows, columns=self.names),
                unit=self.audits[0].unit,
                title=title,
                width=width,
            )
        }

    def __repr__(self) -> str:
        models, tasks = (_list([getattr(one, name) for one in self.audits]) for name in ("model", "task"))
        if self.recurring.empty:
            return f"AuditMatrix({models} on {tasks}; no head recurs)"
        first = self.recurring.iloc[0]
        return (
            f"AuditMatrix({models} on {tasks}; {len(self.recurring)} heads recur, first {first['head']}, among the top "
            f"of {first['top']} of {first['audits']} audits)"
        )

    def _repr_html_(self) -> str:
        from ivlens.matrix import tables

        return tables.matrix_html(self)


def _list(names: Sequence[str], most: int = 4) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join([*found[:most], *([f"{len(found) - most} more"] if found[most:] else [])])
