"""What keeps a model from forgetting? The usual continual-learning methods, as terms of the loss.

All train a new LoRA adapter for every stage, on top of the earlier ones, which are frozen (IncLoRA). A method sees the
stages so far (`begin`) and adds a penalty to the task's loss; `replay` mixes old prompts into the new ones instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.forward.memory import count_at_once
from ivlens.kept_batches import keep_batch
from ivlens.measures import kl_divergence, token_log_probs
from ivlens.models.lora import Adapter, merged, silenced, stack, update_matrix
from ivlens.models.weights import as_weight, locate
from ivlens.patching.activations import AnswerLogits, differentiable_answer_logits
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens
from ivlens.random_streams import Stream, open_stream

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

MOST_KEPT = 2**28
"""Bytes of a Fisher information that is kept while it is computed: to write a larger one takes as long as it does."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The stages that have been learned."""

    adapters: tuple[Adapter, ...] = ()
    prompts: tuple[tuple[Prompt, ...], ...] = ()
    """What each stage was trained on."""
    tokens: tuple[Tokens, ...] = ()
    general: tuple[Prompt, ...] = ()
    """Prompts of other tasks, those that the vectors of guidance are taken from."""


@runtime_checkable
class Method(Protocol):
    """What the loop asks of a method."""

    def begin(self, model: HookedTransformer, history: History) -> None:
        """Before a stage. No adapter is attached."""

    def penalty(
        self, model: HookedTransformer, adapter: Adapter, batch: Tokens, logits: AnswerLogits
    ) -> Float[Tensor, ""]:
        """What is added to the loss of a batch; `adapter` is the one being trained, attached to `model`."""
        ...

    def replayed(self, history: History, *, seed: int) -> list[Prompt]:
        """Old prompts to mix into the new ones."""
        ...


@dataclass(kw_only=True)
class Lora:
    """No penalty (IncLoRA): cross-entropy of the new task's answers alone. The other methods are built on it.

    >>> training.Lora(), training.METHODS["ewc"](weight=100.0)
    (Lora(), Ewc(weight=100.0, samples=64))
    """

    def begin(self, model: HookedTransformer, history: History) -> None:
        """Take note of the stages so far; no adapter is attached. Plain LoRA has no use for them, others have.

        >>> old, method = History(adapters=(adapter,)), training.METHODS["olora"]()
        >>> training.Lora().begin(model, old), method.begin(model, old)
        (None, None)
        >>> bool(method.penalty(model, adapter, examples.prompts, torch.zeros(16, 1, 2)) > 0)  # In the old subspace.
        True
        """

    def penalty(self, model: HookedTransformer, adapter: Adapter, batch: Tokens, logits: AnswerLogits) -> Tensor:
        """What is added to the mean cross-entropy, in nats, of a batch: a scalar with gradients; here 0.

        Args:
            adapter: The one being trained, attached to the model.
            logits: Of the answer's tokens, `[prompt answer vocab]`.

        >>> training.Lora().penalty(model, adapter, examples.prompts, torch.zeros(16, 1, 2))
        tensor(0.)
        """
        return torch.zeros((), device=logits.device)

    def replayed(self, history: History, *, seed: int) -> list[Prompt]:
        """Old prompts to mix into the new ones; here none.

        >>> old = History(prompts=(learned.train,))
        >>> training.Lora().replayed(old, seed=0), len(training.METHODS["replay"](memory=3).replayed(old, seed=0))
        ([], 3)
        """
        return []


@dataclass(kw_only=True)
class Ewc(Lora):
    """Elastic weight consolidation: `weight / 2 * sum F (W - W*)^2`.

    `F` is the diagonal of the empirical Fisher information of the earlier stages, `W*` the weights before this stage.
    Source: Kirkpatrick et al. 2017, arXiv:1612.00796. Here `W` are the adapted weights rather than the factors, which
    every stage has anew; and the Fishers of all earlier stages are summed around the latest weights, as in Schwarz et
    al. 2018, arXiv:1805.06370, rather than kept with anchors of their own. In the first stage there is nothing to keep.
    TRACE's code (`model/Regular/EWC.py`) sums the squared gradients of its batches while it trains, and takes 400.
    """

    weight: float = 1e4
    samples: int = 64
    """Prompts of a stage that its Fisher is the mean over."""
    _fisher: dict[str, Tensor] = field(default_factory=dict, repr=False, init=False)
    _seen: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        _refuse_negative("ewc", weight=self.weight)
        if self.samples < 1:
            raise IvlensError(f"ewc: samples is {self.samples}; it must be 1 or more")

    def begin(self, model: HookedTransformer, history: History) -> None:
        for stage in range(self._seen, len(history.adapters)):
            found = fisher(model, stack(history.adapters[: stage + 1]), history.tokens[stage], samples=self.samples)
            for name, information in found.items():
                self._fisher[name] = self._fisher.get(name, torch.zeros_like(information)) + information
        self._seen = len(history.adapters)

    def penalty(self, model: HookedTransformer, adapter: Adapter, batch: Tokens, logits: AnswerLogits) -> Tensor:
        total = torch.zeros((), device=logits.device)
        for name, information in self._fisher.items():
            module, _ = locate(model, name)
            change = as_weight(update_matrix(adapter.factors[name], adapter.scale), information, module)
            total = total + (information * change.square()).sum()
        return self.weight / 2 * total


def fisher(model: HookedTransformer, adapter: Adapter, tokens: Tokens, *, samples: int) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information of the adapted weights, in the weights' shapes.

    The mean over the first `samples` prompts of the squared gradient of the answer's log-probability. What is summed so
    far is kept every few seconds, where it is no larger than `MOST_KEPT`.
    """
    places = {name: locate(model, name) for name in adapter.factors}
    n = min(samples, len(tokens))
    asked = [*adapter.parameters(), torch.tensor(adapter.scale), *vars(tokens[:n]).values()]
    with merged(model, adapter):
        weights = {name: getattr(module, weight).requires_grad_() for name, (module, weight) in places.items()}
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        is_kept = sum(4 * weight.numel() for weight in total.values()) <= MOST_KEPT
        try:
            for rows in torch.arange(n).split(count_at_once(model, tokens)):
                compute = partial(_add_squared_gradients, model, weights, tokens[:n], rows.tolist(), total)
                what = f"fisher to prompt {rows[-1]}"
                total = keep_batch(what, asked, compute, device=model.cfg.device) if is_kept else compute()
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
    return total


def _add_squared_gradients(
    model: HookedTransformer, weights: dict[str, Tensor], tokens: Tokens, rows: list[int], total: dict[str, Tensor]
) -> dict[str, Tensor]:
    """`total` and what these prompts add to the mean over all of `tokens`."""
    total = {name: summed.clone() for name, summed in total.items()}
    for row in rows:
        one = tokens[row : row + 1]
        log_probs = token_log_probs(differentiable_answer_logits(model, one), one.answers)
        answer = (log_probs * one.answer_mask).sum()
        for name, gradient in zip(total, torch.autograd.grad(answer, list(weights.values())), strict=True):
            total[name] += gradient.square() / len(tokens)
    return total


@dataclass(kw_only=True)
class Lwf(Lora):
    """Learning without forgetting: `weight * T^2 * KL[previous || new]` on the new task's own prompts.

    Source: Li and Hoiem 2016, arXiv:1606.09282, at temperature T. The previous model is the one before this stage,
    and is never steered; where guidance steers the student, its steered answers are compared. In the first stage that
    is the base model; TRACE's code (`model/Regular/LwF.py`) begins with the second, and there it is KL[new || previous]
    without `T^2`, summed over all tokens of prompt and answer; here it is the mean over answer tokens.
    """

    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _refuse_negative("lwf", weight=self.weight)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise IvlensError(f"lwf: temperature is {self.temperature}; it must be a number above 0")

    def penalty(self, model: HookedTransformer, adapter: Adapter, batch: Tokens, logits: AnswerLogits) -> Tensor:
        with torch.no_grad(), silenced(model, adapter):
            wanted = differentiable_answer_logits(model, batch)
        each = kl_divergence(wanted / self.temperature, logits / self.temperature)
        return self.weight * self.temperature**2 * (each * batch.answer_mask).sum() / batch.answer_mask.sum()


@dataclass(kw_only=True)
class Olora(Lora):
    """Orthogonal subspaces: `weight * sum |A_old A_new^T|` over adapted weights and all entries.

    Source: Wang et al. 2023, arXiv:2310.14152; the sum of absolute entries is what their code takes
    (`src/uie_trainer_lora.py`). Its further penalty on the norm of the factors, at 0 in most of its scripts, is left
    out (weight decay is a setting of the training).
    """

    weight: float = 0.5
    _old: dict[str, Tensor] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        _refuse_negative("olora", weight=self.weight)

    def begin(self, model: HookedTransformer, history: History) -> None:
        past = stack(history.adapters).factors if history.adapters else {}
        self._old = {name: factors.A for name, factors in past.items()}

    def penalty(self, model: HookedTransformer, adapter: Adapter, batch: Tokens, logits: AnswerLogits) -> Tensor:
        total = torch.zeros((), device=logits.device)
        for name, old in self._old.items():
            total = total + (old @ adapter.factors[name].A.T).abs().sum()
        return self.weight * total


@dataclass(kw_only=True)
class Replay(Lora):
    """A share of every batch is drawn from up to `memory` training prompts of each earlier stage.

    Experience replay as in Rolnick et al. 2019, arXiv:1811.11682, without their cloning losses.
    """

    share: float = 0.25
    memory: int = 20

    def __post_init__(self) -> None:
        _refuse_no_share("replay", self.share)
        if self.memory < 1:
            raise IvlensError(f"replay: memory is {self.memory}; it must be 1 or more")

    def replayed(self, history: History, *, seed: int) -> list[Prompt]:
        found = []
        for number, prompts in enumerate(history.prompts):
            chosen = open_stream(seed, Stream.REPLAY_MEMORY, number).permutation(len(prompts))[: self.memory]
            found += [prompts[i] for i in sorted(chosen)]
        return found


@dataclass(kw_only=True)
class ReplayGeneral(Lora):
    """A share of every batch is drawn from the general prompts, with their right answers, that vectors are taken from.

    The control of guidance by general tasks' vectors that has the same information: whoever has the prompts from which
    a vector is computed could as well train on them. Their loss is that of the new task's prompts, and no model but
    the one being trained is asked.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        _refuse_no_share("replay-general", self.share)

    def replayed(self, history: History, *, seed: int) -> list[Prompt]:
        if not history.general:
            raise IvlensError("replay-general has nothing to replay; give the history general prompts")
        return list(history.general)


METHODS: dict[str, type[Lora]] = {
    "lora": Lora,
    "ewc": Ewc,
    "lwf": Lwf,
    "olora": Olora,
    "replay": Replay,
    "replay-general": ReplayGeneral,
}


def _refuse_no_share(method: str, share: float) -> None:
    if not 0 < share < 1:
        raise IvlensError(f"{method}: share is {share}; it must be between 0 and 1")


def _refuse_negative(method: str, **weights: float) -> None:
    for name, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            raise IvlensError(f"{method}: {name} is {value}; it must be 0 or more")
