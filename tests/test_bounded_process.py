"""What a bounded process may not take, and that it is there again for the next question."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from ivlens.bounded_process import Answer, BoundedProcess, serve

BYTES = 2**27


def answer(asked: dict[str, object]) -> tuple[dict[str, object], bytes]:
    """What the process under test does: it is this file."""
    match asked["do"]:
        case "sleep":
            time.sleep(60)
        case "abort":
            os.abort()
        case "fill":
            return {"length": len(bytearray(4 * BYTES))}, b""
        case "fail":
            raise ValueError("no such thing\nand more")
    return {"pid": os.getpid()}, b"content\n"


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> BoundedProcess:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    return BoundedProcess("test_bounded_process")


def ask(process: BoundedProcess, what: str, seconds: float = 20.0) -> Answer | None:
    return process.ask({"do": what}, seconds=seconds, memory=BYTES)


@pytest.mark.slow
def test_an_answer_and_its_bytes_come_from_one_process(process: BoundedProcess) -> None:
    first, second = ask(process, "answer"), ask(process, "answer")
    assert first == second and first is not None
    assert first[1] == b"content\n" and first[0]["pid"] != os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize(("what", "seconds"), [("abort", 20.0), ("sleep", 0.5)])
def test_what_ends_the_process_is_no_answer_and_the_next_question_has_one(
    what: str, seconds: float, process: BoundedProcess
) -> None:
    assert ask(process, what, seconds) is None
    assert ask(process, "answer") is not None


@pytest.mark.slow
def test_a_failure_is_a_reason_of_one_line(process: BoundedProcess) -> None:
    assert ask(process, "fail") == ({"reason": "no such thing", "bytes": 0}, b"")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
def test_more_memory_than_it_may_have_is_a_reason(process: BoundedProcess) -> None:
    assert ask(process, "fill") == ({"reason": "MemoryError", "bytes": 0}, b"")
    assert ask(process, "answer") is not None


@pytest.mark.slow
def test_a_process_that_ended_in_between_is_started_again(process: BoundedProcess) -> None:
    first = ask(process, "answer")
    assert process._running is not None
    process._running.kill()
    process._running.wait()
    second = ask(process, "answer")
    assert second is not None and second != first


if __name__ == "__main__":
    serve(answer)
