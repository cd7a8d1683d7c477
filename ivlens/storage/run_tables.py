"""What has a piece of work computed: its tables, the parts that they are made of, and its batches?

Of a run folder, where an interrupted run has left them for the next one, or, where there is none, of this process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pandas as pd
from safetensors.torch import save

from ivlens.errors import IvlensError
from ivlens.kept_batches import Keeper, Tensors, keeping
from ivlens.storage import tensor_files
from ivlens.storage.atomic_files import write_whole
from ivlens.storage.run_folder import PARTS, Run
from ivlens.storage.run_record import versions


@dataclass(frozen=True)
class Tables:
    """The tables of one piece of work: of a run folder, or, where there is none, of this process alone."""

    run: Run | None = None
    kept: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Those that were asked for so far, by name."""

    def has(self, name: str) -> bool:
        """Whether a run has the table already."""
        return self.run is not None and self.run.has(f"{name}.parquet")

    def table(self, name: str, compute: Callable[[], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
        """The table `name`: read where the run has it, else computed, and written where there is a run."""
        self.kept[name] = compute() if self.run is None else self.run.table(name, compute, columns=columns)
        return self.kept[name]

    def part(self, name: str, compute: Callable[[], pd.DataFrame], columns: Sequence[str] = ()) -> pd.DataFrame:
        """A table that others are made of, which is kept until the run is complete; see `table`."""
        if self.run is None:
            key = f"{PARTS}/{name}"
            if key not in self.kept:
                self.kept[key] = compute()
            return self.kept[key]
        return self.run.table(f"{PARTS}/{name}", compute, columns=columns)

    @contextmanager
    def keeping(self, scope: str) -> Iterator[None]:
        """Inside the `with` block, batches are kept in a folder of that name until the run is complete.

        Args:
            scope: One for each model that is asked: batches are told apart by what is asked alone.
        """
        if self.run is None:
            yield
        else:
            model = f"{self.run.configuration} {scope}"
            with self.run.writing(), keeping(batch_keeper(self.run.path(f"{PARTS}/{scope}"), model)):
                yield


def batch_keeper(folder: Path, model: str) -> Keeper:
    """Keeps batches in a folder, a file each.

    Args:
        model: What tells the model that is asked, and the run, from others: a batch of another one, or one that has
            changed since it was written, is computed again.
    """

    def keep(name: str, compute: Callable[[], Tensors]) -> Tensors:
        path = folder / f"{name}.safetensors"
        found = _read_batch(path, model)
        if found is None:
            found = {key: value.contiguous() for key, value in compute().items()}
            write_whole(path, save(found, metadata={"digest": _digest(found, model, name)}))
        return found

    return keep


@contextmanager
def keeping_beside(file: Path, model: str) -> Iterator[None]:
    """Inside the `with` block, batches are kept in a folder beside a file that is to be written, and then removed.

    Where an exception leaves the block, or a signal the process, they stay for the next time.
    """
    folder = file.with_name(f"{file.name}.parts")
    with keeping(batch_keeper(folder, f"{model} {sorted(versions().items())}")):
        yield
    for path in folder.glob("*.safetensors") if folder.is_dir() else ():
        if re.fullmatch(r"(\.ivlens-tmp-[0-9a-f]+-)?[0-9a-f]{32}", path.stem):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # Somebody else's files are in it.
        folder.rmdir()


def _read_batch(path: Path, model: str) -> Tensors | None:
    if not path.is_file():
        return None
    try:
        found, metadata = tensor_files.read_tensors(path, remedy="delete it")
    except IvlensError:
        return None
    return found if metadata.get("digest") == _digest(found, model, path.stem) else None


def _digest(tensors: Tensors, model: str, name: str) -> str:
    return sha256(f"{model} {name} ".encode() + save(tensors)).hexdigest()
