"""How do contents become a small text that a page or a notebook draws, with the very digits that Python prints?

Numbers are whole: 451 is 0.451 where there are three digits. Attention is kept in hundredths, as base64 of compressed
bytes. Where it is too much for a page, small weights from tokens other than the last are left out, and the page says
below which.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic
from torch import Tensor

from ivlens.explorer.attention import Attention
from ivlens.explorer.contents import Bounded, Contents, ModelHeads, ShownPrompt, SteeredReplies, Writing
from ivlens.explorer.replies import strengths
from ivlens.plots.style import EFFECTS
from ivlens.prompts.template import Prompt

VERSION = 1
ROOM = 4 * 2**20
"""Letters that attention may take on a page; from the last token it is kept whatever it takes."""
LEAST = (1, 2, 3, 5, 10, 20, 50, 101)
"""Hundredths that a weight from another token has at least, the first of these with which there is room; 101: none."""
DIGITS = 3
"""Behind the point, of probabilities."""
LOGIT_DIGITS = 2

Numbers = list[int | None]
"""Without their point; None is not measured."""


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class EncodedGrid(_Strict):
    """One number a head with its interval, layer by layer."""

    mean: Numbers
    low: Numbers
    high: Numbers


class EncodedWriting(_Strict):
    """Places in `Encoded.texts`, and logits, head by head."""

    top: list[int]
    top_logits: Numbers
    bottom: list[int]
    bottom_logits: Numbers


class EncodedModel(_Strict):
    """See `ModelHeads`; of numbers by prompt, one list of heads a prompt."""

    name: str
    digest: str
    aie: EncodedGrid
    cie: list[Numbers]
    unpatched: Numbers
    lost: EncodedGrid
    lost_by_prompt: list[Numbers]
    whole: Numbers
    writing: EncodedWriting | None
    attention: list[str]
    """By prompt that is shown, see `pack`."""


class EncodedQuery(_Strict):
    query: str
    answer: str


class EncodedPrompt(EncodedQuery):
    kind: Literal["corrupted", "clean", "given"]
    number: int
    tokens: list[str]


class EncodedReplies(_Strict):
    """What comes of the vector at one layer and strength, prompt by prompt."""

    replies: list[str]
    probability: Numbers


class EncodedSteering(_Strict):
    """Replies without the vector, and with it by layer and strength; none of the latter where a kernel gives them."""

    layers: Annotated[list[int], pydantic.Field(min_length=1)]
    scales: Annotated[list[float], pydantic.Field(min_length=1)]
    layer: int
    scale: float
    prompts: list[EncodedQuery]
    without: EncodedReplies
    cells: list[list[EncodedReplies]]


class Encoded(_Strict):
    """What the script of a page or a notebook draws."""

    version: Literal[1] = VERSION
    task: str
    task_digest: str
    unit: Literal["probability", "nats"]
    layers: Annotated[int, pydantic.Field(ge=1)]
    heads: Annotated[int, pydantic.Field(ge=1)]
    digits: int
    """Of effects."""
    probability_digits: int = DIGITS
    logit_digits: int = LOGIT_DIGITS
    colours: list[tuple[float, str]] = list(EFFECTS)
    """Places of the scale from -bound to bound."""
    marked: list[tuple[int, int]]
    models: Annotated[list[EncodedModel], pydantic.Field(min_length=1, max_length=2)]
    change: EncodedGrid | None
    corrupted: list[EncodedQuery]
    clean: list[EncodedQuery]
    shown: list[EncodedPrompt]
    texts: list[str]
    """Tokens that heads write."""
    least: int
    """The smallest weight, in hundredths, that is kept from tokens other than the last."""
    steering: EncodedSteering

    @pydantic.model_validator(mode="after")
    def _belongs_together(self) -> Encoded:
        """What a damaged file has too many or too few of."""
        total = self.layers * self.heads
        of_heads = [
            grid for grid in (self.change, *(grid for one in self.models for grid in (one.aie, one.lost))) if grid
        ]
        lists = [values for grid in of_heads for values in (grid.mean, grid.low, grid.high)]
        lists += [values for one in self.models for values in (*one.cie, *one.lost_by_prompt)]
        for one in self.models:
            counts = (len(one.cie), len(one.unpatched), len(one.lost_by_prompt), len(one.whole), len(one.attention))
            asked = (*[len(self.corrupted)] * 2, *[len(self.clean)] * 2, len(self.shown))
            if counts != asked:
                raise ValueError(f"{one.name} has numbers of {counts} prompts, not of {asked}")
        if any(len(values) != total for values in lists):
            raise ValueError(f"there are not {total} heads everywhere")
        return self


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
    packed, least = [[""]], LEAST[0]
    for least in LEAST:
        packed = [[pack(one.thinned(least)) for one in attention] for attention in models]
        if sum(len(text) for texts in packed for text in texts) <= room:
            break
    return packed, least


def pack(found: Attention) -> str:
    """Base64 of gzip of the bytes of `last`, `counts`, `weights` and `keys`, in the order of their axes.

    Keys are single bytes where the prompt has 256 tokens at most, else two, the lower one first.
    """
    keys = found.keys.astype(np.uint8) if found.last.shape[2] <= 256 else found.keys.astype("<u2")
    content = b"".join(part.tobytes() for part in (found.last, found.counts, found.weights, keys))
    return base64.b64encode(gzip.compress(content, compresslevel=4, mtime=0)).decode()


def _query(prompt: Prompt) -> EncodedQuery:
    return EncodedQuery(query=prompt.query.input, answer=prompt.answer.strip())


def _shown(one: ShownPrompt) -> EncodedPrompt:
    return EncodedPrompt(
        **_query(one.prompt).model_dump(),
        kind=one.kind,
        number=one.number,
        tokens=list(one.tokens),  # pyright: ignore
    )


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
