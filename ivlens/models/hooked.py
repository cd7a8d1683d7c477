"""Which model is this, and does TransformerLens compute what its checkpoint means?

The only place where a HookedTransformer is built. Weights stay as they are in the checkpoint (no folding, no
centring), so that an adapter means here what it means in PEFT.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ivlens.errors import ModelError
from ivlens.models import bridge
from ivlens.models.architectures import Fields, hooked_fields, hooked_weights
from ivlens.models.checkpoint import Checkpoint, locate, read, refuse_non_finite

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = 1e-3
"""Largest |difference of log-probability| from transformers that counts as the same model, in float32: in nats, or
in standard deviations of the log-probabilities where these are larger than 1 nat (rounding grows with them)."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SHORTEST_PROBE = 32
LONGEST_PROBE = 1024


def load(
    model: str | Path | HookedTransformer,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> HookedTransformer:
    """Load a model and prove on a short prompt that it computes what transformers computes.

    The check runs in float32 on the CPU, with eager attention, before any cast, and takes 4 bytes of memory a
    parameter there. Its prompt is random tokens, long enough to pass a sliding window of up to 1,024 tokens;
    the far edge of a longer window is not tested. Rotary frequencies, which long contexts need and a short prompt
    does not show, are compared one by one.

    Args:
        model: `lab`, a local Hugging Face folder, a hub id, or a HookedTransformer or TransformerBridge, which is
            checked and returned as it is. Needs safetensors; pickles and code out of a checkpoint are never run.
        device: `auto` (CUDA if there is any, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto`: float32, but bfloat16 on CUDA for a checkpoint
            that is stored in 16 bits.
        revision: Branch, tag or commit of a hub id.

    Returns:
        A model in eval mode with no gradients and with its tokenizer. Text gets a BOS token where the
        checkpoint's own tokenizer adds one, and on GPT-2, whose heads rest on `<|endoftext|>`
        (TransformerLens' convention). A model that is returned as it is keeps its own `cfg.default_prepend_bos`.

    Raises:
        ModelError: it cannot be found or read whole, is not supported, has NaN in it, is not causal, or comes
            out different from transformers by more than `TOLERANCE`.
    """
    if not isinstance(model, str | Path):
        return _as_it_is(model, device=device, dtype=dtype, revision=revision)
    where, asked = _device(device), _dtype(dtype)
    folder = locate(model, revision=revision)
    name = folder.resolve().name if Path(model).expanduser().is_dir() and model != "lab" else str(model)
    checkpoint = read(folder, name=name)
    if asked is None:
        half = checkpoint.dtype in (torch.bfloat16, torch.float16)
        asked = torch.bfloat16 if half and where.startswith("cuda") else torch.float32
    return _hooked(checkpoint, device=where, dtype=asked)


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


def _hooked(checkpoint: Checkpoint, *, device: str, dtype: torch.dtype) -> HookedTransformer:
    fields = hooked_fields(checkpoint.model.config, checkpoint.architecture)
    fields |= {"model_name": checkpoint.name, **_bos(checkpoint)}
    probe = _build(fields, device="cpu", dtype=torch.float32)
    weights = hooked_weights(checkpoint.model, probe.cfg)
    _fill(probe, weights)
    _compare(probe, checkpoint.model, checkpoint.name)
    _compare_rotations(probe, checkpoint.model, checkpoint.name)
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
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise ModelError(
            "this version of TransformerLens has no HookedTransformer to load a checkpoint into; install "
            "transformer-lens<4, or build a TransformerBridge and give that"
        ) from error

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


def _compare(model: HookedTransformer, hf: PreTrainedModel, name: str) -> None:
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


def _compare_rotations(model: HookedTransformer, hf: PreTrainedModel, name: str) -> None:
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


def _bos(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer: PreTrainedTokenizerBase = checkpoint.tokenizer
    bos = tokenizer.bos_token_id
    adds = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
    wants = bos is not None and checkpoint.architecture == "GPT2LMHeadModel"
    return {"tokenizer_prepends_bos": adds, "default_prepend_bos": adds or wants}


def _as_it_is(model: HookedTransformer, *, device: str, dtype: str, revision: str | None) -> HookedTransformer:
    kind = type(model).__name__
    is_bridge = bridge.is_bridge(model)
    if not is_bridge and "HookedTransformer" not in [base.__name__ for base in type(model).__mro__]:
        raise ModelError(
            f"a {kind} is not a model; give 'lab', a folder, a hub id, a HookedTransformer or a TransformerBridge"
        )
    if (device, dtype, revision) != ("auto", "auto", None):
        raise ModelError(f"a {kind} is taken as it is; leave device, dtype and revision out, or use model.to")
    if model.cfg.attention_dir != "causal":
        raise ModelError(f"{model_name(model)} has {model.cfg.attention_dir} attention; ivlens needs a causal model")
    refuse_non_finite(model, model_name(model))
    if is_bridge:
        bridge.check(model)
    return model


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is not a device; give auto, cpu, cuda, cuda:1 or mps") from error
    available = {
        "cpu": True,
        "cuda": (wanted.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(wanted.type, False):
        raise ModelError(f"this machine has no device {device!r}; use cpu, or auto to let ivlens choose")
    return str(wanted)


def _dtype(dtype: str) -> torch.dtype | None:
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"{dtype!r} is not a dtype ivlens computes in; give auto, {', '.join(DTYPES)}")
    return DTYPES.get(dtype)
