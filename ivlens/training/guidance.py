"""Does a vector keep the tuned model where the base model was? IV-guided training, and the controls that decide it.

While a new task is learned, the student (the model with its adapter) is steered by `s(t)` times the instruction vector
(IV) at the tokens that predict the answer, `s` falling from 1 to 0, and is held to the teacher (the base model, steered
by the IV throughout) by `kl * KL[teacher || student]`. Source: Jiang et al. 2024, arXiv:2406.12227, whose published
code has the divergence the other way round, KL[student || teacher], at temperature 2: `reverse=True, temperature=2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.measures import kl_divergence
from ivlens.patching.activations import AnswerLogits, differentiable_answer_logits
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Vector = Literal["task", "zero", "random", "other", "general", "general-random"]
Schedule = Literal["linear", "steps", "constant"]
Teacher = Literal["base", "previous"]
Vectors = Float[Tensor, "prompt d_model"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How training is guided. The form of Jiang et al. 2024, arXiv:2406.12227, is the default.

    Raises:
        IvlensError: a choice that there is not, a weight below 0, or settings that contradict each other.

    >>> training.Guidance(vector="random").kl, training.GUIDANCE["iv-random"] == training.Guidance(vector="random")
    (0.05, True)
    """

    vector: Vector = "task"
    """`task`: of the task being learned; `zero`: none, plain distillation; `random`: of equal norm; `other`: another
    task's; `general`: a general task's, drawn for every prompt anew; `general-random`: of equal norms."""
    layer: int | None = None
    """Block behind which the vectors are added; None: where those of the universal heads are right most often."""
    scale: float | None = None
    """Factor of what the heads write; None: that which was chosen with the layer. Random vectors have the same length.
    A vector that is short beside the residual stream does nothing at 1: guidance by it is plain distillation."""
    student: bool = True
    """Is the student steered, too?"""
    schedule: Schedule = "linear"
    """How `s` falls: from 1 to 0, in four steps of 0.25, or not at all."""
    kl: float = 0.05
    """Weight of the divergence, per nat; 0: the teacher is not asked."""
    reverse: bool = False
    """KL[student || teacher] in place of KL[teacher || student]."""
    temperature: float = 1.0
    """Both distributions are softened by it; the divergence is multiplied by its square, as Hinton et al. 2015,
    arXiv:1503.02531, do."""
    teacher: Teacher = "base"
    """The model before the first stage, or before this one."""
    rehearsal: bool = False
    """Compare student and teacher in a run of its own, both steered; the task itself is then learned without a vector.
    Otherwise one run serves both. Compared is the first token of the answer."""
    bare: bool = False
    """Rehearse on the queries without their instruction rather than on the new task's own prompts."""
    heads: float = 0.0
    """Weight of the squared distance of the top heads' outputs `z` to the teacher's at the answer-predicting tokens
    (mean over heads and tokens, sum over `d_head`). Source: arXiv:2502.11019."""

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise IvlensError(f"the guidance's scale is {self.scale}; it must be above 0, or be left out")
        for name in ("kl", "heads"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise IvlensError(f"the guidance's {name} is {getattr(self, name)}; it must be 0 or more")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise IvlensError(f"the guidance's temperature is {self.temperature}; it must be above 0")
        if self.bare and not self.rehearsal:
            raise IvlensError("the guidance is bare without rehearsal; only what is rehearsed on can be bare")
        if self.rehearsal and self.kl == 0:
            raise IvlensError("the guidance rehearses, but its kl is 0; give it a weight, or leave out rehearsal")
        choices = {"vector": get_args(Vector), "schedule": get_args(Schedule), "teacher": get_args(Teacher)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise IvlensError(f"the guidance's {name} is {getattr(self, name)!r}; choose of {', '.join(known)}")

    def strength(self, progress: float) -> float:
        """`s` after a share `progress` (0 to 1) of the steps; from 1 to 0.

        >>> [training.Guidance(schedule="steps").strength(progress) for progress in (0.0, 0.3, 0.99)]
        [1.0, 0.75, 0.25]
        """
        if self.schedule == "constant":
            return 1.0
        return 1 - (math.floor(4 * progress) / 4 if self.schedule == "steps" else progress)


# Rehearsal leaves the task's own run alone, and bears a larger weight.
_REHEARSAL = Guidance(vector="general", schedule="constant", kl=1.0, rehearsal=True)

GUIDANCE = {
    "iv": Guidance(),
    "kl": Guidance(vector="zero"),
    "iv-random": Guidance(vector="random"),
    "iv-other": Guidance(vector="other"),
    "iv-steer": Guidance(kl=0.0),
    "iv-kl": Guidance(student=False),
    "fv": Guidance(student=False, heads=1.0),
    "iv-general": _REHEARSAL,
    "iv-general-random": replace(_REHEARSAL, vector="general-random"),
    "iv-general-bare": replace(_REHEARSAL, bare=True),
    "kl-bare": replace(_REHEARSAL, vector="zero", bare=True),
}
"""Forms of guidance and their controls by name."""


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
    """They are added to the residual stream after this block."""
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
        steered = (guidance.strength(progress) if guidance.student else 0.0) * drawn
        rehearsed = (bare if guidance.bare else batch).first()
        asked, vectors = batch, steered
        if guidance.rehearsal:  # As rows of one run, which is quicker than two.
            asked, vectors = batch.followed_by(rehearsed), torch.cat([torch.zeros_like(steered), steered])
        with steer_answers(model, asked, vectors, self.layer), keep_z(model, asked, self._watched) as z:
            logits, beside = differentiable_answer_logits(model, asked).tensor_split([len(batch)])
        penalty = torch.zeros((), device=logits.device)
        if guidance.kl > 0:
            compared, student = (rehearsed, beside[:, :1]) if guidance.rehearsal else (batch, logits)
            penalty = penalty + guidance.kl * self._divergence(self._ask(model, compared, drawn), student, compared)
        if guidance.heads > 0:
            with torch.no_grad(), self.teacher(), keep_z(model, batch, self.heads) as wanted:
                differentiable_answer_logits(model, batch)
            distance = (torch.stack(z)[:, : len(batch)] - torch.stack(wanted)).square().sum(-1).mean(0)
            penalty = penalty + guidance.heads * _masked_mean(distance, batch)
        return logits, penalty

    @property
    def _watched(self) -> tuple[Head, ...]:
        return self.heads if self.guidance.heads > 0 else ()

    def _ask(self, model: HookedTransformer, tokens: Tokens, drawn: Vectors) -> AnswerLogits:
        """The teacher's logits, steered."""
        with torch.no_grad(), self.teacher(), steer_answers(model, tokens, drawn, self.layer):
            return differentiable_answer_logits(model, tokens)

    def _drawn(self, n: int, generator: torch.Generator) -> Vectors:
        if len(self.vectors) == 1:
            return self.vectors.expand(n, -1)
        numbers = torch.randint(len(self.vectors), (n,), generator=generator)
        return self.vectors[numbers.to(self.vectors.device)]

    def _divergence(self, teacher: AnswerLogits, student: AnswerLogits, tokens: Tokens) -> Float[Tensor, ""]:
        p, q = teacher / self.guidance.temperature, student / self.guidance.temperature
        each = kl_divergence(q, p) if self.guidance.reverse else kl_divergence(p, q)
        return self.guidance.temperature**2 * _masked_mean(each, tokens)


def _masked_mean(values: Float[Tensor, "prompt answer"], tokens: Tokens) -> Float[Tensor, ""]:
    return (values * tokens.answer_mask).sum() / tokens.answer_mask.sum()


@contextmanager
def steer_answers(
    model: HookedTransformer, tokens: Tokens, vectors: Float[Tensor, "prompt d_model"], layer: int
) -> Iterator[None]:
    """Add one vector per prompt after block `layer` at every token that predicts a token of the answer."""
    if not bool(vectors.any()):
        yield
        return
    width = tokens.answers.shape[1]

    def add(resid: Float[Tensor, "prompt pos d_model"], hook: Any) -> Float[Tensor, "prompt pos d_model"]:
        steered = resid[:, -width:] + vectors[:, None].to(resid.dtype)
        return torch.cat([resid[:, :-width], steered], dim=1)

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", add)]):
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
