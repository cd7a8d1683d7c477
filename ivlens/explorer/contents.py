"""What does an explorer show? Everything in full precision, as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ivlens.explorer.attention import Attention
from ivlens.prompts.template import Prompt
from ivlens.shapes import Cie, Head, HeadGrid

Kind = Literal["corrupted", "clean", "given"]
"""Of a prompt: heads are patched on it, ablated on it, or it is one of one's own and both is done."""


class Bounded(NamedTuple):
    """The mean over queries for every head, with its 95 % interval; NaN where there is only one query."""

    mean: HeadGrid
    low: HeadGrid
    high: HeadGrid


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Which tokens the mean output of every head speaks for and against, if it were the whole residual stream."""

    top: Int[Tensor, "layer head place"]
    """Token ids, the largest logit first."""
    top_logits: Float[Tensor, "layer head place"]
    bottom: Int[Tensor, "layer head place"]
    """Token ids, the smallest logit first."""
    bottom_logits: Float[Tensor, "layer head place"]
    texts: Mapping[int, str]
    """Of all these ids."""


@dataclass(frozen=True, kw_only=True)
class ModelHeads:
    """The heads of one model."""

    name: str
    digest: str
    """Of its weights."""
    aie: Bounded
    """Mean effect of patching a head's mean clean output in, in the unit of the effects."""
    cie: Cie
    """The same on every corrupted prompt."""
    unpatched: Float[Tensor, " prompt"]
    """Value of the answer on those prompts."""
    lost: Bounded
    """Mean P(answer) lost where a head is ablated."""
    lost_by_prompt: Float[Tensor, "clean layer head"]
    """The same on every clean prompt."""
    whole: Float[Tensor, " clean"]
    """P(answer) on those prompts with all heads."""
    writing: Writing | None
    """None: what heads compute does not reach the residual stream by weights alone."""
    attention: tuple[Attention, ...]
    """On the prompts that are shown."""


@dataclass(frozen=True, kw_only=True)
class ShownPrompt:
    """A prompt whose attention is shown."""

    kind: Kind
    number: int
    """Among the prompts of its kind."""
    prompt: Prompt
    tokens: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SteeredReplies:
    """What the model replies with a vector added, by layer and strength."""

    layers: tuple[int, ...]
    """After which block it is added."""
    scales: tuple[float, ...]
    """How many times."""
    replies: tuple[tuple[tuple[str, ...], ...], ...]
    """Of each layer, scale and prompt."""
    probability: Float[Tensor, "layer scale prompt"]
    """Of the answer's first token."""


@dataclass(frozen=True, kw_only=True)
class Steering:
    """The vector that can be added, and what the model replies to some prompts without it."""

    prompts: tuple[Prompt, ...]
    layer: int
    """Where the sliders begin."""
    scale: float
    replies: tuple[str, ...]
    probability: Float[Tensor, " prompt"]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that an explorer shows; of two models where one was fine-tuned from the other."""

    task: str
    task_digest: str
    unit: str
    """Of effects: `probability` or `nats`."""
    models: tuple[ModelHeads, ...]
    change: Bounded | None
    """Of the AIE, from the first model to the second, paired by query; None where there is one model."""
    marked: tuple[Head, ...]
    """The heads that write the vector."""
    corrupted: tuple[Prompt, ...]
    """Heads are patched on these."""
    clean: tuple[Prompt, ...]
    """Heads are ablated on these."""
    shown: tuple[ShownPrompt, ...]
    steering: Steering
