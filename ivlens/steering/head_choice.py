"""Which heads are meant: by a list such as `L9H6,L3H2`, by a file, or by what carries other tasks?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from ivlens.datasets.task import Task, exists, tasks
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, suggest
from ivlens.patching.settings import Settings
from ivlens.prompts.choices import ScoreChoice
from ivlens.shapes import GIB, Head
from ivlens.steering.universal_heads import Considered, Universal, universal_heads
from ivlens.storage import tensor_files
from ivlens.storage.atomic_files import parse_json
from ivlens.storage.json_files import read_given_json
from ivlens.storage.run_tables import Tables
from ivlens.vectors.head_writing import check_head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

UNIVERSAL: Literal["universal"] = "universal"
RANKED = ("layer", "head", "aie")

Asked = Sequence[Head | tuple[int, int] | str] | str | Path
Chosen = tuple[Head, ...] | Literal["universal"] | None
"""Heads in their order, or how they are to be found: as universal ones, or (None) by AIE."""


def choose_heads(heads: Asked | None, model: HookedTransformer) -> Chosen:
    """Which heads of a model are meant; see `parse_heads`.

    Raises:
        IvlensError: the model has no such head.
    """
    chosen = parse_heads(heads)
    for head in chosen if isinstance(chosen, tuple) else ():
        check_head(head, (model.cfg.n_layers, model.cfg.n_heads))
    return chosen


def parse_heads(heads: Asked | None) -> Chosen:
    """Which heads are meant.

    Args:
        heads: Heads, `L9H6,L3H2`, or a file: what `ivlens universal` wrote, a saved vector, or a JSON list of
            `"L9H6"` or `[9, 6]`; or `universal`.

    Raises:
        IvlensError: no such file, no head, or a head twice.
    """
    if heads is None:
        return None
    if isinstance(heads, str) and heads == UNIVERSAL:
        return UNIVERSAL
    if isinstance(heads, str | Path):
        found = _parse_text(heads)
    elif isinstance(heads, Iterable):
        found = tuple(map(_as_head, [heads] if isinstance(heads, Head) else heads))
    else:
        raise IvlensError(
            f"heads is {heads!r}; give heads such as [ivlens.Head(9, 6)], 'L9H6,L3H2', or effects.top(10)"
        )
    if not found:
        raise IvlensError("heads is empty; give at least one, such as L9H6")
    twice, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise IvlensError(f"head {twice} is named twice; name each once")
    return found


def fix_heads(
    chosen: Chosen,
    model: HookedTransformer,
    task: Task,
    settings: Settings,
    *,
    top: int,
    tables: Tables,
    score: ScoreChoice = "auto",
    memory: int = 2 * GIB,
) -> tuple[Head, ...] | None:
    """The heads that were chosen; None where they are ranked by AIE.

    Universal ones are those of the built-in tasks but this one. They are kept as the table `universal`, and as
    `universal_tasks` which tasks they were ranked on and why.
    """
    if chosen != UNIVERSAL:
        return chosen

    @lru_cache
    def ranked() -> Universal:
        others = [one for one in map(find_task, tasks()) if task.name != one.name and task.digest != one.digest]
        return universal_heads(model, others, settings, top=top, score=score, memory=memory)

    def heads() -> pd.DataFrame:
        lines = [(*head, float(ranked().aie[head])) for head in ranked().heads]
        return pd.DataFrame(lines, columns=list(RANKED))

    tables.table("universal_tasks", lambda: pd.DataFrame(ranked().considered), Considered._fields)
    frame = tables.table("universal", heads, RANKED)
    return tuple(Head(int(layer), int(head)) for layer, head in zip(frame["layer"], frame["head"], strict=True))


def _as_head(head: Any) -> Head:
    if isinstance(head, str):
        return Head.parse(head)
    numbers = list(head) if isinstance(head, Iterable) else []
    if len(numbers) != 2 or not all(isinstance(number, Integral) for number in numbers):
        raise IvlensError(f"{head!r} is not a head; write it as L9H6, or (9, 6)")
    return Head(*map(int, numbers))


def _parse_text(text: str | Path) -> tuple[Head, ...]:
    path = Path(text)
    if str(text).strip() and exists(path):
        return _read_file(path)
    parts = [part for part in re.split(r"[,\s]+", str(text)) if part]
    if parts and not any(re.fullmatch(r"L\d+H\d+", part) for part in parts):
        meant = suggest(text, [UNIVERSAL])
        raise IvlensError(
            f"there is no file {str(text)!r}; give the path of one, heads such as L9H6,L3H2, or universal"
            + (f"; {meant}" if meant else "")
        )
    return tuple(Head.parse(part) for part in parts)


def _read_file(path: Path) -> tuple[Head, ...]:
    if path.suffix.lower() == ".safetensors":
        metadata = tensor_files.read_header(path, remedy="save it again").metadata
        listed = metadata.get("heads", metadata.get("record", "{}"))
        try:
            content = parse_json(listed)
        except ValueError as error:
            raise IvlensError(f"{path} has no readable list of heads ({error}); save it again") from error
    else:
        content = read_given_json(path, wanted="give a file of heads")
    content = content.get("heads") if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise IvlensError(
            f"{path} has no list of heads; give what `ivlens universal` wrote, a saved vector, or a JSON list such as "
            '["L9H6", "L3H2"]'
        )
    return tuple(_head(entry, path) for entry in content)


def _head(entry: object, path: Path) -> Head:
    if isinstance(entry, str):
        return Head.parse(entry)
    if isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry):
        return Head(*entry)
    raise IvlensError(f'{path} lists {str(entry)[:40]!r}, no head; write "L9H6" or [9, 6]')
