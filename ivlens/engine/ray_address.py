"""Is there a Ray cluster at an address? Asked with a time limit, in a process that may hang or be ended by Ray.

Ray itself tries for minutes to reach what is not there, and takes its process down where somebody else answers.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

from ivlens.bounded_process import Answer, BoundedProcess, serve
from ivlens.engine.options import Engine
from ivlens.errors import EngineError, shorten

SECONDS = {"ray": 120.0, "": 30.0}
"""That a cluster may take to answer, on a busy machine too: from outside it starts a process for whoever comes. To
reach its machine, 5."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
"""How Ray is connected to."""
_MEMORY = 2**40
"""Of address space: Ray reserves much."""
_PROCESS = BoundedProcess("ivlens.engine.ray_address", RAY_USAGE_STATS_ENABLED="0")


def check_address(engine: Engine) -> None:
    """See that a cluster answers.

    Raises:
        EngineError: nobody does, or somebody else; within seconds.
    """
    if engine.host is not None:
        _reach(engine.address, *engine.host)
    seconds = SECONDS["ray" if engine.address.startswith("ray:") else ""]
    found = _PROCESS.ask({"address": engine.address}, seconds=seconds, memory=_MEMORY)
    silent = {"reason": f"no cluster answered within {seconds:g} seconds"}
    said = silent if found is None else found[0]
    _PROCESS.end()  # It holds as much memory as Ray does.
    if "reason" in said:
        raise no_cluster(engine, said["reason"])


def no_cluster(engine: Engine, reason: str) -> EngineError:
    """What is to be raised."""
    return EngineError(
        f"there is no Ray cluster to be used at {engine.address} ({shorten(reason, 200)}); start one (ray start "
        "--head), or give the --address of one that is there"
    )


def _reach(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except (OSError, UnicodeError) as error:  # A name that cannot be one of a machine.
        said = getattr(error, "strerror", None) or str(error)
        raise EngineError(
            f"nothing answers at {address} ({said}); start a Ray cluster there (ray start --head), or give the "
            "--address of one that is there"
        ) from error


def _connect(asked: dict[str, Any]) -> Answer:
    """In the bounded process."""
    import ray

    with contextlib.redirect_stdout(sys.stderr):  # Where Ray says what it likes.
        ray.init(address=asked["address"], **QUIET)
        found = len(ray.nodes())
        ray.shutdown()
    return {"machines": found}, b""


if __name__ == "__main__":
    import ray  # noqa: F401  Before the time runs.

    serve(_connect)
