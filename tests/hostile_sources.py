"""The inputs that `hostile_inputs.py` tries, by kind. Each is made from its number and name alone, the same every time."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import socket
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
import torch
from explorer.made_up import made_up_contents, made_up_replies
from hostile_inputs import Input
from mutated_runs import JSONS, change_json, change_values
from run_folders import FOLDERS, forget_digests, universal, vector

from ivlens.datasets.task import task
from ivlens.engine.packed_files import pack_files, unpack_files, write_files
from ivlens.explorer import kept_page
from ivlens.explorer.encoding import encode
from ivlens.explorer.page import data_text
from ivlens.forgetting import plan
from ivlens.matrix.kept_audits import read_kept, take_run
from ivlens.models import loader
from ivlens.models.adapter import load_adapter
from ivlens.reports import html
from ivlens.steering.head_choice import parse_heads
from ivlens.steering.universal_heads import Universal
from ivlens.storage.run_folder import read_run
from ivlens.vectors import function_vectors
from ivlens.vectors.instruction_vector import InstructionVector

Make = Callable[[Path], object]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _sparse(path: Path, size: int = 5 * 2**30) -> None:
    path.touch()
    os.truncate(path, size)


def _linked(target: str) -> Make:
    return lambda path: path.symlink_to(target)


IN_PLACE: Mapping[str, Make] = {
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "socket": _socket,
    "link to zeros": _linked("/dev/zero"),
    "link to a full disk": _linked("/dev/full"),
    "link to nothing": _linked("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link elsewhere": _linked("../outside/kept"),
    "link to a folder elsewhere": _linked("../outside"),
    "nothing in it": lambda path: path.touch(),
    "5 GiB of nothing": _sparse,
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "UTF-16": lambda path: path.write_bytes('[{"input": "a", "output": "b"}]'.encode("utf-16")),
    "a mark alone": lambda path: path.write_bytes(b"\xef\xbb\xbf"),
    "half characters": lambda path: path.write_text('{"\\ud800": "\\udfff"}'),
    "brackets": lambda path: path.write_text("[" * 10**6),
    "one long line": lambda path: path.write_text("x" * 10**7),
    "terminal escapes": lambda path: path.write_text("\x1b[31m\x1b]0;x\x07\r\x9b" * 50),
}
"""What may lie where a file is due."""
NAMES = {
    "line ends": "a\nb\r",
    "escapes": "a\x1b[31m\x9b5n",
    "other direction": "a\u202egpj",
    "half a character": "a\udcff",
    "as long as may be": "x" * 240,
    "longer": "x" * 5000,
    "an option": "-x",
    "quotes": "a'\"`$(x)",
    "tags": "<img src=x onerror=alert(1)>",
    "dots": "..",
    "empty": "",
    "root": "/",
    "zeros": "/dev/zero",
    "input": "/dev/stdin",
    "memory": "/proc/self/mem",
    "of a process": "/proc/self/maps",
    "behind a file": "file/x",
    "nobody's": "~nobody/x",
    "address": "https://localhost:1/x",
    "of a hub": "hf:../../x",
}
"""What a path may be called; those that can be are files of a task."""
SUFFIXES = ("", ".json", ".parquet", ".csv", ".jsonl", ".safetensors", ".pt", ".toml", ".gguf", ".npy", ".html")
LINES: Sequence[Sequence[str]] = (
    *(["tasks", "@"], ["prompts", "@"], ["prompts", "antonym", "--template", "@"], ["show", "@"], ["report", "@"]),
    *(["figures", "@", "--format", "html"], ["explore", "@"], ["explore", "lab", "--task", "@"]),
    *(["explore", "lab", "--task", "antonym", "--out", "@"], ["study", "@", "--out", "o"]),
    *(["study", "lab-func", "--out", "@"], ["study", "lab-func", "--out", "o", "--from", "@"]),
    *(["convert", "@", "o.safetensors"], ["convert", "v.safetensors", "@"], ["convert", "@", "o.npy", "--layer", "1"]),
    *(["convert", "v.safetensors", "o.pt", "--effects", "@"], ["ask", "lab", "x", "--vector", "@"]),
    *(["ask", "lab", "--file", "@"], ["ask", "lab", "x", "--adapter", "@"], ["ask", "@", "x"]),
    *(["audit", "@", "--task", "antonym", "--dry-run"], ["audit", "lab", "--task", "@", "--dry-run"]),
    *(["audit", "lab", "--task", "antonym", "--heads", "@", "--dry-run"], ["compare", "lab", "@", "--task", "antonym"]),
    *(["audit", "lab", "--task", "antonym", "--out", "@", "--prompts", "2", "--only", "heads"],),
    *(
        ["audit", "lab", "--task", "antonym", "--adapter", "@"],
        ["universal", "lab", "--tasks", "@,antonym", "--out", "o.json"],
    ),
    *(
        ["universal", "lab", "--tasks", "antonym", "--out", "@"],
        ["audit", "lab", "lab", "--task", "antonym", "--out", "@"],
    ),
)
"""Commands with every place for a path."""


def paths() -> Iterator[Input]:
    """Every place for a path, with everything that may be there and every name."""
    for number, line in enumerate(LINES):
        for at, (kind, make) in enumerate(IN_PLACE.items()):
            yield Input(f"{kind}: {' '.join(line)}", partial(_at_path, line, "x" + SUFFIXES[(number + at) % 11], make))
        for kind, name in NAMES.items():
            yield Input(f"{kind}: {' '.join(line)}", partial(_at_path, line, name, _write_task))


def _at_path(line: Sequence[str], name: str, make: Make, folder: Path) -> list[str]:
    vector().save(folder / "v.safetensors")
    (folder / "file").touch()
    try:
        if name and "/" not in name and name != "..":
            make(folder / name)
    except (OSError, ValueError):  # No file can be called so.
        pass
    return [one.replace("@", name) for one in line]


def _write_task(path: Path) -> None:
    path.write_text(json.dumps([{"input": f"in{i}", "output": f"out{i}"} for i in range(60)]))


@cache
def _made(kind: str) -> Path:
    """A valid folder of a run, to be copied."""
    folder = Path(tempfile.mkdtemp()) / kind
    torch.manual_seed(0)
    FOLDERS[kind](folder)
    if kind == "audit":
        (folder / "explorer.json").write_text(_explorer().model_dump_json())
    return folder


def _explorer() -> Any:
    contents = made_up_contents()
    found = encode(contents, steered=made_up_replies(contents))
    models = [one.model_copy(update={"digest": "ab"}) for one in found.models]
    return found.model_copy(update={"models": models, "task_digest": "ab"})


def in_runs() -> Iterator[Input]:
    """What may lie where a file of a run is due, or where one is written."""
    commands = (["report", "run"], ["figures", "run", "--format", "html"], ["show", "run"])
    for kind in FOLDERS:
        names = sorted(path.name for path in _made(kind).iterdir())
        names += [
            "report.html",
            "figures",
            "figures/aie.html",
            ".ivlens-lock",
            "parts",
            "explorer.json",
            "prompts.json",
        ]
        for number, name in enumerate(dict.fromkeys(names)):
            for at, (what, make) in enumerate(IN_PLACE.items()):
                command = commands[(number + at) % 3]
                yield Input(f"{what} as {name} of {kind}: {command[0]}", partial(_in_run, kind, name, make, command))


def _in_run(kind: str, name: str, make: Make, command: list[str], folder: Path) -> list[str]:
    shutil.copytree(_made(kind), folder / "run")
    forget_digests(folder / "run")
    place = folder / "run" / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    make(place)
    return command


def explorers(number: int = 200) -> Iterator[Input]:
    """The data of a page of the explorer, with other values."""
    for turn in range(number):
        yield Input(f"explorer {turn}", partial(_explorer_changed, turn))


def _explorer_changed(turn: int, folder: Path) -> list[str] | Callable[[], object]:
    shutil.copytree(_made("audit"), folder / "run")
    path, chance = folder / "run" / "explorer.json", random.Random(f"explorer {turn}")
    path.write_bytes(change_json(path.read_bytes(), chance))
    return ["report", "run"] if turn % 10 == 0 else lambda: data_text(kept_page.read_kept(read_run(folder / "run")))  # pyright: ignore[reportArgumentType]


def printed(number: int = 150) -> Iterator[Input]:
    """Runs with other values, and texts that do something to a terminal, printed."""
    for kind in FOLDERS:
        for turn in range(number // 3):
            yield Input(f"{kind} {turn}, shown", partial(_printed, kind, turn))


def _printed(kind: str, turn: int, folder: Path) -> list[str]:
    run, chance = folder / "run", random.Random(f"{kind} {turn}")
    shutil.copytree(_made(kind), run)
    forget_digests(run)
    path = chance.choice(sorted(path for path in run.iterdir() if path.name[0] != "." and path.is_file()))
    path.write_bytes(change_values(path.name, path.read_bytes(), chance))
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace('"tiny"', json.dumps("\x1b[31m\nti\u202eny")))
    return ["show", "run"]


def universals(number: int = 120) -> Iterator[Input]:
    """Files of universal heads, with other values, printed and given as heads."""
    for turn in range(number):
        yield Input(f"universal heads {turn}", partial(_universal, turn))


def _universal(turn: int, folder: Path) -> list[str]:
    name, chance = ("u.json", "u.safetensors")[turn % 2], random.Random(f"universal {turn}")
    torch.manual_seed(0)
    universal().save(folder / name)
    (folder / name).write_bytes(change_values(name, (folder / name).read_bytes(), chance))
    heads = ["audit", "lab", "--task", "antonym", "--heads", name, "--dry-run"]
    return ["show", name] if turn % 3 else heads


def packed(number: int = 250) -> Iterator[Input]:
    """What a worker of bad faith sends in place of a run."""
    for turn in range(number):
        yield Input(f"packed {turn}", partial(_packed, turn))


def _packed(turn: int, folder: Path) -> Callable[[], object]:
    chance, source = random.Random(f"packed {turn}"), _made("audit")
    names = [path.name for path in sorted(source.iterdir()) if path.name not in (".ivlens-lock", "explorer.json")]
    names = [*(name for name in names if name != "run.json"), "run.json"]
    content = bytearray(pack_files(source, names))
    match turn % 5:
        case 0:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case 1:  # The list of names at its end, and what it says of sizes and places.
            at = content.rindex(b"PK\x01\x02") + chance.randrange(46)
            content[at : at + 4] = struct.pack("<I", chance.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
        case 2:
            content = bytearray(_archive(chance))
        case 3:
            del content[chance.randrange(len(content)) :]
        case _:
            content = bytearray(_other_record(content, chance))
    path = folder / "matrix" / "lab-antonym"

    def take() -> None:
        take_run(path, unpack_files(bytes(content)))
        read_kept(folder / "matrix")

    def write() -> None:
        write_files(path, unpack_files(bytes(content), below=""))

    return take if turn % 2 else write


def _archive(chance: random.Random) -> bytes:
    names = ("../x", "/x", "a/../../x", "run.json", "a" * 70_000, "a\\x", "\x1b[31m", ".ivlens-lock", "a/b", "C:x", "")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for _ in range(chance.choice((1, 2, 3, 11_000 if chance.random() < 0.1 else 1))):
            info = zipfile.ZipInfo("x")
            info.filename = chance.choice(names)[: chance.choice((65_000, 10))]
            info.external_attr = chance.choice((0, 0o120777 << 16, 0o010644 << 16, 0o100644 << 16))
            info.compress_type = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            archive.writestr(info, bytes(chance.choice((0, 10, 2**20))))
    return made.getvalue()


def _other_record(content: bytes | bytearray, chance: random.Random) -> bytes:
    files = unpack_files(bytes(content))
    files["run.json"] = change_json(files["run.json"], chance)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, one in files.items():
            archive.writestr(name, one)
    return made.getvalue()


TOMLS: Sequence[Any] = (
    *(
        "",
        "x",
        "a" * 10_000,
        "\x1b[31m",
        "../../../etc/passwd",
        "/dev/zero",
        "~nobody/x",
        "hf:x",
        "lab",
        "antonym",
        "a\nb",
    ),
    *(0, 1, -1, 2**31, 2**62, 0.0, -0.5, 1e300, float("nan"), float("inf"), True, [], [[]], {}, [1], ["x", "x"], [""]),
    *([f"t{i}" for i in range(50_000)], list(range(200_000)), {"a": {"a": {"a": 1}}}, [{"a": 1}], ["antonym"] * 2),
    *(["antonym", "/dev/zero"], {"x" * 1000: 1}, {"\x1b[31m": 1}),
)
RAW = (
    "a = 1\na = 2",
    "[a]\n[a]",
    "tasks = [" * 100_000,
    "a" + ".a" * 50_000 + " = 1",
    "a = " + "{a = " * 5_000 + "1" + "}" * 5_000,
    'tasks = ["antonym"]\nseeds = [' + "9" * 5000 + "]",
    'tasks = ["antonym"]\nseeds = [0x' + "f" * 5000 + "]",
    'tasks = ["antonym"]\nname = 1979-05-27T07:32:00Z',
    'tasks = ["antonym"]\n[training]\nrate = 1e-99999999999',
    'tasks = ["\\uD800"]',
    'tasks = ["\\U00110000"]',
    'tasks = ["a\\u0000b"]',
    "tasks = ['''" + "x" * 10**6 + "''']",
    "\ufefftasks = ['antonym']",
    'tasks = ["antonym"]\n' + "".join(f"[guidance.g{i}]\nkl = 0.1\n" for i in range(20_000)),
    'tasks = ["antonym"]\n[families]\n' + "".join(f"f{i} = ['a{i}']\n" for i in range(50_000)),
    'tasks = ["antonym"]\nmethods = [' + ",".join(f"'lora+{i}'" for i in range(50_000)) + "]",
    "tasks = [" + ",".join(f"'t{i}'" for i in range(100_000)) + "]",
    "a = " + "'''" * 100_001,
    "\x00",
    "a = 1\r",
)


def plans(number: int = 300) -> Iterator[Input]:
    """Plans of a study, as files of bad form and of other values."""
    for at, text in enumerate(RAW):
        yield Input(f"plan as text {at}", partial(_raw_plan, text))
    for turn in range(number):
        yield Input(f"plan {turn}", partial(_plan, turn))


def _raw_plan(text: str, folder: Path) -> list[str]:
    (folder / "p.toml").write_text(text)
    return ["study", "p.toml", "--out", "o"]


def _plan(turn: int, folder: Path) -> list[str] | Callable[[], object]:
    chance = random.Random(f"plan {turn}")
    content = _full_plan()
    for _ in range(chance.choice((1, 1, 2))):
        holder: Any = content
        key = chance.choice(list(holder))
        while isinstance(holder[key], dict) and holder[key] and chance.random() < 0.8:
            holder = holder[key]
            key = chance.choice(list(holder))
        if chance.random() < 0.15:
            holder[chance.choice(("x", "", "\x1b[31m", "a" * 5000))] = holder.pop(key)
        else:
            holder[key] = chance.choice(TOMLS)
    (folder / "p.toml").write_text(tomli_w.dumps(content))
    if turn % 4:
        return lambda: plan.from_record(json.loads(json.dumps(content)))
    return ["study", "p.toml", "--out", "o", *(["--dry-run"] if turn % 8 == 4 else [])]


def _full_plan() -> dict[str, Any]:
    def given(table: Mapping[str, Any]) -> dict[str, Any]:
        return {key: given(one) if isinstance(one, dict) else one for key, one in table.items() if one is not None}

    asked = plan.Plan(name="mine", tasks=("class-letter",), general=("antonym",), methods=("lora", "lora+kl", "ewc"))
    return given(json.loads(json.dumps({"model": "lab", **asked.record()}))) | {"settings": {"ewc": {"weight": 1.0}}}


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
    twice = b'{"vector":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"vector":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
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
        "quantised": saved(torch.quantize_per_tensor(numbers, 0.1, 0, torch.qint8)),
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


def heads(number: int = 60) -> Iterator[Input]:
    """Lists of heads, as files."""
    for turn, one in enumerate([*JSONS, *(["L0H1", other] for other in JSONS), *([[0, other]] for other in JSONS)]):
        for name in ("h.json", "h.toml"):
            yield Input(f"heads {turn} in {name}", partial(_heads, name, one))


def _heads(name: str, content: object, folder: Path) -> Callable[[], object]:
    (folder / name).write_text(json.dumps(content))
    return lambda: parse_heads(folder / name)


COMMANDS = (
    *(["tasks"], ["tasks", "antonym"], ["prompts", "antonym"], ["show", "run"], ["report", "run"], ["show", "study"]),
    *(["figures", "run", "--format", "html"], ["report", "compare"], ["convert", "v.safetensors", "o.npy"], ["--help"]),
    *(["ask", "lab", "The opposite of hot is"], ["ask", "lab", "hot", "--vector", "v.safetensors"]),
    *(
        ["audit", "lab", "--task", "antonym", "--prompts", "2", "--only", "heads", "--out", "o"],
        ["explore", "lab", "--task", "antonym"],
    ),
)


def machines() -> Iterator[Input]:
    """A machine that refuses: a full disk, files of 1,000 bytes at most, another user, no working folder."""
    for line in COMMANDS:
        for name, change in {
            "full output": _fill_output,
            "small files": partial(_limit, "RLIMIT_FSIZE", 1000),
            "few files": partial(_limit, "RLIMIT_NOFILE", 12),
            "another user": _become_nobody,
            "no working folder": _leave,
            "closed input": lambda _: os.close(0),
            "no home": lambda _: os.environ.update(HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent"),
            "no room for temporary files": lambda _: os.environ.update(TMPDIR="/nonexistent"),
        }.items():
            yield Input(f"{name}: {' '.join(line)}", partial(_on_machine, line, change))


def _on_machine(
    line: Sequence[str], change: Callable[[Path], object], folder: Path
) -> Callable[[], object] | list[str]:
    for kind, name in (("audit", "run"), ("compare", "compare"), ("study", "study")):
        shutil.copytree(_made(kind), folder / name)
    vector().save(folder / "v.safetensors")
    change(folder)
    return list(line)


def _fill_output(_: Path) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.environ["IVLENS_FULL"] = "1"


def _limit(name: str, value: int, _: Path) -> None:
    import resource

    kind = getattr(resource, name)
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _become_nobody(_: Path) -> None:
    os.setgid(65534)
    os.setuid(65534)


def _leave(_: Path) -> None:
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    os.rmdir(gone)


SOURCES: Mapping[str, Callable[[], Iterator[Input]]] = {
    one.__name__: one
    for one in (
        paths,
        in_runs,
        explorers,
        printed,
        universals,
        packed,
        plans,
        task_files,
        tensors,
        archives,
        heads,
        machines,
    )
}


def warm_up() -> None:
    """What every process would import and draw for itself."""
    for kind in FOLDERS:
        found = _made(kind)
        html.report(found)
        (found / "report.html").unlink()
    task("antonym")
