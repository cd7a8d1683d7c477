"""What signals do to commands: `interruptions.py`, in a process that nothing was trained in before.

It copies itself for every command, and a copy of a process that has had a backward pass cannot have another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.command
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and processes are others there")
@pytest.mark.parametrize("name", ["audit", "compare", "universal", "experiment", "study", "study of two workers"])
def test_signals_at_any_moment_change_no_number(name: str) -> None:
    test = f"{Path(__file__).with_name('interruptions.py')}::test_signals_at_any_moment_change_no_number[{name}]"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", test]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-5000:] + done.stderr[-1000:]
