"""What does the one that hands out jobs hold and cost? Played on a clock of its own: python benchmarks/many_jobs.py

The loop, the packing and the writing are those of `ivlens study --engine ray`; workers and their time are played. By
default 1,000 cells of a base model and three stages on 100 workers, where every 200th piece costs a worker its life.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ivlens.engine.job import Job, Message, Work
from ivlens.engine.packed_files import pack_files, unpack_files, write_files
from ivlens.engine.run_jobs import hand_out

SECONDS = (90.0, 120.0, 150.0)
"""That pieces take, in turn."""


class Played:
    """Workers that take time on a clock that nobody waits for."""

    def __init__(self, number: int, every: int) -> None:
        self._number, self._every = number, every
        self._pieces: dict[int, Iterator[bytes]] = {}
        self._due: list[tuple[float, int]] = []
        self._takes = itertools.cycle(SECONDS)
        self.begun = self.given = self.lost = self.most = 0
        self.now = self.worked = 0.0

    @property
    def has_room(self) -> bool:
        return len(self._pieces) < self._number

    def begin(self, work: Work) -> int:
        self.begun += 1
        self._pieces[self.begun] = work()
        self.most = max(self.most, len(self._pieces))
        self._take_time(self.begun)
        return self.begun

    def wait(self) -> Iterator[tuple[int, Message]]:
        self.now, worker = heapq.heappop(self._due)
        content = next(self._pieces[worker], None)
        self.given += content is not None
        lost = content is not None and self.given % self._every == 0
        self.lost += lost
        if content is None or lost:
            del self._pieces[worker]
            yield worker, Message("lost", reason="played") if lost else Message("done")
        else:
            self._take_time(worker)
            yield worker, Message("piece", content)

    def close(self) -> None:
        self._due.clear()

    def _take_time(self, worker: int) -> None:
        seconds = next(self._takes)
        self.worked += seconds
        heapq.heappush(self._due, (self.now + seconds, worker))


class Outcome(NamedTuple):
    """What a play came to."""

    hours: float
    """On the clock of the play."""
    busy: float
    """Share of the time of all workers."""
    tries: int
    lost: int
    most: int
    """Workers at once."""
    seconds: float
    """Of this process, writing included."""
    memory: int
    """Bytes at the peak above those at the beginning."""
    files: int


def play(jobs: int, workers: int, pieces: int, size: int, every: int, folder: Path) -> Outcome:
    """Hand out so many jobs; every piece is packed, unpacked and written."""

    def work(done: int) -> Iterator[bytes]:
        for number in range(done, pieces):
            place = folder / "away" / str(number)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(bytes(size))
            yield pack_files(folder / "away", [str(number)])

    def begin(name: str) -> Work:
        kept = len(list((folder / name).glob("*"))) if (folder / name).is_dir() else 0
        return partial(work, kept)

    played, failed = Played(workers, every), dict[str, BaseException]()
    handed = [Job(name=f"cell-{number}", begin=partial(begin, f"cell-{number}")) for number in range(jobs)]
    tracemalloc.start()
    before, begun = tracemalloc.get_traced_memory()[0], time.process_time()
    for piece in hand_out(handed, played, 2, failed):
        write_files(folder / piece.job.name, unpack_files(piece.content))
    seconds, memory = time.process_time() - begun, tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    if failed:
        raise next(iter(failed.values()))
    busy = played.worked / (played.now * min(workers, jobs))
    files = sum(1 for _ in folder.glob("cell-*/*"))
    return Outcome(played.now / 3600, busy, played.begun, played.lost, played.most, seconds, memory, files)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    for name, default in {"jobs": 1000, "workers": 100, "pieces": 4, "size": 50_000, "every": 200}.items():
        options.add_argument(f"--{name}", type=int, default=default)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = play(**vars(asked), folder=Path(place))
    print(
        f"{asked.jobs:,} jobs of {asked.pieces} pieces of {asked.size:,} bytes on {found.most} workers: "
        f"{found.hours:.2f} h on the clock of the play, workers busy {found.busy:.0%} of it; {found.lost} were lost, "
        f"{found.tries:,} tries in all. Here {found.seconds:.1f} s of processor time "
        f"({1000 * found.seconds / found.files:.1f} ms a piece), {found.memory / 1e6:.1f} MB at the peak, "
        f"{found.files:,} files."
    )


if __name__ == "__main__":
    main()
