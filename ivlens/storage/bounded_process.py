"""How is somebody else's program, an expression or a tokenizer, run within bounds of time and memory?

In a process of its own: neither can be taken back from one that multiplies outside of Python. A module asks itself:
`ask_bounded` starts `python -m` of it with a question, and there `answer_bounded` answers it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 3
"""Of processor time, for one question; usual ones take milliseconds."""
_PATIENCE = 20
"""As many times as long is waited for it, on a machine that has much else to do."""
MEMORY = 2**29
"""Bytes above what the process has when it begins, where the system can bound them (Linux)."""


def command(module: str) -> dict[str, Any]:
    """What `subprocess` starts a module of ours with, as it is imported here."""
    return {
        "args": [sys.executable, "-P", "-m", module],
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    }


def ask_bounded(module: str, asked: Any, *, memory: int = MEMORY, seconds: int = SECONDS) -> Any:
    """What a module answers to something that JSON can hold; None where it takes more time or memory than it may."""
    question = json.dumps({"asked": asked, "memory": memory, "seconds": seconds}).encode()
    try:
        done = subprocess.run(**command(module), input=question, timeout=_PATIENCE * seconds, check=False)
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout) if done.returncode == 0 else None


def answer_bounded(answer: Callable[[Any], Any]) -> None:
    """Answer what `ask_bounded` asked."""
    question = json.loads(sys.stdin.buffer.read())
    bound_memory(question["memory"])
    bound_time(question["seconds"])
    sys.stdout.write(json.dumps(answer(question["asked"])))


def bound_time(seconds: int) -> None:
    """Have the system end this process after so many more seconds of processor time."""
    if sys.platform != "win32":
        import resource

        most = int(time.process_time()) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))


def bound_memory(more: int) -> None:
    """Refuse this process more memory than so many bytes above what it has."""
    if sys.platform == "linux":
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = now + more if most == resource.RLIM_INFINITY else min(now + more, most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
