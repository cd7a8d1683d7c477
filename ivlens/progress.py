"""How far is a long computation? A bar with an estimate where a person is watching, nothing elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class Bar:
    """How much is done, of which whoever shows it is told."""

    def __init__(self, show: Callable[[float], object] = lambda steps: None) -> None:
        self._show, self._done = show, 0

    def __call__(self) -> None:
        """One step more is done."""
        self.move_to(self._done + 1)

    def move_to(self, done: int) -> None:
        """So many steps are done in all."""
        self._show(done - self._done)
        self._done = done


_SILENT: ContextVar[bool] = ContextVar("no bars", default=False)


def silence() -> None:
    """Show no bar from now on: those of several processes would be drawn over each other."""
    _SILENT.set(True)


@contextmanager
def open_bar(description: str, *, total: int | None) -> Iterator[Bar]:
    """A bar of rich in a terminal, of tqdm in Jupyter, and none when piped; to be called behind every step."""
    if _SILENT.get():
        yield Bar()
    elif "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        # TQDM_DISABLE is tqdm's own switch, which its bar for notebooks does not look at.
        disable = "TQDM_DISABLE" in os.environ
        with tqdm(desc=description, total=total, leave=False, disable=disable) as shown:
            yield Bar(shown.update)
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(description, total=total)
            yield Bar(lambda steps: shown.advance(task, steps))
    else:
        yield Bar()


def track(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Pass the items on, under a bar that moves behind each of them."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with open_bar(description, total=total) as advance:
        for item in items:
            yield item
            advance()
