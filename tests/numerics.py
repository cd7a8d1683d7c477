"""The numeric tests on other kernels than this machine's own: `make test-numerics`.

Another processor is another set of kernels, which round otherwise. PyTorch and oneDNN take narrower ones than the
processor has when they are told to, so that a wide machine shows what happens on older ones. Every value of every
setting is tried, not all of their product; what this machine does by itself in one thread is what `make test` shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
AT_ONCE = 2


class Kernels(NamedTuple):
    """What is set in the environment; None: what the library chooses by itself."""

    aten: str | None
    onednn: str | None
    threads: int

    def environment(self) -> dict[str, str]:
        chosen = {"ATEN_CPU_CAPABILITY": self.aten, "ONEDNN_MAX_CPU_ISA": self.onednn}
        usual = {name: value for name, value in os.environ.items() if name not in chosen}
        # Threads that wait sleep: there are more of them than cores.
        threads = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "passive"}
        return usual | threads | {name: v for name, v in chosen.items() if v is not None}

    def __str__(self) -> str:
        return f"kernels {self.aten or 'own'}, oneDNN {self.onednn or 'own'}, threads {self.threads}"


TRIED = (
    Kernels("default", "SSE41", 1),
    Kernels("default", None, 2),
    Kernels("avx2", None, 4),
    Kernels("avx2", "SSE41", 1),
    Kernels("avx512", "SSE41", 2),
    Kernels(None, None, 4),
)


def run_tests(kernels: Kernels) -> tuple[int, str]:
    """Exit status of pytest and what it said."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        options = ["-q", "--no-header", "-p", "no:cacheprovider", f"--basetemp={temporary}/pytest", *sys.argv[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "tests", "-m", "numeric and not command", *options],
            env=kernels.environment(),
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    said = (done.stdout + done.stderr).strip()
    return done.returncode, f"{said}\n{kernels}: {time.monotonic() - started:.0f} s\n"


def main() -> int:
    own = torch.backends.cpu.get_cpu_capability()
    tried = [kernels for kernels in TRIED if own == "AVX512" or kernels.aten != "avx512"]
    print(f"{len(tried)} sets of kernels on a processor whose own are {own}", flush=True)
    failed = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for kernels, (status, said) in zip(tried, pool.map(run_tests, tried), strict=True):
            print(said, flush=True)
            failed += [kernels] if status else []
    print("\n".join(f"failed: {kernels}" for kernels in failed) or "green on all of them")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
