"""Which model is the tuned one: one of its own, a checkpoint, or an adapter over the base model?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ivlens.analysis.comparison import Comparison as Comparison
from ivlens.errors import ShapeMismatch
from ivlens.models import hooked, loader, lora, peft, peft_config
from ivlens.models.lora import Adapter

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class TunedModel(NamedTuple):
    """The tuned model: one of its own, or an adapter that makes it of the base model."""

    model: HookedTransformer | Adapter
    name: str


def find_tuned_model(
    base: HookedTransformer, tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path]
) -> TunedModel:
    if isinstance(tuned, Sequence) and not isinstance(tuned, str):
        if len(tuned) != 1:
            stacked = lora.stack([peft.read_adapter(folder, base) for folder in tuned])
            return TunedModel(
                stacked, " + ".join([hooked.model_name(base), *(Path(one).resolve().name for one in tuned)])
            )
        tuned = tuned[0]
    if isinstance(tuned, Adapter):
        lora.check_adapter(base, tuned)
        return TunedModel(tuned, f"{hooked.model_name(base)} + adapter")
    if isinstance(tuned, str | Path):
        if (Path(tuned) / peft_config.CONFIG).is_file():
            name = f"{hooked.model_name(base)} + {Path(tuned).resolve().name}"
            return TunedModel(peft.read_adapter(tuned, base), name)
        names = {dtype: name for name, dtype in hooked.DTYPES.items()}
        tuned = loader.load_without_adapters(
            tuned, device=str(base.cfg.device), dtype=names.get(base.cfg.dtype, "auto")
        )
    ours, theirs = (
        {name: getattr(model.cfg, name) for name in ("n_layers", "n_heads", "d_head", "d_model")}
        for model in (base, tuned)
    )
    if ours != theirs:
        unlike = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if ours[name] != theirs[name]]
        raise ShapeMismatch(
            f"{hooked.model_name(tuned)} has {', '.join(unlike)} of {hooked.model_name(base)}; give a model that was "
            "fine-tuned from it"
        )
    return TunedModel(tuned, hooked.model_name(tuned))
