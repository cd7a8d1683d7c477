"""How is a TransformerBridge read, TransformerLens' wrapper of a Hugging Face model, the only model of its version 4?

It has HookedTransformer's hook names over transformers' own layers, of more than a hundred architectures. What ivlens
rests on is found by those names and tried on a few tokens (`check_bridge`), not listed architecture by architecture.
Adapters of PEFT in it may be dropped in silence: a bridge with any but those of `lora.attach` is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.checkpoints.checkpoint import BROKEN, Checkpoint, flat
from ivlens.checkpoints.placement import place
from ivlens.checkpoints.quantised import is_quantised
from ivlens.errors import ModelError, name_fault
from ivlens.models.hooked import IN_16_BITS, bos_fields
from ivlens.models.origin import ORIGINS, Origin, held_by
from ivlens.models.origin import backend_of as backend_of
from ivlens.models.origin import is_bridge as is_bridge

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

CLOSE, CLOSE_IN_16_BITS = 1e-3, 0.1
"""Of the largest number: rounding is below it, a forgotten mask above."""

# What was tried depends on how a bridge is built, not on its weights.
_CHECKED: WeakSet[nn.Module] = WeakSet()


def build_bridge(
    checkpoint: Checkpoint, *, device: str, dtype: torch.dtype, device_map: str | dict[str, Any] | None = None
) -> TransformerBridge:
    """Wrap a checkpoint's model, and prove on a short prompt that it computes what it did before.

    Args:
        device: Of the whole model, unless its parts are given devices, or have them already (quantised ones).

    Raises:
        ModelError: TransformerLens has no bridge to it, or it comes out different.
    """
    from transformer_lens.model_bridge import TransformerBridge

    name, hf = checkpoint.name, checkpoint.model
    tokens = torch.randint(hf.config.get_text_config().vocab_size, (1, 32), generator=torch.Generator().manual_seed(0))
    if not is_quantised(hf):
        for weight in hf.parameters():  # Not buffers: rotations stay in float32.
            weight.data = weight.data.to(dtype)
    try:
        theirs = _log_probs(hf, tokens.to(hf.device)).cpu()
    except BROKEN as error:  # Of fields that fit the weights, but not one another.
        raise ModelError(
            f"transformers cannot run {name} as its config.json has it: {name_fault(error) or flat(error)}"
        ) from error
    if device_map is not None:
        place(hf, device_map)
    is_placed = hasattr(hf, "hf_device_map")
    with warnings.catch_warnings():
        # Of weights that TransformerLens would know how to fold, which stay as they are here.
        warnings.simplefilter("ignore")
        try:
            bridge = TransformerBridge.boot_transformers(
                name, hf_model=hf, tokenizer=checkpoint.tokenizer, dtype=dtype, device=None if is_placed else device
            )
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            why = str(error).partition(". Available architectures")[0]
            raise ModelError(f"TransformerLens has no bridge to {name} ({checkpoint.architecture}): {why}") from error
    bridge.requires_grad_(False)
    bridge.cfg.model_name = name
    bridge.cfg.default_prepend_bos = bos_fields(checkpoint)["default_prepend_bos"]
    ours = _log_probs(bridge, tokens.to(bridge.cfg.device)).cpu()
    difference, accepted = float((ours - theirs).abs().max()), closeness(bridge) * max(1.0, float(theirs.std()))
    if not difference <= accepted:
        raise ModelError(
            f"{name} as a TransformerBridge does not come out right: its log-probabilities differ by {difference:.2g} "
            f"from transformers' (at most {accepted:.2g} is accepted); please report its config.json"
        )
    check_bridge(bridge)
    ORIGINS[bridge] = Origin.of(checkpoint.stored, checkpoint.files)
    return bridge


@torch.no_grad()
def _log_probs(model: nn.Module, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos vocab"]:
    found = model(tokens)
    return (found if isinstance(found, Tensor) else found.logits).float().log_softmax(-1)


def unembed(bridge: TransformerBridge, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos vocab"]:
    """Logits of a final residual stream."""
    return scaled_logits(bridge, bridge.unembed(final_norm(bridge, resid)))


def final_norm(bridge: TransformerBridge, resid: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """What the unembedding is given, on its device; the norm may lie on another one than the last block."""
    for part in (bridge.ln_final, bridge.unembed):
        where = next(part.parameters(), resid).device
        resid = part(resid.to(where)) if part is bridge.ln_final else resid.to(where)
    return resid


def scaled_logits(
    bridge: TransformerBridge, logits: Float[Tensor, "*batch vocab"], *, capped: bool = True
) -> Float[Tensor, "*batch vocab"]:
    """What a model makes of the products of its unembedding: Cohere multiplies, Granite divides, Gemma caps."""
    config = bridge.original_model.config.get_text_config()  # pyright: ignore
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap and capped else logits


@contextmanager
def finite_masks(bridge: TransformerBridge) -> Iterator[None]:
    """In float64, transformers masks with numbers that are infinite to its float32 softmax: NaN for pads."""
    with ExitStack() as stack:
        for block in bridge.blocks if bridge.cfg.dtype == torch.float64 else ():
            stack.callback(block.register_forward_pre_hook(_make_finite, with_kwargs=True).remove)
        yield


def _make_finite(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    lowest = torch.finfo(torch.float32).min

    def clamp(value: Any) -> Any:
        is_mask = isinstance(value, Tensor) and value.dim() == 4 and value.dtype == torch.float64
        return value.clamp(min=lowest) if is_mask else value

    return tuple(map(clamp, args)), {name: clamp(value) for name, value in kwargs.items()}


def refuse_unready(bridge: TransformerBridge) -> None:
    """Raises ModelError for a bridge in training mode, or with PEFT layers that are not those of `lora.attach`."""
    name = bridge.cfg.model_name
    if bridge.training:
        raise ModelError(f"{name} is in training mode, where dropout changes every run; call its eval() first")
    if any(type(module).__module__.startswith("peft.") and not held_by(module) for module in bridge.modules()):
        raise ModelError(
            f"{name} has PEFT layers in it, which a TransformerBridge may drop; call merge_and_unload() on the PEFT "
            "model before building the bridge, or attach the adapter with ivlens.lora"
        )


@torch.no_grad()
def check_bridge(model: HookedTransformer | TransformerBridge) -> None:
    """Try on a few tokens that hooks reach every head, that attention is causal, masks are kept, and logits understood.

    Of a HookedTransformer, where that is so by construction, nothing is tried. A bridge is tried once.

    Raises:
        ModelError: one of these does not hold, or the model is in training mode or has PEFT layers.
    """
    if not is_bridge(model):
        return
    refuse_unready(model)
    if model not in _CHECKED:
        _refuse_without_heads(model)
        _state_precision(model)
        _check(model)
        _CHECKED.add(model)


def _refuse_without_heads(bridge: TransformerBridge) -> None:
    name = f"{bridge.cfg.model_name} ({bridge.cfg.architecture})"
    config: Any = bridge.original_model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} has an encoder and a decoder; ivlens needs a causal language model")
    for layer in range(bridge.cfg.n_layers):
        # Hooks on names that it does not have are dropped by TransformerLens 3 in silence.
        for point in (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_resid_post"):
            if point not in bridge.hook_dict:
                raise ModelError(
                    f"{name} has no {point}, where ivlens reads and changes heads and residual streams: its blocks "
                    "are not all made of attention heads (state-space or hybrid models are not)"
                )


def _state_precision(bridge: TransformerBridge) -> None:
    """TransformerLens takes a model that it is handed for one in float32, unless it is told otherwise."""
    found = {weight.dtype for weight in bridge.blocks.parameters() if weight.is_floating_point()}
    if found and not is_quantised(bridge):
        bridge.cfg.dtype = min(found, key=lambda dtype: torch.finfo(dtype).bits)


def _check(bridge: TransformerBridge) -> None:
    """One pass over copies of a short prompt: the first is plain, and each of the others is changed in one way."""
    cfg, name = bridge.cfg, bridge.cfg.model_name
    prompt = torch.randint(cfg.d_vocab, (min(6, cfg.n_ctx),), generator=torch.Generator().manual_seed(0)).to(cfg.device)
    tokens = prompt.repeat(3 + cfg.n_layers, 1)
    tokens[1, -1] = (tokens[1, -1] + 1) % cfg.d_vocab
    tokens[2], mask = prompt.roll(1), torch.ones_like(tokens)
    mask[2, 0] = 0
    seen: dict[str, Tensor] = {}

    def clear(z: Tensor, hook: object, *, at: str, row: int) -> Tensor:
        seen[at] = z
        z = z.clone()
        z[row] = 0
        return z

    def keep(resid: Tensor, hook: object) -> None:
        seen["final"] = resid

    hooks: list[Any] = [(f"blocks.{cfg.n_layers - 1}.hook_resid_post", keep)]
    points = [f"blocks.{layer}.attn.hook_z" for layer in range(cfg.n_layers)]
    hooks += [(at, partial(clear, at=at, row=3 + layer)) for layer, at in enumerate(points)]
    try:
        with finite_masks(bridge), bridge.hooks(fwd_hooks=hooks):
            logits = bridge(tokens, attention_mask=mask).float()
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"{name} fails on {len(tokens)} short prompts in {cfg.dtype}: {error}") from error
    wanted = (*tokens.shape, cfg.n_heads, cfg.d_head)
    for layer, at in enumerate(points):
        shape = tuple(seen[at].shape) if at in seen else None
        if shape != wanted or torch.equal(logits[3 + layer], logits[0]):
            raise ModelError(
                f"{at} of {name} gives {shape}, or changes nothing when it is set; ivlens needs {wanted} as "
                "(batch, pos, head, d_head), read and written, in every layer"
            )
    accepted = closeness(bridge) * float(logits[0].abs().max())
    if not float((logits[1] - logits[0])[:-1].abs().max()) <= accepted:
        raise ModelError(f"{name} reads in both directions; ivlens needs a causal model")
    if not float((logits[2, -1] - logits[0, -2]).abs().max()) <= accepted:
        raise ModelError(
            f"{name} comes out different on a padded prompt, and ivlens pads prompts; in float64 some of transformers' "
            "own models do (NaN): take float32 then"
        )
    own = unembed(bridge, seen["final"][:1])[0].float().to(logits.device)
    if not float((own - logits[0]).abs().max()) <= accepted:
        raise ModelError(
            f"{name} makes logits of its last residual stream in a way that ivlens does not know: not by a norm, an "
            "unembedding, a scale and a soft cap"
        )


def closeness(bridge: TransformerBridge) -> float:
    """How far two ways to the same numbers may be apart, of the largest of them."""
    # Kernels for quantised weights compute in 16 bits, too.
    in_16_bits = bridge.cfg.dtype in IN_16_BITS or is_quantised(bridge)
    return CLOSE_IN_16_BITS if in_16_bits else CLOSE
