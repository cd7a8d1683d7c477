"""What does a PEFT configuration ask for, and which one says what an adapter is?

PEFT decides by patterns over the paths of linear layers which of them are adapted, at what rank and how strongly. What
a configuration asks for is done as PEFT does it, or refused by its name.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import pydantic

from ivlens.errors import IvlensError
from ivlens.models.peft_layout import Linear
from ivlens.patterns import find_matches
from ivlens.storage.atomic_files import reason
from ivlens.storage.json_files import read_json

CONFIG = "adapter_config.json"
MERGE = "merge the adapter with PEFT (merge_and_unload, save_pretrained) and give the merged checkpoint"
"""What to do with an adapter that is more than low-rank updates inside blocks."""
# What describes the training or its place, and says nothing about the trained update. PEFT, too, sets
# fan_in_fan_out by the kind of the layer, whatever is written; the factors do not depend on it. Which layer a linear
# layer is in is known here without layers_pattern. Starts that changed the base model show in init_lora_weights.
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("fan_in_fan_out", "inference_mode", "layers_pattern", "loftq_config", "lora_dropout", "lora_ga_config"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "velora_config"),
}
# Why an option cannot be had as low-rank updates; for others its name says enough.
_REASONS = {
    "use_dora": "DoRA rescales whole weights, which is no low-rank update",
    "modules_to_save": "whole modules were trained beside the low-rank updates",
    "bias": "biases were trained beside the low-rank updates",
    "lora_bias": "biases were trained beside the low-rank updates",
}
_STARTS = (True, False, "gaussian", "orthogonal", "eva", "mica")

_T = TypeVar("_T", int, float)
_Names = list[str] | str
_Rank = Annotated[int, pydantic.Field(ge=1)]
_Alpha = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class Update(NamedTuple):
    """What an adapter does to one linear layer."""

    rank: int
    """Inner width of `B A`."""
    scale: float
    """What `B A` is multiplied by."""


class AdapterConfig(pydantic.BaseModel):
    """What of `adapter_config.json` decides the update; other keys are in `model_extra`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow", strict=True)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    target_modules: _Names
    exclude_modules: _Names | None = None
    layers_to_transform: list[int] | int | None = None
    r: _Rank = 8
    lora_alpha: _Alpha = 8
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: bool | str = True

    def updates(self, linears: Sequence[Linear]) -> dict[Linear, Update]:
        """Which linear layers PEFT puts an adapter on, and what their updates are.

        Raises:
            ValueError: a regular expression is none, or takes more time or memory than it may.
        """
        paths = [linear.path for linear in linears]
        wanted = _named(self.target_modules, paths) - _named(self.exclude_modules or [], paths)
        layers = self.layers_to_transform
        layers = {layers} if isinstance(layers, int) else set(layers or ())
        ranks = _by_pattern(self.rank_pattern, paths, self.r)
        alphas = _by_pattern(self.alpha_pattern, paths, self.lora_alpha)
        return {
            linear: Update(rank, alpha / (math.sqrt(rank) if self.use_rslora else rank))
            for number, (linear, rank, alpha) in enumerate(zip(linears, ranks, alphas, strict=True))
            if number in wanted and (not layers or linear.layer in layers)
        }


def read_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json`.

    Raises:
        IvlensError: it is missing or no JSON, or asks for what ivlens does not compute, which is named.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise IvlensError(f"there is no {CONFIG} in {folder}; give a local folder that PEFT saved an adapter to")
    try:
        config = AdapterConfig.model_validate(read_json(path))
    except pydantic.ValidationError as error:
        raise IvlensError(f"{path}: {_first_complaint(error)}; {MERGE}") from error
    except (OSError, ValueError) as error:
        raise IvlensError(f"{path} is not readable JSON ({reason(error)}); copy it again") from error
    try:
        config.updates(())  # Are its expressions such?
    except ValueError as error:
        raise IvlensError(f"{path}: {error}") from error
    for key, value in (config.model_extra or {}).items():
        # Every option of PEFT is null, false or empty when it is not used.
        if value and key not in _WITHOUT_EFFECT:
            reason_why = f" ({_REASONS[key]})" if key in _REASONS else ""
            raise IvlensError(f"{path}: {key} = {json.dumps(value)[:60]} is not supported{reason_why}; {MERGE}")
    if config.init_lora_weights not in _STARTS:
        raise IvlensError(
            f"{path}: init_lora_weights = {config.init_lora_weights!r} changed the base model's weights before "
            "training, so that the update is not of the checkpoint; save the adapter with "
            "path_initial_model_for_weight_conversion, or give the merged checkpoint"
        )
    return config


def _first_complaint(error: pydantic.ValidationError) -> str:
    """The first thing wrong in a configuration, as `key = value`, and what it may be."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "the content"
    if first["type"] == "missing":
        return f"{key} is missing"
    came = json.dumps(first["input"], default=str)[:60]
    why = _REASONS.get(key, f"{first['msg'][0].lower()}{first['msg'][1:]}")
    return f"{key} = {came} is not supported ({why})"


def _named(names: _Names, paths: Sequence[str]) -> set[int]:
    """PEFT's rule: a text is a regular expression for the whole path, a list holds ends of paths."""
    if isinstance(names, list):
        ends = set(names)
        return {number for number, path in enumerate(paths) if not ends.isdisjoint(_ends(path))}
    if names.lower() == "all-linear":
        return set(range(len(paths)))
    return set(find_matches([names], paths, whole=True)[0])


def _ends(path: str) -> Iterator[str]:
    """`a.b.c`, `b.c` and `c`."""
    parts = path.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _by_pattern(patterns: Mapping[str, _T] | None, paths: Sequence[str], otherwise: _T) -> list[_T]:
    """PEFT's rule: for each path the first key that matches its end."""
    found = [otherwise] * len(paths)
    matches = find_matches([rf"(.*\.)?({key})$" for key in patterns or ()], paths)
    for value, numbers in reversed(list(zip((patterns or {}).values(), matches, strict=True))):
        for number in numbers:
            found[number] = value
    return found


def written_config(ranks: Mapping[Linear, int], scale: float, linears: list[Linear]) -> dict[str, Any]:
    """Names, ranks and alphas of an adapter whose updates all have the same scale.

    PEFT scales by alpha / rank: a linear layer of another rank needs its own alpha.

    Args:
        ranks: Of the adapted linear layers.
        linears: All that the model has.
    """
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {linear.path: other for linear, other in ranks.items() if other != rank}
    ends = list(dict.fromkeys(_end(linear) for linear in ranks))
    everywhere = all(linears[number] in ranks for number in _named(ends, [linear.path for linear in linears]))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": _alpha(scale, rank),
        "target_modules": ends if everywhere else [linear.path for linear in ranks],
        "rank_pattern": others,
        "alpha_pattern": {path: _alpha(scale, other) for path, other in others.items()},
        "bias": "none",
        "inference_mode": True,
    }


def _end(linear: Linear) -> str:
    """The last part of the path, and the part before where the last is in attention as well as in the MLP."""
    before, last = linear.path.split(".")[-2:]
    return f"{before}.{last}" if last == "c_proj" else last


def _alpha(scale: float, rank: int) -> int | float:
    """PEFT declares whole numbers."""
    alpha = scale * rank
    return int(alpha) if alpha.is_integer() else alpha
