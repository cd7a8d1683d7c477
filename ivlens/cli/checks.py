"""What do several commands check before a model is read?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ivlens.cli import options
from ivlens.errors import IvlensError

if TYPE_CHECKING:
    from ivlens.datasets.task import Task
    from ivlens.patching.settings import Settings


def check_early(settings: type[Settings], typed: Mapping[str, Any], task: Task | None = None) -> dict[str, Any]:
    """The options that were typed, read. Refuses, before a large model is read, what can be refused without it."""
    from ivlens.analysis.wordings import check_choice
    from ivlens.prompts.chat import CHAT
    from ivlens.prompts.template import find_template

    found = options.read_options(settings, typed)
    asked = settings(**found)
    if typed["template"] != CHAT:
        find_template(typed["template"])
    if task is not None:
        task.split(shots=asked.shots, seed=asked.seed)
        check_choice(task, found.get("instruction", "all"))
    return found


def refuse_short(task: Task) -> None:
    if len(task.pairs) < 10:
        raise IvlensError(
            f"task {task.name!r} has {len(task.pairs)} pairs, but an audit needs 10 and one more for each "
            "demonstration; add pairs"
        )
