"""Who trains the cells of a study: this process, one after the other, or several side by side?

In the standard library's pool rather than joblib's: that one reports when a whole cell is done, not stage by stage, has
no public place for what a worker loads once for all of its cells, and its workers write on after the study is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ivlens.datasets.task import Task
from ivlens.errors import StudyError
from ivlens.forgetting import method_run
from ivlens.forgetting.cell import MethodRun
from ivlens.forgetting.evaluation import prepare_evaluation
from ivlens.forgetting.method_run import PreparedBase
from ivlens.forgetting.plan import Plan
from ivlens.forgetting.preparation import general_tasks, keep_universal, prepare_base, sequence, universal_files
from ivlens.models import loader
from ivlens.storage import run_folder
from ivlens.storage.atomic_files import writing_inside
from ivlens.training.stages import Stage

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def train(
    asked: Plan,
    base: HookedTransformer,
    general: Sequence[Task],
    sequences: Mapping[int, Sequence[Stage]],
    run: run_folder.Run,
    workers: int,
    *,
    device: str,
    dtype: str,
) -> Generator[int]:
    """Yields once for every stage of the cells that are left."""
    keep_universal(asked, base, general, run)
    waiting = list_unfinished(asked, run)
    if min(workers, len(waiting)) > 1:
        yield from _side_by_side(waiting, asked, workers, device=device, dtype=dtype)
    else:
        yield from _one_by_one(waiting, base, sequences, general, {})


def list_unfinished(asked: Plan, run: run_folder.Run) -> list[MethodRun]:
    """Cells of which anything that the plan asks for is missing, or not as it was written."""
    return [one for one in all_cells(asked, run) if not all(map(one.is_done, one.stages))]


def n_stages(cells: Sequence[MethodRun]) -> int:
    return sum(len(one.stages) for one in cells)


def _one_by_one(
    cells: Sequence[MethodRun],
    base: HookedTransformer,
    sequences: Mapping[int, Sequence[Stage]],
    general: Sequence[Task],
    prepared: dict[int, PreparedBase],
) -> Iterator[int]:
    """`prepared` keeps what was prepared of the base model, by the seed that drew it."""
    for one in cells:
        chosen, folder = one.plan.evaluation.of(one.seed), one.home.folder
        with writing_inside(folder, one.home.check):
            if chosen.seed not in prepared:
                with one.keeping_base():
                    prepared[chosen.seed] = prepare_base(one.plan, one.seed, base, general, folder)
            evaluation = prepare_evaluation(base, sequences[one.seed], general, chosen)
            yield from method_run.run_method(one, prepared[chosen.seed], sequences[one.seed], evaluation)


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Sums depend on the number of threads in their last bits: the same in this process and in workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def _side_by_side(cells: Sequence[MethodRun], asked: Plan, workers: int, *, device: str, dtype: str) -> Iterator[int]:
    """Yields once for every stage whose table appears; a worker's error ends the study."""
    context = multiprocessing.get_context("spawn")
    before = _n_done(cells)
    yield from range(before)
    arguments = (asked, device, dtype)
    with ProcessPoolExecutor(min(workers, len(cells)), context, _start_worker, arguments) as pool:
        with _without_interrupts():  # Which workers inherit: Ctrl-C reaches the study itself, which ends them.
            futures = [pool.submit(_work, one) for one in cells]
        try:
            yield from _watch(futures, cells, before)
        except BrokenProcessPool as error:
            raise StudyError(
                "a worker process ended before its time; was it killed, or out of memory? Run the same command again, "
                "with fewer workers"
            ) from error
        except BaseException:
            processes = list((pool._processes or {}).values())  # The pool forgets them when it is shut down.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:  # None is to write into the folder after this.
                process.join(10)
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the `with` block is left; processes that are started inside never see it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows.
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(futures: Sequence[Future[None]], cells: Sequence[MethodRun], seen: int) -> Iterator[int]:
    while True:
        waiting = wait(futures, timeout=1, return_when="FIRST_EXCEPTION").not_done
        for future in futures:
            if future.done():
                future.result()
        now = _n_done(cells)
        yield from range(seen, now)
        seen = now
        if not waiting:
            return


def _n_done(cells: Sequence[MethodRun]) -> int:
    return sum(one.is_begun(stage) for one in cells for stage in one.stages)


_WORKER: dict[str, Any] = {}
"""What a worker process has loaded once for all of its cells."""


def _start_worker(asked: Plan, device: str, dtype: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Where they did not inherit it.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(asked.threads)
    base, general = loader.load(asked.model, device=device, dtype=dtype), general_tasks(asked)
    _WORKER.update(base=base, general=general, prepared={})


def _end_with_parent() -> None:
    """A worker whose study was killed must not write on beside the next one, nor wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(one: MethodRun) -> None:
    general = _WORKER["general"]
    sequences = {one.seed: sequence(one.plan, one.seed, general)}
    for _ in _one_by_one([one], _WORKER["base"], sequences, general, _WORKER["prepared"]):
        pass


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
