"""Which command line is at work? A run records it, so that it can be typed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


@contextmanager
def remember_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Runs that are opened in the `with` block were asked for by these arguments of `ivlens`."""
    token = _TYPED.set(tuple(arguments))
    try:
        yield
    finally:
        _TYPED.reset(token)


def arguments() -> tuple[str, ...]:
    """What was typed after `ivlens`; nothing when it is used from Python."""
    return _TYPED.get()
