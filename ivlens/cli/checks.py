"""What do several commands check before a model is read?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ivlens.cli import options
from ivlens.errors import IvlensError

if TYPE_CHECKING:
    from ivlens.datasets.task import Task
    from ivlens.patching.settings import Settings
    from ivlens.prompts.chat import Layout


def check_early(settings: type[Settings], typed: Mapping[str, Any], task: Task | None = None) -> dict[str, Any]:
    """The options that were typed, read. Refuses, before a large model is read, what can be refused without it."""
    from ivlens.analysis.wordings import check_choice

    found = options.read_options(settings, typed)
    asked = settings(**found)
    if task is not None:
        task.split(shots=asked.shots, seed=asked.seed)
        check_choice(task, found.get("instruction", "all"))
    return found


def choose_template(name: str, bos: Any, template_option: list[str] | None) -> Callable[..., Layout]:
    """What makes the template of a model; refuses, before a model is read, what can be refused without it."""
    from ivlens.prompts.chat import CHAT, template

    make = partial(template, name, options=options.parse_template_options(template_option), bos=bos.value)
    if name != CHAT:
        make()
    return make


def refuse_short(task: Task) -> None:
    if len(task.pairs) < 10:
        raise IvlensError(
            f"task {task.name!r} has {len(task.pairs)} pairs, but an audit needs 10 and one more for each "
            "demonstration; add pairs"
        )
