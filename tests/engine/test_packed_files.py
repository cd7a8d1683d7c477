"""What comes back from a worker is written where it belongs, or nowhere."""

from __future__ import annotations

import copy
import io
import stat
import zipfile
from pathlib import Path

import pytest
from bounds import bounded

from ivlens.engine.packed_files import pack_files, unpack_files, write_files
from ivlens.errors import EngineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cells" / "lora+iv-0").mkdir(parents=True)
    (tmp_path / "cells" / "lora+iv-0" / "stage-1.json").write_bytes(b"{}")
    (tmp_path / "table.parquet").write_bytes(bytes(range(256)) * 100)
    return tmp_path


NAMES = ["table.parquet", "cells/lora+iv-0/stage-1.json"]


def test_files_are_as_they_were_in_the_order_in_which_they_were_named(folder: Path, tmp_path: Path) -> None:
    content = pack_files(folder, NAMES)
    found = unpack_files(content)
    assert list(found) == NAMES and found == {name: (folder / name).read_bytes() for name in NAMES}
    (folder / "table.parquet").touch()
    assert pack_files(folder, NAMES) == content, "whenever they were written"
    write_files(tmp_path / "there", found)
    assert pack_files(tmp_path / "there", NAMES) == content


def archive(name: str, *, kind: int = 0, way: int = zipfile.ZIP_STORED, times: int = 1) -> bytes:
    made, info = io.BytesIO(), zipfile.ZipInfo("placeholder")
    info.filename, info.external_attr, info.compress_type = name, kind << 16, way
    with zipfile.ZipFile(made, "w") as file:
        for _ in range(times):
            file.writestr(info, b"content" * 100)
    return made.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../above", "cells/../../above", "cells/..", ".", "", "cells//a", "cells/", "C:/a", "a\\b"),
        *(".hidden", "cells/.ivlens-lock", ".ivlens-tmp-1", "a\nb", "a b", "ä", "x" * 300, "~/a"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(EngineError, match="which may not be written here"):
        unpack_files(archive(name))


def test_only_what_is_below_is_taken() -> None:
    assert list(unpack_files(archive("cells/a/b"), below="cells/a/")) == ["cells/a/b"]
    for name in ("cells/ab/c", "cells/a", "run.json"):
        with pytest.raises(EngineError, match="which may not be written here"):
            unpack_files(archive(name), below="cells/a/")


def test_links_and_compressed_files_are_refused() -> None:
    for content in (archive("a", kind=stat.S_IFLNK | 0o777), archive("a", way=zipfile.ZIP_DEFLATED)):
        with pytest.raises(EngineError, match="which is no plain file as it is"):
            unpack_files(content)


def test_files_that_are_larger_than_what_was_sent_are_refused_unread(folder: Path) -> None:
    """One that says so of itself, and many names of one content."""
    whole = pack_files(folder, NAMES)
    at = whole.rindex(b"PK\x01\x02")
    lying = bytearray(whole)
    lying[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    made = io.BytesIO(archive("a"))
    with zipfile.ZipFile(made, "a") as file:
        for number in range(100):
            info = copy.copy(file.infolist()[0])
            info.filename = f"a{number}"
            file.filelist.append(info)
        file._didModify = True
    for content in (bytes(lying), made.getvalue()):
        with bounded(5.0), pytest.raises(EngineError, match="larger than what it sent"):
            unpack_files(content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_no_archive_is_refused_in_a_sentence(folder: Path) -> None:
    whole = pack_files(folder, NAMES)
    changed = whole.replace(bytes(range(256)), bytes(reversed(range(256))), 1)
    for content in (b"", b"text", whole[:-30], whole[100:], changed):
        with pytest.raises(EngineError, match="what a worker sent is no archive of files"):
            unpack_files(content)
    with pytest.raises(EngineError, match="a file twice"):
        unpack_files(archive("a", times=2))
