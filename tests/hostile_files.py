"""Task files, tensors and archives of types and forms that none is of, for `hostile_inputs.py`."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hostile_inputs import Input
from hostile_paths import Make

from ivlens.models import loader
from ivlens.models.adapter import load_adapter
from ivlens.vectors import function_vectors


def _nested() -> dict[str, pa.Table]:
    texts = pa.array([f"in{i}" for i in range(60)])
    deep: Any = texts
    for _ in range(60):
        deep = pa.StructArray.from_arrays([deep], names=["a"])
    pairs = pa.array([[("a", "b")]] * 60, pa.map_(pa.string(), pa.string()))
    columns: dict[str, Any] = {
        "structs in structs": deep,
        "maps": pairs,
        "lists in lists": pa.array([[[["x"]]]] * 60),
        "decimals": pa.array([1] * 60).cast(pa.decimal128(38, 10)),
        "times": pa.array([2**60] * 60, pa.timestamp("ns", tz="x/y")),
        "lengths of time": pa.array([1] * 60, pa.duration("s")),
        "bytes": pa.array([b"\xff\x00"] * 60),
        "fixed bytes": pa.array([b"ab"] * 60, pa.binary(2)),
        "large texts": texts.cast(pa.large_string()),
        "halves": pa.array(np.ones(60, np.float16)),
        "nothing": pa.nulls(60),
        "dictionaries": texts.dictionary_encode(),
        "some missing": pa.array([None, "x"] * 30),
        "escapes": pa.array(["\x1b[31m\n"] * 60),
        "whole": pa.array([2**63 - 1] * 60),
        "flags": pa.array([True, False] * 30),
    }
    found = {name: pa.table({"input": texts, "output": one}) for name, one in columns.items()}
    found["one name twice"] = pa.Table.from_arrays([texts, texts, texts], names=["input", "output", "output"])
    found["20,000 columns"] = pa.table({f"c{i}": pa.array(["x"]) for i in range(20_000)})
    found["names of columns"] = pa.table({"in\x1b[31mput": texts, "": texts, "a\nb": texts})
    found["no lines"] = pa.table({"input": texts[:0], "output": texts[:0]})
    return found


def task_files() -> Iterator[Input]:
    """Task files of types and forms that none is of."""
    for name, table in _nested().items():
        for ending in (".parquet", ".arrow"):
            yield Input(f"{name}{ending}", partial(_table_file, table, ending))
    one = '{"input": "a", "output": "b"}'
    pairs = ",".join(f'{{"input": "in{i}", "output": "out{i}"}}' for i in range(60))
    texts = {
        "keys twice": "[" + ",".join([one[:-1] + ', "input": "c", "input": "d"}'] * 60) + "]",
        "a million pairs": "[" + ",".join([one] * 10**6) + "]",
        "numbers": "[" + pairs + ', {"input": 1e999, "output": ' + "9" * 5000 + "}]",
        "an object of objects": '{"a":' * 900 + "1" + "}" * 900,
        "instructions": f'{{"pairs": [{pairs}], "instructions": {json.dumps(["x"] * 10**6)}}}',
        "a name": f'{{"pairs": [{pairs}], "name": {json.dumps("x" * 10**6)}}}',
        "a name of escapes": f'{{"pairs": [{pairs}], "name": "\\u001b[31m"}}',
        "a statement": f'{{"pairs": [{pairs}], "statement": "{{input}}{{output}}{{x}}{{"}}',
        "braces": f'{{"pairs": [{pairs}], "statement": {json.dumps("{input}" + "{" * 10**5)}}}',
        "answers": '[{"input": "a", "output": ' + json.dumps([f"o{i}" for i in range(10**6)]) + "}]",
        "half characters": "[" + pairs + ', {"input": "\\ud800", "output": "\\udfff"}]',
        "of zero width": "[" + pairs + ', {"input": "' + "\u200b" * 1000 + '", "output": "\u200b"}]',
        "one answer": "[" + ",".join(f'{{"input": "in{i}", "output": "x"}}' for i in range(60)) + "]",
        "contradictions": "[" + ",".join(f'{{"input": "x", "output": "out{i}"}}' for i in range(60)) + "]",
    }
    for name, text in texts.items():
        for command in (["tasks", "t.json"], ["prompts", "t.json"], ["audit", "lab", "--task", "t.json", "--dry-run"]):
            yield Input(f"{name}: {command[0]}", partial(_text_file, "t.json", text, command))
    wide = "input,output\n" + "\n".join(f"in{i},out{i}" for i in range(60))
    rows = {
        "a quote that never ends": wide + '\n"' + "x" * 10**7,
        "a million columns": ",".join(["a"] * 10**6) + "\n" + ",".join(["b"] * 10**6),
        "zeros": wide + "\n\0,\0",
        "returns": wide.replace("\n", "\r"),
        "no columns": "\n" * 10**6,
        "only quotes": '"' * 10**6,
    }
    for name, text in rows.items():
        yield Input(f"{name}, CSV", partial(_text_file, "t.csv", text, ["tasks", "t.csv"]))
        yield Input(f"{name}, lines", partial(_text_file, "t.jsonl", text, ["tasks", "t.jsonl"]))


def _table_file(table: pa.Table, ending: str, folder: Path) -> list[str]:
    if ending == ".parquet":
        pq.write_table(table, folder / "t.parquet")
    else:
        with pa.OSFile(str(folder / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return ["tasks", f"t{ending}"]


def _text_file(name: str, text: str, command: list[str], folder: Path) -> list[str]:
    (folder / name).write_text(text)
    return command


def _header(entries: object, content: bytes = bytes(4096), length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def _tensor(shape: Sequence[Any] = (8,), dtype: Any = "F32", at: Sequence[Any] = (0, 32)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


def _headers() -> dict[str, bytes]:
    plain, about = _tensor(), {"model": "m", "layer": "1"}
    objects: dict[str, Any] = {
        "overlap": {"vector": plain, "aie": plain, "mean_z": _tensor(at=(16, 48))},
        "holes": {"vector": _tensor(at=(64, 96))},
        "behind the end": {"vector": _tensor((1024,), at=(4000, 8096))},
        "backwards": {"vector": _tensor(at=(32, 0))},
        "negative": {"vector": _tensor(at=(-32, 0))},
        "fractions": {"vector": _tensor(at=(0.5, 32.5))},
        "nothing of much": {"vector": _tensor((0, 2**62), at=(0, 0))},
        "too many": {"vector": _tensor((2**32, 2**32), at=(0, 32))},
        "axes": {"vector": _tensor((1,) * 1000 + (8,))},
        "negative axis": {"vector": _tensor((-8,))},
        "8 bits": {"vector": _tensor((32,), "F8_E4M3")},
        "4 bits": {"vector": _tensor((64,), "F4")},
        "complex": {"vector": _tensor((4,), "C64")},
        "no type": {"vector": _tensor((8,), "X")},
        "type of a number": {"vector": _tensor((8,), 5)},
        "metadata of numbers": {"__metadata__": {"a": 1}, "vector": plain},
        "metadata of metadata": {"__metadata__": {"__metadata__": "x" * 10**6}, "vector": plain},
        "metadata alone": {"__metadata__": about},
        "nothing": {},
        "a list": [],
        "100,000 tensors": {f"t{i}": _tensor((0,), at=(0, 0)) for i in range(100_000)},
        "names": {"\x1b[31m\n": plain, "vector": _tensor(at=(32, 64))},
        "other keys": {"vector": {**plain, "x": 1}},
        "nested": {"vector": {"a": {"a": plain}}},
    }
    found = {name: _header(content) for name, content in objects.items()}
    one = json.dumps({"vector": plain})
    twice = f"{one[:-1]},{one[1:]}".encode()
    return found | {
        "keys twice": _header(twice),
        "brackets": _header(b'{"a":' * 100_000),
        "length of 2^63": _header({"vector": plain}, length=2**63),
        "length of 10^8": _header({"vector": plain}, length=10**8),
        "length of 1": _header({"vector": plain}, length=1),
        "no text": _header(b"\xff" * 64),
        "9 bytes": bytes(9),
        "numbers": _header(b'{"vector":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,32]}}'),
    }


def tensors() -> Iterator[Input]:
    """Headers of safetensors that say what cannot be, to every reader of them."""
    for name, content in _headers().items():
        for line in (
            *(["convert", "t.safetensors", "o.npy"], ["ask", "lab", "x", "--vector", "t.safetensors"]),
            *(
                ["show", "t.safetensors"],
                ["audit", "lab", "--task", "antonym", "--heads", "t.safetensors", "--dry-run"],
            ),
        ):
            yield Input(f"{name}: {line[0]}", partial(_bytes_file, "t.safetensors", content, line))
        for reader in (_load_checkpoint, _load_adapter):
            yield Input(f"{name}: {reader.__name__}", partial(_read_header, content, reader))


def _bytes_file(name: str, content: bytes, line: list[str], folder: Path) -> list[str]:
    (folder / name).write_bytes(content)
    return line


def _read_header(content: bytes, read: Callable[[Path], Callable[[], object]], folder: Path) -> Callable[[], object]:
    (folder / "t.safetensors").write_bytes(content)
    return read(folder)


def _load_checkpoint(folder: Path) -> Callable[[], object]:
    model = Path(loader.__file__).parents[1] / "lab" / "model"
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    (folder / "t.safetensors").rename(folder / "model.safetensors")
    return lambda: loader.load_without_adapters(folder)


def _load_adapter(folder: Path) -> Callable[[], object]:
    import ivlens

    model = ivlens.load("lab")
    return lambda: load_adapter(folder / "t.safetensors", model)


def archives() -> Iterator[Input]:
    """Files of torch and numpy that unfold, point elsewhere, or are of other kinds."""
    for name, make in _torch_files().items():
        for form in ("function-vector", "steering-vector", "mean-activations", "indirect-effect"):
            yield Input(f"{name}: {form}", partial(_torch_file, make, form))
    for name, content in _numpy_files().items():
        yield Input(f"{name}: npy", partial(_bytes_file, "t.npy", content, ["convert", "t.npy", "o.safetensors"]))


def _torch_files() -> dict[str, Make]:
    numbers = torch.randn(1, 20)

    def saved(content: Any, **how: Any) -> Make:
        return lambda path: torch.save(content, path, **how)

    def zipped(name: str, content: bytes, way: int = zipfile.ZIP_STORED) -> Make:
        def make(path: Path) -> None:
            torch.save(numbers, path)
            with zipfile.ZipFile(path, "a", way) as archive:
                archive.writestr(name, content)

        return make

    return {
        "of before": saved(numbers, _use_new_zipfile_serialization=False),
        "sparse": saved(numbers.to_sparse()),
        "whole numbers": saved(torch.ones(1, 20, dtype=torch.int64)),
        "complex": saved(torch.ones(1, 20, dtype=torch.complex64)),
        "flags": saved(torch.ones(1, 20, dtype=torch.bool)),
        "on no device": saved(torch.ones(1, 20, device="meta")),
        "of one number": saved(torch.tensor(1.0)),
        "of no numbers": saved(torch.ones(0, 20)),
        "of 60 axes": saved(torch.ones((1,) * 60)),
        "not numbers": saved(numbers * float("nan")),
        "part of many": saved(torch.ones(10**6)[:20][None]),
        "repeated": saved(torch.ones(1).expand(3, 10**5)),
        "transposed": saved(torch.randn(20, 1).T),
        "lists": saved([[[1.0]] * 10] * 10),
        "list in itself": saved(_circle()),
        "names": saved({"layer_activations": {"\x1b[31m": numbers}}),
        "layers": saved({"layer_activations": {10**18: torch.randn(20)}, "layer_type": "x"}),
        "negative layers": saved({"layer_activations": {-1: torch.randn(20)}, "layer_type": "x"}),
        "other widths": saved({"layer_activations": {1: torch.randn(20), 2: torch.randn(5)}, "layer_type": "x"}),
        "a packed part": zipped("archive/x", bytes(2**28), zipfile.ZIP_DEFLATED),
        "a part elsewhere": zipped("../outside/x", b"x"),
        "two pickles": zipped("b/data.pkl", b"."),
        "code": zipped("archive/code/x.py", b"import os"),
        "a module": lambda path: torch.jit.save(torch.jit.script(torch.nn.Identity()), path),
    }


def _circle() -> list[Any]:
    one: list[Any] = [torch.ones(2)]
    one.append(one)
    return one


def _torch_file(make: Make, form: str, folder: Path) -> list[str] | Callable[[], object]:
    make(folder / "t.pt")
    if form == "mean-activations":
        return lambda: function_vectors.read_mean_activations(folder / "t.pt")
    if form == "indirect-effect":
        return ["convert", "t.pt", "o.parquet", "--from", form]
    return ["convert", "t.pt", "o.safetensors", "--from", form, "--layer", "1"]


def _numpy_files() -> dict[str, bytes]:
    def saved(array: np.ndarray) -> bytes:
        made = io.BytesIO()
        np.save(made, array)
        return made.getvalue()

    numbers = saved(np.ones(20, np.float32))
    record = np.zeros(20, [("a", "f4"), ("b", "f8")])
    return {
        "columns first": saved(np.asfortranarray(np.ones((4, 5), np.float32))),
        "the other end first": saved(np.ones(20, ">f4")),
        "records": saved(record),
        "texts": saved(np.array(["x" * 1000])),
        "long doubles": saved(np.ones(20, np.longdouble)),
        "times": saved(np.zeros(20, "M8[s]")),
        "code for a header": numbers.replace(b"(20,), }", b"(exit(),)}"[:8]),
        "a header of 2^32": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{" * 1000,
        "a deep header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 60_000) + b"(" * 60_000,
        "version 3": b"\x93NUMPY\x03\x00" + numbers[8:],
        "many axes": numbers.replace(b"(20,)", b"(1,2,"),
        "an archive": _npz(),
        "negative": numbers.replace(b"(20,), }", b"(-20,),}"),
    }


def _npz() -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, vector=np.zeros(10**7, np.float32))
    return made.getvalue()
