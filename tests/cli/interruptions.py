"""Stopped at any moment by any signal, a command goes on to the numbers of one that nobody disturbed, to the bit.

Signals are real: Ctrl-C to a whole process group, SIGTERM, SIGKILL, and the death of a worker alone. More moments with
the environment variable IVLENS_FUZZ (their number for each command). `test_interrupted.py` runs this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from small import plan_text
from transformer_lens import HookedTransformer

import ivlens
from ivlens.cli.app import main
from ivlens.engine import processes
from ivlens.forward import memory
from ivlens.models import loader, lora, peft
from ivlens.plots import export
from ivlens.training import loop

MOMENTS = int(os.environ.get("IVLENS_FUZZ", "4"))
FEW = ("--shots", "3", "--clean-prompts", "6", "--prompts", "4")


@pytest.fixture(scope="module")
def adapter_folder(lab: HookedTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, adapter = tmp_path_factory.mktemp("adapter") / "tuned", lora.fresh(lab, lora.LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B.copy_(0.02 * torch.randn(factors.B.shape, generator=torch.Generator().manual_seed(0)))
    peft.write_adapter(adapter, folder, lab)
    return folder


@pytest.fixture
def commands(adapter_folder: Path, tmp_path: Path) -> dict[str, list[str]]:
    plan = tmp_path / "mine.toml"
    plan.write_text(plan_text("class-letter"))
    short = [*FEW, "--queries", "6", "--draws", "1"]
    return {
        "audit": ["audit", "lab", "--task", "antonym", *short, "--other-tasks", "1", "--score", "contains"],
        "compare": ["compare", "lab", str(adapter_folder), "--task", "antonym", *short],
        "universal": ["universal", "lab", "--tasks", "antonym,country-capital,english-french", *FEW],
        "experiment": ["experiment", "latents", "lab", *FEW, "--queries", "4", "--draws", "2", "--top", "3"],
        "study": ["study", str(plan), "--workers", "1"],
        "study of two workers": ["study", str(plan), "--workers", "2"],
    }


def begin(arguments: list[str], lab: HookedTransformer, log: Path) -> int:
    """A command in a process group that it leads: a copy of this process, which has imported everything."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        status = _run_quickly(arguments, lab)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _run_quickly(arguments: list[str], lab: HookedTransformer) -> int:
    """Without loading a model, importing anything anew or drawing; batches are small, and checkpoints many."""
    loader.load = ivlens.load = lambda *_, **__: lab
    spawn = processes.multiprocessing.get_context
    processes.multiprocessing.get_context = lambda _: spawn("fork")
    export.export = lambda *_, **__: export.Exported((), None)
    memory.WORK, loop.SECONDS = 10**8, 0.02
    return main(arguments)


def end(pid: int) -> int:
    """How it ended, when all of its group has."""
    _, status = os.waitpid(pid, 0)
    deadline = time.monotonic() + 60
    while members(pid):
        assert time.monotonic() < deadline, "somebody of its group would work on"
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(status)


def members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def interrupt(pid: int, draw: np.random.Generator) -> None:
    """Send a signal, to a process, to its group or to a worker of its."""
    workers = [process for process in members(pid) if process.pid != pid]
    kinds: list[Callable[[], object]] = [
        lambda: os.killpg(pid, signal.SIGINT),
        lambda: os.killpg(pid, signal.SIGTERM),
        lambda: os.killpg(pid, signal.SIGKILL),
        lambda: os.kill(pid, signal.SIGTERM),
        lambda: os.kill(pid, signal.SIGKILL),
    ]
    if workers:
        kinds.append(lambda: workers[draw.integers(len(workers))].kill())
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        kinds[draw.integers(len(kinds))]()


def numbers(out: Path) -> dict[str, Any]:
    """Digests of everything that a command has written, and nothing beside it."""
    if out.is_file():
        assert not out.with_name(f"{out.name}.parts").exists()
        return {"heads": out.read_bytes()}
    assert not (out / "parts").exists() and not list(out.rglob(".ivlens-tmp*")) and not list(out.rglob("*-batches"))
    return json.loads((out / "run.json").read_text())["files"]


@pytest.mark.parametrize("name", ["audit", "compare", "universal", "experiment", "study", "study of two workers"])
def test_signals_at_any_moment_change_no_number(
    name: str, commands: dict[str, list[str]], lab: HookedTransformer, tmp_path: Path
) -> None:
    draw, log, suffix = np.random.default_rng(MOMENTS), tmp_path / "log", ".json" if name == "universal" else ""

    def started(out: Path) -> int:
        return begin([*commands[name], "--out", str(out)], lab, log)

    whole, begun = tmp_path / f"whole{suffix}", time.monotonic()
    assert end(started(whole)) == 0, log.read_text()
    duration, left, wanted = time.monotonic() - begun, MOMENTS, numbers(whole)
    for out in (tmp_path / f"run-{number}{suffix}" for number in range(MOMENTS)):
        while left:
            pid, left = started(out), left - 1
            time.sleep(draw.uniform(0, duration))
            interrupt(pid, draw)
            status = end(pid)
            assert status in (0, 2, 130, -signal.SIGTERM, -signal.SIGKILL), log.read_text()
            if status == 0:  # It came too late.
                break
        assert end(started(out)) == 0, log.read_text()
        assert numbers(out) == wanted
        if not left:
            return
