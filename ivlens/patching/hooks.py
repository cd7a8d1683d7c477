"""What becomes of an answer when hooks change the run? One whole forward pass for every change.

Slow and obvious, right for every model that has TransformerLens' hooks: what the block-wise passes of `branches` and
`interventions` are held to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ivlens.forward.token_batches import batches
from ivlens.patching.activations import AnswerLogits, answer_logits
from ivlens.patching.branches import Answers, read_answers
from ivlens.progress import track
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

NamedHook = tuple[str, Callable[..., Any]]
Hooks = Sequence[NamedHook]


def run_hooked(model: HookedTransformer, tokens: Tokens, rows: Sequence[Hooks], *, description: str) -> Answers:
    """Read the answers off one forward pass per row; row 0 is unchanged, row 1 + i is under the i-th hooks."""
    parts = []
    for hooks in track([[], *rows], description):
        found = [read_answers(logits_under(model, batch, hooks)[:, None], batch) for batch in batches(tokens)]
        parts.append(Answers.joined(found, dim=0))
    return Answers.joined(parts, dim=1)


def logits_under(model: HookedTransformer, tokens: Tokens, hooks: Hooks) -> AnswerLogits:
    """Logits that predict each answer token in a run under hooks."""
    with model.hooks(fwd_hooks=list(hooks)):
        return answer_logits(model, tokens)


def at_position(hook: NamedHook, column: int) -> NamedHook:
    """The hook, at one column of every prompt."""
    name, hook_fn = hook
    return name, partial(hook_fn, at=(slice(None), column))


def set_head(head: Head, value: Float[Tensor, " d_head"]) -> NamedHook:
    """A hook that replaces one head's output before `W_O`, at tokens that are to be said (`at`)."""
    return f"blocks.{head.layer}.attn.hook_z", partial(_set, head=head.head, value=value)


def add_to_residual(layer: int, vector: Float[Tensor, " d_model"]) -> NamedHook:
    """A hook that adds a vector to the residual stream after a block, at tokens that are to be said (`at`)."""
    return f"blocks.{layer}.hook_resid_post", partial(_add, vector=vector)


def _set(
    z: Float[Tensor, "prompt pos head d_head"], hook: object, *, head: int, value: Tensor, at: Any
) -> Float[Tensor, "prompt pos head d_head"]:
    z = z.clone()
    z[:, :, head][at] = value.to(z.device, z.dtype)
    return z


def _add(
    resid: Float[Tensor, "prompt pos d_model"], hook: object, *, vector: Tensor, at: Any
) -> Float[Tensor, "prompt pos d_model"]:
    resid = resid.clone()
    resid[at] += vector.to(resid.device, resid.dtype)
    return resid
