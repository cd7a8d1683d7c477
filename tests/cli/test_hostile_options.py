"""Whatever is typed, and whatever the machine does: a command goes on, or says why not in one line of 500 characters.

All values for every option with `make fuzz`, or with the environment variable IVLENS_FUZZ; else some of them.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import ivlens
from ivlens.cli.app import app, main
from ivlens.errors import LONGEST, IvlensError, as_ivlens_error, shorten

pytestmark = pytest.mark.slow

HALF = "\ud800"
HOSTILE = (
    *(
        "",
        " ",
        "x",
        ",",
        "=",
        "::",
        "-1",
        "0",
        "1e999",
        "nan",
        "None",
        "\x00",
        "a\x00b",
        "\x1b[31m",
        "\u202ex",
        "\u0663",
    ),
    *(
        "~nobody/x",
        "/dev/full",
        "/dev/zero",
        "../" * 50,
        "x" * 100_000,
        "\u00e9" * 3000,
        "[" * 100_000,
        "\U000e0001" * 600,
    ),
    *("9" * 30, "9" * 5000, f"{'9' * 5000}GiB", f"1.{'9' * 5000}GiB", f"L{'9' * 5000}H1", f"L9H{'9' * 5000}"),
    *("L\u0663H\u0663", "L0H1," * 20_000, HALF, f"{HALF}=1", f"a={HALF}", f"a={'[' * 100_000}", f"a={'9' * 5000}"),
)
USUAL = {"model": "lab", "base": "lab", "tuned": "lab", "task": "antonym", "name": "lab-func", "tasks": "antonym"}
COMMANDS: dict[str, Any] = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
ALL = bool(os.environ.get("IVLENS_FUZZ"))


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end where a model would be read, or a run begun."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("load", "compare", "universal_heads", "study"):
        monkeypatch.setattr(ivlens, name, stop)


def lines(command: str, out: Path) -> Iterator[list[str]]:
    """The command with each of its parameters in turn, and hostile values for that."""
    parameters, draw = COMMANDS[command].params, random.Random(command)
    usual = {**USUAL, "out": str(out / "a.json"), "source": str(out / "a.npy"), "target": str(out / "a.safetensors")}
    for one in parameters:
        if getattr(one, "is_flag", False) or one.name == "help":
            continue
        for value in HOSTILE if ALL else draw.sample(HOSTILE, 6):
            given = {
                other.name: usual.get(other.name, "x")
                for other in parameters
                if other.required or other.name == "tasks"
            } | {one.name: value}
            typed = [command]
            for other in parameters:
                if other.name in given:
                    text = given[other.name]
                    typed.append(text if other.param_type_name == "argument" else f"{max(other.opts, key=len)}={text}")
            if not (value.startswith("-") and one.param_type_name == "argument"):  # It would be an option.
                yield typed


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_typed_for_an_option_is_taken_or_refused_in_one_line(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for typed in lines(command, tmp_path):
        status = main(typed)
        said = [line for line in capsys.readouterr().err.splitlines() if "warning: " not in line]
        assert status in (0, 2, 130), typed
        assert max(map(len, said), default=0) <= LONGEST, typed
        assert status == 0 or len(said) == 1, typed


class PanicException(BaseException):
    """As the tokenizers' library gives up."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (MemoryError(), "this machine ran out of memory; give a smaller --memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "this machine ran out of"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "this machine ran out of memory"),
        (OutOfMemoryError("CUDA"), "the device ran out of memory; give a smaller --memory, or --device cpu"),
        (PanicException("over " * 1000), "the model's tokenizer gives up (over over"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot use the output: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "cannot use a.json: Permission denied"),
        (UnicodeEncodeError("utf-8", f"x{HALF}", 1, 2, "surrogates not allowed"), "has half a character in it"),
        (IvlensError("\U000e0001" * 10**6), r"\U000e0001\U000e0001"),
    ],
)
def test_what_the_machine_or_a_file_does_is_one_line_here_and_an_ivlens_error_in_python(
    fault: BaseException, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(ivlens, "task", fail)
    assert main(["audit", "lab", "--task", "antonym"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert sentence in said and len(said) <= LONGEST
    with pytest.raises(IvlensError) as raised:
        as_ivlens_error()(fail)()
    assert len(str(raised.value)) <= LONGEST


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("stage")

    monkeypatch.setattr(ivlens, "task", fail)
    with pytest.raises(KeyError, match="stage"):
        main(["audit", "lab", "--task", "antonym"])
    with pytest.raises(KeyError, match="stage"), as_ivlens_error():
        fail()


@pytest.mark.parametrize("length", [501, 502, 1500, 10**6])
def test_what_is_shortened_keeps_both_ends_and_says_its_length(length: int) -> None:
    short = shorten("a" * (length - 5) + "zzzzz")
    assert len(short) == LONGEST and short.startswith("aaa") and short.endswith("zzzzz")
    assert f" [{length:,} characters] " in short
    assert shorten("a" * 500) == "a" * 500


def run(*typed: str, **given: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ivlens.cli", *typed]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **given)


@pytest.mark.command
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
@pytest.mark.parametrize("typed", [["tasks"], ["--version"], ["--help"]])
def test_a_full_disk_behind_the_output_is_one_line(typed: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(*typed, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "ivlens: cannot use the output: No space left on device; mend that, or give another path\n"


@pytest.mark.command
@pytest.mark.parametrize("typed", [["--version"], ["tasks", "antonym"]])
def test_an_output_that_nobody_reads_is_no_mistake(typed: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        done = run(*typed, stdout=nobody)
    assert (done.returncode, done.stderr) == (141, "")
