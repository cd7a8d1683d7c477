"""What does the header of a GGUF file say, and can the file hold it?

The `gguf` package follows a list of 2^60 entries in a file of 40 bytes to its end, so that counts and lists are
held against the file before it is handed one. Source of the format: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.errors import IvlensError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
# How values are packed, by GGUF's number of their type; texts and lists apart.
_PACKED = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_LONGEST_SHOWN = 2**20


class Bounds(NamedTuple):
    """What a file may have."""

    entries: int
    """Tensors, and fields."""
    listed: int
    """Values in all lists together."""


class Listed(NamedTuple):
    """A list, of which no value is read."""

    length: int
    kind: int
    """GGUF's number of the type of its values."""
    begin: int
    """Where it begins in the file."""


class Value(NamedTuple):
    """The content of a field."""

    kind: int
    """GGUF's number of its type."""
    content: bool | int | float | str | Listed


class StoredTensor(NamedTuple):
    """A tensor, of which no value is read."""

    shape: tuple[int, ...]
    """The innermost axis first."""
    kind: int
    """GGML's number of how it is packed."""
    offset: int
    """From where tensors begin."""


class Header(NamedTuple):
    """All of a GGUF file but lists and tensors."""

    fields: dict[str, Value]
    tensors: dict[str, StoredTensor]
    start: int
    """Where tensors begin."""

    def get(self, name: str, default: Any = None) -> Any:
        """The content of a field."""
        return self.fields[name].content if name in self.fields else default


def package() -> Any:
    """The `gguf` package; raises IvlensError, saying how to have it, where it is not installed."""
    if find_spec("gguf") is None:
        raise IvlensError("the package gguf is not installed; run: pip install 'ivlens[gguf]'")
    import gguf

    return gguf


def read_header(path: Path, bounds: Bounds) -> Header:
    """The header, without reading lists and tensors.

    Raises:
        ValueError, struct.error, OSError: it is no GGUF file, or says what the file does not hold or may not have.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Reader(content, bounds).header()


def read_lists(path: Path, header: Header) -> dict[str, list[Any]]:
    """The values of all lists: each text as bytes, each number in a list of one."""
    found = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name, (_, listed) in header.fields.items():
            if isinstance(listed, Listed):
                found[name] = list(_listed_values(content, listed))
    return found


def _listed_values(content: mmap.mmap, listed: Listed) -> Iterator[Any]:
    place = listed.begin
    if listed.kind != _TEXT:
        form = f"<{listed.length}{_PACKED[listed.kind]}"
        yield from map(list, struct.iter_unpack(form[0] + form[-1], content[place : place + struct.calcsize(form)]))
        return
    for _ in range(listed.length):
        (length,) = struct.unpack_from("<Q", content, place)
        yield content[place + 8 : place + 8 + length]
        place += 8 + length


class _Reader:
    """A place in a file, moved on by what is read there."""

    def __init__(self, content: mmap.mmap, bounds: Bounds) -> None:
        self._content, self._bounds = content, bounds
        self._place, self._listed = 0, 0

    def header(self) -> Header:
        magic, version, n_tensors, n_fields = self._unpack("4sIQQ")
        if magic != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        if version not in _VERSIONS or max(n_tensors, n_fields) > self._bounds.entries:
            raise ValueError(f"version {version}, {n_tensors} tensors, {n_fields} fields")
        fields = {self._text(): self._value() for _ in range(n_fields)}
        tensors = {self._text(): self._tensor() for _ in range(n_tensors)}
        if len(tensors) < n_tensors or len(fields) < n_fields:
            raise ValueError("two of its fields or tensors have one name")
        header = Header(fields, tensors, 0)
        align = header.get("general.alignment", 32)
        if not isinstance(align, int) or not 1 <= align <= 2**16:
            raise ValueError(f"tensors are aligned to {align!r} bytes")
        return header._replace(start=-(-self._place // align) * align)

    def _tensor(self) -> StoredTensor:
        (n_axes,) = self._unpack("I")
        if n_axes > 8:
            raise ValueError(f"a tensor of {n_axes} axes")
        *shape, kind, offset = self._unpack(f"{n_axes}QIQ")
        if math.prod(shape) > 2**48:
            raise ValueError(f"a tensor of shape {tuple(shape)}")
        return StoredTensor(tuple(shape), kind, offset)

    def _value(self) -> Value:
        (kind,) = self._unpack("I")
        if kind == _TEXT:
            return Value(kind, self._text())
        if kind != _LIST:
            return Value(kind, self._unpack(self._packed(kind))[0])
        inner, length = self._unpack("IQ")
        self._listed += length
        if length > len(self._content) - self._place:
            raise ValueError(f"a list of {length} values behind its end")
        if inner == _LIST or self._listed > self._bounds.listed:
            raise ValueError(f"lists of lists, or of {self._listed} values")
        begin = self._place
        if inner == _TEXT:
            for _ in range(length):
                self._skip(self._unpack("Q")[0])
        else:
            self._skip(length * struct.calcsize(self._packed(inner)))
        return Value(kind, Listed(length, inner, begin))

    def _packed(self, kind: int) -> str:
        if kind not in _PACKED:
            raise ValueError(f"a value of the unknown type {kind}")
        return _PACKED[kind]

    def _text(self) -> str:
        begin = self._skip(self._unpack("Q")[0])
        return self._content[begin : min(self._place, begin + _LONGEST_SHOWN)].decode("utf-8", errors="replace")

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{form}", self._content, self._skip(struct.calcsize(f"<{form}")))

    def _skip(self, size: int) -> int:
        """Go on behind a value; where it begins."""
        begin = self._place
        if size > len(self._content) - begin:
            raise ValueError(f"a value of {size} bytes behind its end")
        self._place = begin + size
        return begin
