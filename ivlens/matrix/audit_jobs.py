"""One audit of a matrix as a job: which model, which task, asked how, and where does its folder come from?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ivlens.analysis.options import AuditOptions, AuditSettings
from ivlens.analysis.run_audit import prepare, run_audit
from ivlens.datasets.task import Task
from ivlens.engine.packed_files import pack_files, unpack_files, write_files
from ivlens.models import loader
from ivlens.prompts.chat import template
from ivlens.prompts.choices import Bos
from ivlens.storage.command_line import remember_arguments
from ivlens.storage.run_files import describe_file
from ivlens.storage.run_record import RECORD, read_record, versions

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class Named(NamedTuple):
    """A model as a worker loads it."""

    name: str
    adapter: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    device_map: str | None = None


class Layout(NamedTuple):
    """A template that each model makes for itself; see `ivlens.template`."""

    name: str
    options: Mapping[str, Any] = {}
    bos: Bos = "auto"


@dataclass(frozen=True, kw_only=True)
class AskedAudit:
    """What one audit is asked for, as it is sent to a worker."""

    folder: str
    """Its name in that of the matrix."""
    model: Named
    task: Task
    options: AuditOptions = field(default_factory=AuditOptions)
    layout: Layout | None = None
    memory: int
    typed: tuple[str, ...] = ()
    """On the command line."""

    @property
    def digest(self) -> str:
        """Of everything that decides its numbers and is known without its model.

        Of files by a path their sizes and times are among it, so that an audit of another checkpoint of the same name
        is begun, and refused where the weights are others.
        """
        settings = AuditSettings(**self.options)
        asked = [settings.record(), settings.seed, self.layout, self.model, self.task.digest, versions()]
        stamps = [_stamps(name) for name in (self.model.name, *self.model.adapter)]
        return sha256(json.dumps([asked, stamps], sort_keys=True, default=str).encode()).hexdigest()


def _stamps(name: str) -> list[tuple[str, int, int]]:
    path = Path(name)
    with suppress(OSError, ValueError):  # No path at all, or one that the loader will speak of.
        files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
        return [(one.name, (status := one.stat()).st_size, status.st_mtime_ns) for one in files if one.is_file()]
    return []


def audit_in(asked: AskedAudit, folder: Path) -> Iterator[bytes]:
    """Audit into a folder of this machine."""
    _audit(asked, folder)
    yield b""


def audit_apart(asked: AskedAudit, kept: bytes) -> Iterator[bytes]:
    """Audit on a machine that may share no disk with the matrix; the folder comes back as bytes.

    Args:
        kept: What the matrix has of the folder.
    """
    with tempfile.TemporaryDirectory(prefix="ivlens-audit-") as place:
        folder = Path(place) / "run"
        write_files(folder, unpack_files(kept))
        _audit(asked, folder)
        yield pack_run(folder)


def pack_run(folder: Path) -> bytes:
    """The files that a run lists, and its record last; of none, nothing. Those that have changed stay behind."""
    record = read_record(folder)
    if record is None:
        return pack_files(folder, [])
    paths = {name: folder / name for name in record.files}
    whole = [name for name, path in paths.items() if path.is_file() and describe_file(path) == record.files[name]]
    return pack_files(folder, [*whole, RECORD])


def _audit(asked: AskedAudit, folder: Path) -> None:
    work = prepare_audit(asked)
    with remember_arguments(asked.typed):
        run_audit(work, folder)


def prepare_audit(asked: AskedAudit) -> Any:
    """The audit before it begins, on its model, which is loaded."""
    options: AuditOptions = {**asked.options}
    model = load(asked.model)
    if asked.layout is not None:
        name, chosen, bos = asked.layout
        options["template"] = template(name, model, options=chosen, bos=bos)
    return prepare(model, asked.task, memory=asked.memory, **options)


@lru_cache(maxsize=1)
def load(named: Named) -> HookedTransformer:
    """Once for all tasks that a worker audits a model on, one after the other."""
    about: Any = named._asdict()
    return loader.load(about.pop("name"), **about | {"adapter": list(named.adapter) or None})
