"""What ivlens does on a random checkpoint of every architecture, in numbers: the table in docs/models.md.

`python tests/architectures.py` measures again and writes `architectures.json` and the table. Tests hold both to what
the code gives.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
from bridges import ARCHITECTURES, NOT_IN_FLOAT64, SIDE_BY_SIDE, random_bridge
from checkpoints import FAMILIES, build
from conftest import WORD_TEMPLATE, random_tokens
from transformers import AutoModelForCausalLM

import ivlens
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.datasets.task import Pair, Task
from ivlens.measures import answer_log_prob
from ivlens.models import lora
from ivlens.models.peft import read_adapter
from ivlens.patching import sweep
from ivlens.patching.activations import answer_logits, last_z
from ivlens.patching.settings import Settings
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head
from ivlens.steering.rows import steer_every_layer
from ivlens.steering.steered_model import steered
from ivlens.vectors.head_writing import write_vector
from ivlens.vectors.instruction_vector import InstructionVector

RECORD = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- architectures -->\n", "<!-- /architectures -->"
TOKENS = torch.randint(4, 120, (2, 60), generator=torch.Generator().manual_seed(1))
SMALL: dict[str, Any] = {"shots": 2, "clean_prompts": 6, "prompts": 3, "top": 2, "draws": 1, "template": WORD_TEMPLATE}
WORDS = Task(name="words", pairs=tuple(Pair(f"w{i}", f"w{i + 50}") for i in range(24)), instructions=("w100 w101",))
OTHER = Task(name="other words", pairs=WORDS.pairs[::-2], instructions=("w102 w103",))

NAMES = {
    "llama": "Llama, multi-head",
    "llama-gqa": "Llama, grouped queries, `head_dim` of its own",
    "llama3": "Llama 3, scaled rotation",
    "gpt2": "GPT-2",
    "gptj": "GPT-J",
    "neox": "GPT-NeoX, Pythia",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral, sliding window",
    "phi3": "Phi-3, sliding window",
    "opt": "OPT",
    "gemma2": "Gemma 2, sliding windows, soft caps",
    "gemma3": "Gemma 3, other rotations where attention slides",
    "olmo2": "OLMo 2, grouped queries",
    "gemma1": "Gemma 1",
    "olmo1": "OLMo 1, clipped queries, keys and values",
    "olmo3": "OLMo 3, sliding windows",
    "phi2": "Phi-2",
    "stablelm": "StableLM",
    "granite": "Granite, scaled residuals and logits",
    "mixtral": "Mixtral, experts",
    "qwen3-moe": "Qwen3, experts",
    "gpt-oss": "GPT-OSS, experts, sliding windows, sinks",
    "cohere": "Cohere, scaled logits",
    "smollm3": "SmolLM3, layers without rotation",
    "starcoder2": "StarCoder2, sliding window",
    "glm4": "GLM-4",
    "llama-yarn": "Llama, YaRN",
    "llama-linear": "Llama, linearly scaled rotation",
    "bloom": "Bloom, ALiBi",
    "falcon-alibi": "Falcon, ALiBi",
    "gpt-bigcode": "GPT-BigCode, multi-query",
    "gpt-neo": "GPT-Neo, sliding windows",
    "mpt": "MPT, ALiBi",
}
COLUMNS = {
    "load": "load: log-probabilities against transformers",
    "sweep": "sweep against loop",
    "steer": "steering in one pass against one run per layer",
    "lora": "LoRA: log-probabilities against PEFT",
    "audit": "audit",
    "compare": "compare",
    "bridge": "bridge: sweep against loop",
    "rows": "rows on a bridge",
}


def measure(family: str, folder: Path) -> dict[str, float | bool]:
    """Largest differences in nats or in log-likelihood, and whether an audit and a comparison come to their end."""
    build(family, folder / "base")
    adapter_log_probs = save_adapter(folder)
    model, exact = ivlens.load(folder / "base"), ivlens.load(folder / "base", dtype="float64")
    found: dict[str, float | bool] = {"load": gap(model(TOKENS).log_softmax(-1), log_probs(folder))}
    found |= {"sweep": sweep_gap(exact, random_tokens()), "steer": steering_gap(exact)}
    adapter = read_adapter(folder / "adapter", model)
    with lora.attached(model, adapter):
        attached = model(TOKENS).log_softmax(-1)
    merged = ivlens.load(folder / "base", adapter=folder / "adapter")
    found["lora"] = max(gap(attached, adapter_log_probs), gap(merged(TOKENS).log_softmax(-1), adapter_log_probs))
    # The words of built-in tasks are not in the vocabulary, and Qwen's tokenizer drops what is not.
    with mock.patch("ivlens.steering.necessity.find_task", lambda name: OTHER):
        audit = ivlens.audit(model, WORDS, other_tasks=0, **SMALL)
        change = ivlens.compare(model, adapter, WORDS, queries=3, **SMALL)
    found["audit"] = bool(audit.effects.aie.any()) and bool(audit.vector.vector.isfinite().all())
    found["compare"] = not torch.equal(change.base.aie, change.tuned.aie)
    return found


def measure_bridge(family: str) -> dict[str, float | str]:
    """Largest difference in log-likelihood, in float64 where transformers computes in it, and how rows pass blocks."""
    dtype = torch.float32 if family in NOT_IN_FLOAT64 else torch.float64
    bridge = random_bridge(family, dtype)
    rows = "side by side" if family in SIDE_BY_SIDE else "one sequence"
    return {"bridge": sweep_gap(bridge, random_tokens(n=4, answer=4, vocab=100)), "rows": rows}


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def transformers_model(folder: Path) -> Any:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(
            folder / "base", dtype=torch.float32, attn_implementation="eager"
        ).eval()


@torch.no_grad()
def log_probs(folder: Path) -> torch.Tensor:
    return transformers_model(folder)(TOKENS).logits.log_softmax(-1)


@torch.no_grad()
def save_adapter(folder: Path) -> torch.Tensor:
    """PEFT's random adapter of every linear layer, and the log-probabilities of PEFT's model with it."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules="all-linear")
    model = peft.get_peft_model(transformers_model(folder), config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.normal_(0, 0.1, generator=generator)
    model.save_pretrained(folder / "adapter")
    return model(TOKENS).logits.log_softmax(-1)


def sweep_gap(model: Any, tokens: Tokens) -> float:
    z = last_z(model, random_tokens(seed=1)).mean(0)
    (_, fast), (_, slow) = (how(model, tokens, z, effect="nll") for how in (sweep.sweep, sweep.loop))
    assert slow.abs().max() > 1e-3, "heads that do nothing"
    return gap(fast, slow)


def steering_gap(model: Any) -> float:
    tokens, z = random_tokens(answer=1), last_z(model, random_tokens(seed=1)).mean(0)
    heads = (Head(0, 1), Head(2, 2))
    vector = InstructionVector(
        vector=write_vector(model, z, heads),
        heads=heads,
        layer=None,
        mean_z=z,
        settings=Settings(),
        task="words",
        task_digest="",
        model="tiny",
        model_digest="",
    )
    fast = steer_every_layer(model, tokens, vector.vector[None]).log_prob
    slow = [answer_log_prob(answer_logits(model, tokens), tokens.answers, tokens.answer_mask)]
    for layer in range(model.cfg.n_layers):
        with steered(model, vector, layer=layer):
            slow.append(answer_log_prob(answer_logits(model, tokens), tokens.answers, tokens.answer_mask))
    assert gap(fast[:, 1], fast[:, 0]) > 1e-3, "a vector that does nothing"
    return gap(fast, torch.stack(slow, dim=1))


def table(record: dict[str, dict[str, float | bool | str]]) -> str:
    """Markdown: a row an architecture, numbers rounded up to a power of ten; a dash where a bridge alone has it."""
    lines = [["architecture", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS))]
    lines += [[NAMES[family], *(_cell(found.get(name, "–")) for name in COLUMNS)] for family, found in record.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: float | bool | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return "0" if value == 0 else f"≤ 1e{math.ceil(math.log10(value))}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        record: dict[str, Any] = {family: measure(family, Path(folder) / family) for family in FAMILIES}
    for family in ARCHITECTURES:
        record[family] = record.get(family, {}) | measure_bridge(family)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(before + START + table(record) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
