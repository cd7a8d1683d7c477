"""Inputs of bad faith for every place where paths, folders, plans or bytes come in: what becomes of whoever reads them?

`python tests/hostile_inputs.py` tries all of them, each in a process that is forked off this one, and prints what is
broken; `--help` names the kinds. Every input ends with status 0, or with 2 and a line of 500 characters that says why.
Nothing is written outside of its folder, and nothing to the terminal that cannot be printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bounds import bounded

import ivlens
from ivlens.cli.app import main
from ivlens.cli.output import complain
from ivlens.errors import LONGEST, IvlensError

FORK = multiprocessing.get_context("fork")
SECONDS, PATIENCE = 20.0, 120.0
"""Of processor time, with the work of a command; and on the clock of a busy machine."""
STOPPED = 130
"""Where a model would be read: what came before it took the input."""


@dataclass(frozen=True)
class Input:
    """One that is tried."""

    name: str
    make: Callable[[Path], Sequence[str] | Callable[[], object]]
    """Write it into a folder, which is the working folder then; gives a command line, or what reads it."""


def attempt(one: Input, place: Path) -> str:
    """`read`, `refused`, `stopped`, or what should not have happened."""
    here = place / "here"
    place.chmod(0o755)
    for folder in (here, place / "outside"):
        folder.mkdir()
    (place / "outside" / "kept").write_text("as it was")
    process = FORK.Process(target=_child, args=(one, here, place / "out", place / "err"))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        return f"took more than {PATIENCE:g} s"
    return _judge(process.exitcode, place)


def _child(one: Input, here: Path, out: Path, err: Path) -> None:
    status = 1
    faulthandler.disable()  # What pytest would print of an abort is said by the status.
    try:
        os.chdir(here)
        for path, stream in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        called = one.make(Path())
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", errors="replace") for stream in (1, 2))
        with bounded(SECONDS):
            status = main(called) if isinstance(called, list) else _call(called)
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _call(read: Any) -> int:
    try:
        read()
    except IvlensError as error:
        return complain(str(error))
    return 0


def _judge(status: int | None, place: Path) -> str:
    out, err = (
        (place / name).read_text(errors="replace") if (place / name).exists() else "" for name in ("out", "err")
    )
    said = [line for line in err.splitlines() if line.startswith("ivlens: ") and "warning: " not in line]
    if sorted(path.name for path in place.iterdir() if path.name not in ("out", "err")) != ["here", "outside"]:
        return "wrote beside its folder"
    if [path.name for path in (place / "outside").iterdir()] != ["kept"] or (
        place / "outside" / "kept"
    ).read_text() != "as it was":
        return "wrote outside"
    if status not in (0, 2, STOPPED):
        return f"status {status}: {' | '.join(err.strip().splitlines()[-3:])[-600:]}"
    strange = next((sign for sign in out + err if not (sign.isprintable() or sign == "\n")), None)
    if strange is not None:
        return (
            f"{strange!r} on the terminal, in {next(line for line in (out + err).split(chr(10)) if strange in line)!a}"
        )
    if max(map(len, said), default=0) > LONGEST:
        return f"a line of {max(map(len, said))} characters"
    if status == 2 and not said:
        return f"no line says why: {err[-300:]!r}"
    return {0: "read", 2: "refused"}.get(status, "stopped")


def stop_at_models() -> None:
    """Commands end where a model would be read; what is asked of the lab goes on with one that is there."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    lab = ivlens.load("lab")

    def load(name: str, *_: Any, adapter: Any = None, **__: Any) -> Any:
        return lab if str(name) == "lab" and not adapter else stop()

    ivlens.load = load
    for name in ("compare", "universal_heads", "study", "audit_many"):
        setattr(ivlens, name, stop)


def try_all(inputs: Iterator[Input] | Sequence[Input], *, shown: bool = False) -> dict[str, Any]:
    """Counts of what became of them, and what should not have."""
    counts, faults = Counter[str](), list[str]()
    for one in inputs:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            outcome = attempt(one, Path(place))
        counts[outcome if outcome in ("read", "refused", "stopped") else "broken"] += 1
        if outcome not in ("read", "refused", "stopped"):
            faults.append(f"{one.name}: {outcome}")
            if shown:
                print(faults[-1], flush=True)
    return {"tried": counts.total(), **counts, "faults": faults}


def main_of_all() -> None:
    from hostile_files import archives, task_files, tensors
    from hostile_paths import in_runs, machines, paths, warm_up
    from hostile_runs import explorers, heads, packed, plans, printed, universals

    files = (task_files, tensors, archives, heads, universals)
    kinds = {one.__name__: one for one in (*files, explorers, printed, packed, plans, machines, in_runs, paths)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=list(kinds), help=", ".join(kinds))
    parser.add_argument("--every", type=int, default=1, help="one in so many")
    asked = parser.parse_args()
    stop_at_models()
    warm_up()
    found = {name: try_all(islice(kinds[name](), 0, None, asked.every), shown=True) for name in asked.kinds}
    print(json.dumps(found, indent=1))
    sys.exit(any("broken" in counts for counts in found.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main_of_all()
