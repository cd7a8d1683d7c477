"""What does a measurement need of a model?

A prompt is read once; variants of its end (*rows*) are then carried up the layers, block by block, some with heads'
outputs replaced, and unembedded. Two makers give that: `hooked_forward` for a HookedTransformer, `bridge_forward` for
a TransformerBridge. What stands on it (sweep, steering, ablation, trials) never asks which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ivlens.errors import ModelError
from ivlens.forward.output_path import OutputPath
from ivlens.models.hooked import IN_16_BITS
from ivlens.prompts.tokens import Tokens

Rows = Float[Tensor, "prompt row tail d_model"]
# One that stands for all, or as many as come out.
OneOrAll = Float[Tensor, "prompt #row tail d_model"]
Tail = Float[Tensor, "prompt tail d_model"]
RowsZ = Float[Tensor, "prompt row tail head d_head"]
Logits = Float[Tensor, "*batch vocab"]


class AllSeen(Exception):
    """Thrown by a hook: nothing else of the pass is wanted."""


class Replaced(NamedTuple):
    """Which heads of which rows get another output at the last prompt token, in one layer."""

    where: Bool[Tensor, "row head"]
    z: Float[Tensor, "head d_head"]

    @property
    def n_rows(self) -> int:
        return len(self.where)

    def of_rows(self, rows: slice) -> Replaced:
        """Of some of the rows."""
        return Replaced(self.where[rows], self.z)


class SetHeads(NamedTuple):
    """Which heads of which rows get another output at which tokens of the tail, in one layer."""

    where: Bool[Tensor, "#prompt row tail head"]
    z: Float[Tensor, "#prompt #row tail head d_head"]

    @property
    def n_rows(self) -> int:
        return self.where.shape[1]

    def of_rows(self, rows: slice) -> SetHeads:
        """Of some of the rows."""
        return SetHeads(self.where[:, rows], self.z if self.z.shape[1] == 1 else self.z[:, rows])


class SetPart(NamedTuple):
    """Tokens of the tail at which attention or MLP adds something else to the residual stream of all rows."""

    part: Literal["attn_out", "mlp_out"]
    where: Bool[Tensor, "prompt tail"]
    value: Float[Tensor, "prompt tail d_model"]

    def of_rows(self, rows: slice) -> SetPart:
        """The same of any of the rows."""
        return self


class FedHead(NamedTuple):
    """A head whose query, key or value is computed from other rows, all else of the block from the rows themselves."""

    head: int
    part: Literal["q", "k", "v"]
    rows: Rows

    @property
    def n_rows(self) -> int:
        return self.rows.shape[1]

    def of_rows(self, rows: slice) -> FedHead:
        """Of some of the rows."""
        return FedHead(self.head, self.part, self.rows[:, rows])


Change = Replaced | SetHeads | SetPart | FedHead


class Readout(NamedTuple):
    """The way of a final residual stream, `[1 row d_model]`, to logits, before any soft cap."""

    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    """What is linear in the normed stream, biases and scales included."""


@runtime_checkable
class Reading(Protocol):
    """A batch of prompts that was read once, with what their tails attend to.

    The tail is the last prompt token, and behind it every answer token that predicts another.
    """

    @property
    def start(self) -> Tail:
        """The tail's residual stream before the first block."""
        ...

    @property
    def final(self) -> Tail:
        """The tail's residual stream after the last block, as the model itself computes it."""
        ...

    @property
    def mask(self) -> Bool[Tensor, "prompt key"]:
        """Tokens of prefix and tail that are not pads."""
        ...

    def carry(self, layer: int, rows: OneOrAll, change: Change | None = None) -> Rows:
        """The residual stream after a block, of every row; where heads are replaced, one row may stand for all.

        It lies on the device of the block.
        """
        ...


@runtime_checkable
class Forward(Protocol):
    """How one model is run."""

    others_seen: int
    """Tokens of other rows that a row's attention computes with (and masks), beside its own prompt."""
    entrance: nn.Module
    """Is given the ids of every pass."""

    @property
    def precision(self) -> torch.dtype:
        """What the least precise operation computes in."""
        ...

    def read(self, tokens: Tokens) -> Reading:
        """Run prompts and answers once through the model."""
        ...

    def unembed(self, resid: Float[Tensor, "*batch d_model"]) -> Logits:
        """Logits of a final residual stream, soft caps and scales included; in float32 at least without gradients."""
        ...

    def last_logits(self, ids: Tensor, mask: Tensor, n: int) -> Float[Tensor, "prompt n vocab"]:
        """Logits of the last `n` columns, by the model's own pass, under whatever hooks it has."""
        ...

    def read_on(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Float[Tensor, "row vocab"], Any]:
        """Logits behind the last of some new tokens, and the cache that has them, too.

        Args:
            mask: Of all tokens, those in the cache included.
            cache: Of what was read before; None at first.
        """
        ...

    def read_behind(
        self, beginning: Int[Tensor, " shared"], ends: Int[Tensor, "row pos"], places: Int[Tensor, "row place"]
    ) -> Float[Tensor, "row place vocab"] | None:
        """Logits at some places of several ends of one beginning, which is read once; None: this model reads it whole.

        What stands behind the last place of an end is never seen there, and may be pads.
        """
        ...

    def keep_rows(self, cache: Any, rows: Int[Tensor, " row"]) -> None:
        """Keep some of the rows of a cache, each as often as it is named."""
        ...

    def run(self, ids: Tensor, mask: Tensor, hooks: Sequence[tuple[str, Any]]) -> None:
        """A pass under hooks, for what they see; `AllSeen` ends it."""
        ...

    def output_path(self, layer: int) -> OutputPath:
        """The way of heads' outputs into the residual stream."""
        ...

    def check_parts(self, layer: int) -> None:
        """Refuse, before anything is computed, a layer of which no head can be fed (`FedHead`).

        Raises:
            ModelError: what its heads compute does not come out of queries, keys and values alone.
        """
        ...

    def readout(self) -> Readout:
        """Final norm and unembedding, in the model's own precision."""
        ...


def check_finite(resid: Tensor, layer: int) -> None:
    """Raises ModelError naming the layer when a residual stream is NaN or infinite."""
    refuse_infinite({layer: resid.isfinite().all()})


def refuse_infinite(finite: Mapping[int, Bool[Tensor, ""]]) -> None:
    """The same of several layers, by whether each one's stream is finite: a GPU is waited for once, at their end."""
    for layer, one in finite.items():
        if not bool(one):
            raise ModelError(
                f"the residual stream after layer {layer} is NaN or infinite; load the model in another dtype, or "
                "check its weights"
            )


def compare_with_model(forward: Forward, reading: Reading, unpatched: Tail) -> None:
    """Refuse to go on when the block-wise pass and the model's own disagree.

    Raises:
        ModelError: the residual streams differ by more than rounding; both sizes are named.
    """
    scale = float(reading.final.abs().max())
    tail = unpatched.shape[1]
    mask = reading.mask[:, -tail:, None].to(unpatched.device)
    gap = float(((unpatched - reading.final).abs() * mask).max())
    # Rounding of a few hundred operations, relative to the largest number in the stream.
    tolerance = 1e3 * torch.finfo(forward.precision).eps * max(scale, 1.0)
    if forward.precision in IN_16_BITS:
        tolerance = 0.1 * max(scale, 1.0)
    if not gap <= tolerance:
        raise ModelError(
            f"the block-wise pass differs from the model's own by {gap:.2g} (numbers up to {scale:.2g}): the model has "
            "hooks on it, torch.autocast is on, or its attention is one that ivlens does not know; remove the hooks "
            "with model.reset_hooks(), switch autocast off, or use ivlens.patching.sweep.loop"
        )
