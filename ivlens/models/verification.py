"""Does TransformerLens compute what transformers computes from the same checkpoint?

Both compute in float32, whatever the weights are kept in: each module's own weights are widened while it runs, and no
other is at that time. Widening 16 bits is exact, so that this is what whole models in float32 would compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ivlens.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedModel


TOLERANCE = 1e-3
"""Largest |difference of log-probability| from transformers that counts as the same model, in float32: in nats, or
in standard deviations of the log-probabilities where these are larger than 1 nat (rounding grows with them)."""


SHORTEST_PROBE = 32


LONGEST_PROBE = 1024


def compare_outputs(model: HookedTransformer, hf: PreTrainedModel, name: str) -> None:
    """Refuse a model whose log-probabilities differ from transformers' anywhere on a random prompt."""
    tokens = _probe_tokens(model)
    with torch.inference_mode(), widened(model), widened(hf):
        ours = model(tokens).log_softmax(-1)
        theirs = hf(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    difference = (ours - theirs).abs().max().item()
    accepted = TOLERANCE * max(1.0, theirs.std().item())
    if not difference <= accepted:
        raise ModelError(
            f"{name} as {model.cfg.original_architecture} does not come out right: its log-probabilities "
            f"differ by {difference:.2g} from transformers' (at most {accepted:.2g} is accepted); "
            "please report its config.json"
        )


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Have each module compute with its own weights in float32, one module at a time; then they are as before."""
    kept: dict[nn.Module, dict[str, nn.Parameter | None]] = {}

    def widen(module: nn.Module, *_: object) -> None:
        kept[module] = dict(module._parameters)
        for name, weight in kept[module].items():
            if weight is not None and weight.dtype != torch.float32:
                module._parameters[name] = nn.Parameter(weight.float(), requires_grad=False)

    def restore(module: nn.Module, *_: object) -> None:
        module._parameters.update(kept.pop(module))

    # Around all other hooks, which may read weights.
    owners = [module for module in model.modules() if module._parameters]
    handles = [module.register_forward_pre_hook(widen, prepend=True) for module in owners]
    handles += [module.register_forward_hook(restore, always_call=True) for module in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare_rotations(model: HookedTransformer, hf: PreTrainedModel, name: str) -> None:
    """Refuse a model that turns by other angles than transformers', at whatever distance this would show."""
    rotary = getattr(hf.base_model, "rotary_emb", None)
    if rotary is None or model.cfg.n_ctx < 2:
        return
    kinds = getattr(hf.config, "layer_types", None) or [""] * model.cfg.n_layers
    for kind in set(kinds):
        # Gemma 3 turns by other angles where attention slides.
        theirs = getattr(rotary, f"{kind}_inv_freq", None)
        theirs = (rotary.inv_freq if theirs is None else theirs).sin()
        ours = model.blocks[kinds.index(kind)].attn.rotary_sin[1, : len(theirs)]
        gap = float(((ours - theirs) / theirs).abs().max())
        if not gap <= 1e-4:
            raise ModelError(
                f"{name} as {model.cfg.original_architecture} does not come out right: its rotary frequencies differ "
                f"by {gap:.2g} of their size from transformers'; please report its config.json"
            )


def _probe_tokens(model: HookedTransformer) -> Tensor:
    cfg = model.cfg
    past_window = cfg.window_size + 16 if cfg.use_local_attn and cfg.window_size else 0
    length = past_window if SHORTEST_PROBE < past_window <= LONGEST_PROBE + 16 else SHORTEST_PROBE
    generator = torch.Generator().manual_seed(0)
    return torch.randint(cfg.d_vocab, (1, min(length, cfg.n_ctx)), generator=generator)
