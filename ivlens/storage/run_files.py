"""Are the files of a run still as it wrote them, and is its folder still where it was?

A file is known by its size and its digest, so that one that was deleted, cut, or taken from another run is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ivlens.errors import RunError
from ivlens.storage.atomic_files import OURS, reason, refuse_unusual
from ivlens.storage.run_record import RECORD, KeptFile, read_record
from ivlens.tables import plain

MOST_READ = 2**30
"""Bytes of all files that a reader compares by their digests; those of a larger run by their sizes alone."""
MISSING = "is missing"
_SHOWN = 3


class Home(NamedTuple):
    """A run folder, known by when its run began: another may take its name while a process is at work in it."""

    folder: Path
    started: str

    def check(self) -> Path:
        """The folder.

        Raises:
            RunError: it was renamed or removed, or another run has its name now.
        """
        found = read_record(self.folder)
        if found is None or found.started.isoformat() != self.started:
            raise RunError(
                f"{self.folder} was renamed or removed while ivlens was at work in it; give it its name back, or give "
                "the new name as --out, and run the same command again: it goes on from there"
            )
        return self.folder


def describe_file(path: Path) -> KeptFile:
    """A file as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return KeptFile(size=file.tell(), sha256=digest)


def find_changed(
    place: Callable[[str], Path], files: Mapping[str, KeptFile], *, most: int | None = None
) -> dict[str, str]:
    """Which files are not as they were written, and what is wrong with each of them.

    Args:
        place: Where a file of that name lies.
        most: Bytes that are read; None: all. Where there are more, only sizes are compared.
    """
    in_full = most is None or sum(file.size for file in files.values()) <= most
    found = {name: _fault(place(name), file, in_full=in_full) for name, file in files.items()}
    return {name: fault for name, fault in found.items() if fault}


def _fault(path: Path, file: KeptFile, *, in_full: bool) -> str:
    try:
        refuse_unusual(path, file.size)
        if path.stat().st_size != file.size:
            return f"cannot be read: it was cut to {path.stat().st_size:,} of {file.size:,} bytes"
        return "" if not in_full or describe_file(path) == file else "cannot be read: it is not what this run wrote"
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read: {reason(error)}"


def name_faults(faults: Mapping[str, str]) -> str:
    """The first of them in words."""
    told = [f"{plain(name)} {fault}" for name, fault in list(faults.items())[:_SHOWN]]
    return "; ".join([*told, *([f"{len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""])]).removesuffix("; ")


def refuse_foreign(folder: Path) -> None:
    """Raises RunError where a folder without a record holds anything."""
    try:
        foreign = [entry.name for entry in folder.iterdir() if not entry.name.startswith(OURS)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{folder} cannot be read ({error.strerror}); choose another --out") from error
    if foreign:
        raise RunError(
            f"{folder} holds other files ({min(foreign)}, ...) and no {RECORD}; choose an empty or new folder for --out"
        )
