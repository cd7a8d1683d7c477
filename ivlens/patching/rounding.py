"""How far does rounding to 16 bits move what heads do?

Asked of a few prompts, on which every head is patched once more in float32, with the same weights and the same mean
outputs. Differences mean something beside the largest AIE alone: heads that do nothing are off, too.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ivlens.datasets.task import Task
from ivlens.errors import ModelError, TaskWarning
from ivlens.forward.precision import in_float32
from ivlens.models.hooked import IN_16_BITS
from ivlens.patching import sweep
from ivlens.patching.effects import Queries, ranking_prompts
from ivlens.patching.head_effects import HeadEffects
from ivlens.shapes import GIB
from ivlens.tables import UNMEASURED, Table

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

PROMPTS = 3
"""That are patched in float32, too."""
ROUNDING = ("dtype", "prompts", "largest_aie", "difference", "share", "reason")


def is_rounded(model: HookedTransformer) -> bool:
    """Whether a model computes in 16 bits."""
    return model.cfg.dtype in IN_16_BITS


def measure_rounding(
    model: HookedTransformer,
    task: Task,
    effects: HeadEffects,
    *,
    memory: int = 2 * GIB,
    queries: Queries | None = None,
) -> pd.DataFrame:
    """Of a model that computes in 16 bits, how far AIE on the first prompts is from float32's; one line, `ROUNDING`.

    `largest_aie` is the largest |AIE| of these prompts in float32, `difference` the largest |AIE in 16 bits - AIE in
    float32| of all heads, and `share` the second over the first. Where float32 cannot be had, these are NaN, and
    `reason` says why.

    Args:
        effects: As they were measured in 16 bits.
        memory, queries: As for `patching.effects.measure_effects`.
    """
    dtype, n = str(model.cfg.dtype).removeprefix("torch."), min(PROMPTS, len(effects.cie))
    line: dict[str, Any] = dict.fromkeys(ROUNDING, float("nan")) | {"dtype": dtype, "prompts": n, "reason": ""}
    with warnings.catch_warnings():  # What is wrong with answers was said when effects were measured.
        warnings.simplefilter("ignore", TaskWarning)
        _, tokens = ranking_prompts(model, task, effects.settings, queries=queries)
    try:
        with in_float32(model):
            _, cie = sweep.sweep(model, tokens[:n], effects.mean_z, effect=effects.settings.effect, memory=memory)
    except (ModelError, torch.OutOfMemoryError) as error:
        return pd.DataFrame([line | {"reason": str(error).splitlines()[0]}])
    exact = cie.mean(0).cpu()
    largest = float(exact.abs().max())
    difference = float((effects.cie[:n].mean(0).cpu() - exact).abs().max())
    return pd.DataFrame([line | {"largest_aie": largest, "difference": difference, "share": difference / largest}])


def rounding_sentence(rounding: pd.DataFrame) -> str:
    """What was found, in words."""
    line = rounding.iloc[0]
    if line["reason"]:
        return f"Computed in {line['dtype']}; how far that is from float32 was not measured: {line['reason']}."
    return (
        f"Computed in {line['dtype']}: AIE of {line['prompts']} prompts is within {line['difference']:.1e} of "
        f"float32's, {line['share']:.1%} of the largest."
    )


def rounding_table(rounding: pd.DataFrame) -> Table:
    """The same as a table."""
    line = rounding.iloc[0]
    found = [UNMEASURED] * 3
    if not line["reason"]:
        found = [f"{line['largest_aie']:.4f}", f"{line['difference']:.1e}", f"{line['share']:.1%}"]
    return Table(
        "Precision: AIE in 16 bits against float32",
        ("computed in", "prompts", "largest AIE", "largest difference", "of the largest AIE"),
        ([(str(line["dtype"]), str(line["prompts"]), *found)],),
        f"The same weights and mean outputs, patched on {line['prompts']} prompts in both."
        + (f"\nNot measured: {line['reason']}." if line["reason"] else ""),
    )
