"""What is the script of a page or a notebook given to draw?

Numbers are whole: 451 is 0.451 where there are three digits. Attention is kept in hundredths, as base64 of compressed
bytes. Where it is too much for a page, small weights from tokens other than the last are left out, and the page says
below which.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from ivlens.explorer.contents import Kind
from ivlens.plots.style import EFFECTS

VERSION = 1
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
    kind: Kind
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
