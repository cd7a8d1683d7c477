"""Paths, files in the place of others and machines that refuse, for `hostile_inputs.py`."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from explorer.made_up import made_up_contents, made_up_replies
from hostile_inputs import Input
from run_folders import FOLDERS, forget_digests, vector

from ivlens.datasets.task import task
from ivlens.explorer.encoding import encode
from ivlens.reports import html

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
def made(kind: str) -> Path:
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
        names = sorted(path.name for path in made(kind).iterdir())
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
    shutil.copytree(made(kind), folder / "run")
    forget_digests(folder / "run")
    place = folder / "run" / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    make(place)
    return command


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
        shutil.copytree(made(kind), folder / name)
    vector().save(folder / "v.safetensors")
    change(folder)
    return list(line)


def _fill_output(_: Path) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def _limit(name: str, value: int, _: Path) -> None:
    import resource

    kind = getattr(resource, name)
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _become_nobody(_: Path) -> None:
    os.setgid(65534)
    os.setuid(65534)


def _leave(_: Path) -> None:
    gone = Path(tempfile.mkdtemp())
    os.chdir(gone)
    gone.rmdir()


def warm_up() -> None:
    """What every process would import and draw for itself."""
    for kind in FOLDERS:
        found = made(kind)
        html.report(found)
        (found / "report.html").unlink()
    task("antonym")
