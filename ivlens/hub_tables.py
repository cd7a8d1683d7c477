"""Which pairs does a data set of Hugging Face's `datasets` hold: one saved to a folder, or one of the hub?

Only tables are read: no code of a data set is run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ivlens.csv_files import Columns, columns_of
from ivlens.errors import TaskError

HUB = "hf:"
MAX_ROWS = 100_000
SPLITS = ("test", "validation", "train")
"""Which part is taken where none is named: the first of these that is there."""


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` (or that of a dictionary of them) wrote this folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(folder: Path, columns: Columns | None = None) -> list[tuple[str, str]]:
    """Pairs of a folder that `save_to_disk` wrote; of several splits, `test` before `validation` and `train`.

    Raises:
        TaskError: the package is missing, the folder is damaged, or has no such columns.
    """
    datasets = _package()
    if (folder / "dataset_dict.json").is_file():
        found = next((folder / name for name in SPLITS if (folder / name).is_dir()), None)
        if found is None:
            raise TaskError(f"{folder} has no split {' or '.join(SPLITS)}; give the folder of one split")
        folder = found
    try:
        table = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskError(f"{folder} is no data set that save_to_disk wrote ({_line(error)}); save it again") from error
    return _pairs(table, columns, str(folder))


def read_hub(name: str, columns: Columns | None = None) -> list[tuple[str, str]]:
    """Pairs of `NAME[:CONFIGURATION][@SPLIT]` on the hub, or in its cache.

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
    return _pairs(table, columns, f"{HUB}{name} (split {split})")


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


def _pairs(table: Any, columns: Columns | None, where: str) -> list[tuple[str, str]]:
    if len(table) > MAX_ROWS:
        raise TaskError(
            f"{where} has {len(table):,} rows; a task may have {MAX_ROWS:,} at most: save a part of it with "
            "table.select(range(1000)).save_to_disk(...)"
        )
    names = list(table.column_names)
    at = columns_of(names, columns, where)
    sides = [list(_texts(table, names[place], where)) for place in at]
    return list(zip(*sides, strict=True))


def _texts(table: Any, name: str, where: str) -> Iterator[str]:
    """A column as text: classes by their names, whole numbers as written, of a list the first."""
    classes = getattr(table.features[name], "names", None)
    for number, cell in enumerate(table[name], start=1):
        if isinstance(cell, Sequence) and not isinstance(cell, str) and cell:
            cell = cell[0]
        if classes is not None and isinstance(cell, int):
            cell = classes[cell] if 0 <= cell < len(classes) else None
        if isinstance(cell, bool) or not isinstance(cell, str | int) or not str(cell).strip():
            raise TaskError(
                f"{where}: {name!r} of row {number} is {str(cell)[:60]!r}, no text; take another column or split"
            )
        yield str(cell).strip()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
