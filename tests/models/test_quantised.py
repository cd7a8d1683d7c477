"""A checkpoint that torchao or bitsandbytes quantised is audited and steered as it is; adapters are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import build
from conftest import WORD_TEMPLATE
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig

import ivlens
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.checkpoints.quantised import is_quantised
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, ModelError
from ivlens.forward.makers import forward_of
from ivlens.models import lora
from ivlens.models.origin import weight_digest
from ivlens.patching import sweep
from ivlens.patching.effects import ranking_prompts
from ivlens.patching.rounding import measure_rounding
from ivlens.prompts import zero_shot

SMALL: dict[str, Any] = {"shots": 2, "clean_prompts": 6, "prompts": 3, "template": WORD_TEMPLATE}
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def in_8_bits() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def in_4_bits() -> Any:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


# Of what these packages announce and look for.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
METHODS: dict[str, tuple[str, Callable[[], Any]]] = {
    "torchao": ("torchao", in_8_bits),
    "bitsandbytes": ("bitsandbytes", in_4_bits),
}


@pytest.fixture(scope="module", params=METHODS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    package, config = METHODS[request.param]
    pytest.importorskip(package)
    plain = build("llama", tmp_path_factory.mktemp(package) / "plain", **SIZES)
    with quiet_transformers():
        options: dict[str, Any] = {"quantization_config": config(), "dtype": torch.float32, "device_map": {"": "cpu"}}
        AutoModelForCausalLM.from_pretrained(plain, **options).save_pretrained(plain.parent / "quantised")
        AutoTokenizer.from_pretrained(plain).save_pretrained(plain.parent / "quantised")
    return plain.parent / "quantised"


def test_a_quantised_checkpoint_is_audited_and_steered(folder: Path, word_task: Task, tmp_path: Path) -> None:
    model = ivlens.load(folder)
    assert type(model).__name__ == "TransformerBridge" and is_quantised(model)
    found = ivlens.audit(model, word_task, out=tmp_path / "run", top=2, draws=1, other_tasks=0, **SMALL)
    _, tokens = ranking_prompts(model, word_task, found.effects.settings)
    slow = sweep.loop(model, tokens, found.effects.mean_z)[1]
    # Kernels of 4 bits round as 16 bits do.
    near = 0.02 * float(slow.abs().max())
    torch.testing.assert_close(found.effects.cie, slow, rtol=0, atol=near)
    with ivlens.steered(model, found.vector, scale=4.0):
        steered = ivlens.ask(model, zero_shot(word_task.pairs[:3], template=WORD_TEMPLATE)).first
    plain = ivlens.ask(model, zero_shot(word_task.pairs[:3], template=WORD_TEMPLATE)).first
    assert not torch.equal(plain, steered)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sources"]["model"]["stored"] == f"quantised by {folder.parent.name.rstrip('0123456789')}"


def test_what_heads_are_multiplied_with_is_what_the_module_does(folder: Path) -> None:
    model = ivlens.load(folder)
    weight = forward_of(model).output_path(1).weight
    z = torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0))
    wanted = model.blocks[1].attn.o.original_component(z.flatten(1))
    torch.testing.assert_close(torch.einsum("bhd,hdm->bm", z, weight), wanted, rtol=0, atol=0.02 * float(wanted.max()))


def test_other_scales_are_other_weights(folder: Path) -> None:
    model = ivlens.load(folder)
    digest, weight = weight_digest(model), model.blocks[1].attn.o.original_component.weight
    assert digest == weight_digest(ivlens.load(folder))
    (weight.quant_state.absmax if hasattr(weight, "quant_state") else weight.scale).mul_(1.5)
    assert weight_digest(model) != digest


def test_what_a_quantised_model_cannot_do_is_said(folder: Path, word_task: Task) -> None:
    with pytest.raises(ModelError, match=r"holds quantised weights \(\w+\), which no HookedTransformer computes with"):
        ivlens.load(folder, backend="hooked")
    model = ivlens.load(folder)
    with pytest.raises(IvlensError, match=r"is quantised .*, so that a merge would not be exact"):
        lora.fresh(model, lora.LoraConfig())
    effects = ivlens.indirect_effects(model, word_task, **SMALL)
    assert "the weights are quantised" in measure_rounding(model, word_task, effects)["reason"].iloc[0]
