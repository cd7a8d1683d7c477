"""Every place where a path, a plan or bytes come in takes them, or refuses them in a line; and the trial would tell."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hostile_inputs
import mutated_runs
import pytest
from hostile_inputs import Input, attempt

from ivlens.errors import IvlensError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="pipes, devices, limits and users are others there"),
]
EVERY = 1 if os.environ.get("IVLENS_FUZZ") else 40


@pytest.mark.long
@pytest.mark.command
def test_no_input_of_bad_faith_breaks_a_promise() -> None:
    command = [sys.executable, hostile_inputs.__file__, "--every", str(EVERY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert '"refused"' in done.stdout and '"broken"' not in done.stdout


def _refuse() -> None:
    raise IvlensError("x" * 400)


def _write_beside() -> None:
    Path("../outside/kept").write_text("changed")


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (list, "read"),
        (_refuse, "refused"),
        (os.abort, "status -6"),
        (lambda: {}["a"], "KeyError: 'a'"),
        (lambda: print("\x1b[31m"), "on the terminal"),
        (_write_beside, "wrote outside"),
        (lambda: Path("../new").touch(), "wrote beside its folder"),
        (lambda: bytearray(2**31), "MemoryError"),
        (lambda: [0 for _ in iter(int, 1)], "more than 1 s"),
        (lambda: time.sleep(60), "took more than 15 s"),
    ],
)
def test_what_should_not_happen_is_told(
    read: Callable[[], object], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile_inputs, "SECONDS", 1.0)
    monkeypatch.setattr(hostile_inputs, "PATIENCE", 15.0)
    assert outcome in attempt(Input("one", lambda _: read), tmp_path)


@pytest.mark.long
def test_a_turn_that_ends_its_process_is_counted_and_the_next_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {"draws": os.abort, "effects": lambda: time.sleep(60)}

    def read(folder: Path, name: str, **_: object) -> None:
        if (folder / name).read_bytes() == b"changed" and name.partition(".")[0] in turns:
            turns[name.partition(".")[0]]()

    monkeypatch.setattr(mutated_runs, "use", read)
    monkeypatch.setattr(mutated_runs, "change_values", lambda *_: b"changed")
    monkeypatch.setattr(mutated_runs, "PATIENCE", 10.0)
    found = mutated_runs.run_batch("values", "audit", 40, 1)
    assert found["tried"] == 40 and found["aborted"] == len(found["faults"]) >= 2
    assert found["read"] + found["aborted"] == 40, found["faults"]
    assert all("ended its process, or had to be ended" in fault for fault in found["faults"])


def test_batches_that_are_kept_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutated_runs, "use", lambda *_, **__: None)
    monkeypatch.setitem(mutated_runs.BATCH, "values", 2)
    kept = tmp_path / "counts"
    first = list(mutated_runs.fuzz("values", 6, 1, ("audit", "study"), kept))
    monkeypatch.setattr(mutated_runs, "run_batch", lambda *asked: {"asked": asked, "tried": 0, "faults": []})
    assert list(mutated_runs.fuzz("values", 6, 1, ("audit", "study"), kept)) == first
    assert list(mutated_runs.fuzz("values", 1, 2, ("audit",), kept)) == [first[2]]
    (new,) = mutated_runs.fuzz("values", 1, 3, ("audit",), kept)
    assert new["asked"] == ("values", "audit", 1, 3)
    assert mutated_runs.total(first)["tried"] == 6 and mutated_runs.total(first)["read"] == 6
