"""Jobs that tests hand out: functions of a module, which other processes import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ivlens.engine.job import Job, Work
from ivlens.errors import TrainingError


def job(name: str, work: Any, *given: Any) -> Job:
    def begin() -> Work:
        return partial(work, *given)

    return Job(name=name, begin=begin)


def count(n: int) -> Iterator[bytes]:
    for number in range(n):
        yield f"{number} of {n}".encode()


def multiply(seed: int) -> Iterator[bytes]:
    """Sums that differ in their last bits from one number of threads to another, and that number."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(700, 700, generator=generator) for _ in range(2))
    yield (one @ other).softmax(-1).sum(0).numpy().tobytes()
    yield str(torch.get_num_threads()).encode()


def diverge(stage: int) -> Iterator[bytes]:
    yield b"before"
    raise TrainingError(f"the loss of stage {stage} is not finite")


class Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def break_oddly() -> Iterator[bytes]:
    yield from ()
    raise Odd("a fault", "of ours")


def leave_a_mark(folder: Path, name: str) -> None:
    (folder / f"{name}-{os.getpid()}-{time.monotonic_ns()}").touch()


def end_once(folder: Path) -> Iterator[bytes]:
    """Is killed behind its first piece, the first time."""
    again = any(folder.glob("killed-*"))
    leave_a_mark(folder, "killed")
    yield b"first"
    if not again:
        os.kill(os.getpid(), signal.SIGKILL)
    yield b"second"


def end_always() -> Iterator[bytes]:
    yield b"first"
    os.kill(os.getpid(), signal.SIGKILL)


def mark(folder: Path, name: str) -> Iterator[bytes]:
    leave_a_mark(folder, name)
    yield name.encode()


def wait_for_ever(folder: Path) -> Iterator[bytes]:
    leave_a_mark(folder, "waiting")
    yield b"begun"
    time.sleep(600)


def wait_for_sign(folder: Path, name: str) -> Iterator[bytes]:
    """Says on which machine of a cluster it is, and goes on when it is told to."""
    import ray

    leave_a_mark(folder, name)
    yield ray.get_runtime_context().get_node_id().encode()
    while not (folder / "go on").exists():
        time.sleep(0.05)
    yield name.encode()
