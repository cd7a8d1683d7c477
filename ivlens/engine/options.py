"""Where do the jobs of a study or a matrix run, how many at a time, and with what?"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from ivlens.errors import IvlensError
from ivlens.patching.settings import check_options, document_options, option

Place = Literal["local", "ray"]
AUTO = "auto"


class EngineOptions(TypedDict, total=False):
    """The fields of `Engine`, for functions that take them one by one."""

    engine: Place
    address: str
    workers: int | None
    cpus: int | None
    gpus: int
    retries: int


@document_options
@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where jobs run. It decides how long they take, never their numbers, and is in no record.

    Raises:
        IvlensError: a number below its least, an address that is none, or options of a cluster without one.
    """

    engine: Place = field(
        default="local",
        metadata=option("Where jobs run: on this machine, or on a Ray cluster that is there.", choices=Place),
    )
    address: str = field(
        default=AUTO,
        metadata=option(
            "Of the Ray cluster: auto (the one that this machine is part of), HOST:PORT, or ray://HOST:PORT.",
            metavar="[ray://]HOST:PORT",
            typed=AUTO,
        ),
    )
    workers: int | None = field(
        default=None,
        metadata=option(
            "Jobs side by side; one a core on the CPU, one on a GPU, and on a cluster as many as it has room for.",
            least=1,
        ),
    )
    cpus: int | None = field(
        default=None,
        metadata=option("CPUs that a job reserves on the cluster; as many as it has threads.", least=1),
    )
    gpus: int = field(default=0, metadata=option("GPUs that a job reserves on the cluster.", least=0))
    retries: int = field(
        default=2, metadata=option("How often a job is begun again whose worker or machine was lost.", least=0)
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not isinstance(self.address, str) or not (self.address == AUTO or _parts(self.address)):
            raise IvlensError(f"address is {self.address!r}; give auto, HOST:PORT or ray://HOST:PORT")
        asked = [name for name in ("address", "cpus", "gpus") if getattr(self, name) != getattr(type(self), name)]
        if self.engine == "local" and asked:
            raise IvlensError(f"{' and '.join(asked)} say what of a Ray cluster is used; give engine ray, too")

    @property
    def host(self) -> tuple[str, int] | None:
        """Where the address leads; None where Ray is to find it."""
        return None if self.address == AUTO else _parts(self.address)


def _parts(address: str) -> tuple[str, int] | None:
    found = re.fullmatch(r"(?:ray://)?(?:\[([0-9A-Fa-f:]{2,45})\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[3]) < 2**16:
        return None
    return found[1] or found[2], int(found[3])
