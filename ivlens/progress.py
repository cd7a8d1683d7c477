"""How far is a long computation? A bar with an estimate where a person is watching, nothing elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Pass the items on; show a bar of rich in a terminal, of tqdm in Jupyter, and none when piped."""
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        # TQDM_DISABLE is tqdm's own switch, which its bar for notebooks does not look at.
        disable = "TQDM_DISABLE" in os.environ
        yield from tqdm(items, desc=description, total=total, leave=False, disable=disable)
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description, total=total, console=Console(stderr=True), transient=True)
    else:
        yield from items
