"""How is an adapter exchanged with PEFT?

A PEFT folder has `adapter_config.json` and `adapter_model.safetensors`; the names of tensors are those of the
Hugging Face model's linear layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.models import hooked, lora, peft_layout
from ivlens.models.lora import Adapter, Factors
from ivlens.models.peft_config import CONFIG, MERGE, read_config, written_config
from ivlens.models.peft_layout import Linear
from ivlens.storage import tensor_files
from ivlens.storage.atomic_files import as_run_error, replacing, write_whole

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_adapter(folder: str | Path, model: HookedTransformer) -> Adapter:
    """Read a LoRA adapter that PEFT saved.

    The weights of a fused layer (`c_attn`, `query_key_value`, `qkv_proj`, `gate_up_proj`) share its `A`, less the
    rows that a weight makes no use of. Factors are at least float32, on the model's device, and need no gradient.
    Where layers have their own scale (`alpha_pattern`, `rank_pattern`), it goes into `B`.

    Args:
        folder: Has `adapter_config.json` and `adapter_model.safetensors`; a pickle is never opened.
        model: With unprocessed weights, as `load` returns it.

    Raises:
        ShapeMismatch: the adapter is of another model; both shapes are named.
        IvlensError: a file is missing or damaged, tensors and configuration disagree, the configuration asks for
            something that is not supported, a value is NaN or infinite, or every update is zero.
    """
    folder = Path(folder)
    config = read_config(folder)
    shapes = _shapes(folder)
    _refuse_outside(shapes, folder)
    try:
        adapted = config.updates(peft_layout.linears(model))
    except ValueError as error:
        raise IvlensError(f"{folder / CONFIG}: {error}") from error
    if not adapted:
        raise IvlensError(
            f"{folder / CONFIG} targets {config.target_modules}, none of which {hooked.model_name(model)} has; "
            "give an adapter of this model"
        )
    # Before gaps: of an adapter of another model, shapes say most. Before any tensor is read: it may be of any size.
    for linear, update in adapted.items():
        if shapes.keys() >= set(_tensor_names(linear)):
            _refuse_misfit(shapes, model, linear, update.rank, folder)
    _refuse_gaps(shapes, adapted, folder)
    held, _ = tensor_files.read_tensors(folder / WEIGHTS, remedy="copy it again", most=None)
    scale = next(iter(adapted.values())).scale
    factors = {}
    for linear, update in adapted.items():
        both = Factors(*(_floating(held[name], linear, folder) for name in _tensor_names(linear)))
        factors |= _split(_working(both, model, share=update.scale / scale), model, linear)
    adapter = Adapter(factors=factors, scale=scale)
    lora.check_adapter(model, adapter)
    if adapter.is_nothing():
        raise IvlensError(f"every update of the adapter in {folder} is zero, as before training; give a trained one")
    return adapter


def write_adapter(
    adapter: Adapter, folder: str | Path, model: HookedTransformer, *, base: str | Path | None = None
) -> None:
    """Write an adapter as PEFT's two files, each whole or not at all, the configuration last.

    Several weights of a fused layer whose `A` differ become one update of block-stacked `A`: its rank is the sum of
    theirs, and the update is exact. `read_adapter` gives the single weights back.

    Args:
        folder: Made where needed; an adapter in it is replaced.
        model: What the adapter is of, with unprocessed weights.
        base: Hub id or folder of the base model, for other tools; the model's name unless given.

    Raises:
        ShapeMismatch: the adapter is of another model.
        IvlensError: it has NaN in it, or weights that are in no linear layer that PEFT could adapt.
        RunError: the disk refuses.
    """
    import safetensors.torch

    folder = Path(folder)
    lora.check_adapter(model, adapter)
    linears = peft_layout.linears(model)
    held = {name for linear in linears for name in linear.weights}
    if not adapter.factors or not held.issuperset(adapter.factors):
        strange = next((name for name in adapter.factors if name not in held), "no weight at all")
        raise IvlensError(f"the adapter is on {strange}, which PEFT has no place for; adapt weights inside blocks")
    fused = {linear: _fuse(adapter, model, linear) for linear in linears if _is_on(adapter, linear)}
    held = {
        # Copies, since safetensors refuses tensors that share memory.
        name: factor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for linear, factors in fused.items()
        for name, factor in zip(_tensor_names(linear), factors, strict=True)
    }
    ranks = {linear: len(factors.A) for linear, factors in fused.items()}
    config = written_config(ranks, adapter.scale, linears) | {
        "base_model_name_or_path": str(base or hooked.model_name(model)),
        "fan_in_fan_out": peft_layout.is_transposed(model),
    }
    with as_run_error(folder / CONFIG):
        # Never a configuration beside another adapter's tensors.
        (folder / CONFIG).unlink(missing_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        safetensors.torch.save_file(held, temporary, metadata={"format": "pt"})
    write_whole(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _is_on(adapter: Adapter, linear: Linear) -> bool:
    return not adapter.factors.keys().isdisjoint(linear.weights)


def _shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        raise IvlensError(
            f"{folder} has its tensors in adapter_model.bin, a pickle, which ivlens never opens; save the adapter "
            "again with PEFT's save_pretrained, which writes safetensors"
            if pickle
            else f"there is no {WEIGHTS} in {folder}; copy it again"
        )
    return tensor_files.read_header(path, remedy="copy it again").shapes


def _tensor_names(linear: Linear) -> tuple[str, str]:
    return f"{_PREFIX}{linear.path}.lora_A.weight", f"{_PREFIX}{linear.path}.lora_B.weight"


def _refuse_outside(shapes: Mapping[str, object], folder: Path) -> None:
    """Raises IvlensError where tensors are of no layer with a number: of `lm_head`, of embeddings."""
    outside = sorted(name for name in shapes if not re.search(r"\.[0-9]+\.", name))
    if outside:
        part = outside[0].removeprefix(_PREFIX).partition(".lora_")[0].removesuffix(".weight")
        raise IvlensError(
            f"the adapter in {folder} changes {part} ({outside[0]}), outside of the blocks, where ivlens adapts "
            f"nothing; {MERGE} in its place"
        )


def _refuse_gaps(shapes: Mapping[str, object], adapted: Iterable[Linear], folder: Path) -> None:
    wanted = {name for linear in adapted for name in _tensor_names(linear)}
    missing = sorted(wanted - shapes.keys())
    if missing:
        raise IvlensError(
            f"{folder / CONFIG} asks for {missing[0]}, which {WEIGHTS} does not have ({len(missing)} are missing); "
            "the two files are not of one adapter, or not of this model"
        )
    unused = sorted(shapes.keys() - wanted)
    if unused:
        raise IvlensError(
            f"{folder / WEIGHTS} has {unused[0]}, which nothing uses ({len(unused)} such): {CONFIG} does not target it "
            "or the model has no such linear layer inside its blocks; save the adapter again without it"
        )


def _refuse_misfit(
    shapes: Mapping[str, tuple[int, ...]], model: HookedTransformer, linear: Linear, rank: int, folder: Path
) -> None:
    d_in, d_out = peft_layout.shape(model, linear)
    a, b = (shapes[name] for name in _tensor_names(linear))
    if (a, b) != ((rank, d_in), (d_out, rank)):
        raise ShapeMismatch(
            f"the adapter in {folder} has A {a} and B {b} for {linear.path}, but "
            f"{hooked.model_name(model)} at rank {rank} needs {(rank, d_in)} and {(d_out, rank)}; "
            "give an adapter of this model"
        )


def _floating(factor: Tensor, linear: Linear, folder: Path) -> Tensor:
    if factor.dtype not in _DTYPES:
        raise IvlensError(f"{linear.path} is stored as {factor.dtype} in {folder}; save the adapter in float32")
    return factor


def _working(both: Factors, model: HookedTransformer, *, share: float) -> Factors:
    """On the model's device, in float32 or better, `B` times `share`."""
    dtype = torch.promote_types(torch.promote_types(both.A.dtype, torch.float32), model.cfg.dtype)
    a, b = (factor.to(model.cfg.device, dtype) for factor in both)
    return Factors(a, b if share == 1 else b * share)


def _split(both: Factors, model: HookedTransformer, linear: Linear) -> dict[str, Factors]:
    """The factors of each weight of a linear layer, without what is exactly zero where there are several."""
    if len(linear.weights) == 1:
        return {linear.weights[0]: both}
    split = {}
    for name, rows in zip(linear.weights, peft_layout.outputs(model, linear), strict=True):
        own = both.B[rows.to(both.B.device)]
        used = own.ne(0).any(dim=0)
        if used.any():
            split[name] = Factors(both.A[used], own[:, used])
    return split


def _fuse(adapter: Adapter, model: HookedTransformer, linear: Linear) -> Factors:
    """One update for a whole linear layer. Weights with equal `A` share it; others are stacked."""
    if len(linear.weights) == 1:
        return adapter.factors[linear.weights[0]]
    parts = [
        (adapter.factors[name], rows)
        for name, rows in zip(linear.weights, peft_layout.outputs(model, linear), strict=True)
        if name in adapter.factors
    ]
    stacked: list[Tensor] = []
    for factors, _ in parts:
        if not any(torch.equal(factors.A, a) for a in stacked):
            stacked.append(factors.A)
    a = torch.cat(stacked)
    b = a.new_zeros(peft_layout.shape(model, linear)[1], len(a))
    starts = [sum(map(len, stacked[:number])) for number in range(len(stacked))]
    for factors, rows in parts:
        start = next(start for start, own in zip(starts, stacked, strict=True) if torch.equal(factors.A, own))
        b[rows.to(b.device), start : start + len(factors.A)] = factors.B.detach()
    return Factors(a.detach(), b)
