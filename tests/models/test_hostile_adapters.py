"""An adapter's configuration is read within bounds, or refused in a sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from checkpoints import build

from ivlens import patterns
from ivlens.errors import LONGEST, IvlensError
from ivlens.models import loader, lora
from ivlens.models.peft import read_adapter, write_adapter
from ivlens.models.peft_config import CONFIG, read_config

VALUES = (
    None,
    True,
    0,
    -1,
    1,
    10**30,
    1.5,
    1e308,
    "x",
    "",
    "\ud800",
    "x" * 10**5,
    [],
    [1],
    ["x"],
    [None],
    {},
    {"a": 1},
)
FIELDS = (
    *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "bias"),
    *("exclude_modules", "layers_to_transform", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights"),
    *("layers_pattern", "loftq_config", "trainable_token_indices", "lora_dropout", "base_model_name_or_path"),
)
USUAL = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2, "lora_alpha": 4}


def write(folder: Path, **fields: object) -> Path:
    (folder / CONFIG).write_text(json.dumps({**USUAL, **fields}))
    return folder


@pytest.mark.slow
def test_a_field_of_any_type_and_size_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    for field, value in random.Random(0).sample([(field, value) for field in FIELDS for value in VALUES], 150):
        try:
            assert read_config(write(tmp_path, **{field: value})).target_modules is not None
        except IvlensError as error:
            assert len(str(error)) <= LONGEST, field


@pytest.mark.slow
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern"])
def test_expressions_without_end_are_ended(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 1.0)
    model = loader.load_without_adapters(build("llama-gqa", tmp_path / "tiny"))
    adapter = lora.fresh(model, lora.LoraConfig(rank=2), seed=1)
    write_adapter(adapter, tmp_path, model)
    endless: object = "((.|.)*)*[qv]_projX"
    written = json.loads((tmp_path / CONFIG).read_text())
    written[field] = {endless: 2} if field == "rank_pattern" else endless
    (tmp_path / CONFIG).write_text(json.dumps(written))
    with pytest.raises(IvlensError, match="take more than 1 s, or more memory than they may; name layers in a list"):
        read_adapter(tmp_path, model)
