"""How does a HookedTransformer come about from a checkpoint?

The only place where a HookedTransformer is built. Weights stay as they are in the checkpoint (no folding, no
centring), so that an adapter means here what it means in PEFT.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from ivlens.checkpoints.architectures import ARCHITECTURES, Fields, NotComputedError, hooked_fields, hooked_weights
from ivlens.checkpoints.checkpoint import BROKEN, Checkpoint, flat
from ivlens.errors import ModelError, name_fault
from ivlens.models.origin import ORIGINS, Origin
from ivlens.models.origin import add_note as add_note
from ivlens.models.origin import model_name as model_name
from ivlens.models.origin import source as source
from ivlens.models.origin import stored_as as stored_as
from ivlens.models.origin import weight_digest as weight_digest
from ivlens.models.verification import compare_outputs, compare_rotations

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
IN_16_BITS = (torch.bfloat16, torch.float16)


# Axes of weights as they follow each other in memory. TransformerLens turns a copy of each whenever a block runs (and
# keeps it for the backward pass), unless memory has the copy's order already: no number depends on it.
_Orders = dict[str, tuple[int, ...]]
_TURNED: _Orders = {**dict.fromkeys(("W_Q", "W_K", "W_V"), (0, 2, 1)), "W_O": (2, 0, 1), "W_U": (1, 0)}
_TURNED_IF_GATED: _Orders = dict.fromkeys(("W_gate", "W_in", "W_out"), (1, 0))


def has_hooked() -> bool:
    """Whether this version of TransformerLens has a HookedTransformer; 4 has none."""
    return int(metadata.version("transformer-lens").split(".")[0]) < 4


def computes(checkpoint: Checkpoint) -> bool:
    """Whether this version has a HookedTransformer, and that computes what the checkpoint's configuration asks for.

    A configuration that is no configuration is left to `build_hooked`, which says what is wrong with it.
    """
    if not has_hooked() or checkpoint.architecture not in ARCHITECTURES:
        return False
    try:
        hooked_fields(checkpoint.model.config, checkpoint.architecture)
    except NotComputedError:
        return False
    except (ModelError, *BROKEN):
        pass
    return True


def build_hooked(checkpoint: Checkpoint, *, device: str, dtype: torch.dtype) -> HookedTransformer:
    """A model that computes what transformers computes of a checkpoint, whose memory it takes over.

    Raises:
        ModelError: TransformerLens does not compute it, or computes something else.
    """
    try:
        fields = hooked_fields(checkpoint.model.config, checkpoint.architecture)
        queries = fields["n_layers"] * fields["n_heads"] * fields["d_head"] * fields["d_model"]
        if queries > sum(weight.numel() for weight in checkpoint.model.parameters()):
            raise ModelError(
                f"config.json of {checkpoint.name} says head_dim = {fields['d_head']}; its weights have less"
            )
        fields |= {"model_name": checkpoint.name, **bos_fields(checkpoint)}
        probe = _build(fields, device="cpu", dtype=torch.float32)
        weights = hooked_weights(checkpoint.model, probe.cfg)
        _fill(probe, weights)
        compare_outputs(probe, checkpoint.model, checkpoint.name)
        compare_rotations(probe, checkpoint.model, checkpoint.name)
    except BROKEN as error:  # Fields of a type or size that neither library looks at before it computes with them.
        why = name_fault(error) or f"{flat(error)}; please report its config.json"
        raise ModelError(f"{checkpoint.name} cannot be built as {checkpoint.architecture}: {why}") from error
    del probe
    # From here on only `weights` keeps the checkpoint's memory, and gives it back tensor by tensor.
    torch.nn.Module.to(checkpoint.model, "meta")
    model = _build(fields, device=device, dtype=dtype)
    copy = partial(_copy, device=device, dtype=dtype, turned=_turned(model))
    _fill(model, {name: copy(name, weights.pop(name)) for name in list(weights)})
    model.tokenizer = checkpoint.tokenizer
    # With "left", TransformerLens guesses a mask from pad ids when none is given; pads may be real tokens.
    model.tokenizer.padding_side = "right"
    ORIGINS[model] = Origin.of(checkpoint.stored, checkpoint.files)
    return model


def _build(fields: Fields, *, device: str, dtype: torch.dtype) -> HookedTransformer:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(**fields, device=device, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*HookedTransformer.*", DeprecationWarning)
        # No tokenizer here: TransformerLens would load it again by its path with another BOS setting.
        return HookedTransformer(cfg).eval().requires_grad_(False)


def _fill(model: HookedTransformer, weights: dict[str, Tensor]) -> None:
    wanted = {name for name, _ in model.named_parameters()}
    lacking = sorted(wanted - set(weights))
    # Biases that an architecture lacks are zero in TransformerLens; any other gap would stay uninitialised.
    assert all(name.rsplit(".", 1)[-1] in {"b_U", "b_in", "b_out"} for name in lacking), lacking
    # Phi-3's converter adds norm biases that no RMSNorm has.
    model.load_state_dict({n: w for n, w in weights.items() if n in wanted}, strict=False, assign=True)
    model.requires_grad_(False)


def _copy(name: str, weight: Tensor, *, device: str, dtype: torch.dtype, turned: _Orders) -> Tensor:
    """A dense copy, in the order that it is to have: tensors of a checkpoint are views of one another."""
    order = _order(name, weight, turned)
    dense = torch.empty([weight.shape[axis] for axis in order], dtype=dtype, device=device)
    return dense.permute(_back(order)).copy_(weight)


def lay_out(model: HookedTransformer) -> None:
    """Have the weights of any HookedTransformer lie as those that are loaded do; their values stay."""
    turned = _turned(model)
    for name, weight in model.named_parameters():
        order = _order(name, weight, turned)
        if not weight.permute(order).is_contiguous():
            weight.data = weight.data.permute(order).contiguous().permute(_back(order))


def _turned(model: HookedTransformer) -> _Orders:
    return _TURNED | (_TURNED_IF_GATED if model.cfg.gated_mlp else {})


def _order(name: str, weight: Tensor, turned: _Orders) -> tuple[int, ...]:
    return turned.get(name.rsplit(".", 1)[-1].removeprefix("_"), tuple(range(weight.dim())))


def _back(order: tuple[int, ...]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def refuse_other_precision(model: HookedTransformer) -> None:
    """Raises ModelError where `model.half()` or `.bfloat16()` made weights of 16 bits, and `cfg.dtype` does not say so.

    TransformerLens then multiplies numbers of two precisions, which torch refuses.
    """
    for found in {weight.dtype for weight in model.parameters()} & set(IN_16_BITS) - {model.cfg.dtype}:
        raise ModelError(
            f"{model_name(model)} has weights in {found}, but computes in {model.cfg.dtype} (cfg.dtype); "
            f"turn it by model.to({found}), which sets both"
        )


def bos_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer: PreTrainedTokenizerBase = checkpoint.tokenizer
    bos = tokenizer.bos_token_id
    adds = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
    wants = bos is not None and checkpoint.architecture == "GPT2LMHeadModel"
    return {"tokenizer_prepends_bos": adds, "default_prepend_bos": adds or wants}
