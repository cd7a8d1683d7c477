"""How do contents become what is drawn, small, and with the very digits that Python prints? See `page_data`."""

from __future__ import annotations

import base64
import gzip
import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from ivlens.explorer.attention import Attention
from ivlens.explorer.contents import Bounded, Contents, ModelHeads, ShownPrompt, SteeredReplies, Writing
from ivlens.explorer.page_data import (
    DIGITS,
    LOGIT_DIGITS,
    Encoded,
    EncodedGrid,
    EncodedModel,
    EncodedPrompt,
    EncodedQuery,
    EncodedReplies,
    EncodedSteering,
    EncodedWriting,
    Numbers,
)
from ivlens.explorer.replies import strengths
from ivlens.prompts.template import Prompt

ROOM = 6 * 2**20
"""Letters that attention may take on a page; from the last token it is kept whatever it takes."""
LEAST = (1, 2, 3, 5, 8, 12, 20, 30, 50, 101)
"""Hundredths that a weight from another token has at least, the first of these with which there is room; 101: none."""


def encode(contents: Contents, *, steered: SteeredReplies | None = None, room: int = ROOM) -> Encoded:
    """Contents as they are drawn.

    Args:
        steered: Replies by layer and strength; without them a kernel is to give them.
        room: Letters for attention.
    """
    packed, least = _fit([one.attention for one in contents.models], room)
    texts = sorted({text for model in contents.models if model.writing for text in model.writing.texts.values()})
    digits = find_digits(contents)
    layers, heads = contents.models[0].aie.mean.shape
    return Encoded(
        task=contents.task,
        task_digest=contents.task_digest,
        unit="nats" if contents.unit == "nats" else "probability",
        layers=layers,
        heads=heads,
        digits=digits,
        marked=[(head.layer, head.head) for head in contents.marked],
        models=[_model(*one, digits, texts) for one in zip(contents.models, packed, strict=True)],
        change=None if contents.change is None else _grid(contents.change, digits),
        corrupted=[_query(one) for one in contents.corrupted],
        clean=[_query(one) for one in contents.clean],
        shown=[_shown(one) for one in contents.shown],
        texts=texts,
        least=least,
        steering=_steering(contents, steered),
    )


def find_digits(contents: Contents) -> int:
    """Behind the point, of effects: three, and more where all of them are small."""
    largest = max(float(model.aie.mean.abs().max()) for model in contents.models)
    return min(max(DIGITS, 1 - math.floor(math.log10(largest))), 9) if largest > 0 else DIGITS


def to_whole(values: Tensor | Iterable[float], digits: int) -> Numbers:
    """What is printed of numbers with so many digits, without the point."""
    flat = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else list(values), dtype=np.float64).ravel()
    # By way of the text itself: a product with 1,000 may round to a tie that the number is not.
    return [None if math.isnan(one) else int(f"{one:.{digits}f}".replace(".", "")) for one in flat.tolist()]


def encode_replies(replies: Sequence[str], probability: Tensor) -> EncodedReplies:
    return EncodedReplies(replies=list(replies), probability=to_whole(probability, DIGITS))


def _model(model: ModelHeads, attention: list[str], digits: int, texts: list[str]) -> EncodedModel:
    return EncodedModel(
        name=model.name,
        digest=model.digest,
        aie=_grid(model.aie, digits),
        cie=[to_whole(one, digits) for one in model.cie],
        unpatched=to_whole(model.unpatched, digits),
        lost=_grid(model.lost, DIGITS),
        lost_by_prompt=[to_whole(one, DIGITS) for one in model.lost_by_prompt],
        whole=to_whole(model.whole, DIGITS),
        writing=None if model.writing is None else _writing(model.writing, texts),
        attention=attention,
    )


def _grid(found: Bounded, digits: int) -> EncodedGrid:
    return EncodedGrid(**{name: to_whole(grid, digits) for name, grid in found._asdict().items()})


def _writing(writing: Writing, texts: list[str]) -> EncodedWriting:
    place = {text: at for at, text in enumerate(texts)}
    of = {token: place[text] for token, text in writing.texts.items()}
    return EncodedWriting(
        top=[of[token] for token in writing.top.flatten().tolist()],
        top_logits=to_whole(writing.top_logits, LOGIT_DIGITS),
        bottom=[of[token] for token in writing.bottom.flatten().tolist()],
        bottom_logits=to_whole(writing.bottom_logits, LOGIT_DIGITS),
    )


def _fit(models: Sequence[Sequence[Attention]], room: int) -> tuple[list[list[str]], int]:
    """The attention of every model on every prompt, packed, and the smallest weight that there was room for."""
    for least in LEAST[:-1]:
        packed, left = list[list[str]](), room
        for attention in models:
            packed.append([])
            for one in attention:
                if left >= 0:  # Else there is no need to know how large the others are.
                    packed[-1].append(pack(one.thinned(least)))
                    left -= len(packed[-1][-1])
        if left >= 0:
            return packed, least
    return [[pack(one.thinned(LEAST[-1])) for one in attention] for attention in models], LEAST[-1]


def pack(found: Attention) -> str:
    """Base64 of gzip of the bytes of `last`, `counts`, `weights` and `keys`, in the order of their axes.

    Keys are single bytes where the prompt has 256 tokens at most, else two, the lower one first.
    """
    keys = found.keys.astype(np.uint8) if found.last.shape[2] <= 256 else found.keys.astype("<u2")
    content = b"".join(part.tobytes() for part in (found.last, found.counts, found.weights, keys))
    return base64.b64encode(gzip.compress(content, compresslevel=4, mtime=0)).decode()


def check_packed(text: str, heads: int, tokens: int, *, most: int) -> int:
    """How many bytes a text unfolds to, which is as many as `pack` has of so many heads and tokens.

    Raises:
        ValueError: it is no such text, or they are more than `most`; no more are unfolded.
    """
    stream, packed = zlib.decompressobj(wbits=31), base64.b64decode(text, validate=True)
    rows, size = heads * tokens, 2 if tokens <= 256 else 3
    if not 0 < 2 * rows <= most:
        raise ValueError(f"attention of {heads} heads on {tokens} tokens is nothing, or more than {most:,} bytes")
    try:
        content = stream.decompress(packed, 2 * rows)  # From the last token, and how many there are from each.
        kept = int(np.frombuffer(content, np.uint8)[rows:].sum(dtype=np.int64))
        rest = stream.decompress(stream.unconsumed_tail, min(size * kept, most) + 1)
    except zlib.error as error:
        raise ValueError(f"attention is damaged ({error})") from error
    if len(content) < 2 * rows or len(rest) != size * kept or not stream.eof:
        raise ValueError("attention is of other heads or tokens, or too much")
    return len(content) + len(rest)


def _query(prompt: Prompt) -> EncodedQuery:
    return EncodedQuery(query=prompt.query.input, answer=prompt.answer.strip())


def _shown(one: ShownPrompt) -> EncodedPrompt:
    query = _query(one.prompt).model_dump()
    return EncodedPrompt(**query, kind=one.kind, number=one.number, tokens=list(one.tokens))


def _steering(contents: Contents, steered: SteeredReplies | None) -> EncodedSteering:
    own, layers = contents.steering, len(contents.models[0].aie.mean)
    cells = (
        []
        if steered is None
        else [
            [encode_replies(*one) for one in zip(replies, probability, strict=True)]
            for replies, probability in zip(steered.replies, steered.probability, strict=True)
        ]
    )
    return EncodedSteering(
        layers=list(range(layers)) if steered is None else list(steered.layers),
        scales=list(strengths(own.scale) if steered is None else steered.scales),
        layer=own.layer,
        scale=own.scale,
        prompts=[_query(one) for one in own.prompts],
        without=encode_replies(own.replies, own.probability),
        cells=cells,
    )
