"""Which tokens of a prompt are its query, the output of its last demonstration, or what the template writes?

Told by the characters that a template filled in (`Prompt.spans`) and where tokens lie in the text: a token is of the
part in which it ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ivlens.errors import PromptError, list_choices
from ivlens.prompts.template import Prompt, Span
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Position = str | int
"""A role, or the number of a token in its prompt, pads not counted; -1 is the last one."""
_OF_SPANS: dict[str, Callable[[Sequence[Span]], list[Span]]] = {
    "query": lambda spans: [span for span in spans if span.part == "query"],
    "last-output": lambda spans: [span for span in spans if span.part == "output"][-1:],
    "outputs": lambda spans: [span for span in spans if span.part == "output"],
    "inputs": lambda spans: [span for span in spans if span.part == "input"],
    "separators": lambda spans: [span for span in spans if span.part == "separator"],
    "instruction": lambda spans: [span for span in spans if span.part == "instruction"],
}
ROLES = ("last", *_OF_SPANS)
"""`last` is the last prompt token. `separators` are what the template writes, the last prompt token left out."""


def find_columns(
    model: HookedTransformer, prompts: Sequence[Prompt], tokens: Tokens, position: Position
) -> Bool[Tensor, "prompt pos"]:
    """Where in the columns of `tokens`, which are those of `prompts`, the tokens of a role or number are.

    Raises:
        PromptError: there is no such role, a prompt has no such token, or it is not known which its parts are.
    """
    if isinstance(position, str) and position not in ROLES:
        raise PromptError(f"there is no role {position!r}; {list_choices(position, ROLES)}, or the number of a token")
    if isinstance(position, bool) or not isinstance(position, str | int):
        raise PromptError(f"position is {position!r}; give the number of a token, or a role: {', '.join(ROLES)}")
    mask = tokens.mask
    if position == "last":
        position = -1
    if isinstance(position, int):
        # Pads do not count: the first token of each prompt has number 0.
        numbers = mask.cumsum(1) - 1
        found = mask & (numbers == (position if position >= 0 else position + mask.sum(1, keepdim=True)))
    else:
        rows = [_row(model, prompt, tokens, row, position) for row, prompt in enumerate(prompts)]
        found = torch.stack(rows).to(mask.device)
    lacking = int((~found.any(1)).sum())
    if lacking:
        wanted = f"token {position}" if isinstance(position, int) else f"token of the role {position!r}"
        raise PromptError(f"{lacking} of {len(tokens)} prompts have no {wanted}; choose another position")
    return found


def _row(model: HookedTransformer, prompt: Prompt, tokens: Tokens, row: int, role: str) -> Bool[Tensor, " pos"]:
    tokenizer: Any = model.tokenizer
    if not prompt.spans:
        raise PromptError(
            f"which tokens are {role!r} is not known of prompts of a chat template or written by hand; give the number "
            "of a token, such as -1, or another template"
        )
    if not tokenizer.is_fast:
        raise PromptError("the tokenizer does not tell where its tokens lie in a text; give the number of a token")
    ends = [
        stop - 1
        for _, stop in tokenizer(prompt.text + prompt.answer, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
    ]
    own = ends[: len(ends) - int(tokens.answer_mask[row].sum())]
    width, n_tokens = tokens.mask.shape[1], int(tokens.mask[row].sum())
    starts, wanted = [span.start for span in prompt.spans], _OF_SPANS[role](prompt.spans)
    found = torch.zeros(width, dtype=torch.bool)
    # From the end: in front, the prompt may have a BOS token that is not in its text.
    for back, end in enumerate(reversed(own[-n_tokens:]), start=1):
        found[width - back] = prompt.spans[max(0, bisect_right(starts, end) - 1)] in wanted
    if role == "separators":
        found[-1] = False
    return found
