"""How is a TransformerBridge read, TransformerLens' wrapper of a Hugging Face model, the only model of its version 4?

It has HookedTransformer's hook names, but no blocks that could be called on rows of their own: whatever is measured on
it is measured by whole forward passes with hooks. Adapters of PEFT may be dropped in silence: `check_bridge` tries
what a bridge is going to be used for.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.checkpoints.architectures import ARCHITECTURES
from ivlens.errors import ModelError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from typing_extensions import TypeIs

# Of the known architectures, those where attention's output passes a norm before the residual stream.
OUTPUT_NORMS = {"Gemma2ForCausalLM": "ln1_post", "Gemma3ForCausalLM": "ln1_post", "Olmo2ForCausalLM": "ln1"}
CLOSE, CLOSE_IN_16_BITS = 1e-3, 0.1
"""Of the largest logit: rounding is below it, a forgotten mask above."""


def is_bridge(model: object) -> TypeIs[TransformerBridge]:
    """Is it a TransformerBridge, of whichever version of TransformerLens?"""
    return any(kind.__name__ == "TransformerBridge" for kind in type(model).__mro__)


def output_norm(bridge: TransformerBridge, layer: int) -> nn.Module | None:
    """The norm that what the heads write passes before the residual stream, if any.

    Raises:
        ModelError: an architecture of which ivlens does not know how heads reach the residual stream.
    """
    architecture = str(bridge.cfg.architecture)
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{bridge.cfg.model_name} is a {architecture}, of which ivlens does not know how heads reach the residual "
            f"stream: it has no vectors; effects can be measured. Vectors are of {', '.join(ARCHITECTURES)}"
        )
    name = OUTPUT_NORMS.get(architecture)
    return None if name is None else getattr(bridge.blocks[layer], name)


def refuse_adapters(model: object) -> None:
    """Raises ModelError for a bridge: TransformerLens' names of weights, which adapters go by, are views in it."""
    if is_bridge(model):
        raise ModelError(
            "adapters cannot be attached to a TransformerBridge; merge the adapter into the Hugging Face model before "
            "building the bridge, or load the checkpoint with ivlens.load"
        )


@torch.no_grad()
def check_bridge(model: HookedTransformer | TransformerBridge) -> None:
    """Try on a few tokens that hooks reach every head, that attention is causal and that masks are kept.

    Of a HookedTransformer, where that is so by construction, nothing is tried.

    Raises:
        ModelError: one of these does not hold, or the model is in training mode or has PEFT layers.
    """
    if is_bridge(model):
        _check(model)


def _check(bridge: TransformerBridge) -> None:
    cfg, name = bridge.cfg, bridge.cfg.model_name
    if bridge.training:
        raise ModelError(f"{name} is in training mode, where dropout changes every run; call its eval() first")
    if any(type(module).__module__.startswith("peft.") for module in bridge.modules()):
        raise ModelError(
            f"{name} has PEFT layers in it, which a TransformerBridge may drop; call merge_and_unload() on the PEFT "
            "model before building the bridge"
        )
    tokens = torch.randint(cfg.d_vocab, (1, min(6, cfg.n_ctx)), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(cfg.device)
    plain = _logits(bridge, tokens)
    close = CLOSE_IN_16_BITS if cfg.dtype in (torch.bfloat16, torch.float16) else CLOSE
    accepted = close * float(plain.abs().max())
    _check_heads(bridge, tokens, plain)
    other = _logits(bridge, torch.cat([tokens[:, :-1], (tokens[:, -1:] + 1) % cfg.d_vocab], dim=1))
    if not float((other - plain)[:, :-1].abs().max()) <= accepted:
        raise ModelError(f"{name} reads in both directions; ivlens needs a causal model")
    padded = torch.cat([tokens[:, -1:], tokens[:, :-1]], dim=1)
    mask = torch.ones_like(tokens)
    mask[:, 0] = 0
    alone = _logits(bridge, tokens[:, :-1])
    if not float((_logits(bridge, padded, mask)[:, -1] - alone[:, -1]).abs().max()) <= accepted:
        raise ModelError(
            f"{name} comes out different on a padded prompt, and ivlens pads prompts; in float64 transformers' own "
            "models do (NaN): take float32 then"
        )


def _check_heads(bridge: TransformerBridge, tokens: Int[Tensor, "1 pos"], plain: Float[Tensor, "1 pos vocab"]) -> None:
    cfg, name = bridge.cfg, bridge.cfg.model_name
    wanted = (*tokens.shape, cfg.n_heads, cfg.d_head)
    shapes: dict[str, tuple[int, ...]] = {}

    def clear(z: Tensor, hook: object, *, at: str) -> Tensor:
        shapes[at] = tuple(z.shape)
        return torch.zeros_like(z)

    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}.attn.hook_z"
        # Hooks on names that it does not have are dropped by TransformerLens 3 in silence.
        missing = [point for point in (at, f"blocks.{layer}.hook_resid_post") if point not in bridge.hook_dict]
        if missing:
            raise ModelError(f"{name} has no {missing[0]}, where ivlens reads and changes heads and residual streams")
        changed = _logits(bridge, tokens, hooks=[(at, partial(clear, at=at))])
        if shapes.get(at) != wanted or torch.equal(changed, plain):
            raise ModelError(
                f"{at} of {name} gives {shapes.get(at)}, or changes nothing when it is set; ivlens needs {wanted} as "
                "(batch, pos, head, d_head), read and written, in every layer"
            )


def _logits(
    bridge: TransformerBridge, tokens: Int[Tensor, "1 pos"], mask: Tensor | None = None, hooks: Any = ()
) -> Float[Tensor, "1 pos vocab"]:
    with bridge.hooks(fwd_hooks=list(hooks)):
        return bridge(tokens, attention_mask=torch.ones_like(tokens) if mask is None else mask).float()
