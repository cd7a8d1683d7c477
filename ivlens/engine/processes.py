"""Workers that are processes of this machine.

Of our own rather than joblib's or the standard library's pool: these tell nothing of a job before it is done, take a
lost worker for the loss of all of them, and let workers write on after the one that started them is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from ivlens.engine.job import Message, Work
from ivlens.engine.worker import make_portable, next_message
from ivlens.progress import silence


class Process(NamedTuple):
    """A worker: its process, and the pipe to it."""

    process: BaseProcess
    pipe: connection.Connection[Any, Any]


class Processes:
    """So many at most, each started when it is first needed, and used again."""

    def __init__(self, number: int, threads: int) -> None:
        self._context: Any = multiprocessing.get_context("spawn")
        self._number, self._threads = number, threads
        self._idle: list[Process] = []
        self._busy: list[Process] = []

    @property
    def has_room(self) -> bool:
        return len(self._busy) < self._number

    def begin(self, work: Work) -> Process:
        """Hand out a job, to a worker that is idle or new."""
        worker = self._idle.pop() if self._idle else self._start()
        self._busy.append(worker)
        with suppress(OSError):  # It may have ended, which `wait` says.
            worker.pipe.send(work)
        return worker

    def wait(self) -> Iterator[tuple[Process, Message]]:
        """What workers say, within a second."""
        ready = set(connection.wait([end for one in self._busy for end in (one.pipe, one.process.sentinel)], timeout=1))
        for worker in [one for one in self._busy if ready & {one.pipe, one.process.sentinel}]:
            message = _receive(worker)
            if message.kind != "piece":
                self._busy.remove(worker)
            if message.kind in ("done", "raised"):
                self._idle.append(worker)
            yield worker, message

    def close(self) -> None:
        """End all of them: none is to write into a folder after this."""
        workers = self._idle + self._busy
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(10)
            worker.pipe.close()

    def _start(self) -> Process:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._threads), daemon=True)
        with _without_interrupts():  # Which workers inherit: Ctrl-C reaches the command itself, which ends them.
            process.start()
        theirs.close()
        return Process(process, ours)


def _receive(worker: Process) -> Message:
    with suppress(EOFError, OSError):
        if worker.pipe.poll():  # Also where it has ended and not everything that it said is read.
            return worker.pipe.recv()
    worker.process.join(10)
    return Message("lost", reason=f"its process ended with status {worker.process.exitcode}")


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


def _serve(pipe: connection.Connection[Any, Any], threads: int) -> None:
    """Do every job that comes, and say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Where they did not inherit it.
    silence()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            pieces = pipe.recv()()
        except EOFError:
            return
        message = Message("piece")
        while message.kind == "piece":
            message = make_portable(next_message(pieces, threads))
            pipe.send(message)


def _end_with_parent() -> None:
    """A worker whose command was killed must not write on beside the next one, nor wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
