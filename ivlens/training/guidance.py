"""Does a vector keep the tuned model where the base model was? Training that is guided by one (see `forms`).

While a new task is learned, the student (the model with its adapter) is held to the teacher (the model before the first
stage, or before this one), which is steered by the vector; the student may be, too. Which terms that adds to the loss,
and where each is from, is told in `forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.measures import kl_divergence
from ivlens.patching.activations import AnswerLogits, differentiable_logits, with_answers
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head
from ivlens.training.forms import GUIDANCE as GUIDANCE
from ivlens.training.forms import Guidance as Guidance
from ivlens.training.forms import Places, Site

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Vectors = Float[Tensor, "prompt d_model"]


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Guidance with everything that it needs in one stage.

    Raises:
        IvlensError: the guidance compares heads, and there are none.

    >>> vectors = torch.stack([vector.added, -vector.added])
    >>> guide = training.Guide(
    ...     guidance=training.GUIDANCE["iv"], vectors=vectors, layer=2, teacher=lambda: lora.silenced(model)
    ... )
    >>> guide.vectors.shape, guide.guidance.schedule
    (torch.Size([2, 128]), 'linear')
    """

    guidance: Guidance
    vectors: Float[Tensor, "vector d_model"]
    """Each prompt of a batch takes one of them, as long as they are added."""
    layer: int
    """They are added at this block."""
    heads: tuple[Head, ...] = ()
    teacher: Callable[[], AbstractContextManager[Any]]
    """Inside its `with` block the model is the teacher."""

    def __post_init__(self) -> None:
        if self.guidance.heads > 0 and not self.heads:
            raise IvlensError("the guidance compares heads, but the guide has none; give it the top heads")

    def run(
        self, model: HookedTransformer, batch: Tokens, bare: Tokens, *, progress: float, generator: torch.Generator
    ) -> tuple[AnswerLogits, Float[Tensor, ""]]:
        """Run the student on a batch, and the teacher where it is asked.

        Args:
            bare: The same queries without their instruction; read by guidance that is `bare` only.
            progress: Share of the steps that has been taken, 0 to 1.

        Returns:
            The student's logits, of which the task's loss is computed, and what is added to that loss.

        >>> guidance, batch, bare = training.GUIDANCE["iv"], examples.prompts[:4], examples.bare[:4]
        >>> guide = training.Guide(
        ...     guidance=guidance, vectors=vector.added[None], layer=2, teacher=lambda: lora.silenced(model)
        ... )
        >>> with lora.attached(model, adapter):
        ...     logits, penalty = guide.run(model, batch, bare, progress=0.5, generator=torch.Generator())
        >>> logits.shape[:2], penalty.shape, bool(penalty > 0)  # [prompt answer vocab], a scalar
        (torch.Size([4, 1]), torch.Size([]), True)
        """
        guidance, drawn = self.guidance, self._drawn(len(batch), generator)
        strength = guidance.strength(progress) if guidance.student else 0.0
        steered = strength * drawn
        rehearsed = (bare if guidance.bare else batch).first()
        asked, vectors = batch, steered
        if guidance.rehearsal:  # As rows of one run, which is quicker than two.
            asked, vectors = batch.followed_by(rehearsed), torch.cat([torch.zeros_like(steered), steered])
        with self._steered(model, asked, vectors, strength), keep_z(model, asked, self._watched) as z:
            read, beside = self._read(model, asked).tensor_split([len(batch)])
        penalty = torch.zeros((), device=read.device)
        if guidance.kl > 0 or guidance.kl_everywhere > 0:
            compared, student = (rehearsed, beside[:, :1]) if guidance.rehearsal else (batch, read)
            with torch.no_grad(), self.teacher(), self._steered(model, compared, drawn, 1.0):
                teacher = self._read(model, compared)
            penalty = penalty + self._divergence(teacher, student, compared)
        if guidance.heads > 0:
            with torch.no_grad(), self.teacher(), keep_z(model, batch, self.heads) as wanted:
                self._read(model, batch)
            penalty = penalty + self._distance(torch.stack(z)[:, : len(batch)], torch.stack(wanted), batch)
        return read[:, -batch.answers.shape[1] :], penalty

    @property
    def _watched(self) -> tuple[Head, ...]:
        return self.heads if self.guidance.heads > 0 else ()

    @cached_property
    def _is_zero(self) -> bool:
        """Asked once: a GPU would be waited for at every step."""
        return not bool(self.vectors.any())

    def _steered(
        self, model: HookedTransformer, tokens: Tokens, vectors: Vectors, strength: float
    ) -> AbstractContextManager[None]:
        guidance = self.guidance
        if strength == 0 or self._is_zero:
            return nullcontext()
        return steer_answers(model, tokens, vectors, self.layer, site=guidance.site, places=guidance.places)

    def _read(self, model: HookedTransformer, tokens: Tokens) -> Float[Tensor, "prompt place vocab"]:
        """Logits of the answer, and of everything before it where that is compared, too."""
        width = tokens.answers.shape[1]
        return differentiable_logits(model, tokens, last=None if self.guidance.kl_everywhere > 0 else width)

    def _drawn(self, n: int, generator: torch.Generator) -> Vectors:
        if len(self.vectors) == 1:
            return self.vectors.expand(n, -1)
        numbers = torch.randint(len(self.vectors), (n,), generator=generator)
        return self.vectors[numbers.to(self.vectors.device, non_blocking=True)]

    def _divergence(
        self, teacher: Float[Tensor, "prompt place vocab"], student: Float[Tensor, "prompt place vocab"], tokens: Tokens
    ) -> Float[Tensor, ""]:
        guidance, width = self.guidance, tokens.answers.shape[1]
        p, q = teacher / guidance.temperature, student / guidance.temperature
        each = kl_divergence(q, p) if guidance.reverse else kl_divergence(p, q)
        squared = guidance.temperature**2 if guidance.temperature_squared else 1.0
        penalty = guidance.kl * _above(guidance.kl_ignored, squared * self._mean(each[:, -width:], tokens))
        if guidance.kl_everywhere > 0:
            total = (each * with_answers(tokens)[1]).sum() / len(tokens)
            penalty = penalty + guidance.kl_everywhere * _above(guidance.kl_ignored, squared * total)
        return penalty

    def _distance(
        self,
        z: Float[Tensor, "head prompt answer d_head"],
        wanted: Float[Tensor, "head prompt answer d_head"],
        tokens: Tokens,
    ) -> Float[Tensor, ""]:
        guidance, each = self.guidance, (z - wanted).square()
        means = torch.stack([self._mean(one, tokens) for one in each.mean(-1)])
        counted = (means > guidance.heads_ignored)[:, None, None]
        distance = self._mean((each.sum(-1) * counted).mean(0), tokens)
        n_heads, d_head = len(each), each.shape[-1]
        return guidance.heads * distance * (n_heads / d_head if guidance.heads_summed else 1.0)

    def _mean(self, values: Float[Tensor, "prompt answer"], tokens: Tokens) -> Float[Tensor, ""]:
        """Over prompts and the places that are compared."""
        if self.guidance.places == "first":
            return values[:, 0].mean()
        return (values * tokens.answer_mask).sum() / tokens.answer_mask.sum()


def _above(bound: float, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The value, or 0 where it is not above the bound. NaN stays NaN, so that the loop sees it."""
    return value * (value > bound)


@contextmanager
def steer_answers(
    model: HookedTransformer,
    tokens: Tokens,
    vectors: Float[Tensor, "prompt d_model"],
    layer: int,
    *,
    site: Site = "block",
    places: Places = "answer",
) -> Iterator[None]:
    """Add one vector per prompt at block `layer`, at the tokens that predict the answer or the first one of it."""
    width = tokens.answers.shape[1]

    def add(resid: Float[Tensor, "prompt pos d_model"], hook: Any) -> Float[Tensor, "prompt pos d_model"]:
        start = resid.shape[1] - width
        stop = start + (1 if places == "first" else width)
        steered = resid[:, start:stop] + vectors[:, None].to(resid.dtype)
        return torch.cat([resid[:, :start], steered, resid[:, stop:]], dim=1)

    hook = {"block": "hook_resid_post", "attention": "hook_attn_out"}[site]
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.{hook}", add)]):
        yield


@contextmanager
def keep_z(model: HookedTransformer, tokens: Tokens, heads: Sequence[Head]) -> Iterator[list[Tensor]]:
    """Collects, in the order of `heads`, each one's output before `W_O` at the answer-predicting tokens.

    Each is `[prompt answer d_head]`, with gradients; the list is filled when the `with` block ends.
    """
    outputs: dict[int, Tensor] = {}
    found: list[Tensor] = []

    def keep(z: Float[Tensor, "prompt pos head d_head"], hook: Any, *, layer: int) -> None:
        outputs[layer] = z[:, -tokens.answers.shape[1] :]

    layers = sorted({head.layer for head in heads})
    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", partial(keep, layer=layer)) for layer in layers]
    with model.hooks(fwd_hooks=hooks):
        yield found
    found += [outputs[head.layer][:, :, head.head] for head in heads]
