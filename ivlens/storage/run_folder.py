"""What has already been computed, by which command, and can it be believed?

A run is a folder: `run.json` says what was asked, of which model and task, with which versions; beside it
lie tables (parquet), tensors and figures. Every file is written whole or not at all, and `run.json` says
`complete` last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from safetensors.torch import save_file

from ivlens.errors import RunError
from ivlens.kept_batches import Tensors, keeping
from ivlens.storage import command_line, parquet, table_schema, tensor_files
from ivlens.storage.atomic_files import OURS, Lock, as_run_error, inside, remove_leftovers, replacing
from ivlens.storage.run_record import RECORD, RunRecord, plain, read_record, refuse_another, write_record
from ivlens.storage.run_record import Source as Source
from ivlens.storage.run_record import versions as versions

PARTS = "parts"
"""Folder of what an unfinished run has computed of its tables."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open run folder. While it is `running`, this process holds its lock until the `with` block ends."""

    folder: Path
    record: RunRecord
    _lock: Lock | None = field(default=None, repr=False)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def is_complete(self) -> bool:
        return self.record.status == "complete"

    def source(self, role: str) -> Source:
        """What the run was computed from, by its role, such as `model`; raises RunError where it has none."""
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
            RunError: there is no such table, it is damaged, lacks one of `columns`, or holds what it cannot
                (see `table_schema`).
        """
        path = self.path(f"{name}.parquet")
        remedy = "delete it and run the same command again" if not self.is_complete else "run again into a new --out"
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
        with replacing(path) as temporary:
            save(temporary)
        return path

    def stop_behind_heads(self) -> None:
        """Say in `run.json` that no more was asked for than the effects of heads; a command may go on from there."""
        write_record(self.folder, self.record.model_copy(update={"status": "heads"}))

    def complete(self, *, precision: str = "") -> Run:
        """Say in `run.json` that everything has been written, and give the lock back. Parts of tables are removed.

        Args:
            precision: How far numbers in 16 bits are from float32's; recorded with the model.
        """
        if self._lock is None or not self._lock.is_held:
            return self
        with as_run_error(self.folder / PARTS):
            if (self.folder / PARTS).is_dir():
                shutil.rmtree(self.folder / PARTS)
        changes: dict[str, Any] = {"status": "complete", "finished": datetime.now(UTC)}
        if precision:
            model = self.record.sources["model"].model_copy(update={"precision": precision})
            changes["sources"] = self.record.sources | {"model": model}
        record = self.record.model_copy(update=changes)
        write_record(self.folder, record)
        self._lock.release()
        return replace(self, record=record, _lock=None)


@dataclass(frozen=True)
class Tables:
    """The tables of one piece of work: of a run folder, or, where there is none, of this process alone."""

    run: Run | None = None
    kept: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Those that were asked for so far, by name."""

    def has(self, name: str) -> bool:
        """Whether a run has the table already."""
        return self.run is not None and self.run.has(f"{name}.parquet")

    def table(self, name: str, compute: Callable[[], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
        """The table `name`: read where the run has it, else computed, and written where there is a run."""
        self.kept[name] = compute() if self.run is None else self.run.table(name, compute, columns=columns)
        return self.kept[name]

    def part(self, name: str, compute: Callable[[], pd.DataFrame], columns: Sequence[str] = ()) -> pd.DataFrame:
        """A table that others are made of, which is kept until the run is complete; see `table`."""
        if self.run is None:
            key = f"{PARTS}/{name}"
            if key not in self.kept:
                self.kept[key] = compute()
            return self.kept[key]
        return self.run.table(f"{PARTS}/{name}", compute, columns=columns)

    @contextmanager
    def keeping(self, scope: str) -> Iterator[None]:
        """Inside the `with` block, batches are kept in a folder of that name until the run is complete."""
        if self.run is None:
            yield
        else:
            with keeping(partial(_keep, self.run, scope)):
                yield


def _keep(run: Run, scope: str, name: str, compute: Callable[[], Tensors]) -> Tensors:
    file = f"{PARTS}/{scope}/{name}.safetensors"
    if not run.has(file):
        found = {key: value.contiguous() for key, value in compute().items()}
        run.write_with(file, lambda path: save_file(found, path))
        return found
    return tensor_files.read_tensors(run.path(file), remedy="delete it and run the same command again")[0]


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
        _refuse_foreign(folder)
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
        if found.status == "complete":  # No lock: it may lie where only others may write.
            return Run(folder=folder, record=found)
    lock = Lock.take(folder)
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
    return Run(folder=folder, record=record)


def _begin(folder: Path, asked: RunRecord, lock: Lock) -> Run:
    """Under the lock: look again, as another process may have come first, and create or resume."""
    found = read_record(folder)
    if found is None:
        _refuse_foreign(folder)
        write_record(folder, asked)
        return Run(folder=folder, record=asked, _lock=lock)
    refuse_another(folder, asked, found)
    if found.status == "complete":
        lock.release()
        return Run(folder=folder, record=found)
    remove_leftovers(folder)
    if found.status == "heads":  # What began it stopped there.
        found = found.model_copy(update={"status": "running", "typed": asked.typed})
        write_record(folder, found)
    return Run(folder=folder, record=found, _lock=lock)


def _refuse_foreign(folder: Path) -> None:
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
