"""How are jobs run, so that what one of them suffers is no loss to the others?

A worker that is lost costs its job one more try. A job that raises is named when all others are done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

from ivlens.engine.job import Job, Message, Piece, Work
from ivlens.engine.options import Engine
from ivlens.engine.processes import Processes
from ivlens.engine.worker import next_message
from ivlens.errors import EngineError, IvlensError, name_fault

_NAMED = 3


@runtime_checkable
class Workers(Protocol):
    """Where jobs are handed out; what stands for a worker is known to it alone."""

    @property
    def has_room(self) -> bool: ...
    def begin(self, work: Work) -> Any: ...
    def wait(self) -> Iterator[tuple[Any, Message]]: ...
    def close(self) -> None: ...


def run_jobs(jobs: Sequence[Job], engine: Engine, *, workers: int, threads: int) -> Generator[Piece]:
    """Every piece of every job as it comes; those of a job in their order, some again after a loss.

    Args:
        workers: On this machine: 1 has the jobs run in this process.
        threads: Of a job on the CPU.

    Raises:
        IvlensError: jobs raised, or were lost too often; they are named, and the others are done. The first one's own.
        EngineError: there is no such cluster, or no room in it.
    """
    failed: dict[str, BaseException] = {}
    if engine.engine == "ray" and jobs:
        from ivlens.engine.ray_workers import connected

        with connected(engine, threads, len(jobs)) as cluster:
            yield from hand_out(jobs, cluster, engine.retries, failed)
    elif workers > 1:
        yield from hand_out(jobs, Processes(workers, threads), engine.retries, failed)
    else:
        yield from _one_by_one(jobs, threads, failed)
    if failed:
        raise _name_failed({job.name: failed[job.name] for job in jobs if job.name in failed}, len(jobs))


def check_engine(engine: Engine) -> None:
    """See that there is what jobs are to run on, before anything is read or computed for them.

    Raises:
        EngineError: there is not.
    """
    if engine.engine == "ray":
        from ivlens.engine.ray_workers import find_cluster

        find_cluster(engine)


def count_workers(engine: Engine, n_jobs: int, usual: int) -> int:
    """How many jobs are run side by side on this machine, where so many are usual."""
    return max(1, min(engine.workers or usual, n_jobs))


def _one_by_one(jobs: Sequence[Job], threads: int, failed: dict[str, BaseException]) -> Iterator[Piece]:
    for job in jobs:
        pieces, number = job.begin()(), 0
        while (message := next_message(pieces, threads)).kind == "piece":
            yield Piece(job, number, message.content)
            number += 1
        if message.error is not None:
            failed[job.name] = message.error


def hand_out(jobs: Sequence[Job], workers: Workers, retries: int, failed: dict[str, BaseException]) -> Generator[Piece]:
    """Keep all workers busy. What is held here: the jobs by name, and one piece a worker.

    Args:
        failed: Gets the errors of jobs by their names.
    """
    waiting, losses, busy = deque(jobs), Counter[str](), dict[Any, tuple[Job, int]]()
    with closing(workers):
        while waiting or busy:
            while waiting and workers.has_room:
                job = waiting.popleft()
                busy[workers.begin(job.begin())] = job, 0
            for worker, message in workers.wait():
                job, number = busy.pop(worker)
                if message.kind == "piece":
                    busy[worker] = job, number + 1
                    yield Piece(job, number, message.content)
                elif message.error is not None:
                    failed[job.name] = message.error
                elif message.kind == "lost":
                    losses[job.name] += 1
                    if losses[job.name] <= retries:
                        waiting.appendleft(job)
                    else:
                        failed[job.name] = _lost(losses[job.name], message.reason)


def _lost(times: int, reason: str) -> EngineError:
    often = "a worker" if times == 1 else f"{times} workers, one after the other,"
    return EngineError(
        f"{often} ended at work on it ({reason}); was it killed, or out of memory? Run the same command again, with "
        "fewer workers"
    )


def _name_failed(failed: dict[str, BaseException], n_jobs: int) -> BaseException:
    """What is to be raised: the first error, which says of which job it is, and which others failed."""
    (name, error), *others = failed.items()
    said = name_fault(error)
    if said is None:  # A fault of ours, which keeps its traceback.
        error.add_note(f"in the job {name}")
        return error
    also = [other for other, _ in others]
    more = f"; {len(also)} more failed ({', '.join(also[:_NAMED])}{', ...' if also[_NAMED:] else ''})" if also else ""
    rest = f"; the other {n_jobs - len(failed)} are done and kept" if n_jobs > len(failed) else ""
    kind = type(error) if isinstance(error, IvlensError) else EngineError
    found = kind(f"{name}: {said}{more}{rest}")
    found.__cause__ = error
    return found
