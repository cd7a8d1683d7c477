"""Adapters, examples and plans for tests of training: a random model of two layers in float64, a handful of prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from checkpoints import filled, random_hooked
from conftest import random_tokens
from torch import Tensor
from transformer_lens import HookedTransformer

from ivlens.forgetting.plan import Evaluation, Plan
from ivlens.models import lora
from ivlens.models.lora import Adapter, Factors, LoraConfig
from ivlens.prompts.tokens import Tokens
from ivlens.training.loop import Examples, Training

VOCAB = 40
WIDTH = 20
CONFIG = LoraConfig(rank=2, alpha=4.0, targets=("W_Q", "W_V", "W_O"))


def small_model(kind: str = "llama") -> HookedTransformer:
    """Llama-shaped: four query heads over two key and value heads."""
    return random_hooked(kind, n_layers=2, d_model=WIDTH, d_head=6, d_mlp=28, d_vocab=VOCAB)


def fresh_adapter(model: HookedTransformer, *, seed: int = 0) -> Adapter:
    """An adapter that changes nothing yet, in float64."""
    fresh = lora.fresh(model, CONFIG, seed=seed)
    return Adapter(factors={name: Factors(a.double(), b.double()) for name, (a, b) in fresh.factors.items()}, scale=2.0)


def trained_adapter(model: HookedTransformer, *, seed: int = 0) -> Adapter:
    """An adapter that changes every weight visibly."""
    return filled(fresh_adapter(model, seed=seed), 0.2, seed=seed)


def small_tokens(n: int = 6, *, answer: int = 3, seed: int = 0) -> Tokens:
    """Prompts of different lengths with answers of 1, 2, 3, 1, ... tokens."""
    return random_tokens(n, 2 * n + 2, answer, vocab=VOCAB, seed=seed)


def small_examples(n: int = 6, *, answer: int = 3, new: int | None = None, replayed: float = 0.0) -> Examples:
    return Examples(
        prompts=small_tokens(n, answer=answer),
        bare=small_tokens(n, answer=answer, seed=1),
        new=n if new is None else new,
        replayed=replayed,
    )


@contextmanager
def edited(model: Any, at: slice | int, edits: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Changes activations at columns that are counted from the start of one unpadded prompt."""

    def hook(activation: Tensor, hook: object, edit: Callable[[Tensor], Tensor]) -> Tensor:
        activation = activation.clone()
        activation[:, at] = edit(activation[:, at])
        return activation

    hooks = [(name, lambda a, hook, edit=edit, run=hook: run(a, hook, edit)) for name, edit in edits.items()]
    with model.hooks(fwd_hooks=hooks):
        yield


def alone(tokens: Tokens, row: int) -> tuple[Tensor, Tensor]:
    """One prompt without its pads, and its answer without its own."""
    return tokens.prompts[row][tokens.mask[row]], tokens.answers[row][tokens.answer_mask[row]]


def logits_alone(model: HookedTransformer, tokens: Tokens, row: int) -> Tensor:
    """Logits that predict the answer of one prompt, which is run alone and unpadded."""
    prompt, answer = alone(tokens, row)
    return model(torch.cat([prompt, answer[:-1]])[None])[0, len(prompt) - 1 :]


PLAN = Plan(
    name="small",
    tasks=("class-letter", "continent-letter"),
    general=("antonym", "country-capital", "english-french"),
    guides=("antonym", "english-french"),
    methods=("lora", "lora+iv"),
    order="given",
    seeds=(0,),
    train_prompts=8,
    lora=LoraConfig(rank=2),
    training=Training(steps=8, batch=4, warmup=1),
    evaluation=Evaluation(
        queries=3, few_shot_queries=2, shots=3, probes=("antonym",), probe_prompts=3, clean_prompts=4, top=3
    ),
)


def small_plan(**changes: Any) -> Plan:
    """One task, one general task beside the guide, no probes."""
    least = {
        "tasks": ("class-letter",),
        "general": ("antonym", "country-capital"),
        "guides": ("antonym",),
        "methods": ("lora",),
        "training": Training(steps=3, batch=4, warmup=1),
        "evaluation": Evaluation(queries=2, few_shot_queries=2, shots=3, probe_prompts=2, clean_prompts=2, top=3),
    }
    return PLAN.with_changes(**least | changes)


def plan_text(*tasks: str) -> str:
    """A plan as its file has it, of steps that are not over at once: for commands that are stopped on their way."""
    return f"""
tasks = {json.dumps(tasks)}
general = ["antonym", "country-capital"]
guides = ["antonym"]
methods = ["lora", "lora+iv"]
seeds = [0]
train_prompts = 8
[training]
steps = 12
batch = 4
warmup = 1
[evaluation]
queries = 4
few_shot_queries = 2
shots = 3
probes = ["antonym"]
probe_prompts = 3
clean_prompts = 4
top = 3
"""
