"""Runs, pages, plans and bytes of a worker that say something else than was written, for `hostile_inputs.py`."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import torch
from hostile_inputs import Input
from hostile_paths import made
from mutated_runs import JSONS, change_json, change_values
from run_folders import FOLDERS, forget_digests, universal

from ivlens.engine.packed_files import pack_files, unpack_files, write_files
from ivlens.explorer import kept_page
from ivlens.forgetting import plan
from ivlens.matrix.kept_audits import read_kept, take_run
from ivlens.steering.head_choice import parse_heads
from ivlens.steering.universal_heads import Considered
from ivlens.storage.run_folder import read_run


def explorers(number: int = 200) -> Iterator[Input]:
    """The data of a page of the explorer, with other values."""
    for turn in range(number):
        yield Input(f"explorer {turn}", partial(_explorer_changed, turn))


def _explorer_changed(turn: int, folder: Path) -> list[str] | Callable[[], object]:
    shutil.copytree(made("audit"), folder / "run")
    path, chance = folder / "run" / "explorer.json", random.Random(f"explorer {turn}")
    path.write_bytes(change_json(path.read_bytes(), chance))
    return ["report", "run"] if turn % 10 == 0 else lambda: kept_page.read_kept(read_run(folder / "run"))


def printed(number: int = 150) -> Iterator[Input]:
    """Runs with other values, and texts that do something to a terminal, printed."""
    for kind in FOLDERS:
        for turn in range(number // 3):
            yield Input(f"{kind} {turn}, shown", partial(_printed, kind, turn))


def _printed(kind: str, turn: int, folder: Path) -> list[str]:
    run, chance = folder / "run", random.Random(f"{kind} {turn}")
    shutil.copytree(made(kind), run)
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
    tried = Considered("antonym", "7", 0.5, 0.25, True, "above")
    dataclasses.replace(universal(), considered=(tried, tried), model="m").save(folder / name)
    (folder / name).write_bytes(change_values(name, (folder / name).read_bytes(), chance))
    heads = ["audit", "lab", "--task", "antonym", "--heads", name, "--dry-run"]
    return ["show", name] if turn % 3 else heads


def packed(number: int = 250) -> Iterator[Input]:
    """What a worker of bad faith sends in place of a run."""
    for turn in range(number):
        yield Input(f"packed {turn}", partial(_packed, turn))


def _packed(turn: int, folder: Path) -> Callable[[], object]:
    chance, source = random.Random(f"packed {turn}"), made("audit")
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
    made, number = io.BytesIO(), chance.choice((1, 2, 3, 11_000 if chance.random() < 0.1 else 1))
    with zipfile.ZipFile(made, "w") as archive:
        for _ in range(number):
            info = zipfile.ZipInfo("x")
            info.filename = chance.choice(names)[: chance.choice((65_000, 10))]
            info.external_attr = chance.choice((0, 0o120777 << 16, 0o010644 << 16, 0o100644 << 16))
            info.compress_type = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            archive.writestr(info, bytes(chance.choice((0, 10, 2**20 if number < 10 else 1))))
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


def heads(number: int = 60) -> Iterator[Input]:
    """Lists of heads, as files."""
    for turn, one in enumerate([*JSONS, *(["L0H1", other] for other in JSONS), *([[0, other]] for other in JSONS)]):
        for name in ("h.json", "h.toml"):
            yield Input(f"heads {turn} in {name}", partial(_heads, name, one))


def _heads(name: str, content: object, folder: Path) -> Callable[[], object]:
    (folder / name).write_text(json.dumps(content))
    return lambda: parse_heads(folder / name)
