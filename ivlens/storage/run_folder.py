"""What has already been computed, by which command, and can it be believed?

A run is a folder: `run.json` says what was asked, of which model and task, with which versions; beside it
lie tables (parquet), tensors and figures. Every file is written whole or not at all, and `run.json` says
`complete` last.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from ivlens.errors import RunError
from ivlens.storage import command_line, parquet, table_schema
from ivlens.storage.atomic_files import OURS, Lock, as_run_error, inside, remove_leftovers, replacing, writing_inside
from ivlens.storage.run_files import MISSING, MOST_READ, Home, describe_file, find_changed, name_faults, refuse_foreign
from ivlens.storage.run_record import (
    RECORD,
    KeptFile,
    RunRecord,
    configuration_digest,
    plain,
    read_record,
    refuse_another,
    write_record,
)
from ivlens.storage.run_record import Source as Source
from ivlens.storage.run_record import versions as versions

PARTS = "parts"
"""Folder of what an unfinished run has computed of its tables."""
_AGAIN = "run the same command with the same --out again and it is computed again"


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open run folder. While it is `running`, this process holds its lock until the `with` block ends."""

    folder: Path
    record: RunRecord
    files: dict[str, KeptFile] = field(default_factory=dict, repr=False)
    """Those that it has written; they are believed as long as they are as they were written."""
    _lock: Lock | None = field(default=None, repr=False)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def is_complete(self) -> bool:
        return self.record.status == "complete"

    @property
    def configuration(self) -> str:
        """Digest of everything that decides the numbers."""
        return configuration_digest(self.record)

    @property
    def home(self) -> Home:
        return Home(self.folder, self.record.started.isoformat())

    def source(self, role: str) -> Source:
        """What it was computed from, by its role, such as `model`; raises RunError where it has none."""
        if role not in self.record.sources:
            raise RunError(f"{self.folder} does not say of which {role} it is; run again into a new --out")
        return self.record.sources[role]

    def path(self, name: str) -> Path:
        """Where the file `name` (relative, with `/` between folders) lies or would lie.

        Raises:
            RunError: `name` leads out of the run folder, or is one of the names that ivlens keeps for itself.
        """
        relative = PurePosixPath(name)
        parts = relative.parts
        reserved = any(part == ".." or part.startswith(OURS) or "\\" in part or "\0" in part for part in parts)
        if not parts or relative.is_absolute() or reserved or str(relative).casefold() == RECORD:
            raise RunError(f"{name!r} cannot name a file of a run; use a plain relative name such as 'effects.parquet'")
        return inside(self.folder, str(relative))

    def has(self, name: str) -> bool:
        """Whether the file `name` has been written by this run (files are whole or absent)."""
        return self._lists(name) and self.path(name).is_file()

    def _lists(self, name: str) -> bool:
        return name in self.files or (self.is_complete and not self.files)  # Runs of before list none.

    def table(self, name: str, compute: Callable[[], pd.DataFrame], *, columns: Sequence[str] = ()) -> pd.DataFrame:
        """The table `name.parquet`: read where it exists, else computed and written. The unit of resuming.

        What comes back was read from the disk, as it is in a resumed run. Row labels are not kept.

        Raises:
            RunError: the file is damaged or lacks one of `columns`, or it cannot be written.
        """
        if not self.has(f"{name}.parquet"):
            self.write_table(name, compute(), columns=columns)
        return self.read_table(name, columns=columns)

    def read_table(self, name: str, *, columns: Sequence[str] = ()) -> pd.DataFrame:
        """Read `name.parquet`; its checksums are verified.

        Raises:
            RunError: there is none, it is damaged, lacks one of `columns`, or is not as `table_schema` has it.
        """
        path = self.path(f"{name}.parquet")
        remedy = "delete it and run the same command again" if not self.is_complete else "run again into a new --out"
        if not self._lists(f"{name}.parquet"):
            raise RunError(f"{path.parent} has no {path.name} of its own; {remedy}")
        frame = parquet.read_table(path, columns=columns, remedy=remedy)
        table_schema.check_table(self.record.command, name, frame, path, remedy)
        return frame

    def write_table(self, name: str, frame: pd.DataFrame, *, columns: Sequence[str] = ()) -> Path:
        """Write `name.parquet`, without row labels."""
        path = self.path(f"{name}.parquet")
        parquet.check_columns(frame, columns, path, "this is a fault of ivlens")
        return self.write_bytes(path.relative_to(self.folder).as_posix(), parquet.to_bytes(frame))

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
        with self.writing():
            with replacing(path) as temporary:
                save(temporary)
            self.files[PurePosixPath(name).as_posix()] = describe_file(path)
            self._write_record()
        return path

    def writing(self) -> AbstractContextManager[None]:
        """Inside the `with` block, nothing is written once the folder was renamed, and none is made in its place."""
        return writing_inside(self.folder, self.home.check)

    def _write_record(self, **changes: Any) -> RunRecord:
        record = self.record.model_copy(update={"files": dict(self.files), **changes})
        write_record(self.folder, record)
        return record

    def stop_behind_heads(self) -> None:
        """Say in `run.json` that no more was asked for than the effects of heads; a command may go on from there."""
        with self.writing():
            self._write_record(status="heads")

    def complete(self, others: Mapping[str, KeptFile] | None = None, *, precision: str = "") -> Run:
        """Say in `run.json` that everything has been written, and give the lock back. Parts of tables are removed.

        Args:
            others: Files of the run that were not written by it, such as those of processes of its own.
            precision: How far numbers in 16 bits are from float32's; recorded with the model.

        Raises:
            RunError: a file is not there any more as it was written, or the disk refuses.
        """
        if self._lock is None or not self._lock.is_held:
            return self
        with self.writing(), as_run_error(self.folder / PARTS):
            self.home.check()
            if (self.folder / PARTS).is_dir():
                shutil.rmtree(self.folder / PARTS)
            for name in [name for name in self.files if name.startswith(f"{PARTS}/")]:
                del self.files[name]
            self.files.update(others or {})
            faults = find_changed(self.path, self.files)
            if faults:
                raise RunError(f"in {self.folder}, {name_faults(faults)}; {_AGAIN}")
            sources = self.record.sources
            if precision:
                sources = sources | {"model": sources["model"].model_copy(update={"precision": precision})}
            record = self._write_record(status="complete", finished=datetime.now(UTC), sources=sources)
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
    found = read_record(folder)
    if found is None:
        refuse_foreign(folder)
    asked = RunRecord(
        command=command,
        typed=command_line.arguments(),
        settings=plain(settings),
        sources=dict(sources),
        seed=seed,
        versions=versions(),
        started=datetime.now(UTC),
    )
    if found is not None:
        refuse_another(folder, asked, found)
        run = _opened(folder, found)
        if run.is_complete and not find_changed(run.path, run.files):  # It may lie where only others may write.
            return run
    lock = Lock.take(folder)
    try:
        with writing_inside(folder, folder.stat):
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
    record = read_record(folder)
    if record is None:
        raise RunError(f"{folder} is not a run of ivlens: it has no {RECORD}; give the folder passed as --out")
    if record.status == "heads":
        raise RunError(
            f"{folder} has the effects of heads alone (--only heads); run the same command without --only and it goes "
            "on from there"
        )
    if record.status != "complete":
        started = f"{record.started:%Y-%m-%d %H:%M} UTC"
        raise RunError(
            f"{folder} is unfinished (ivlens {record.command}, started {started}); run the same command with "
            "the same --out again and it goes on from there"
        )
    run = _opened(folder, record)
    faults = find_changed(run.path, run.files, most=MOST_READ)
    if faults:
        raise RunError(f"in {folder}, {name_faults(faults)}; {_AGAIN}")
    return run


def _begin(folder: Path, asked: RunRecord, lock: Lock) -> Run:
    """Under the lock: look again, as another process may have come first, and create or resume."""
    found = read_record(folder)
    if found is None:
        refuse_foreign(folder)
        write_record(folder, asked)
        return Run(folder=folder, record=asked, _lock=lock)
    refuse_another(folder, asked, found)
    run = _opened(folder, found, lock)
    faults = find_changed(run.path, run.files)
    if run.is_complete and not faults:
        lock.release()
        return replace(run, _lock=None)
    if run.is_complete or not all(fault == MISSING for fault in faults.values()):  # Taking some away is allowed.
        logging.getLogger(__name__).warning("ivlens: in %s, %s: to be computed again", folder, name_faults(faults))
    typed = asked.typed if found.status == "heads" else found.typed  # What began it stopped there.
    files = {name: file for name, file in found.files.items() if name not in faults}
    changes = {"status": "running", "finished": None, "typed": typed, "files": files}
    found = found.model_copy(update=changes)
    refuse_another(folder, asked, found)  # Of a complete one that has lost something, versions count again.
    remove_leftovers(folder)
    write_record(folder, found)
    return _opened(folder, found, lock)


def _opened(folder: Path, record: RunRecord, lock: Lock | None = None) -> Run:
    return Run(folder=folder, record=record, files=dict(record.files), _lock=lock)
