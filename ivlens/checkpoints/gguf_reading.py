"""How is a GGUF file handed to transformers without seconds for every 100,000 tokens of its tokenizer?

transformers asks for configuration, tokenizer and weights apart, and each time has the `gguf` package make some numpy
arrays of every token: half a minute and 4 GB for Gemma's 262,144. Here it is given what it reads of that package's
reader, made once from a header that has been held against the file. So is the table of tensors' names, which
transformers builds again for every module of a model. Dequantising stays the package's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from ivlens.storage.gguf_files import Header, Listed, StoredTensor, read_lists

_PLAIN = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I8": np.int8, "I16": np.int16, "I32": np.int32}


class Field(NamedTuple):
    """A field as the package's reader has it: `parts` at the places `data` are its values, each a text or a list."""

    parts: Sequence[Any]
    data: Sequence[int]
    types: list[int]


class PackedTensor(NamedTuple):
    """A tensor as the package's reader has it."""

    name: str
    tensor_type: Any
    data: np.ndarray


class Contents(NamedTuple):
    """What transformers reads of a file."""

    fields: dict[str, Field]
    tensors: list[PackedTensor]


def contents(path: Path, header: Header) -> Contents:
    """Fields and tensors of a file; tensors are views of a mapping of it."""
    lists = read_lists(path, header)
    fields = {}
    for name, value in header.fields.items():
        if isinstance(value.content, Listed):
            values = lists[name]
            fields[name] = Field(values, range(len(values)), [value.kind, value.content.kind])
        else:
            text = value.content.encode() if isinstance(value.content, str) else [value.content]
            fields[name] = Field([text], [0], [value.kind])
    mapped = np.memmap(path, mode="r")
    return Contents(fields, [_packed(name, one, header, mapped) for name, one in header.tensors.items()])


def _packed(name: str, stored: StoredTensor, header: Header, mapped: np.ndarray) -> PackedTensor:
    import gguf

    kind, shape = gguf.GGMLQuantizationType(stored.kind), stored.shape[::-1]
    per_block, block = gguf.GGML_QUANT_SIZES[kind]
    begin = header.start + stored.offset
    content = mapped[begin : begin + math.prod(shape) // per_block * block]
    if kind.name in _PLAIN:
        return PackedTensor(name, kind, content.view(_PLAIN[kind.name]).reshape(shape))
    return PackedTensor(name, kind, content.reshape(gguf.quant_shape_to_byte_shape(shape, kind)))


@contextmanager
def given(found: Contents) -> Iterator[None]:
    """Have transformers read what was found wherever it asks the `gguf` package for a reader, without a bar."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    def silent(tensors: Iterable[PackedTensor], **_: object) -> Iterable[PackedTensor]:
        return tensors

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(gguf, "GGUFReader", lambda *_: found))
        names = lru_cache(gguf.get_tensor_name_map)
        stack.enter_context(mock.patch.object(gguf, "get_tensor_name_map", names))
        stack.enter_context(mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", silent))
        yield
