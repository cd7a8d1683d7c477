"""How alike are the vectors of several tasks: in direction, and in the heads that write them?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pandas as pd

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.vectors.instruction_vector import InstructionVector


def similarity(vectors: Iterable[InstructionVector]) -> pd.DataFrame:
    """Cosine of every two vectors, in [-1, 1]: a row and a column for each task, in their order.

    NaN where a vector is 0 and has no direction. `plots.similarity_heatmap` draws it.

    Raises:
        ShapeMismatch: the vectors differ in width.
        IvlensError: no vector, or two of one task.
    """

    def cosine(one: InstructionVector, other: InstructionVector) -> float:
        return one.cosine(other) if one.vector.any() and other.vector.any() else math.nan

    return _of_pairs(vectors, cosine)


def overlap(vectors: Iterable[InstructionVector]) -> pd.DataFrame:
    """Jaccard overlap of the heads of every two vectors, in [0, 1]: shared ones over all of both.

    What as many heads drawn at random share on average: `drift.chance_jaccard`. `plots.overlap_heatmap` draws it.

    Raises:
        ShapeMismatch: the vectors are of models with other heads.
        IvlensError: no vector, two of one task, or one of which the heads are not known.
    """

    def shared(one: InstructionVector, other: InstructionVector) -> float:
        grids = _grid(one), _grid(other)
        if grids[0] != grids[1]:
            raise ShapeMismatch(
                f"the vectors are of models with {grids[0]} and {grids[1]} heads as (layer, head); compare vectors of "
                "one model"
            )
        heads = set(one.heads), set(other.heads)
        return len(heads[0] & heads[1]) / len(heads[0] | heads[1])

    return _of_pairs(vectors, shared)


def _grid(vector: InstructionVector) -> tuple[int, ...]:
    """How many heads the model has, as (layer, head)."""
    if vector.mean_z is None or not vector.heads:
        raise IvlensError(
            f"the vector of {vector.task} comes without the heads that write it; build it with "
            "ivlens.instruction_vector, or compare directions with similarity"
        )
    return tuple(vector.mean_z.shape[:2])


def _of_pairs(
    vectors: Iterable[InstructionVector], alike: Callable[[InstructionVector, InstructionVector], float]
) -> pd.DataFrame:
    by_task: dict[str, InstructionVector] = {}
    for vector in vectors:
        if vector.task in by_task:
            raise IvlensError(f"two vectors are of the task {vector.task!r}; give one a task")
        by_task[vector.task] = vector
    if not by_task:
        raise IvlensError("there is no vector to compare; give at least one")
    rows = [[alike(one, other) for other in by_task.values()] for one in by_task.values()]
    return pd.DataFrame(rows, index=pd.Index(by_task, name="task"), columns=list(by_task))
