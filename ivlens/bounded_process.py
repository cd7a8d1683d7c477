"""How is a file read, or a program run, that could take the process down with it?

In a process of its own, which may take so much time and memory for each question. A question is a line of JSON on its
input; an answer is a line of JSON, and behind it as many bytes as the line says. The process is started when it is
first needed, serves all later questions, and is started again when one of them has ended it.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Answer = tuple[dict[str, Any], bytes]


class BoundedProcess:
    """The process that a module's `serve` runs in."""

    def __init__(self, module: str, **environment: str) -> None:
        self._module, self._environment = module, environment
        self._running: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        atexit.register(self.end)

    def start(self) -> None:
        """Have it ready, so that its start is over when it is asked."""
        with self._lock:
            self._ready()

    def ask(self, asked: Mapping[str, Any], *, seconds: float, memory: int) -> Answer | None:
        """What it answers; None where it ended instead, of itself or because it took more than it may.

        Args:
            seconds: That the answer may take, once it is begun.
            memory: Bytes above what the process has when it begins, where the system can bound them (Linux).
        """
        question = json.dumps({**asked, "seconds": seconds, "memory": memory})
        with self._lock:
            process = self._ready()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(f"{question}\n".encode())
                process.stdin.flush()
                line = process.stdout.readline()
                answer = json.loads(line) if line.endswith(b"\n") else None
                content = process.stdout.read(answer["bytes"]) if answer else b""
            except BrokenPipeError:
                answer, content = None, b""
            except BaseException:  # Stopped in between: its answer must not be taken for the next one's.
                self.end()
                raise
            if answer is None or len(content) < answer["bytes"]:
                self.end()
                return None
            return answer, content

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # A fork must not answer for, nor end, the process of another.
            self._running, self._owner = None, os.getpid()
        if self._running is not None and self._running.poll() is not None:
            self.end()
        if self._running is None:
            paths = [str(Path(__file__).parents[1]), *sys.path]
            self._running = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self._environment, "PYTHONPATH": os.pathsep.join(paths)},
            )
        return self._running

    def end(self) -> None:
        process, self._running = self._running, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()


def serve(answer: Callable[[dict[str, Any]], Answer]) -> None:
    """Answer every line of the input, within the bounds that it names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks.
    _leave_no_core()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        # A watch outside of Python ends the process, whatever it is at.
        faulthandler.dump_traceback_later(asked["seconds"], exit=True)
        _bound_memory(asked["memory"])
        try:
            said, content = answer(asked)
        except Exception as error:  # Somebody else's file or program may fail in any way.
            said, content = {"reason": (str(error).splitlines() or [type(error).__name__])[0][:200]}, b""
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.buffer.write(json.dumps({**said, "bytes": len(content)}).encode() + b"\n")
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def _leave_no_core() -> None:
    """A process that is ended by a file writes none of its own."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _bound_memory(memory: int) -> None:
    if sys.platform == "linux":
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = now + memory if most == resource.RLIM_INFINITY else min(now + memory, most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
