"""Which entries do pairs hold that were made in Python: a list, a dictionary, two columns of a table?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ivlens.datasets.entries import Pair, list_names, merge, read_each, texts_of
from ivlens.errors import TaskError, suggest

if TYPE_CHECKING:
    import pandas as pd

SHAPE = "give a list such as [('hot', 'cold'), ('up', 'down')]"


def read_pairs(pairs: Iterable[Sequence[Any]] | Mapping[Any, Any], where: str) -> list[Pair]:
    """Every input once, with all of its right outputs; what lacks either is left out aloud.

    Raises:
        TaskError: they are no pairs, or none of them can be used.
    """
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise TaskError(f"the pairs of {where} are a {type(pairs).__name__}; {SHAPE}")
    listed = list(pairs.items()) if isinstance(pairs, Mapping) else list(pairs)
    if not listed:
        raise TaskError(f"{where} has no pairs; {SHAPE}")
    return merge(read_each(_entry, listed, where, unit="pair"), where)


def _entry(pair: Any, place: str) -> Pair:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise TaskError(f"{place} is {str(pair)[:60]!r}; give an input and an output, such as ('hot', 'cold')")
    given, right = (pair.input, pair.outputs) if isinstance(pair, Pair) else pair
    return Pair.of(texts_of(given, f"{place}: its input")[0], texts_of(right, f"{place}: its output"))


def column_of(frame: pd.DataFrame, name: str) -> list[Any]:
    """The values of a column of a table, None where one is missing.

    Raises:
        TaskError: there is no such column.
    """
    if not hasattr(frame, "columns"):
        raise TaskError(
            f"a {type(frame).__name__} is no table; give a pandas DataFrame, or ivlens.Task.from_pairs(pairs, name=...)"
        )
    if name not in frame.columns:
        names = [str(column) for column in frame.columns]
        hint = suggest(name, names, most=1) or f"it has {list_names(names, 12)}"
        raise TaskError(f"the table has no column {name!r}; {hint}")
    # Of two columns of one name the first. Where a number is missing, pandas has made fractions of whole ones.
    found = frame.loc[:, frame.columns == name].iloc[:, 0].convert_dtypes().astype(object)
    return found.where(found.notna(), None).tolist()
