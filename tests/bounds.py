"""Limits of processor time and memory for what a test has read."""

from __future__ import annotations

import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS, MEMORY = 20.0, 2**30


class Stuck(BaseException):
    """No reader catches it."""


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """A limit of processor time, and of memory above what the process has."""

    def stop(*_: object) -> None:
        raise Stuck(f"more than {seconds:g} s")

    usual, before = signal.signal(signal.SIGPROF, stop), resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, usual)
