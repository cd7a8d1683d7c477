"""Workers that are actors of a Ray cluster: one job at a time each, one piece at a time from each to here.

Nothing is kept on the cluster: jobs are sent from here, and what they give comes back as bytes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ivlens.engine.job import Message, Work
from ivlens.engine.options import Engine
from ivlens.engine.ray_address import QUIET, check_address, no_cluster
from ivlens.engine.worker import make_portable, next_message
from ivlens.errors import EngineError
from ivlens.storage.run_record import versions


class Worker:
    """What an actor does; a process of its own, on some machine of the cluster."""

    def __init__(self, threads: int, wanted: dict[str, str]) -> None:
        self._threads, self._wanted = threads, wanted
        self._pieces: Iterator[bytes] = iter(())

    def begin(self, work: Work) -> Message:
        """The first piece of a job."""
        if versions() != self._wanted:
            import platform

            return Message("raised", error=EngineError(_other_versions(platform.node(), versions(), self._wanted)))
        self._pieces = work()
        return self.go_on()

    def go_on(self) -> Message:
        """The next piece."""
        return make_portable(next_message(self._pieces, self._threads))


def _other_versions(machine: str, there: dict[str, str], here: dict[str, str]) -> str:
    """Half the numbers from one version and half from another are of neither."""
    wrong = [f"{name} {there[name]} is there, {here[name]} here" for name in here if there[name] != here[name]]
    return f"{machine} has other versions ({'; '.join(wrong)}); install the same ones on all machines"


class RayWorkers:
    """As many actors as are asked for, or as the cluster has room for."""

    def __init__(self, ray: Any, engine: Engine, threads: int, n_jobs: int) -> None:
        self._ray, self._threads = ray, threads
        self._needs = {"num_cpus": engine.cpus or threads} | ({"num_gpus": engine.gpus} if engine.gpus else {})
        self._number = min(engine.workers or self._count_room(), n_jobs)
        self._idle: list[Any] = []
        self._busy: dict[Any, Any] = {}

    @property
    def has_room(self) -> bool:
        return len(self._busy) < self._number

    def begin(self, work: Work) -> Any:
        """Hand out a job, to an actor that is idle or new."""
        worker = self._idle.pop() if self._idle else self._start()
        self._busy[worker.begin.remote(work)] = worker
        return worker

    def wait(self) -> Iterator[tuple[Any, Message]]:
        """What one worker says, within a second."""
        self._dismiss()  # No job is left for them: somebody who waits for a place may have theirs.
        for asked in self._ray.wait(list(self._busy), timeout=1)[0]:
            worker, message = self._busy.pop(asked), self._get(asked)
            if message.kind == "piece":  # It goes on while this one is written down.
                self._busy[worker.go_on.remote()] = worker
            elif message.kind == "lost":
                self._number = min(self._number, self._count_room())
            else:
                self._idle.append(worker)
            yield worker, message

    def close(self) -> None:
        """End all of them."""
        with suppress(ConnectionError):  # Then Ray ends them itself.
            for worker in self._busy.values():
                self._ray.kill(worker)
            if ending := self._dismiss():
                self._ray.wait(ending, num_returns=len(ending), timeout=10)

    def _dismiss(self) -> list[Any]:
        """Have idle actors end, and tidy up behind themselves: a killed one leaves its temporary folder."""
        workers, self._idle = self._idle, []
        return [worker.__ray_terminate__.remote() for worker in workers]

    def _start(self) -> Any:
        self._count_room()  # Where no machine is left that it fits on, it would be waited for without end.
        actor = self._ray.remote(Worker).options(max_restarts=0, scheduling_strategy="SPREAD", **self._needs)
        return actor.remote(self._threads, versions())

    def _count_room(self) -> int:
        """How many workers the machines that are there can hold, were nobody else at work on them."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = {"CPU": self._needs["num_cpus"], "GPU": self._needs.get("num_gpus", 0)}
        fitting = [min(int(one.get(kind, 0) // n) for kind, n in needs.items() if n) for one in machines]
        if not sum(fitting):
            wanted = " and ".join(f"{n} {kind}s" for kind, n in needs.items() if n)
            had = "; ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines[:5])
            raise EngineError(
                f"a job needs {wanted} of one machine, and none of the cluster has them ({had or 'no machine'}); ask "
                "for fewer --cpus or --gpus"
            )
        return sum(fitting)

    def _get(self, asked: Any) -> Message:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(asked)
        except exceptions.RayTaskError as error:  # What the job was sent as could not be read.
            return Message("raised", error=EngineError(f"a worker cannot begin it: {_last_line(error)}"))
        except exceptions.RayError as error:
            return Message("lost", reason=_last_line(error))
        except ConnectionError as error:
            raise EngineError(
                f"the connection to the Ray cluster is lost ({_last_line(error)}); what came back is kept: run the "
                "same command again"
            ) from error


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]


def find_cluster(engine: Engine) -> Any:
    """Ray, when a cluster has answered at the address.

    Raises:
        EngineError: Ray is not installed, or nobody answers.
    """
    try:
        import ray
    except ImportError as error:
        raise EngineError("engine is 'ray', but Ray is not installed; pip install 'ivlens[ray]'") from error
    if not ray.is_initialized():
        check_address(engine)
    return ray


@contextmanager
def connected(engine: Engine, threads: int, n_jobs: int) -> Iterator[RayWorkers]:
    """Workers on the cluster at an address; a connection that the caller has is used, and stays.

    Raises:
        EngineError: as `find_cluster`, or no machine has what a job needs.
    """
    ray = find_cluster(engine)
    if ray.is_initialized():
        yield RayWorkers(ray, engine, threads, n_jobs)
        return
    ending = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=engine.address, **QUIET)
    except (RuntimeError, OSError, ValueError) as error:  # It was there a moment ago.
        raise no_cluster(engine, _last_line(error)) from error
    if ending is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ending)  # Ray's own handler aborts the process.
    try:
        yield RayWorkers(ray, engine, threads, n_jobs)
    finally:
        ray.shutdown()
