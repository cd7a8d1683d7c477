"""What has already been computed, by which command, and can it be believed?

A run is a folder: `run.json` says what was asked, of which model and task, with which versions; beside it
lie tables (parquet), tensors and figures. Every file is written under a temporary name, flushed to the disk
and renamed, and `run.json` says `complete` last: a file under its own name is whole, however its writer
ended.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pydantic_core

from ivlens.errors import RunError

SCHEMA_VERSION = 1
RECORD = "run.json"
_OURS = ".ivlens-"
_LOCK = f"{_OURS}lock"
_TEMPORARY = f"{_OURS}tmp-"
_PACKAGES = ("ivlens", "torch", "transformer-lens")


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(_Strict):
    """A model or a task that a run was computed from. Of equal digests, they are the same."""

    name: str
    digest: str
    """Of the weights, or of the task's contents."""


class RunRecord(_Strict):
    """What `run.json` holds."""

    schema_version: Literal[1] = SCHEMA_VERSION
    command: str
    settings: dict[str, pydantic.JsonValue]
    """Everything else that decides the numbers."""
    sources: dict[str, Source]
    """By role: `model` and `task`, or `base`, `tuned` and `task`, ..."""
    seed: int
    versions: dict[str, str]
    started: pydantic.AwareDatetime
    finished: pydantic.AwareDatetime | None = None
    status: Literal["running", "complete"] = "running"


class _Lock:
    """Held by one process at a time. The system takes it back when that process ends, even if killed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, folder: Path) -> _Lock:
        """Create `folder` where needed and lock it.

        Raises:
            RunError: another process holds it, or `folder` cannot be written.
        """
        with _as_run_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(descriptor)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise RunError(
                f"another process is at work in {folder}; wait for it to end, or choose another --out"
            ) from None
        except OSError as error:
            reason = f"{folder} is on a disk without locks ({error.strerror})"
            warnings.warn(f"{reason}; see that only one process works in it", RuntimeWarning, stacklevel=4)
        return cls(descriptor)

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def release(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # A disk without locks.
                _flock(self._descriptor, release=True)
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open run folder. While it is `running`, this process holds its lock until the `with` block ends."""

    folder: Path
    record: RunRecord
    _lock: _Lock | None = field(default=None, repr=False)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def is_complete(self) -> bool:
        return self.record.status == "complete"

    def path(self, name: str) -> Path:
        """Where the file `name` (relative, with `/` between folders) lies or would lie.

        Raises:
            RunError: `name` leads out of the run folder, or is one of the names that ivlens keeps for itself.
        """
        relative = PurePosixPath(name)
        parts = relative.parts
        reserved = any(part == ".." or part.startswith(_OURS) or "\\" in part or "\0" in part for part in parts)
        if not parts or relative.is_absolute() or reserved or str(relative).casefold() == RECORD:
            raise RunError(f"{name!r} cannot name a file of a run; use a plain relative name such as 'effects.parquet'")
        path = self.folder.joinpath(*parts)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise RunError(f"{path} is a link out of the run folder {self.folder}; remove the link")
        return path

    def has(self, name: str) -> bool:
        """Whether the file `name` has been written (files are whole or absent)."""
        return self.path(name).is_file()

    def table(self, name: str, compute: Callable[[], pd.DataFrame], *, columns: Sequence[str] = ()) -> pd.DataFrame:
        """The table `name.parquet`: read where it exists, else computed and written. The unit of resuming.

        What comes back is always what was read from the disk, so that a resumed run goes on with the same
        numbers and dtypes as an uninterrupted one. Row labels are not kept.

        Raises:
            RunError: the file is damaged or lacks one of `columns`, or it cannot be written.
        """
        if not self.has(f"{name}.parquet"):
            self.write_table(name, compute(), columns=columns)
        return self.read_table(name, columns=columns)

    def read_table(self, name: str, *, columns: Sequence[str] = ()) -> pd.DataFrame:
        """Read `name.parquet`; its checksums are verified.

        Raises:
            RunError: there is no such table, it is damaged, or it lacks one of `columns`.
        """
        path = self.path(f"{name}.parquet")
        remedy = "delete it and run the same command again" if not self.is_complete else "run again into a new --out"
        try:
            # From bytes, not from the path: pyarrow would take a folder called `shots=5` for a column.
            source = pa.BufferReader(path.read_bytes())
            frame = pq.read_table(source, page_checksum_verification=True).to_pandas()
        except FileNotFoundError:
            raise RunError(f"{self.folder} has no {path.name}; {remedy}") from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise RunError(f"{path} cannot be read ({_first_line(error)}); {remedy}") from error
        _check_columns(frame, columns, path, remedy)
        return frame

    def write_table(self, name: str, frame: pd.DataFrame, *, columns: Sequence[str] = ()) -> Path:
        """Write `name.parquet`, without row labels."""
        path = self.path(f"{name}.parquet")
        _check_columns(frame, columns, path, "this is a fault of ivlens")
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, write_page_checksum=True)
        return self.write_bytes(path.relative_to(self.folder).as_posix(), sink.getvalue())

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file. NaN has no form in JSON and is refused (ValueError); "not measured" is None."""
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
        return self.write_bytes(name, f"{text}\n".encode())

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file whole or not at all."""
        return self.write_with(name, lambda path: path.write_bytes(content))

    def write_with(self, name: str, save: Callable[[Path], object]) -> Path:
        """Write a file by a function that saves to a path, such as `vector.save`; whole or not at all.

        Raises:
            RunError: this run is complete or closed, or the disk refuses.
        """
        if self._lock is None or not self._lock.is_held:
            raise RunError(f"{self.folder} is complete or closed: {name} would change it; choose another --out")
        path = self.path(name)
        with replacing(path) as temporary:
            save(temporary)
        return path

    def complete(self) -> Run:
        """Say in `run.json` that everything has been written, and give the lock back."""
        if self._lock is None or not self._lock.is_held:
            return self
        changes = {"status": "complete", "finished": datetime.now(UTC)}
        record = self.record.model_copy(update=changes)
        _write_record(self.folder, record)
        self._lock.release()
        return replace(self, record=record, _lock=None)


def open_run(
    folder: Path | str,
    *,
    command: str,
    settings: Mapping[str, Any],
    sources: Mapping[str, Source],
    seed: int,
) -> Run:
    """Create a run folder, resume an unfinished one, or return a complete one of the same configuration.

    Args:
        settings: Everything else that decides the numbers; JSON values only.
        sources: By role, such as `model` and `task`. Only their digests are compared.

    Raises:
        RunError: `folder` is of another configuration (the differences are named) or version, is damaged, is
            not a run, cannot be written, or another process is at work in it.
    """
    folder = Path(folder)
    found = _read_record(folder)
    if found is None:
        _refuse_foreign(folder)
    asked = RunRecord(
        command=command,
        settings=_plain(settings),
        sources=dict(sources),
        seed=seed,
        versions=_versions(),
        started=datetime.now(UTC),
    )
    if found is not None:
        _refuse_another(folder, asked, found)
        if found.status == "complete":  # No lock: it may lie where only others may write.
            return Run(folder=folder, record=found)
    lock = _Lock.take(folder)
    try:
        return _begin(folder, asked, lock)
    except BaseException:
        lock.release()
        raise


def read_run(folder: Path | str) -> Run:
    """A complete run, for reading.

    Raises:
        RunError: `folder` is not a run, is damaged, of another version, or unfinished.
    """
    folder = Path(folder)
    record = _read_record(folder)
    if record is None:
        raise RunError(f"{folder} is not a run of ivlens: it has no {RECORD}; give the folder passed as --out")
    if record.status != "complete":
        started = f"{record.started:%Y-%m-%d %H:%M} UTC"
        raise RunError(
            f"{folder} is unfinished (ivlens {record.command}, started {started}); run the same command with "
            "the same --out again and it goes on from there"
        )
    return Run(folder=folder, record=record)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. After the block, what was saved there is on the disk as `path`.

    Raises:
        RunError: the disk refuses. `path` is then as it was before.
    """
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    with _as_run_error(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _flush_names(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, replacing what was there.

    Raises:
        RunError: the disk refuses. `path` is then as it was before.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _begin(folder: Path, asked: RunRecord, lock: _Lock) -> Run:
    """Under the lock: look again, as another process may have come first, and create or resume."""
    found = _read_record(folder)
    if found is None:
        _refuse_foreign(folder)
        _write_record(folder, asked)
        return Run(folder=folder, record=asked, _lock=lock)
    _refuse_another(folder, asked, found)
    if found.status == "complete":
        lock.release()
        return Run(folder=folder, record=found)
    with _as_run_error(folder):
        for leftover in folder.rglob(f"{_TEMPORARY}*"):
            leftover.unlink()
    return Run(folder=folder, record=found, _lock=lock)


def _read_record(folder: Path) -> RunRecord | None:
    path = folder / RECORD
    remedy = "choose another --out, or delete the folder"
    try:
        content = pydantic_core.from_json(path.read_bytes())
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise RunError(
                f"{folder} was written by another version of ivlens (its format is {version}, this version's "
                f"is {SCHEMA_VERSION}); {remedy}"
            )
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise RunError(f"{folder} is a file, not a folder; choose another --out") from None
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise RunError(f"{path} is not the record of a run ({wrong}); {remedy}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({_first_line(error)}); {remedy}") from error


def _write_record(folder: Path, record: RunRecord) -> None:
    write_whole(folder / RECORD, f"{record.model_dump_json(indent=2)}\n".encode())


def _refuse_foreign(folder: Path) -> None:
    try:
        foreign = [entry.name for entry in folder.iterdir() if not entry.name.startswith(_OURS)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{folder} cannot be read ({error.strerror}); choose another --out") from error
    if foreign:
        raise RunError(
            f"{folder} holds other files ({min(foreign)}, ...) and no {RECORD}; choose an empty or new folder for --out"
        )


def _refuse_another(folder: Path, asked: RunRecord, found: RunRecord) -> None:
    here, there = _configuration(asked, found), _configuration(found, found)
    absent = (None, "not set")
    differences = [
        f"{key[1]} is {here.get(key, absent)[1]} here but {there.get(key, absent)[1]} in that run"
        for key in dict.fromkeys([*here, *there])
        if here.get(key, absent)[0] != there.get(key, absent)[0]
    ]
    if differences:
        raise RunError(
            f"{folder} holds another run: {'; '.join(differences)}; choose another --out or ask for the same"
        )


def _configuration(record: RunRecord, found: RunRecord) -> dict[tuple[str, str], tuple[str, str]]:
    """What must agree for `record` to go on in the folder of `found`.

    By kind and name: the text that is compared, and the text that is shown.
    """
    compared = {("", "command"): record.command, ("", "seed"): record.seed}
    compared |= {("setting", key): value for key, value in _flat(record.settings)}
    if found.status == "running":  # Half the numbers from one version and half from another are of neither.
        compared |= {("version", package): version for package, version in record.versions.items()}
    texts = {key: json.dumps(value, sort_keys=True, ensure_ascii=False) for key, value in compared.items()}
    shown = {key: (text, text if len(text) <= 60 else f"{text[:57]}...") for key, text in texts.items()}
    for role, source in record.sources.items():
        shown["source", f"the {role}"] = (source.digest, f"{source.name} (digest {source.digest[:12]})")
    return shown


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they will be read back: tuples become lists."""
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RunError(f"the settings cannot be recorded as JSON: {_first_line(error)}") from error


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _check_columns(frame: pd.DataFrame, columns: Sequence[str], path: Path, remedy: str) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise RunError(f"{path} lacks the column {', '.join(missing)}; {remedy}")


@contextlib.contextmanager
def _as_run_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise RunError(
            f"cannot write {path} ({reason}); nothing half-written was left. Mend that or choose another "
            "--out, then run the same command again"
        ) from error


def _flush_names(folder: Path) -> None:
    """Have the disk keep a rename. Where folders cannot be flushed, a name may be lost, not half a file."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flock(descriptor: int, *, release: bool = False) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_UNLCK if release else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN if release else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
