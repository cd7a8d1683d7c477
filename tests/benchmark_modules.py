"""The scripts of `benchmarks`, for tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    """A script as a module, in whose place its own imports are found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module(name)
