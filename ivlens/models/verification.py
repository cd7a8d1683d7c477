"""Does TransformerLens compute what transformers computes from the same checkpoint?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
    with torch.inference_mode():
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


def compare_rotations(model: HookedTransformer, hf: PreTrainedModel, name: str) -> None:
    """Refuse a model that turns by other angles than transformers', at whatever distance this would show."""
    rotary = getattr(hf.base_model, "rotary_emb", None)
    if rotary is None or model.cfg.n_ctx < 2:
        return
    ours = model.blocks[0].attn.rotary_sin[1, : len(rotary.inv_freq)]
    theirs = rotary.inv_freq.sin()
    gap = float(((ours - theirs) / theirs).abs().max())
    if not gap <= 1e-4:
        raise ModelError(
            f"{name} as {model.cfg.original_architecture} does not come out right: its rotary frequencies differ by "
            f"{gap:.2g} of their size from transformers'; please report its config.json"
        )


def _probe_tokens(model: HookedTransformer) -> Tensor:
    cfg = model.cfg
    past_window = cfg.window_size + 16 if cfg.use_local_attn and cfg.window_size else 0
    length = past_window if SHORTEST_PROBE < past_window <= LONGEST_PROBE + 16 else SHORTEST_PROBE
    generator = torch.Generator().manual_seed(0)
    return torch.randint(cfg.d_vocab, (1, min(length, cfg.n_ctx)), generator=generator)
