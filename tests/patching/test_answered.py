"""With `answered_only`, what is measured is measured on queries that the model answers right; the splits stay apart."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from conftest import WORD_TEMPLATE
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import ivlens
from ivlens.cli.app import main
from ivlens.datasets.task import Pair, Task, TaskWarning
from ivlens.errors import IvlensError, TaskError
from ivlens.models import lora
from ivlens.models.lora import Factors
from ivlens.patching import sweep
from ivlens.patching.activations import last_z
from ivlens.patching.effects import Queries, find_queries
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import cycled, few_shot, instructed, zero_shot
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.random_streams import Stream, open_stream

# One demonstration: the lab model is right on some of the queries, not on all.
SMALL: dict[str, Any] = {"shots": 1, "clean_prompts": 50, "prompts": 20, "corruption": "zero-shot"}
ON = {**SMALL, "answered_only": True}

pytestmark = pytest.mark.filterwarnings("ignore:of task .* the model answers:ivlens.datasets.task.TaskWarning")


def writes_its_answer(model: HookedTransformer, prompt: Prompt) -> bool:
    """Does the model write the answer, one token after the other, each the most probable one?"""
    tokens = tokenize(model, [prompt])
    ids, answer = tokens.prompts, tokens.answers[0].tolist()
    for token in answer:
        best = int(model(ids)[0, -1].argmax())
        if best != token:
            return False
        ids = torch.cat([ids, torch.tensor([[best]])], dim=1)
    return True


def by_hand(model: HookedTransformer, task: Task, settings: Settings) -> Queries:
    split, kept = task.split(shots=settings.shots, seed=settings.seed), []
    for part, pairs in enumerate((split.mean, split.rank)):
        generator = open_stream(settings.seed, Stream.ANSWERED_PROMPTS, part)
        asked = few_shot(pairs, split.mean, shots=settings.shots, generator=generator, template=settings.template)
        kept.append(tuple(prompt.query for prompt in asked if writes_its_answer(model, prompt)))
    return Queries(*kept)


@pytest.mark.slow
def test_means_and_effects_are_those_of_the_queries_that_are_answered_right_by_hand(lab: HookedTransformer) -> None:
    task, settings = ivlens.task("antonym"), Settings(**ON)
    split, kept = task.split(shots=1, seed=0), by_hand(lab, task, settings)
    assert 2 <= len(kept.mean) < len(split.mean) and 2 <= len(kept.rank) < len(split.rank)
    found = ivlens.indirect_effects(lab, task, **ON)
    generator = open_stream(0, Stream.CLEAN_PROMPTS)
    clean = few_shot(cycled(kept.mean, 50), split.mean, shots=1, generator=generator)
    z = torch.stack([last_z(lab, tokenize(lab, [prompt]))[0] for prompt in clean]).double().mean(0)
    torch.testing.assert_close(found.mean_z.double(), z, rtol=0, atol=1e-5)
    n = min(20, len(kept.rank))
    _, cie = sweep.sweep(lab, tokenize(lab, zero_shot(kept.rank[:n])), found.mean_z)
    torch.testing.assert_close(found.cie, cie, rtol=0, atol=1e-6)
    assert found.queries.tolist() == list(range(n))
    vector = ivlens.instruction_vector(lab, task, heads=found.top(3), layer=2, scale=1.0, **ON)
    assert torch.equal(vector.mean_z, found.mean_z) and vector.settings == found.settings == settings


@pytest.mark.slow
def test_what_is_kept_is_said_with_counts_once(lab: HookedTransformer) -> None:
    task, kept = ivlens.task("antonym"), by_hand(lab, ivlens.task("antonym"), Settings(**ON))
    split = task.split(shots=1, seed=0)
    with pytest.warns(TaskWarning) as said:
        ivlens.indirect_effects(lab, task, **ON)
    assert [str(one.message) for one in said] == [
        f"of task 'antonym' the model answers {len(kept.mean)} of {len(split.mean)} queries right that give mean head "
        f"outputs, and {len(kept.rank)} of {len(split.rank)} that rank heads; the others are left out (answered_only)"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", TaskWarning)
        ivlens.indirect_effects(lab, task, **SMALL)


def test_too_few_right_answers_are_refused_with_their_number(tiny: HookedTransformer, word_task: Task) -> None:
    settings: dict[str, Any] = {"shots": 3, "template": WORD_TEMPLATE, "answered_only": True}
    complaint = (
        r"^of task 'words' the model answers [01] of \d+ queries right that give mean head outputs, and [01] of \d+ "
        r"that rank heads; answered_only needs 2 of each: leave it out, or give a task that the model can do$"
    )
    for measure in (ivlens.indirect_effects, ivlens.instruction_vector):
        with pytest.raises(TaskError, match=complaint):
            measure(tiny, word_task, **settings)


def half_answerable(model: Any) -> Task:
    """Every second pair has the word for output that the model writes behind the instruction and the query."""
    pairs = tuple(Pair(f"w{i}", "w99") for i in range(40))
    task = Task(name="half", pairs=pairs, instructions=("w100 w101",))
    tokens = tokenize(model, instructed(task, pairs, template=WORD_TEMPLATE))
    best = [model.to_string([int(one)]).strip() for one in _last_logits(model, tokens).argmax(-1)]
    changed = [Pair(pair.input, best[i]) if i % 2 else pair for i, pair in enumerate(pairs)]
    return replace(task, pairs=tuple(pair for pair in changed if re.fullmatch(r"w\d+", pair.output)))


def _last_logits(model: Any, tokens: Any) -> torch.Tensor:
    rows = [model(ids[mask][None])[0, -1] for ids, mask in zip(tokens.prompts, tokens.mask, strict=True)]
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_a_bridge_keeps_what_it_answers_right(kind: str, folders: Callable[[str], Path]) -> None:
    folder = folders("llama-gqa")
    if kind == "hooked":
        model: Any = ivlens.load(folder)
    else:
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        kept: dict[str, Any] = {"hf_model": hf, "tokenizer": AutoTokenizer.from_pretrained(folder)}
        bridge: Any = TransformerBridge.boot_transformers("tiny", **kept, dtype=torch.float32, device="cpu")
        model = ivlens.load(bridge)
    task = half_answerable(model)
    asked: dict[str, Any] = {"source": "instruction", "corruption": "zero-shot", "template": WORD_TEMPLATE, "shots": 3}
    settings = Settings(**asked, answered_only=True)
    split, kept = task.split(shots=3, seed=0), find_queries(model, task, settings)
    for part, found in zip((split.mean, split.rank), kept, strict=True):
        assert found == tuple(pair for pair in part if pair.output != "w99")
        assert 2 <= len(found) < len(part)
    effects = ivlens.indirect_effects(model, task, settings=settings)
    assert len(effects.cie) == len(kept.rank)


def test_off_is_every_query_and_no_question(lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr("ivlens.patching.effects.score_answers", refuse)
    split = ivlens.task("antonym").split(shots=1, seed=0)
    assert find_queries(lab, ivlens.task("antonym"), Settings(**SMALL)) == (split.mean, split.rank)


def test_only_true_and_false_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(IvlensError, match=r"^answered_only is 'yes'; it must be True or False$"):
        Settings(answered_only="yes")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_universal_heads_leave_out_a_task_with_too_few_right_answers(
    lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: HookedTransformer, task: Task, settings: Settings) -> Queries:
        if task.name == "antonym":
            raise TaskError("too few right")
        return find_queries(model, task, settings)

    monkeypatch.setattr("ivlens.steering.universal_heads.find_queries", refuse)
    few = {"shots": 3, "prompts": 4, "clean_prompts": 4, "answered_only": True}
    found = ivlens.universal_heads(lab, ["antonym", "country-capital"], top=2, scale=1.0, **few)
    assert found.tasks == ("country-capital",) and found.considered[0].reason == "too few right"
    assert found.considered[0].accuracy is not None and not found.considered[0].entered


# Runs


def in_record(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"].get("answered_only", "not there")


@pytest.mark.long
def test_an_audit_is_of_the_queries_that_are_answered_and_says_so(lab: HookedTransformer, tmp_path: Path) -> None:
    few = [
        "--corruption",
        "zero-shot",
        "--shots",
        1,
        "--clean-prompts",
        20,
        "--prompts",
        10,
        "--draws",
        1,
        "--other-tasks",
        0,
        "--top",
        2,
    ]
    for name, flag in (("on", ["--answered-only"]), ("off", [])):
        given = ["audit", "lab", "--task", "antonym", "--out", tmp_path / name, *few, *flag]
        assert main([str(one) for one in given]) == 0
    assert in_record(tmp_path / "on") is True
    assert in_record(tmp_path / "off") == "not there", "runs of before are gone on with"
    on, off = (ivlens.Audit.read(tmp_path / name) for name in ("on", "off"))
    assert on.effects.settings.answered_only and not off.effects.settings.answered_only
    settings: dict[str, Any] = {**ON, "clean_prompts": 20, "prompts": 10}
    assert torch.equal(on.effects.cie, ivlens.indirect_effects(lab, ivlens.task("antonym"), **settings).cie)
    kept = find_queries(lab, ivlens.task("antonym"), Settings(**settings))
    shown = json.loads((tmp_path / "on" / "prompts.json").read_text(encoding="utf-8"))
    assert shown["clean"]["answer"] == f" {kept.mean[0].output}"
    assert shown["corrupted"]["answer"] == f" {kept.rank[0].output}"


@pytest.mark.slow
def test_both_models_of_a_comparison_are_asked_what_the_base_model_answers(
    lab: HookedTransformer, tmp_path: Path
) -> None:
    fresh, generator = lora.fresh(lab, lora.LoraConfig(rank=2)), torch.Generator().manual_seed(0)
    noise = {name: Factors(a, torch.randn(b.shape, generator=generator) * 30) for name, (a, b) in fresh.factors.items()}
    ruined, task = lora.Adapter(factors=noise, scale=1.0), ivlens.task("antonym")
    with lora.merged(lab, ruined), pytest.raises(TaskError, match="answered_only needs 2 of each"):
        find_queries(lab, task, Settings(**ON))
    few = {**ON, "clean_prompts": 10, "prompts": 40, "queries": 4, "draws": 1, "top": 2}
    found = ivlens.compare(lab, ruined, task, out=tmp_path / "run", **few)
    assert in_record(tmp_path / "run") is True
    n = len(find_queries(lab, task, Settings(**ON)).rank)
    assert len(found.base.cie) == len(found.tuned.cie) == n < len(task.split(shots=1, seed=0).rank)
