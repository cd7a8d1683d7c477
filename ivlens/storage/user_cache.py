"""Where is kept what can be had again: models that were fetched, digests of large ones?"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ivlens.errors import RunError
from ivlens.storage.atomic_files import write_whole


def cache_folder() -> Path:
    """The user's own folder for it: `$XDG_CACHE_HOME/ivlens`, else `~/.cache/ivlens`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivlens"


def expand_user(path: str | Path) -> Path:
    """A path with its `~` filled in; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def recall(kind: str, key: str) -> str | None:
    """What was kept by a key, or None."""
    try:
        return (cache_folder() / kind / key).read_text(encoding="ascii")
    except (OSError, ValueError, RuntimeError):  # The last: there is no home.
        return None


def keep(kind: str, key: str, text: str) -> None:
    """Keep a short text by a key, where the disk allows it."""
    with contextlib.suppress(RunError, RuntimeError):
        write_whole(cache_folder() / kind / key, text.encode("ascii"))
