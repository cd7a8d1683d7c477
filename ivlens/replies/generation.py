"""What does a model write behind a prompt, token by token?

Greedy decoding of many prompts at once with a key-value cache. Prompts are padded on the left under a mask, and each
reply is the one that the prompt would get alone, unpadded and without a cache. What is on the model is in force:
hooks, adapters, `with steered(model, vector)`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from ivlens.errors import IvlensError
from ivlens.forward.makers import forward_of
from ivlens.forward.memory import count_at_once
from ivlens.forward.token_batches import batches
from ivlens.kept_batches import keep_batch
from ivlens.patching.hooks import Hooks, at_position
from ivlens.progress import track
from ivlens.prompts.tokens import Tokens
from ivlens.replies.endings import Ending

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

NEW_TOKENS = 32
"""Of a reply, at most."""
_AT_ONCE = 4
"""Times the prompts that a processor reads in about a second: new tokens cost least for many prompts at once."""


@torch.no_grad()
def write_replies(
    model: HookedTransformer,
    tokens: Tokens,
    endings: Sequence[Ending],
    *,
    new_tokens: int = NEW_TOKENS,
    changes: Hooks = (),
    every_token: bool = False,
    known: Sequence[Tensor] = (),
) -> list[str]:
    """The reply to every prompt, up to its end.

    Args:
        endings: Where each of them ends.
        new_tokens: Of a reply at most; fewer where the model's context is full.
        changes: Hooks that say where by `at`, as `patching.hooks` makes them: in force at the last prompt token.
        every_token: Have `changes` in force at every new token, too.
        known: What the changes are made from, by which replies that were kept are known again; without it they are not
            kept.

    Raises:
        IvlensError: fewer than one new token.
    """
    if new_tokens < 1:
        raise IvlensError(f"new_tokens is {new_tokens}; a reply has at least one")
    most, replies = _AT_ONCE * count_at_once(model, tokens, new_tokens), list[str]()
    hooks = [at_position(hook, -1) for hook in changes]
    for batch in track(list(batches(tokens, most=most)), "replies"):
        own = endings[len(replies) : len(replies) + len(batch)]
        what = f"replies of {new_tokens} tokens, {every_token}: {[(sorted(one.tokens), *one[1:]) for one in own]}"

        def compute(batch: Tokens = batch, own: Sequence[Ending] = own) -> dict[str, Tensor]:
            return {"json": _as_tensor(_write_batch(model, batch, own, new_tokens, hooks, every_token))}

        inputs = [*vars(batch).values(), *known]
        found = compute() if changes and not known else keep_batch(what, inputs, compute, device="cpu")
        replies += json.loads(bytes(found["json"].tolist()))
    return replies


def _as_tensor(replies: list[str]) -> Tensor:
    return torch.tensor(list(json.dumps(replies).encode()), dtype=torch.uint8)


def _write_batch(
    model: HookedTransformer, tokens: Tokens, endings: Sequence[Ending], most: int, hooks: Hooks, every_token: bool
) -> list[str]:
    ids, mask, written, replies = tokens.prompts, tokens.mask.long(), [[] for _ in endings], [""] * len(endings)
    room = (model.cfg.n_ctx - mask.sum(1)).clamp(1, most).tolist()
    forward, cache = forward_of(model), None
    # Prompts whose reply goes on: these are the rows of the cache.
    open_rows = list(range(len(endings)))
    while open_rows:
        with model.hooks(fwd_hooks=list(hooks)):
            logits, cache = forward.read_on(ids, mask, cache)
        best, stay = logits.argmax(-1), []
        for at, (row, token) in enumerate(zip(open_rows, best.tolist(), strict=True)):
            written[row].append(token)
            replies[row], has_ended = endings[row].cut(written[row], model.tokenizer)
            if not has_ended and len(written[row]) < room[row]:
                stay.append(at)
        if len(stay) < len(open_rows):
            open_rows, kept = [open_rows[at] for at in stay], torch.tensor(stay, dtype=torch.long, device=best.device)
            best, mask = best[kept], mask[kept]
            forward.keep_rows(cache, kept)
        ids, mask = best[:, None], pad(mask, (0, 1), value=1)
        hooks = hooks if every_token else []
    return replies
