"""Which pairs does a data set of Hugging Face's `datasets` hold: one saved to a folder, or one of the hub?

Only tables are read: no code of a data set is run. Saved folders are read by pyarrow (`arrow_streams` says why); those
of the hub by the package `datasets`, which runs none either from its version 4 on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from ivlens.datasets import arrow_streams
from ivlens.datasets.arrow_tables import Classes, check_rows, read_table
from ivlens.datasets.entries import Pair
from ivlens.datasets.records import Columns, find_form
from ivlens.errors import TaskError
from ivlens.storage.json_files import read_json

HUB = "hf:"
SPLITS = ("test", "validation", "train")
"""Which part is taken where none is named: the first of these that is there."""


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` (or that of a dictionary of them) wrote this folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(folder: Path, columns: Columns | None = None) -> tuple[list[Pair], tuple[str, ...]]:
    """Entries of a folder that `save_to_disk` wrote; of several splits, `test` before `validation` and `train`.

    Read by pyarrow alone, so that the package `datasets` is not needed.

    Raises:
        TaskError: the folder is damaged, or has no such columns.
    """
    if (folder / "dataset_dict.json").is_file():
        found = next((folder / name for name in SPLITS if (folder / name).is_dir()), None)
        if found is None:
            raise TaskError(f"{folder} has no split {' or '.join(SPLITS)}; give the folder of one split")
        folder = found
    try:
        state, info = (read_json(folder / name) for name in ("state.json", "dataset_info.json"))
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise ValueError("its rows are in another order than its files have them")
        names = dict.fromkeys(one["filename"] for one in state["_data_files"])
        known, rows = zip(*(arrow_streams.read_names(folder, name) for name in names), strict=True)
        check_rows(sum(rows), str(folder))
        keys = find_form(known[0], columns, str(folder)).keys
        table = pa.concat_tables([arrow_streams.read_columns(folder, name, keys) for name in names])
        classes = _classes(info["features"] or {})
    # Arrow raises the last one for what is damaged in ways of its own.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise TaskError(f"{folder} is no data set that save_to_disk wrote ({_line(error)}); save it again") from error
    return read_table(table, classes, columns, str(folder), names=known[0])


def read_hub(name: str, columns: Columns | None = None) -> tuple[list[Pair], tuple[str, ...]]:
    """Entries of `NAME[:CONFIGURATION][@SPLIT]` on the hub, or in its cache.

    Raises:
        TaskError: the package is missing, the data set cannot be had, or has no such columns.
    """
    datasets = _package()
    place, _, split = name.partition("@")
    repository, _, configuration = place.partition(":")
    try:
        with _quiet():
            if not split:
                known = datasets.get_dataset_split_names(repository, configuration or None)
                split = next((one for one in SPLITS if one in known), known[0])
            table = datasets.load_dataset(repository, configuration or None, split=split)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(
            f"the data set {name!r} cannot be had ({_line(error)}); check the name, go online, or give a folder that "
            "save_to_disk wrote"
        ) from error
    classes = {name: kind.names for name, kind in table.features.items() if hasattr(kind, "names")}
    return read_table(table.with_format("arrow")[:], classes, columns, f"{HUB}{name} (split {split})")


def _classes(features: Mapping[str, Any]) -> Classes:
    found = {name: kind["names"] for name, kind in features.items() if "names" in kind}
    if not all(isinstance(name, str) for names in found.values() for name in names):
        raise ValueError("it has classes whose names are no text")
    return found


def _package() -> Any:
    if find_spec("datasets") is None:
        raise TaskError("the package datasets is not installed; run: pip install 'ivlens[datasets]'")
    import datasets

    return datasets


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub's own lines about every attempt to reach it."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
