"""Which pairs of a task are too long for a model's context?

One document among thousands is no reason to ask none of them: the longest pairs are left out, aloud, until a prompt of
the longest that are left fits.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ivlens.datasets.entries import LONGEST
from ivlens.datasets.task import Pair, Task, TaskWarning
from ivlens.errors import PromptError, as_ivlens_error
from ivlens.prompts.chat import Layout

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class _Room(NamedTuple):
    """Tokens of a context, and what of them goes to what the template writes."""

    total: int
    instruction: int
    demonstration: int

    def holds(self, longest: Sequence[int]) -> bool:
        """Whether a prompt fits that asks for a pair, with the others as its demonstrations."""
        shown = sum(longest) + self.demonstration * (len(longest) - 1)
        return max(shown, longest[0] + self.instruction) <= self.total


@as_ivlens_error()
def leave_out_long(model: HookedTransformer, task: Task, *, shots: int, template: Layout) -> Task:
    """The task without its longest pairs, where a prompt of those would not fit the model's context.

    Args:
        shots: Demonstrations that a prompt has.

    Raises:
        PromptError: more than half of the pairs would have to go, or so many that too few are left.
    """
    if model.tokenizer is None or len(task.pairs) < shots + 10:
        return task  # Which is refused for that.
    room, n = _find_room(model, task, template), len(task.pairs)
    # No tokenizer makes more tokens than there are bytes: mostly there is no need to count them.
    bounds = sorted((len(f" {pair.input} {pair.output}".encode()) for pair in task.pairs), reverse=True)
    if room.holds(bounds[: shots + 1]):
        return task
    sizes = _sizes(model.tokenizer, task.pairs)
    order = sorted(range(n), key=lambda i: -sizes[i])
    longest = [sizes[i] for i in order]
    out = _count_too_long(longest, room, shots)
    if out is None:
        fewer = next((k for k in reversed(range(shots)) if _count_too_long(longest, room, k) is not None), None)
        raise PromptError(
            f"too many pairs of task {task.name!r} are too long for prompts with {shots} demonstrations: the context "
            f"of {model.cfg.model_name} is {model.cfg.n_ctx} tokens, and its longest pair has {longest[0]}; "
            f"{'give shorter ones' if fewer is None else f'use {fewer} shots or fewer'}"
        )
    if out == 0:
        return task
    warnings.warn(
        f"task {task.name!r}: {out} of {n} pairs are left out, of {longest[out - 1]} tokens and more: a prompt of "
        f"them with {shots} demonstrations would not fit the context of {model.cfg.model_name}, {model.cfg.n_ctx} "
        "tokens; use fewer shots to keep them",
        TaskWarning,
        stacklevel=3,
    )
    dropped = set(order[:out])
    return replace(task, pairs=tuple(pair for i, pair in enumerate(task.pairs) if i not in dropped))


def _count_too_long(longest: Sequence[int], room: _Room, shots: int) -> int | None:
    """How many of the longest pairs have to go; None where it is more than half, or too few are left to split."""
    n = len(longest)
    most = min(n // 2, n - shots - 10)
    found = bisect_left(range(most + 1), True, key=lambda k: room.holds(longest[k : k + shots + 1]))
    return found if found <= most else None


def _find_room(model: HookedTransformer, task: Task, template: Layout) -> _Room:
    """Measured on the shortest pair."""
    shortest = min(task.pairs, key=lambda pair: len(pair.input) + len(pair.output))
    wording = max(task.instructions, key=len, default=None)

    def tokens(**parts: Any) -> int:
        return len(_ids(model.tokenizer, [template.render(shortest, **parts).text])[0])

    bare, (size,) = tokens(), _sizes(model.tokenizer, [shortest])
    return _Room(
        # One for a BOS token, and the query's output is counted with its size, not with the template.
        total=model.cfg.n_ctx - 1 - (bare - size + len(_ids(model.tokenizer, [f" {shortest.output}"])[0])),
        instruction=tokens(instruction=wording) - bare if wording else 0,
        demonstration=tokens(demonstrations=[shortest]) - bare - size,
    )


def _sizes(tokenizer: Any, pairs: Sequence[Pair]) -> list[int]:
    # Some at a time: while it works, the library keeps hundreds of bytes for every token.
    groups: list[list[str]] = [[]]
    size = 0
    for text in (f" {side}" for pair in pairs for side in pair):
        if size + len(text) > LONGEST:
            groups.append([])
            size = 0
        groups[-1].append(text)
        size += len(text)
    lengths = [len(ids) for texts in groups for ids in _ids(tokenizer, texts)]
    return [given + output for given, output in zip(lengths[::2], lengths[1::2], strict=True)]


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
