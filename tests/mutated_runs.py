"""Folders of runs that somebody else hands over, with values or bits changed: what becomes of whoever reads them?

`python tests/mutated_runs.py values 1000` changes values, `bits 20000` flips bits; counts are printed as JSON, a line a
batch and all of them at the end. `--counts FILE` keeps the batches, and one that is there is not run again: the same
command goes on, and another seed adds. A batch runs in a process that is forked off this one, and the next turn in
another one where a file has ended it or keeps it. Every turn draws for itself: `try_turns` does one of them alone.
A change is read twice: in a run that lists its files' digests, which must be refused, and in one that does not, for run
folders of before listed none, and who changes a table can change its digest, too.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bounds import bounded
from datasets import Dataset
from run_folders import FOLDERS, forget_digests
from safetensors import safe_open
from safetensors.torch import save_file

from ivlens.datasets.task import read_task
from ivlens.errors import IvlensError
from ivlens.reports import html
from ivlens.reports.findings import read_findings
from ivlens.steering.universal_heads import Universal
from ivlens.storage import parquet
from ivlens.storage.run_folder import read_run
from ivlens.storage.table_schema import check_table
from ivlens.vectors.instruction_vector import InstructionVector

COUNTED = ("read", "refused", "ended")
"""A value came back, or our sentence; `ended`: one that says that the process which read the file ended."""
SECONDS = 5.0
"""Of processor time and of memory, above what the unchanged file takes."""
PATIENCE = 120.0
"""Seconds of a turn, on a busy machine, until its process is ended: Python's own limits do not reach into C."""
BATCH = {"values": 250, "bits": 5000}
FORK = multiprocessing.get_context("fork")
DRAWN = {"study": 8}
"""One page in so many is drawn, of others one in four: its figures take ten times as long as the rest."""
NUMBERS = (
    -1,
    0,
    1,
    2,
    9_999,
    10**7,
    2**31,
    2**63 - 1,
    -(2**63),
    -0.5,
    0.5,
    1.5,
    1e-300,
    1e300,
    np.inf,
    -np.inf,
    np.nan,
)
TEXTS = ("", "x", "a" * 5000, "nan", "5", "<script>", "\x1b[31m", "L0H0", "chosen", "random", "tuned", "\0", "é" * 50)
JSONS = (None, True, [], {}, "", "x", -1, 10**30, 0.5, float("nan"), "\ud800", [[[]]], {"a": 1}, "x" * 10_000)


def change_table(content: bytes, chance: random.Random) -> bytes:
    """A table in which values, lines or columns are others, as a parquet file."""
    frame = pq.read_table(pa.BufferReader(content)).to_pandas()
    for _ in range(chance.choice((1, 1, 1, 2))):
        frame = chance.choice((_values, _values, _values, _column, _lines))(frame, chance)
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):  # Of mixed kinds: as texts, then.
        table = pa.Table.from_pandas(frame.astype(str), preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _values(frame: pd.DataFrame, chance: random.Random) -> pd.DataFrame:
    """One value, some, or all of a column."""
    if not len(frame.columns) or not len(frame):
        return frame
    name = chance.choice(list(frame.columns))
    texts = not pd.api.types.is_numeric_dtype(frame[name])
    value: Any = chance.choice(TEXTS if texts != (chance.random() < 0.1) else NUMBERS)
    if chance.random() < 0.3:  # One of those that there are.
        value = chance.choice(frame[name].tolist())
    rows = chance.sample(range(len(frame)), chance.choice((1, 1, max(1, len(frame) // 2), len(frame))))
    values = frame[name].tolist()
    for row in rows:
        values[row] = value
    return frame.assign(**{name: values})


def _column(frame: pd.DataFrame, chance: random.Random) -> pd.DataFrame:
    name, other = (chance.choice(list(frame.columns)) for _ in range(2))
    kinds = ("drop", "swap", "none", *("float32", "int8", "uint64", "bool", "str", "datetime64[ns]", "float64"))
    match chance.choice(kinds):
        case "drop":
            return frame.drop(columns=name)
        case "swap":
            return frame.assign(**{name: frame[other], other: frame[name]})
        case "none":
            return frame.assign(**{name: None})
        case kind:
            try:
                return frame.assign(**{name: frame[name].astype(kind)})
            except (ValueError, TypeError, OverflowError):
                return frame


def _lines(frame: Any, chance: random.Random) -> pd.DataFrame:
    number = chance.randrange(len(frame)) if len(frame) else 0
    match chance.choice(("empty", "first", "without", "twice", "many", "shuffled")):
        case "empty":
            return frame[:0]
        case "first":
            return frame[: number + 1]
        case "without":
            return frame.drop(index=frame.index[number : number + 1])
        case "twice":
            return pd.concat([frame, frame[number : number + 1]], ignore_index=True)
        case "many":
            return pd.concat([frame] * 200, ignore_index=True)
        case _:
            return frame.sample(frac=1, random_state=chance.randrange(1000), ignore_index=True)


def change_json(content: bytes, chance: random.Random) -> bytes:
    """A JSON text in which a value is another one, is gone, or is there under another name."""
    value = json.loads(content)
    for _ in range(chance.choice((1, 1, 2))):
        places = list(_places(value))
        if places:
            holder, key = chance.choice(places)
            if isinstance(holder, dict) and chance.random() < 0.2:
                holder[chance.choice(("x", "", "layer"))] = holder.pop(key)
            elif chance.random() < 0.2:
                del holder[key]
            else:
                holder[key] = chance.choice(JSONS)
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in lists and objects, by what holds it."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def change_tensors(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file in which a tensor or a value of the metadata is another one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        if chance.random() < 0.4:
            name = chance.choice(sorted(tensors))
            tensors[name] = chance.choice(
                (
                    lambda one: one * float("nan"),
                    lambda one: one[:0],
                    lambda one: one[None],
                    lambda one: one.double(),
                    lambda one: one.to(torch.int32),
                    lambda one: one[..., :1],
                    lambda one: one.repeat(*[2] * one.dim()),
                )
            )(tensors[name]).contiguous()
        else:
            key = chance.choice(sorted(metadata))
            try:
                metadata[key] = change_json(metadata[key].encode(), chance).decode()
            except ValueError:  # A text that is no JSON.
                metadata[key] = chance.choice(TEXTS)
        save_file(tensors, path, metadata=metadata)
        return path.read_bytes()


def change_values(name: str, content: bytes, chance: random.Random) -> bytes:
    return {".json": change_json, ".parquet": change_table}.get(Path(name).suffix, change_tensors)(content, chance)


def flip_bit(_: str, content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def use(folder: Path, _: str, *, drawn: bool = True) -> object:
    """Everything that is made of a folder without its model, but for images."""
    found = read_findings(folder)
    return repr(found), html.report(folder) if drawn else found._repr_html_()


def read_one(folder: Path, name: str, *, drawn: bool = True) -> object:
    """What one file of a folder holds, by the reader that a run has for it."""
    path = folder / name
    match name:
        case "run.json":
            return read_run(folder).record
        case "prompts.json":
            return html._prompts(read_run(folder))
        case "task.parquet" | "talks.parquet":
            return read_task(path)
        case "state.json" | "dataset_info.json" | "data-00000-of-00001.arrow":
            return read_task(folder)
        case _ if path.suffix == ".parquet":  # As a run reads it, whose record need not be read again each time.
            frame = parquet.read_table(path, remedy="")
            return check_table(_command(folder), path.stem, frame, path, "")
    return (Universal if name.startswith("universal") else InstructionVector).load(path)


@cache
def _command(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["command"]


def task_folder(folder: Path) -> None:
    """Parquet files of tasks, with columns of texts and lists, and of conversations."""
    folder.mkdir()
    turns = [[{"role": "user", "content": f"in{i}"}, {"role": "assistant", "content": f"out{i}"}] for i in range(24)]
    table = pa.table({"input": [f"in{i}" for i in range(24)], "output": [[f"out{i}", "z"] for i in range(24)]})
    pq.write_table(table, folder / "task.parquet")
    pq.write_table(pa.table({"messages": turns}), folder / "talks.parquet", compression="zstd")


def saved_folder(folder: Path) -> None:
    """A data set as `save_to_disk` writes it."""
    turns = [[{"role": "user", "content": f"in{i}"}, {"role": "assistant", "content": f"out{i}"}] for i in range(24)]
    Dataset.from_dict({"messages": turns, "beside": list(range(24))}).save_to_disk(folder)


MAKERS: Mapping[str, Callable[[Path], object]] = {**FOLDERS, "task": task_folder, "saved": saved_folder}


def try_turns(what: str, kind: str, seed: int, turns: Iterable[int]) -> Iterator[str]:
    """Change a file of a folder, once a turn: one of `COUNTED`, or what should not have happened."""
    torch.manual_seed(0)
    change, read = (change_values, use) if what == "values" else (flip_bit, read_one)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        MAKERS[kind](folder)
        listed = (folder / "run.json").read_bytes() if kind in FOLDERS else b""
        if listed:
            forget_digests(folder)
        contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[0] != "."}
        began = time.process_time()
        for name in contents if what == "bits" else ["run.json"]:
            read(folder, name)  # They are valid before they are changed.
        allowed = SECONDS + time.process_time() - began
        for turn in turns:
            chance = random.Random(f"{what} {kind} {seed} {turn}")
            name = chance.choice(sorted(contents))
            changed = change(name, contents[name], chance)
            (folder / name).write_bytes(changed)
            outcome = _outcome(partial(read, folder, name, drawn=turn % DRAWN.get(kind, 4) == 0), allowed)
            if listed and name != "run.json" and changed != contents[name]:
                (folder / "run.json").write_bytes(listed)
                if _outcome(partial(read_run, folder), SECONDS) != "refused":
                    outcome = "the record has the digest of another file, and it was read"
                (folder / "run.json").write_bytes(contents["run.json"])
            if sorted(path.name for path in Path(place).iterdir()) != ["run"]:
                outcome = "wrote outside of the folder"
            (folder / name).write_bytes(contents[name])
            (folder / "report.html").unlink(missing_ok=True)
            yield f"{name}: {outcome}" if outcome not in COUNTED else outcome


def _outcome(read: Callable[[], object], seconds: float) -> str:
    """One of `COUNTED`, or what happened."""
    try:
        with bounded(seconds):
            read()
    except IvlensError as error:
        return "ended" if "ends the process" in str(error) else "refused" if str(error) else "no sentence"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
        return f"{type(error).__name__}: {str(error)[:200]} at {where}"
    return "read"


def _send(sink: Connection, *asked: Any) -> None:
    faulthandler.disable()  # What pytest would print of an abort is said by the status.
    warnings.simplefilter("ignore")  # Which pytest makes errors of; columns that are not read are warned of.
    for outcome in try_turns(*asked):
        sink.send(outcome)


def run_batch(what: str, kind: str, number: int, seed: int) -> dict[str, Any]:
    """So many turns, in a process of their own until one of them ends it."""
    counts, faults = Counter[str](), list[str]()
    while (done := counts.total()) < number:
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_send, args=(theirs, what, kind, seed, range(done, number)))
        process.start()
        theirs.close()
        for outcome in _received(ours, number - done):
            if outcome not in COUNTED:
                faults.append(f"{kind}, seed {seed}, turn {counts.total()}, {outcome}")
            counts[outcome if outcome in COUNTED else "broken"] += 1
        if counts.total() < number:
            process.kill()
            process.join()
            faults.append(f"{kind}, seed {seed}, turn {counts.total()}: ended its process, or had to be ended")
            counts["aborted"] += 1
        process.join()
    return {"what": what, "kind": kind, "seed": seed, "tried": number, **counts, "faults": faults}


def _received(source: Connection, most: int) -> Iterator[str]:
    """What comes, until there is nothing for too long or the other side has ended."""
    try:
        for _ in range(most):
            if not source.poll(PATIENCE):
                return
            yield source.recv()
    except EOFError:
        return


def fuzz(
    what: str, number: int, seed: int, kinds: tuple[str, ...] = (), counts: Path | None = None
) -> Iterator[dict[str, Any]]:
    """What each batch found, all kinds of folders in turn.

    Args:
        counts: A file of a line a batch: those in it are not run again, others are added.
    """
    kinds = kinds or tuple(MAKERS if what == "bits" else FOLDERS)
    lines = counts.read_text().splitlines() if counts is not None and counts.exists() else []
    kept = {tuple(found[key] for key in ("what", "kind", "seed", "tried")): found for found in map(json.loads, lines)}
    each = number // len(kinds)
    for batch in range(-(-each // BATCH[what])):
        size = min(BATCH[what], each - batch * BATCH[what])
        for kind in kinds:
            found = kept.get((what, kind, seed + batch, size))
            if found is None:
                found = run_batch(what, kind, size, seed + batch)
                if counts is not None:
                    with counts.open("a") as file:
                        file.write(json.dumps(found) + "\n")
            yield found


def total(batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all batches, and all that should not have happened."""
    sums, faults = Counter[str](), list[str]()
    for found in batches:
        sums.update({key: found.get(key, 0) for key in ("tried", *COUNTED, "broken", "aborted")})
        faults += found["faults"]
    return {**sums, "faults": faults}


def _printed(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for found in batches:
        print(json.dumps(found), flush=True)
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=BATCH, nargs="?", default="values")
    parser.add_argument("number", type=int, nargs="?", default=1000)
    parser.add_argument("seed", type=int, nargs="?", default=random.randrange(10**6))
    parser.add_argument("kinds", nargs="*", choices=[*MAKERS, []], help="of folders; all of them unless named")
    parser.add_argument("--counts", type=Path, help="a file that keeps what each batch found")
    asked = parser.parse_args()
    found = total(_printed(fuzz(asked.what, asked.number, asked.seed, tuple(asked.kinds), asked.counts)))
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["broken"] or found["aborted"]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
