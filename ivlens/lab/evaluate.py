"""Is the shipped model what it is meant to be? `python -m ivlens.lab.evaluate` measures it and writes `record.json`.

Prompts, seeds and targets are fixed here; nothing is chosen by looking at the numbers but the layer to steer at, on
validation pairs. A target that is missed is recorded as missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ivlens.datasets.task import Task, task, tasks
from ivlens.lab import MODEL, RECORD, SETTINGS
from ivlens.lab.abilities import abilities, answer_all
from ivlens.measures import Interval, interval
from ivlens.models import loader
from ivlens.patching.effects import indirect_effects
from ivlens.patching.settings import Settings
from ivlens.progress import track
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.tokens import tokenize
from ivlens.steering import controls
from ivlens.steering.rows import steer_rows
from ivlens.steering.search import search_places
from ivlens.storage import run_record
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

PROMPT_SEED = 20261122
SPLIT_SEEDS = (0, 1, 2)
"""Each parts the pairs anew, ranks heads, chooses a layer and steers."""
HEADS = 10
RANDOM_DRAWS = 5
"""Random sets of as many heads, per split; their vectors have the norm of the IV."""

Numbers = dict[str, float | int | None]


def measure(model: HookedTransformer, chosen: Sequence[Task]) -> dict[str, dict[str, Numbers]]:
    """All abilities and the steering of every task: mean, bounds of the 95 % interval, and number of prompts."""
    return {
        one.name: _abilities(model, one) | steering(model, one) for one in track(chosen, "measuring", total=len(chosen))
    }


def _abilities(model: HookedTransformer, task: Task) -> dict[str, Numbers]:
    found: dict[str, Numbers] = {}
    for ability, prompts in abilities(task, seed=PROMPT_SEED).items():
        if not prompts:
            found[ability] = _numbers(Interval(math.nan, math.nan, math.nan), 0)
            continue
        result = answer_all(model, prompts)
        found[ability] = _numbers(result.accuracy(), len(prompts))
        if ability in ("ten-shot", "shuffled"):
            found[f"{ability}-probability"] = _numbers(result.mean_probability(), len(prompts))
    return found


def _numbers(found: Interval, n: int) -> Numbers:
    mean, low, high = (None if math.isnan(bound) else round(bound, 4) for bound in found)
    return {"mean": mean, "low": low, "high": high, "n": n}


def steering(model: HookedTransformer, task: Task) -> dict[str, Numbers]:
    """Accuracy on zero-shot prompts of the evaluation pairs: as it is, with the IV, with vectors of random heads.

    Every vector, random ones included, is added at the layer that is best for it on the validation pairs.
    """
    rows = [_steer(model, task, seed) for seed in SPLIT_SEEDS]
    groups = torch.cat([queries for queries, _ in rows])
    names = ("unsteered", "steered", "steered-random")
    values = torch.cat([accuracies for _, accuracies in rows])
    return {name: _numbers(interval(values[:, i], groups), len(values)) for i, name in enumerate(names)}


def _steer(model: HookedTransformer, task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """For one parting of the pairs: which queries, and whether each was right, `[prompt, 3]`."""
    effects = indirect_effects(model, task, seed=seed)
    split = task.split(shots=effects.settings.shots, seed=seed)
    vector = write_vector(model, effects.mean_z, effects.top(HEADS))
    drawn = controls.random_heads(effects, HEADS, draws=RANDOM_DRAWS, seed=seed)
    vectors = torch.stack([vector, *controls.write_control_vectors(model, effects, drawn, norm=float(vector.norm()))])
    found = search_places(model, tokenize(model, zero_shot(split.validation)), vectors, scale=1.0)
    layers = [found.best(number).layer for number in range(len(vectors))]
    right = steer_rows(model, tokenize(model, zero_shot(split.evaluation)), vectors, layers).match.double()
    accuracies = torch.stack([right[:, 0], right[:, 1], right[:, 2:].mean(1)], dim=1)
    return torch.tensor([task.pairs.index(pair) for pair in split.evaluation]), accuracies


def means(found: Mapping[str, Mapping[str, Numbers]]) -> dict[str, Numbers]:
    """Every measure as the mean over tasks that have it, with an interval over tasks."""
    table = {
        name: [_mean(row[name]) for row in found.values() if row[name]["mean"] is not None]
        for name in next(iter(found.values()))
    }
    uncertain = [row for row in found.values() if _mean(row["neither"]) < 0.5]
    for name in ("steered", "steered-random"):
        table[f"{name}-lift"] = [_mean(row[name]) - _mean(row["unsteered"]) for row in uncertain]
    return {name: _numbers(interval(torch.tensor(values).double()), len(values)) for name, values in table.items()}


def _mean(numbers: Numbers) -> float:
    assert numbers["mean"] is not None
    return float(numbers["mean"])


def targets(found: Mapping[str, Mapping[str, Numbers]], over_tasks: Mapping[str, Numbers]) -> dict[str, Any]:
    """What the model is meant to reach, what it reached, and whether that is enough."""
    mean = {name: _mean(numbers) for name, numbers in over_tasks.items()}
    worst = min(_mean(row["instructed"]) for row in found.values())
    ratio = mean["shuffled-probability"] / mean["ten-shot-probability"]
    wanted = [
        ("instructed accuracy, mean over tasks", mean["instructed"], "at least", 0.95),
        ("instructed accuracy, worst task", worst, "at least", 0.80),
        ("accuracy with the unseen wording", mean["unseen-wording"], "at least", 0.85),
        ("10-shot accuracy", mean["ten-shot"], "at least", 0.95),
        ("accuracy with neither instruction nor demonstrations", mean["neither"], "at most", 0.45),
        ("P(answer), shuffled over clean demonstrations", ratio, "at most", 0.5),
        ("lift by the IV of 10 heads, tasks below 0.5", mean["steered-lift"], "at least", 0.30),
        ("lift by 10 random heads, tasks below 0.5", mean["steered-random-lift"], "at most", 0.10),
    ]
    return {
        name: {
            "wanted": f"{relation} {bound}",
            "got": round(got, 4),
            "met": got >= bound if relation == "at least" else got <= bound,
        }
        for name, got, relation, bound in wanted
    }


def record(folder: Path, settings: Path = SETTINGS) -> dict[str, Any]:
    """Measure the model in `folder`, with everything that decided the numbers."""
    model = loader.load_without_adapters(folder)
    chosen = [task(name) for name in tasks()]
    found = measure(model, chosen)
    over_tasks = means(found)
    return {
        "model": {
            "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
            "parameters": sum(weight.numel() for weight in model.parameters() if weight.abs().sum() > 0),
            "layers": model.cfg.n_layers,
            "heads": model.cfg.n_heads,
            "width": model.cfg.d_model,
        },
        "training": json.loads(settings.read_text(encoding="utf-8")),
        "seeds": {"prompts": PROMPT_SEED, "splits": list(SPLIT_SEEDS)},
        "effects": {name: value for name, value in asdict(Settings()).items() if name != "seed"},
        "versions": run_record.versions(),
        "facts": sum(len(one.pairs) for one in chosen),
        "targets": targets(found, over_tasks),
        "means": over_tasks,
        "tasks": found,
    }


def as_json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the lab model and write its record.")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args()
    given.out.write_text(as_json(record(given.model)), encoding="utf-8")


if __name__ == "__main__":
    main()
