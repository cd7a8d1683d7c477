"""What does the lab model know that a new task can ask for in another way?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from ivlens.datasets.task import BUILT_IN, Pair, Task, read_task

MOST_PAIRS = 160
"""Pairs of a task whose inputs are put together from several words."""


@cache
def facts(name: str) -> Mapping[str, str]:
    """Inputs and outputs of a built-in task."""
    return dict(read_task(BUILT_IN / f"{name}.json").pairs)


def words(*names: str) -> list[str]:
    """Words that are inputs of all these tasks, in the first one's order."""
    return [word for word in facts(names[0]) if all(word in facts(name) for name in names)]


def new_task(name: str, instruction: str, inputs: Iterable[str], output: Callable[[str], str]) -> Task:
    """A task of one wording, whose outputs are computed from its inputs."""
    return Task(name=name, instructions=(instruction,), pairs=tuple(Pair(given, output(given)) for given in inputs))


def draw(name: str, inputs: Iterable[str], most: int = MOST_PAIRS) -> list[str]:
    """Some of the inputs, the same on every machine and in every version of every library."""

    def place(given: str) -> bytes:
        return hashlib.blake2b(f"{name}\x1f{given}".encode(), digest_size=8).digest()

    return sorted(inputs, key=place)[:most]
