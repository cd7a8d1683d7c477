"""Jobs give the same pieces wherever they run, and none suffers for another."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
import tried_jobs
from tried_jobs import job

from ivlens.engine.job import Job
from ivlens.engine.options import Engine
from ivlens.engine.run_jobs import count_workers, run_jobs
from ivlens.errors import EngineError, TrainingError

LOCAL = Engine()
kills = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")


def pieces_of(jobs: Sequence[Job], workers: int, *, engine: Engine = LOCAL, threads: int = 1) -> dict[str, list[bytes]]:
    """By job, in their order."""
    found: dict[str, list[bytes]] = {one.name: [] for one in jobs}
    for piece in run_jobs(jobs, engine, workers=workers, threads=threads):
        assert piece.number == len(found[piece.job.name])
        found[piece.job.name].append(piece.content)
    return found


@pytest.mark.slow
@pytest.mark.numeric
def test_processes_give_the_bits_of_this_process_with_the_same_number_of_threads() -> None:
    jobs = [job(str(seed), tried_jobs.multiply, seed) for seed in range(3)]
    before = torch.get_num_threads()
    for threads in (1, 2):
        here = pieces_of(jobs, 1, threads=threads)
        assert {content[1] for content in here.values()} == {str(threads).encode()}
        assert len({content[0] for content in here.values()}) == 3
        assert pieces_of(jobs, 2, threads=threads) == here
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_raises_is_named_and_the_others_are_done(workers: int, tmp_path: Path) -> None:
    jobs = [
        job("bad", tried_jobs.diverge, 2),
        job("good", tried_jobs.mark, tmp_path, "good"),
        job("worse", tried_jobs.diverge, 3),
        job("last", tried_jobs.mark, tmp_path, "last"),
    ]
    said = "^bad: the loss of stage 2 is not finite; 1 more failed .worse.; the other 2 are done and kept$"
    with pytest.raises(TrainingError, match=said):
        pieces_of(jobs, workers)
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"good", "last"}


@pytest.mark.slow
def test_an_error_that_no_other_process_can_read_is_said_all_the_same() -> None:
    with pytest.raises(RuntimeError, match=r"break_oddly[^$]*Odd: a fault of ours") as raised:
        pieces_of([job("odd", tried_jobs.break_oddly), job("good", tried_jobs.count, 2)], 2)
    assert "in the job odd" in raised.value.__notes__


@kills
@pytest.mark.slow
def test_a_lost_worker_costs_its_job_one_retry_and_the_others_nothing(tmp_path: Path) -> None:
    names = [f"mark {number}" for number in range(4)]
    jobs = [job("killed", tried_jobs.end_once, tmp_path)]
    jobs += [job(name, tried_jobs.mark, tmp_path, name) for name in names]
    found: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for piece in run_jobs(jobs, LOCAL, workers=2, threads=1):
        found[piece.job.name].append((piece.number, piece.content))
    assert found.pop("killed") == [(0, b"first"), (0, b"first"), (1, b"second")]
    assert found == {name: [(0, name.encode())] for name in names}
    begun = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    assert sorted(begun) == sorted([*names, "killed", "killed"])


@kills
@pytest.mark.slow
def test_a_job_whose_workers_are_always_lost_is_given_up_and_named() -> None:
    jobs = [job("deadly", tried_jobs.end_always), job("good", tried_jobs.count, 2)]
    said = r"^deadly: 2 workers, one after the other, ended at work on it \(its process ended with status -9\); was it"
    with pytest.raises(EngineError, match=said):
        list(run_jobs(jobs, Engine(retries=1), workers=2, threads=1))


@pytest.mark.slow
def test_workers_end_when_the_one_that_asked_stops_asking(tmp_path: Path) -> None:
    jobs = [job(str(number), tried_jobs.wait_for_ever, tmp_path) for number in range(2)]
    with pytest.raises(KeyboardInterrupt), closing(run_jobs(jobs, LOCAL, workers=2, threads=1)) as pieces:
        assert [next(pieces).content for _ in jobs] == [b"begun", b"begun"]
        workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("waiting-*")]
        assert len(set(workers) - {os.getpid()}) == 2 and all(map(psutil.pid_exists, workers))
        raise KeyboardInterrupt
    assert not any(map(psutil.pid_exists, workers))


@pytest.mark.slow
def test_a_thousand_jobs_keep_a_hundred_workers_busy_and_losses_cost_what_was_lost(tmp_path: Path) -> None:
    """What the documents tell of 1,000 cells is played by the real loop; here with less to write."""
    path = Path(__file__).parents[2] / "benchmarks" / "many_jobs.py"
    many_jobs: Any = ModuleType(path.stem)
    exec(compile(path.read_text(), path, "exec"), vars(many_jobs))
    found = many_jobs.play(1000, 100, 1, 10, 25, tmp_path)
    assert found.files == 1000 and found.most == 100
    assert found.lost == 1000 // 24 and found.tries == 1000 + found.lost
    assert found.busy > 0.9 and found.memory < 10e6


@pytest.mark.parametrize(
    ("asked", "jobs", "usual", "found"), [(None, 9, 4, 4), (8, 9, 4, 8), (8, 3, 4, 3), (1, 0, 4, 1)]
)
def test_there_are_no_more_workers_than_jobs(asked: int | None, jobs: int, usual: int, found: int) -> None:
    assert count_workers(Engine(workers=asked), jobs, usual) == found
