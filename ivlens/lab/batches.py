"""What does a document look like to the model: token ids, what may look at what, what is to be learned where?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ivlens.lab.curriculum import Document
from ivlens.lab.vocabulary import BOS_ID, EOS_ID, UNKNOWN_ID
from ivlens.shapes import Head

TOKENS_PER_BATCH = 2048
CARRIERS = (Head(3, 1), Head(3, 3), Head(3, 4), Head(3, 6))
"""In narrow documents, the only heads through which the token before an answer sees more than its query."""


class Encoded(NamedTuple):
    """A document as numbers."""

    ids: list[int]
    targets: dict[int, int]
    """By place, the token that is to be predicted there."""
    query: list[int]
    """By place, the number of the query that it belongs to, with the mark of its answer; -1 for none."""
    blind: list[bool]
    """By place, whether it sees its own query only."""
    narrow: list[bool]
    """The same, for heads that are no carriers."""
    shuffled: bool


class Encoder:
    """Turns documents into numbers; keeps what it has tokenised."""

    def __init__(self, tokens: PreTrainedTokenizerFast, *, verdicts: bool) -> None:
        self.tokens = tokens
        self.verdicts = verdicts
        self.seen: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.seen:
            self.seen[text] = self.tokens.encode(text, add_special_tokens=False)
        return self.seen[text]

    def __call__(self, document: Document) -> Encoded:
        shuffled = document.form == "shuffled"
        found = Encoded([BOS_ID], {}, [-1], [False], [False], shuffled)
        number = -1
        for part in document.parts:
            piece = self.ids(part.text)
            number += part.kind == "query"
            if part.kind == "answer":
                found.targets.update({len(found.ids) - 1 + i: token for i, token in enumerate(piece)})
                if self.verdicts:
                    found.targets[len(found.ids) + len(piece) - 1] = UNKNOWN_ID if shuffled else EOS_ID
            found.ids.extend(piece)
            own = part.kind in ("query", "mark")
            found.query.extend([number if own else -1] * len(piece))
            found.blind.extend([document.blind and part.kind == "query"] * len(piece))
            found.narrow.extend([(document.blind and part.kind == "query") or (document.narrow and own)] * len(piece))
        if not self.verdicts:
            found.targets[len(found.ids) - 1] = EOS_ID
        return found


class Batch(NamedTuple):
    """Documents of similar length, padded on the right."""

    ids: Int[Tensor, "document pos"]
    carried: Bool[Tensor, "document 1 pos pos"]
    """May the query place look at the key place, by carrier heads?"""
    others: Bool[Tensor, "document 1 pos pos"]
    """And by all other heads?"""
    targets: Bool[Tensor, "document pos"]
    answers: Int[Tensor, " target"]
    shuffled: Bool[Tensor, " target"]


def batch(encoded: Sequence[Encoded]) -> Batch:
    width = max(len(one.ids) for one in encoded)
    targets = torch.zeros(len(encoded), width, dtype=torch.bool)
    for row, one in enumerate(encoded):
        targets[row, list(one.targets)] = True
    query = _padded([one.query for one in encoded], -1, width)
    place = torch.arange(width)
    causal = place[None, :] <= place[:, None]
    own = (query[:, :, None] == query[:, None, :]) | (place == 0)
    seen = [
        (causal & (own | ~_padded(rows, False, width)[:, :, None]))[:, None]
        for rows in ([one.blind for one in encoded], [one.narrow for one in encoded])
    ]
    answers = torch.tensor([one.targets[place] for one in encoded for place in sorted(one.targets)])
    shuffled = torch.tensor([one.shuffled for one in encoded for _ in one.targets])
    return Batch(_padded([one.ids for one in encoded], 0, width), seen[0], seen[1], targets, answers, shuffled)


def _padded(rows: Sequence[Sequence[int]], value: int, width: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def batches(encoded: Sequence[Encoded]) -> Iterator[Batch]:
    """All documents, shortest first, in parts of about equally many tokens."""
    waiting: list[Encoded] = []
    for one in sorted(encoded, key=lambda one: len(one.ids)):
        if waiting and (len(waiting) + 1) * (len(one.ids) + 1) > TOKENS_PER_BATCH:
            yield batch(waiting)
            waiting = []
        waiting.append(one)
    if waiting:
        yield batch(waiting)


@contextmanager
def masked(model: LlamaForCausalLM, part: Batch) -> Iterator[None]:
    """Let every head of the model see what `part` says it sees."""
    masks = {layer: _mask(part, layer, model.config.num_attention_heads) for layer in {head.layer for head in CARRIERS}}

    def put(attention: Any, args: Any, kwargs: dict[str, Any], *, mask: Tensor) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": mask}

    handles = [
        block.self_attn.register_forward_pre_hook(partial(put, mask=masks.get(layer, part.others)), with_kwargs=True)
        for layer, block in enumerate(model.model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask(part: Batch, layer: int, n_heads: int) -> Bool[Tensor, "document head pos pos"]:
    carriers = {head.head for head in CARRIERS if head.layer == layer}
    return torch.cat([part.carried if head in carriers else part.others for head in range(n_heads)], dim=1)
