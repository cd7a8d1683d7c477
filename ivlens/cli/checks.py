"""What do several commands check before a model is read?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ivlens.cli import options
from ivlens.errors import IvlensError

if TYPE_CHECKING:
    from ivlens.datasets.task import Task


def settings_of(
    shots: int,
    clean_prompts: int,
    prompts: int,
    corruption: options.Corruption,
    source: options.Source,
    effect: options.Effect,
    seed: int,
) -> dict[str, Any]:
    numbers = {"shots": shots, "clean_prompts": clean_prompts, "prompts": prompts, "seed": seed}
    return {**numbers, "corruption": corruption.value, "source": source.value, "effect": effect.value}


def check_early(
    task: Task | None,
    settings: dict[str, Any],
    *,
    template: str,
    heads: str | None = None,
    instruction: str = "all",
) -> dict[str, Any]:
    """Heads and wordings as they are meant. Refuses, before a large model is read, what can be refused without it."""
    from ivlens.analysis.wordings import check_choice
    from ivlens.patching.settings import Settings
    from ivlens.prompts.chat import CHAT
    from ivlens.prompts.template import find_template
    from ivlens.steering.head_choice import parse_heads

    Settings(**settings)
    if template != CHAT:
        find_template(template)
    wording = options.parse_wording(instruction)
    if task is not None:
        task.split(shots=settings["shots"], seed=settings["seed"])
        check_choice(task, wording)
    return {"heads": parse_heads(heads), "instruction": wording}


def refuse_short(task: Task) -> None:
    if len(task.pairs) < 10:
        raise IvlensError(
            f"task {task.name!r} has {len(task.pairs)} pairs, but an audit needs 10 and one more for each "
            "demonstration; add pairs"
        )
