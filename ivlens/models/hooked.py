"""How does a HookedTransformer come about from a checkpoint, and which model is it?

The only place where a HookedTransformer is built. Weights stay as they are in the checkpoint (no folding, no
centring), so that an adapter means here what it means in PEFT.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from ivlens.models.architectures import Fields, hooked_fields, hooked_weights
from ivlens.models.checkpoint import Checkpoint
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


def has_hooked() -> bool:
    """Whether this version of TransformerLens has a HookedTransformer; 4 has none."""
    return int(metadata.version("transformer-lens").split(".")[0]) < 4


def model_name(model: HookedTransformer) -> str:
    """What the user called the model: `lab`, the folder's name, the hub id, or `cfg.model_name`."""
    return str(model.cfg.model_name)


def weight_digest(model: HookedTransformer) -> str:
    """SHA-256, in hex, of the parameters' names, shapes, types and bytes.

    Equal for equal weights in any process and on any device; another dtype changes it. An attached adapter counts as
    if it were merged.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(_weights(model), key=lambda named: named[0]):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(model: HookedTransformer) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if name.endswith(".original"):  # What an adapter is attached to; the module's own attribute has the sum.
            path, _, own = name.removesuffix(".original").rpartition("parametrizations.")
            yield path + own, getattr(model.get_submodule(path.rstrip(".")), own)
        else:
            yield name, weight


def build_hooked(checkpoint: Checkpoint, *, device: str, dtype: torch.dtype) -> HookedTransformer:
    fields = hooked_fields(checkpoint.model.config, checkpoint.architecture)
    fields |= {"model_name": checkpoint.name, **bos_fields(checkpoint)}
    probe = _build(fields, device="cpu", dtype=torch.float32)
    weights = hooked_weights(checkpoint.model, probe.cfg)
    _fill(probe, weights)
    compare_outputs(probe, checkpoint.model, checkpoint.name)
    compare_rotations(probe, checkpoint.model, checkpoint.name)
    model = _build(fields, device=device, dtype=dtype)
    # From here on only `weights` keeps the checkpoint's memory, and gives it back tensor by tensor.
    del probe
    torch.nn.Module.to(checkpoint.model, "meta")
    _fill(model, {name: _copy(weights.pop(name), device=device, dtype=dtype) for name in list(weights)})
    model.tokenizer = checkpoint.tokenizer
    # With "left", TransformerLens guesses a mask from pad ids when none is given; pads may be real tokens.
    model.tokenizer.padding_side = "right"
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


def _copy(weight: Tensor, *, device: str, dtype: torch.dtype) -> Tensor:
    """A contiguous copy: tensors of a checkpoint are views of one another (q, k and v; tied embeddings)."""
    return torch.empty(weight.shape, dtype=dtype, device=device).copy_(weight)


def bos_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer: PreTrainedTokenizerBase = checkpoint.tokenizer
    bos = tokenizer.bos_token_id
    adds = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
    wants = bos is not None and checkpoint.architecture == "GPT2LMHeadModel"
    return {"tokenizer_prepends_bos": adds, "default_prepend_bos": adds or wants}
