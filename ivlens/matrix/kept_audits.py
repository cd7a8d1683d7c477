"""Which audits of a matrix are there, and how does one that was made elsewhere come into its folder?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pydantic

from ivlens.errors import EngineError, RunError
from ivlens.matrix.audit_jobs import AskedAudit
from ivlens.storage.atomic_files import LARGEST_TEXT, Lock, refuse_unusual, write_whole, writing_inside
from ivlens.storage.run_files import refuse_foreign
from ivlens.storage.run_folder import PARTS, read_run
from ivlens.storage.run_record import RECORD, KeptFile, RunRecord, read_record, refuse_another, write_record

MATRIX = "matrix.json"
"""In the folder of a matrix: what each of its audits was asked for."""
_DIGESTS = pydantic.TypeAdapter(dict[str, str])


def read_kept(folder: Path) -> dict[str, str]:
    """Digests of what audits were asked for, by their folders; what cannot be read is as if it were not there."""
    path = folder / MATRIX
    try:
        refuse_unusual(path, LARGEST_TEXT)
        return _DIGESTS.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError):  # pydantic's is one.
        return {}


def write_kept(folder: Path, digests: Mapping[str, str]) -> None:
    """Say that these audits are complete."""
    write_whole(folder / MATRIX, f"{json.dumps(dict(digests), indent=1)}\n".encode())


def is_kept(folder: Path, asked: AskedAudit, digests: Mapping[str, str]) -> bool:
    """Whether an audit is complete, whole, and of what is asked now."""
    if digests.get(asked.folder) != asked.digest:
        return False
    try:
        return read_run(folder / asked.folder).record.command == "audit"
    except RunError:
        return False


def take_run(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a run that was made elsewhere. Until all of it is there, its record says that it is unfinished.

    Raises:
        EngineError: it is not whole.
        RunError: `folder` is of another run (the differences are named), or cannot be written.
    """
    record = _whole_record(files)
    lock = Lock.take(folder)
    try:
        with writing_inside(folder, folder.stat):
            found = read_record(folder)
            if found is None:
                refuse_foreign(folder)
            else:
                refuse_another(folder, record, found)
            write_record(folder, record.model_copy(update={"status": "running", "finished": None, "files": {}}))
            for name in record.files:
                write_whole(folder / name, files[name])
            shutil.rmtree(folder / PARTS, ignore_errors=True)
            write_record(folder, record)
    finally:
        lock.release()


def _whole_record(files: Mapping[str, bytes]) -> RunRecord:
    try:
        record = RunRecord.model_validate_json(files.get(RECORD, b""))
    except pydantic.ValidationError as error:
        raise EngineError(f"a worker sent a run without a record ({error.error_count()} faults)") from error
    sent = {name: KeptFile(size=len(one), sha256=sha256(one).hexdigest()) for name, one in files.items()}
    del sent[RECORD]
    if record.status != "complete" or sent != record.files:
        raise EngineError("a worker sent a run that is not whole; run the same command again")
    return record
