"""The cells of a study as jobs: in this process, in others of this machine, or on machines that share no disk with it.

On this machine a cell writes into the folder of the study itself. Elsewhere it works in a temporary copy of what the
study has of it, and every stage that is done comes back as bytes.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ivlens.datasets.task import Task
from ivlens.engine.job import Job, Piece, Work
from ivlens.engine.options import Engine
from ivlens.engine.packed_files import pack_files, unpack_files, write_files
from ivlens.engine.run_jobs import count_workers, run_jobs
from ivlens.errors import ModelError
from ivlens.forgetting import method_run
from ivlens.forgetting.cell import MethodRun
from ivlens.forgetting.evaluation import prepare_evaluation
from ivlens.forgetting.method_run import PreparedBase
from ivlens.forgetting.plan import Plan
from ivlens.forgetting.preparation import keep_universal, prepare_base, universal_files
from ivlens.models import hooked, loader
from ivlens.models.origin import from_here
from ivlens.storage import run_folder
from ivlens.storage.atomic_files import writing_inside
from ivlens.storage.run_files import Home
from ivlens.storage.run_record import RECORD
from ivlens.training.stages import Stage

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base model in a process, and what was prepared of it there, by the seed that drew it."""

    model: HookedTransformer
    prepared: dict[int, PreparedBase] = field(default_factory=dict)


class Named(NamedTuple):
    """The base model as another process loads it."""

    name: str
    device: str
    dtype: str
    digest: str
    """Of the weights that are meant."""


class Questions(NamedTuple):
    """What a cell learns and is asked."""

    stages: Sequence[Stage]
    general: Sequence[Task]


def train(
    asked: Plan,
    base: HookedTransformer,
    general: Sequence[Task],
    sequences: Mapping[int, Sequence[Stage]],
    run: run_folder.Run,
    engine: Engine,
    *,
    device: str,
    dtype: str,
) -> Generator[int]:
    """Yields once for every stage of the cells that are left.

    Raises:
        IvlensError: cells failed; see `run_jobs`.
    """
    keep_universal(asked, base, general, run)
    cells = {one.name: one for one in list_unfinished(asked, run)}
    workers = count_workers(engine, len(cells), count_cores(base))
    here = Base(model=base)
    named = Named(from_here(asked.model), device, dtype, run.source("model").digest)

    def begin(one: MethodRun) -> Work:
        questions = Questions(sequences[one.seed], general)
        if engine.engine == "ray":
            return partial(_run_apart, one, _pack_kept(one), named, questions)
        return partial(_run_beside, one, named, questions) if workers > 1 else partial(_run_here, one, here, questions)

    jobs = [Job(name=name, begin=partial(begin, one)) for name, one in cells.items()]
    with closing(run_jobs(jobs, engine, workers=workers, threads=asked.threads)) as pieces:
        yield from _keep_pieces(pieces, cells)


def _keep_pieces(pieces: Iterator[Piece], cells: Mapping[str, MethodRun]) -> Iterator[int]:
    """Yields for every stage once, also where a lost worker made a cell begin again."""
    seen = dict.fromkeys(cells, -1)
    for piece in pieces:
        one = cells[piece.job.name]
        if piece.content:
            with writing_inside(one.home.folder, one.home.check):
                write_files(one.home.folder, unpack_files(piece.content, below=f"{one.name}/"))
        if piece.number > seen[one.name]:
            seen[one.name] = piece.number
            yield piece.number


def list_unfinished(asked: Plan, run: run_folder.Run) -> list[MethodRun]:
    """Cells of which anything that the plan asks for is missing, or not as it was written."""
    return [one for one in all_cells(asked, run) if not all(map(one.is_done, one.stages))]


def n_stages(cells: Sequence[MethodRun]) -> int:
    return sum(len(one.stages) for one in cells)


def _run_here(one: MethodRun, base: Base, questions: Questions) -> Iterator[bytes]:
    for _ in _train(one, base, questions):
        yield b""


def _run_beside(one: MethodRun, named: Named, questions: Questions) -> Iterator[bytes]:
    """In a process of this machine."""
    return _run_here(one, _load(named), questions)


def _run_apart(one: MethodRun, kept: bytes, named: Named, questions: Questions) -> Iterator[bytes]:
    """On a machine that may share no disk with the study.

    Args:
        kept: What the study has of the cell.
    """
    base, folder = _load(named), _workplace(one.configuration)
    write_files(folder, unpack_files(kept))
    there = replace(one, home=Home(folder, one.home.started))
    before = [stage for stage in there.stages if there.is_done(stage)]
    for stage in _train(there, base, questions):
        yield b"" if stage in before else pack_files(folder, there.files_of(stage))


def _train(one: MethodRun, base: Base, questions: Questions) -> Iterator[int]:
    """Every stage, when it is done."""
    chosen, folder = one.plan.evaluation.of(one.seed), one.home.folder
    with writing_inside(folder, one.home.check):
        if chosen.seed not in base.prepared:
            with one.keeping_base():
                base.prepared[chosen.seed] = prepare_base(one.plan, one.seed, base.model, questions.general, folder)
        evaluation = prepare_evaluation(base.model, questions.stages, questions.general, chosen)
        yield from method_run.run_method(one, base.prepared[chosen.seed], questions.stages, evaluation)


def _pack_kept(one: MethodRun) -> bytes:
    """Of the folder of the study, what a cell goes on from elsewhere."""
    done = [name for stage in one.stages if one.is_done(stage) for name in one.files_of(stage)]
    return pack_files(one.home.folder, [RECORD, one.universal, *done])


@lru_cache(maxsize=1)
def _load(named: Named) -> Base:
    """Once in a process, for all cells that it runs.

    Raises:
        ModelError: the name means other weights here.
    """
    model = loader.load(named.name, device=named.device, dtype=named.dtype)
    if hooked.weight_digest(model) != named.digest:
        raise ModelError(
            f"the model {named.name} is another one on the worker's machine than where the study was begun (its "
            "weights differ); have the same files there under this name"
        )
    return Base(model=model)


@lru_cache(maxsize=1)
def _workplace(configuration: str) -> Path:
    """One folder for all cells of a study that a process runs: they share what the base model was asked."""
    folder = Path(tempfile.mkdtemp(prefix="ivlens-study-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def freeze_base(base: HookedTransformer) -> Iterator[None]:
    """The model's own weights take no gradients; afterwards those do that did before."""
    before = [weight for weight in base.parameters() if weight.requires_grad]
    base.requires_grad_(False)
    try:
        yield
    finally:
        for weight in before:
            weight.requires_grad_(True)


def count_cores(base: HookedTransformer) -> int:
    return 1 if torch.device(base.cfg.device or "cpu").type != "cpu" else os.cpu_count() or 1


def all_cells(asked: Plan, run: run_folder.Run) -> list[MethodRun]:
    """Seed by seed, so that a study that is stopped early has all methods of the seeds that it has."""
    kept, about = universal_files(asked, run.folder), {"home": run.home, "configuration": run.configuration}
    return [
        MethodRun(plan=asked, method=method, seed=seed, universal=kept[seed].name, **about)
        for seed in asked.seeds
        for method in asked.methods
    ]
