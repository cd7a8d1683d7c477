"""What is a job, and what comes back of it?

A job is deterministic and idempotent: begun again, on whatever machine of the same kind, it gives the same pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Work = Callable[[], Iterator[bytes]]
"""Gives the pieces of a job, one by one. Where it runs elsewhere it is pickled: a function of a module and what it is
given."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done."""

    name: str
    begin: Callable[[], Work]
    """Called here whenever the job is handed out, also for the second time: so it goes on from what came back."""


class Piece(NamedTuple):
    """A part of a job's result."""

    job: Job
    number: int
    """Counted from 0, whenever the job is begun."""
    content: bytes
    """Empty where the job keeps its results itself."""


class Message(NamedTuple):
    """What a worker says of the job that it is at."""

    kind: Literal["piece", "done", "raised", "lost"]
    content: bytes = b""
    error: BaseException | None = None
    reason: str = ""
    """Of a loss."""
