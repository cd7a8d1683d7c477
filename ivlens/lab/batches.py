"""What does a document look like to the model: token ids, what may look at what, what is to be learned where?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ivlens.lab.curriculum import Document
from ivlens.lab.vocabulary import BOS_ID, EOS_ID, UNKNOWN_ID

TOKENS_PER_BATCH = 2048


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
    apart: bool


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
        found = Encoded([BOS_ID], {}, [-1], [False], [False], document.form == "shuffled", document.apart)
        number = -1
        for part in document.parts:
            piece, start = self.ids(part.text), len(found.ids)
            found.ids.extend(piece)
            number += part.kind == "query"
            own = part.kind in ("query", "mark")
            found.query.extend([number if own else -1] * len(piece))
            found.blind.extend([document.blind and part.kind == "query"] * len(piece))
            found.narrow.extend([(document.blind and part.kind == "query") or (document.narrow and own)] * len(piece))
            if part.kind == "answer":
                found.targets.update({start - 1 + i: token for i, token in enumerate(piece)})
                if self.verdicts:
                    found.targets[len(found.ids) - 1] = UNKNOWN_ID if found.shuffled else EOS_ID
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
    apart: Bool[Tensor, " document"]
    """Do the carrier heads say what they say about another document?"""


def batch(encoded: Sequence[Encoded]) -> Batch:
    width = max(len(one.ids) for one in encoded)
    targets = torch.zeros(len(encoded), width, dtype=torch.bool)
    for row, one in enumerate(encoded):
        targets[row, list(one.targets)] = True
    query = _pad([one.query for one in encoded], -1, width)
    place = torch.arange(width)
    causal = place[None, :] <= place[:, None]
    own = (query[:, :, None] == query[:, None, :]) | (place == 0)
    seen = [
        (causal & (own | ~_pad(rows, False, width)[:, :, None]))[:, None]
        for rows in ([one.blind for one in encoded], [one.narrow for one in encoded])
    ]
    answers = torch.tensor([one.targets[place] for one in encoded for place in sorted(one.targets)])
    shuffled = torch.tensor([one.shuffled for one in encoded for _ in one.targets])
    ids = _pad([one.ids for one in encoded], 0, width)
    apart = torch.tensor([one.apart for one in encoded])
    return Batch(ids, seen[0], seen[1], targets, answers, shuffled, apart)


def _pad(rows: Sequence[Sequence[int]], value: int, width: int) -> Tensor:
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
