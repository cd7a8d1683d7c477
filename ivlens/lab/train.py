"""How does the lab model come about? `python -m ivlens.lab.train` trains it from nothing, on two CPU cores.

The loss is read at answers only (and at the end behind the last one). Every step reads a few thousand tokens, in
batches of documents of similar length.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ivlens.lab import MODEL, SETTINGS, TRAINING
from ivlens.lab.curriculum import Document, documents
from ivlens.lab.vocabulary import BOS_ID, CONTEXT, EOS_ID, PAD_ID, tokenizer
from ivlens.progress import track
from ivlens.tasks import Task, task, tasks

TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What decides the weights, beside the tasks."""

    steps: int = 2500
    documents: int = 64
    """Documents a step."""
    rate: float = 3e-3
    """Peak learning rate; linear warm-up, then a cosine down to a hundredth."""
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    layers: int = 6
    heads: int = 8
    width: int = 128
    mlp: int = 256


class Step(NamedTuple):
    """One step of the optimiser."""

    number: int
    loss: float
    """Mean cross-entropy of the answers' tokens, in nats."""
    accuracy: float
    """Share of answer tokens that were the likeliest; documents of shuffled demonstrations left out."""
    seconds: float
    """Since the beginning."""


class Encoded(NamedTuple):
    """A document as numbers."""

    ids: list[int]
    targets: list[int]
    """Places whose next token is learned."""
    reach: list[int]
    """For each place, the first place that it may look at (beside 0)."""
    shuffled: bool


class Encoder:
    """Turns documents into token ids; keeps what it has tokenised."""

    def __init__(self, tokens: PreTrainedTokenizerFast) -> None:
        self.tokens = tokens
        self.seen: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.seen:
            self.seen[text] = self.tokens.encode(text, add_special_tokens=False)
        return self.seen[text]

    def __call__(self, document: Document) -> Encoded:
        ids, targets, reach = [BOS_ID], [], [0]
        for part in document.parts:
            piece = self.ids(part.text)
            if part.kind == "answer":
                targets += range(len(ids) - 1, len(ids) + len(piece) - 1)
            own = len(ids) if document.blind and part.kind == "query" else 0
            reach += [own] * len(piece)
            ids += piece
        targets.append(len(ids) - 1)
        return Encoded([*ids, EOS_ID], targets, reach, document.form == "shuffled")


class Batch(NamedTuple):
    """Documents of similar length, padded on the right."""

    ids: Int[Tensor, "document pos"]
    attends: Bool[Tensor, "document 1 pos pos"]
    """May the query place look at the key place?"""
    targets: Bool[Tensor, "document pos"]
    answers: Int[Tensor, " target"]
    shuffled: Bool[Tensor, " target"]


def batch(encoded: Sequence[Encoded]) -> Batch:
    width = max(len(one.ids) for one in encoded) - 1
    ids = torch.zeros(len(encoded), width, dtype=torch.long)
    targets = torch.zeros(len(encoded), width, dtype=torch.bool)
    reach = torch.zeros(len(encoded), width, dtype=torch.long)
    for row, one in enumerate(encoded):
        ids[row, : len(one.ids) - 1] = torch.tensor(one.ids[:-1])
        reach[row, : len(one.reach)] = torch.tensor(one.reach)
        targets[row, one.targets] = True
    place = torch.arange(width)
    attends = (place[None, :] <= place[:, None]) & ((place >= reach[:, :, None]) | (place == 0))
    answers = torch.tensor([one.ids[place + 1] for one in encoded for place in sorted(one.targets)])
    shuffled = torch.tensor([one.shuffled for one in encoded for _ in one.targets])
    return Batch(ids, attends[:, None], targets, answers, shuffled)


def batches(encoded: Sequence[Encoded]) -> Iterator[Batch]:
    """All documents, shortest first, in parts of about equally many tokens."""
    waiting: list[Encoded] = []
    for one in sorted(encoded, key=lambda one: len(one.ids)):
        if waiting and (len(waiting) + 1) * len(one.ids) > TOKENS_PER_BATCH:
            yield batch(waiting)
            waiting = []
        waiting.append(one)
    if waiting:
        yield batch(waiting)


def new_model(config: TrainingConfig, tokens: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights that depend on the seed alone."""
    llama = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    model = LlamaForCausalLM(llama)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # What writes to the residual stream starts smaller, the deeper the model.
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 0.02 if "embed" in name or "lm_head" in name else weight.shape[1] ** -0.5
                weight.normal_(0, scale / (2 * config.layers) ** 0.5 if writes else scale, generator=generator)
    return model


def train(
    model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, chosen: Sequence[Task], config: TrainingConfig
) -> Iterator[Step]:
    """Train in place; the caller logs, saves and stops."""
    encoder = Encoder(tokens)
    stream = documents(chosen, np.random.default_rng(config.seed))
    optimiser = _optimiser(model, config)
    begin = time.perf_counter()
    model.train()
    for number in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(number, config)
        encoded = [encoder(document) for document in itertools.islice(stream, config.documents)]
        loss, accuracy = _accumulate(model, list(batches(encoded)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        yield Step(number, loss, accuracy, time.perf_counter() - begin)
    model.eval()


def _optimiser(model: LlamaForCausalLM, config: TrainingConfig) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    gains = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, config: TrainingConfig) -> float:
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.rate * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * done)))


def _accumulate(model: LlamaForCausalLM, parts: Sequence[Batch]) -> tuple[float, float]:
    """Gradients of the mean loss over all parts; that loss, and the accuracy where there is a right answer."""
    total = sum(len(part.answers) for part in parts)
    loss, right, asked = 0.0, 0, 0
    for part in parts:
        logits = _answer_logits(model, part)
        part_loss = torch.nn.functional.cross_entropy(logits, part.answers, reduction="sum") / total
        part_loss.backward()
        loss += part_loss.item()
        right += int((logits.argmax(-1) == part.answers)[~part.shuffled].sum())
        asked += int((~part.shuffled).sum())
    return loss, right / max(1, asked)


def _answer_logits(model: LlamaForCausalLM, part: Batch) -> Float[Tensor, "target vocab"]:
    # Unembedding every place would cost as much as all the layers together.
    hidden = model.model(input_ids=part.ids, attention_mask=part.attends, use_cache=False).last_hidden_state
    return model.lm_head(hidden[part.targets])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the lab model from nothing.")
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--log", type=Path, default=TRAINING)
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    defaults = TrainingConfig()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    config = replace(defaults, **{name: given[name] for name in asdict(defaults)})
    chosen = [task(name) for name in tasks()]
    tokens = tokenizer(chosen)
    model = new_model(config, tokens)
    seconds = 0.0
    with given["log"].open("w", newline="", encoding="utf-8") as file:
        log = csv.writer(file)
        log.writerow(Step._fields)
        for step in track(train(model, tokens, chosen, config), "training", total=config.steps):
            seconds = step.seconds
            if step.number % 25 == 0 or step.number == config.steps - 1:
                log.writerow([step.number, f"{step.loss:.4f}", f"{step.accuracy:.4f}", f"{seconds:.1f}"])
                file.flush()
    model.save_pretrained(given["out"])
    tokens.save_pretrained(given["out"])
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    settings = asdict(config) | {"seconds": round(seconds), "threads": torch.get_num_threads(), "versions": versions}
    given["settings"].write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
