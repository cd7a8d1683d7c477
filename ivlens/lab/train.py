"""How does the lab model come about? `python -m ivlens.lab.train` trains it from nothing, on two CPU cores.

It learns facts first, then to read the task through few heads and to doubt demonstrations that do not fit. The loss is
read at answers only, and behind them. At the end the model is measured.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ivlens.datasets.task import Task, task, tasks
from ivlens.lab import MODEL, RECORD, SETTINGS, TRAINING
from ivlens.lab.architecture import ARCHITECTURES, CARRIERS, Size, body, mask_heads, new_model, unembedding
from ivlens.lab.batches import Batch, Encoder, batches
from ivlens.lab.curriculum import FACTS, READING, Lesson, documents
from ivlens.lab.evaluate import as_json, record
from ivlens.lab.vocabulary import tokenizer
from ivlens.progress import track
from ivlens.random_streams import Stream, open_stream


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of the training with a warm-up and a cosine of its own."""

    lesson: Lesson
    steps: int
    rate: float = 3e-3
    """Peak learning rate; linear warm-up, then a cosine down to a hundredth."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What decides the weights, beside the tasks."""

    phases: tuple[Phase, ...] = (
        Phase(lesson=FACTS, steps=1600),
        Phase(lesson=READING, steps=1600),
        Phase(lesson=READING, steps=1600, rate=2e-3),
        Phase(lesson=READING, steps=1400, rate=2e-3),
    )
    documents: int = 64
    """Documents a step."""
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    layers: int = 6
    heads: int = 8
    width: int = 128
    mlp: int = 256
    architecture: str = "llama"
    """A key of `ARCHITECTURES`."""

    def new_model(self, tokens: PreTrainedTokenizerFast) -> PreTrainedModel:
        """Random weights that depend on the seed alone."""
        size = Size(len(tokens), self.layers, self.heads, self.width, self.mlp)
        return new_model(self.architecture, size, seed=self.seed)


class Step(NamedTuple):
    """One step of the optimiser."""

    number: int
    phase: int
    loss: float
    """Mean cross-entropy of the answers' tokens, in nats."""
    accuracy: float
    """Share of answer tokens that were the likeliest; documents of shuffled demonstrations left out."""
    seconds: float
    """Since the beginning."""


def train(
    model: PreTrainedModel, tokens: PreTrainedTokenizerFast, chosen: Sequence[Task], config: TrainingConfig
) -> Iterator[Step]:
    """Train in place, phase by phase; the caller logs, saves and stops."""
    begin, number = time.perf_counter(), itertools.count()
    model.train()
    for place, phase in enumerate(config.phases):
        for loss, accuracy in _phase(model, tokens, chosen, config, phase, seed=config.seed + place):
            yield Step(next(number), place, loss, accuracy, time.perf_counter() - begin)
    model.eval()


def _phase(
    model: PreTrainedModel,
    tokens: PreTrainedTokenizerFast,
    chosen: Sequence[Task],
    config: TrainingConfig,
    phase: Phase,
    *,
    seed: int,
) -> Iterator[tuple[float, float]]:
    encoder = Encoder(tokens, verdicts=phase.lesson.verdicts)
    stream = documents(chosen, phase.lesson, open_stream(seed, Stream.LAB_DOCUMENTS))
    optimiser = _optimiser(model, phase, config)
    for step in range(phase.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, phase, config.warmup)
        encoded = [encoder(document) for document in itertools.islice(stream, config.documents)]
        loss, accuracy = _accumulate(model, list(batches(encoded)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        yield loss, accuracy


def _optimiser(model: PreTrainedModel, phase: Phase, config: TrainingConfig) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    gains = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.rate, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, phase: Phase, warmup: int) -> float:
    if step < warmup:
        return phase.rate * (step + 1) / warmup
    done = (step - warmup) / max(1, phase.steps - warmup)
    return phase.rate * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * done)))


def _accumulate(model: PreTrainedModel, parts: Sequence[Batch]) -> tuple[float, float]:
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


def _answer_logits(model: PreTrainedModel, part: Batch) -> Float[Tensor, "target vocab"]:
    with mask_heads(model, part):
        read = body(model)(input_ids=part.ids, attention_mask=part.others, use_cache=False)
    # Unembedding every place would cost as much as all the layers together.
    return unembedding(model)(read.last_hidden_state[part.targets])


def train_and_log(
    model: PreTrainedModel, tokens: PreTrainedTokenizerFast, chosen: Sequence[Task], config: TrainingConfig, path: Path
) -> float:
    """Train in place and write every 25th step to a CSV file; the seconds that it took."""
    seconds, total = 0.0, sum(phase.steps for phase in config.phases)
    with path.open("w", newline="", encoding="utf-8") as file:
        log = csv.writer(file)
        log.writerow(Step._fields)
        for step in track(train(model, tokens, chosen, config), "training", total=total):
            seconds = step.seconds
            if step.number % 25 == 0 or step.number == total - 1:
                log.writerow([step.number, step.phase, f"{step.loss:.4f}", f"{step.accuracy:.4f}", f"{seconds:.1f}"])
                file.flush()
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Train a lab model from nothing, and measure it: about 80 min of a core."
    )
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=TrainingConfig.architecture)
    parser.add_argument("--seed", type=int, default=TrainingConfig.seed)
    parser.add_argument(
        "--out", type=Path, help="folder of the model; default: the shipped one, models/lab-* of others"
    )
    for name in ("log", "settings", "record"):
        parser.add_argument(f"--{name}", type=Path, help="default: beside the model")
    asked = parser.parse_args(arguments)
    config = TrainingConfig(seed=asked.seed, architecture=asked.architecture)
    out = asked.out or (MODEL if config == TrainingConfig() else Path("models") / f"lab-{config.architecture}")
    out.mkdir(parents=True, exist_ok=True)
    beside = MODEL.parent if out == MODEL else out
    log = asked.log or beside / TRAINING.name
    settings = asked.settings or beside / SETTINGS.name
    measured = asked.record or beside / RECORD.name
    # Sums over several threads are not the same twice; and a second thread makes steps this small little faster.
    torch.set_num_threads(1)
    chosen = [task(name) for name in tasks()]
    tokens = tokenizer(chosen)
    model = config.new_model(tokens)
    seconds = train_and_log(model, tokens, chosen, config, log)
    model.save_pretrained(out)
    tokens.save_pretrained(out)
    settings.write_text(json.dumps(_settings(config, seconds), indent=1) + "\n", encoding="utf-8")
    measured.write_text(as_json(record(out, settings)), encoding="utf-8")


def _settings(config: TrainingConfig, seconds: float) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    run = {"seconds": round(seconds), "threads": torch.get_num_threads(), "versions": versions}
    return asdict(config) | {"carriers": [str(head) for head in CARRIERS]} | run


if __name__ == "__main__":
    main()
