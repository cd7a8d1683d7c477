"""How do files come back from a worker, so that no disk need be shared?

As one archive of bytes, each file as it is. It is written by our own workers, and read as if it were not: names that
lead elsewhere, links and anything compressed are refused.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ivlens.errors import EngineError
from ivlens.storage.atomic_files import OURS, write_whole

MOST_FILES = 10_000
"""In one archive."""
_PART = re.compile(r"[A-Za-z0-9+_-][A-Za-z0-9+._-]{0,199}")
"""What a part of a name may be: neither hidden, nor `..`, nor a drive, nor ours."""


def pack_files(folder: Path, names: Iterable[str]) -> bytes:
    """Files of a folder, by their names in it, in this order. The same files make the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())
    return packed.getvalue()


def unpack_files(content: bytes, *, below: str = "") -> dict[str, bytes]:
    """What `pack_files` made, in its order; nothing is written.

    Args:
        below: What every name must begin with.

    Raises:
        EngineError: it is none, or a name, a link or a size in it is not what `pack_files` makes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if len(infos) > MOST_FILES:
                raise EngineError(f"a worker sent {len(infos):,} files at once; {MOST_FILES:,} are the most")
            for info in infos:
                _check(info, below)
            if sum(max(info.file_size, info.compress_size) for info in infos) > len(content):  # Or one is read often.
                raise EngineError("a worker sent files that are larger than what it sent; run the same command again")
            if len({info.filename for info in infos}) < len(infos):
                raise EngineError("a worker sent a file twice; run the same command again")
            return {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise EngineError(f"what a worker sent is no archive of files ({error}); run the same command again") from error


def _check(info: zipfile.ZipInfo, below: str) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    parts = info.filename.split("/")
    ours = any(part.startswith(OURS) for part in parts)
    if ours or not all(map(_PART.fullmatch, parts)) or not info.filename.startswith(below):
        raise EngineError(f"a worker sent a file called {info.filename[:80]!r}, which may not be written here")
    if kind not in (0, stat.S_IFREG) or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise EngineError(f"a worker sent {info.filename[:80]!r}, which is no plain file as it is")


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write every file whole, in their order: what says that the others are there comes last."""
    for name, content in files.items():
        write_whole(folder / name, content)
