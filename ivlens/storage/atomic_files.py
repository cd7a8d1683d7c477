"""How is a file written so that, under its own name, it is whole, however its writer ended?

It is saved under a temporary name, flushed to the disk and renamed. A folder is locked by the one process that
writes into it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ivlens.errors import RunError

OURS = ".ivlens-"
"""What begins like this in a folder is ours, and no result."""
LOCK = f"{OURS}lock"
TEMPORARY = f"{OURS}tmp-"
# What systems say where a disk, often one of a network, cannot lock a file.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
LARGEST_TEXT = 64 * 2**20
"""Bytes of a JSON or TOML file that is still read."""


def refuse_unusual(path: Path, most: int | None) -> None:
    """Raise an OSError for what is no file (a pipe would be waited for), and for more than `most` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, and may have {most:,}", str(path))


def inside(folder: Path, name: str) -> Path:
    """The path `name` in `folder`.

    Raises:
        RunError: it is, or lies behind, a link out of the folder, where nothing may be written.
    """
    path = folder / name
    if not is_inside(path, folder):
        raise RunError(f"{path} is a link out of the run folder {folder}; remove the link")
    return path


def parse_json(text: str) -> Any:
    """What a JSON text says; raises ValueError where it is none, or nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_record(text: str) -> Any:
    """The same of a record of ours, whose texts can all be written again; raises ValueError for half a character."""
    found = parse_json(text)
    json.dumps(found, ensure_ascii=False).encode()
    return found


_INSIDE: ContextVar[tuple[Path, Callable[[], object]] | None] = ContextVar("where is written", default=None)


@contextlib.contextmanager
def writing_inside(folder: Path, check: Callable[[], object]) -> Iterator[None]:
    """Inside the `with` block, before a file is written into `folder`, `check` sees that it is still the same folder.

    That one is never made: where it is gone, only its name is left.
    """
    before = _INSIDE.set((folder, check))
    try:
        yield
    finally:
        _INSIDE.reset(before)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, links followed, is in a folder. Unlike `Path.resolve`, it takes links that go in a circle."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, replacing what was there.

    Raises:
        RunError: the disk refuses. `path` is then as it was before.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. After the block, what was saved there is on the disk as `path`.

    Raises:
        RunError: the disk refuses. `path` is then as it was before.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    with as_run_error(path):
        try:
            _make_parents(path)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _flush_names(path.parent)


def _make_parents(path: Path) -> None:
    inside = _INSIDE.get()
    if inside is None or inside[0] not in path.parents:
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    folder, check = inside
    check()
    parents = list(path.parents)
    for parent in reversed(parents[: parents.index(folder)]):
        parent.mkdir(exist_ok=True)
    if not is_inside(path.parent, folder):
        raise RunError(f"{path.parent} is a link out of the run folder {folder}; remove the link")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Its lock must be held: a living writer's file would go too."""
    with as_run_error(folder):
        for leftover in folder.rglob(f"{TEMPORARY}*"):
            leftover.unlink()


class Lock:
    """Held by one process at a time. The system takes it back when that process ends, even if killed."""

    def __init__(self, file: FileLock) -> None:
        self._file = file
        self.is_held = True

    @classmethod
    def take(cls, folder: Path) -> Lock:
        """Create `folder` where needed and lock it.

        Raises:
            RunError: another process holds it, or `folder` cannot be written.
        """
        # One that exists by its file alone, as filelock would make where the disk has no locks, could outlive a kill.
        if (folder / LOCK).is_symlink():
            raise RunError(f"{folder / LOCK} is a link, which would have a file made elsewhere; remove the link")
        file = FileLock(folder / LOCK, blocking=False, thread_local=False, fallback_to_soft=False)
        with as_run_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file.acquire()
            except Timeout:
                raise RunError(
                    f"another process is at work in {folder}; wait for it to end, or choose another --out"
                ) from None
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    raise
                reason = f"{folder} is on a disk without locks ({error.strerror})"
                warnings.warn(f"{reason}; see that only one process works in it", RuntimeWarning, stacklevel=4)
        return cls(file)

    def release(self) -> None:
        self.is_held = False
        self._file.release()


@contextlib.contextmanager
def as_run_error(path: Path) -> Iterator[None]:
    """Say in a sentence why the disk refused to write `path`."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path} ({error.strerror or first_line(error)}); nothing half-written was left. Mend that "
            "or choose another --out, then run the same command again"
        ) from error


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
    return getattr(error, "strerror", None) or first_line(error)[:200]


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _flush_names(folder: Path) -> None:
    """Have the disk keep a rename. Where folders cannot be flushed, a name may be lost, not half a file."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
