"""Audit models on tasks: each an audit by itself, in a run folder of its own, and one table and figure over all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch

from ivlens.analysis.audit import Audit
from ivlens.analysis.options import AuditOptions, AuditSettings
from ivlens.analysis.wordings import check_choice
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.engine.job import Job, Piece, Work
from ivlens.engine.options import Engine, EngineOptions
from ivlens.engine.packed_files import unpack_files
from ivlens.engine.run_jobs import check_engine, count_workers, run_jobs
from ivlens.errors import IvlensError, as_ivlens_error
from ivlens.matrix import audit_jobs
from ivlens.matrix.audit_jobs import AskedAudit, Layout, Named, audit_apart, audit_in, pack_run
from ivlens.matrix.audit_matrix import AuditMatrix
from ivlens.matrix.kept_audits import is_kept, read_kept, take_run, write_kept
from ivlens.matrix.recurrence import AuditedHeads
from ivlens.models.origin import from_here
from ivlens.patching.settings import gather_options, parse_bytes
from ivlens.progress import track
from ivlens.shapes import GIB
from ivlens.storage import command_line
from ivlens.storage.atomic_files import Lock, write_whole

HEADS = "recurring_heads.csv"
_ENGINE = {one.name for one in fields(Engine)}
_LOADING = ("device", "dtype", "backend", "device_map")


class MatrixOptions(AuditOptions, EngineOptions, total=False):
    """What audits are asked for, how models are loaded, and where jobs run."""

    adapter: Sequence[str | Path]
    device: str
    dtype: str
    backend: str
    device_map: str | None


@as_ivlens_error()
def audit_many(
    models: str | Path | Sequence[str | Path],
    tasks: Task | str | Path | Sequence[Task | str | Path],
    *,
    out: str | Path,
    memory: int | str = 2 * GIB,
    threads: int = 1,
    layout: Layout | None = None,
    **options: Unpack[MatrixOptions],
) -> AuditMatrix:
    """Audit every model on every task; go on with what is there, and see which heads recur.

    Args:
        models: By name or path: each worker loads its own.
        tasks: Also by name or path, as for `ivlens.task`.
        out: Folder of the run folders of all audits. Those that are complete are not run again.
        memory: Of each worker, as for `ivlens.audit`.
        threads: Of an audit on the CPU. Sums depend on them in their last bits: with the same number, all engines give
            the same numbers on the same kind of machine.
        layout: A template that each model makes for itself, such as `Layout("chat")`, in place of `template`.
        options: Of audits, see `ivlens.audit`; of loading, see `ivlens.load`; and of `ivlens.engine.options.Engine`:
            `engine` ("local" or "ray"), `workers`, `address` and so on. A script that asks for several workers needs
            `if __name__ == "__main__":`.

    Raises:
        IvlensError: no such option, two audits of one name, or audits failed: they are named, the others are done.
        EngineError: there is no such cluster, or workers were lost more often than `retries` allows.

    >>> matrix = ivlens.audit_many("lab", ["antonym", "synonym"], out="runs/two", **short)  # Read again: it is there.
    >>> sorted(path.name for path in matrix.folders)
    ['lab-antonym', 'lab-synonym']
    """
    plan = plan_audits(models, tasks, memory=memory, threads=threads, layout=layout, **options)
    check_engine(plan.engine)
    folder, lock = Path(out), Lock.take(Path(out))
    try:
        _run(folder, plan)
        return _gather(folder, plan.asked)
    finally:
        audit_jobs.load.cache_clear()
        lock.release()


class AuditPlan(NamedTuple):
    """Which audits are asked for, and how they are run."""

    asked: list[AskedAudit]
    engine: Engine
    threads: int

    def left(self, folder: Path) -> dict[str, AskedAudit]:
        """Those that are not done in a folder, by their names in it."""
        digests = read_kept(folder)
        return {one.folder: one for one in self.asked if not is_kept(folder, one, digests)}

    def count_workers(self, n_jobs: int) -> int:
        """How many are run side by side on this machine."""
        return count_workers(self.engine, n_jobs, _usual_workers(self.asked, self.threads))


def plan_audits(
    models: str | Path | Sequence[str | Path],
    tasks: Task | str | Path | Sequence[Task | str | Path],
    *,
    memory: int | str = 2 * GIB,
    threads: int = 1,
    layout: Layout | None = None,
    **options: Unpack[MatrixOptions],
) -> AuditPlan:
    """What `audit_many` would do, refused as it would be refused."""
    if threads < 1:
        raise IvlensError(f"threads is {threads}; it must be 1 or more")
    given: dict[str, Any] = dict(options)
    engine = gather_options(Engine, None, {key: given.pop(key) for key in _ENGINE & given.keys()})
    asked = _ask(_listed(models), list(map(find_task, _listed(tasks))), given, layout, parse_bytes(memory))
    return AuditPlan(asked, engine, threads)


def _ask(
    models: Sequence[str | Path], tasks: Sequence[Task], given: dict[str, Any], layout: Layout | None, memory: int
) -> list[AskedAudit]:
    """What is asked of every pair; refused before a model is read where it cannot be answered."""
    loading = {key: given.pop(key) for key in (*_LOADING, "adapter") if key in given}
    loading["adapter"] = tuple(map(str, loading.get("adapter") or ()))
    for model in models:
        if not isinstance(model, str | Path):
            raise IvlensError(f"a model is a {type(model).__name__}; give names or paths: workers load their own")
    settings = gather_options(AuditSettings, None, given)
    for task in tasks:
        task.split(shots=settings.shots, seed=settings.seed)
        check_choice(task, settings.instruction)
    asked = [
        AskedAudit(
            folder=f"{_file_name(str(model))}-{_file_name(task.name)}",
            model=Named(from_here(model), **loading),
            task=task,
            options=AuditOptions(**given),
            layout=layout,
            memory=memory,
            typed=command_line.arguments(),
        )
        for model in models
        for task in tasks
    ]
    names = [one.folder for one in asked]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not asked:
        raise IvlensError(
            f"two audits would be called {', '.join(repeated)}; name each model and task once"
            if asked
            else "there is nothing to audit; name a model and a task"
        )
    return asked


def _run(folder: Path, plan: AuditPlan) -> None:
    """Do what is not done."""
    digests, left, engine = read_kept(folder), plan.left(folder), plan.engine

    def begin(one: AskedAudit) -> Work:
        place = folder / one.folder
        return partial(audit_apart, one, pack_run(place)) if engine.engine == "ray" else partial(audit_in, one, place)

    jobs = [Job(name=name, begin=partial(begin, one)) for name, one in left.items()]
    workers = plan.count_workers(len(jobs))
    with closing(run_jobs(jobs, engine, workers=workers, threads=plan.threads)) as pieces:
        for name in track(_keep_pieces(pieces, folder), "audits", total=len(jobs)):
            digests[name] = left[name].digest
            write_kept(folder, digests)


def _keep_pieces(pieces: Iterator[Piece], folder: Path) -> Iterator[str]:
    """Names of audits, when they are in their folders."""
    for piece in pieces:
        if piece.content:
            take_run(folder / piece.job.name, unpack_files(piece.content))
        yield piece.job.name


def _gather(folder: Path, asked: Sequence[AskedAudit]) -> AuditMatrix:
    """Read every audit, keep what they have in common, and write the table over all."""
    audits = [AuditedHeads.of(Audit.read(folder / one.folder), model=_shown(one)) for one in asked]
    found = AuditMatrix.of(audits, [folder / one.folder for one in asked])
    write_whole(folder / HEADS, found.recurring.to_csv(index=False).encode())
    return found


def _usual_workers(asked: Sequence[AskedAudit], threads: int) -> int:
    """One for each group of so many cores; one where there is a GPU that models are loaded on."""
    devices = {one.model.device for one in asked} | {"auto" for one in asked if one.model.device_map}
    on_gpu = torch.cuda.is_available() and devices != {"cpu"}
    return 1 if on_gpu or devices - {"auto", "cpu"} else max(1, (os.cpu_count() or 1) // threads)


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, str | Path | Task) else list(given)


def _shown(one: AskedAudit) -> str:
    name = one.model.name
    return Path(name).name if Path(name).is_absolute() else name


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name)[:80].strip(".-") or "run"
