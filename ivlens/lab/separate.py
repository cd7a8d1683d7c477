"""Can a lab model tell instruction from knowledge? `python -m ivlens.lab.separate --out DIR` trains one that does.

The shipped model cannot: its carrier heads serve statements as well as instructions. Here its training goes on with
`curriculum.SEPARATION`, in which statements are read without the carriers. Then both models are asked, as they are and
with the carriers ablated: how often are instructed queries and plain statements answered right?
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from transformers import LlamaForCausalLM

from ivlens.datasets.task import Task, task, tasks
from ivlens.lab import MODEL
from ivlens.lab.abilities import abilities
from ivlens.lab.architecture import CARRIERS
from ivlens.lab.curriculum import SEPARATION
from ivlens.lab.evaluate import PROMPT_SEED
from ivlens.lab.train import Phase, TrainingConfig, train_and_log
from ivlens.lab.vocabulary import tokenizer
from ivlens.models import loader
from ivlens.patching.activations import mean_z
from ivlens.patching.interventions import Change, run_changes
from ivlens.progress import track
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import Head, MeanZ
from ivlens.steering.controls import draw_heads

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CONFIG = TrainingConfig(phases=(Phase(lesson=SEPARATION, steps=1000, rate=1.5e-3),))
ASKED = ("instructed", "statement")
DRAWS = 5
"""Sets of as many random heads as there are carriers, none of them a carrier."""


def ablate_carriers(model: HookedTransformer, chosen: Sequence[Task]) -> pd.DataFrame:
    """Ask every task that has a statement, with nothing, the carriers, or random heads ablated.

    Heads are replaced by their mean output at the last token of instructed prompts, mean over the other tasks. Prompts
    are kept from training, as in `abilities`.

    Returns:
        A row per task, form ("instructed", "statement") and ablation ("none", "carriers", "random"): accuracy, mean
        P(answer), both in [0, 1], and the number of prompts.
    """
    prompts = {one.name: abilities(one, seed=PROMPT_SEED) for one in chosen if one.statement is not None}
    means = {name: mean_z(model, tokenize(model, asked["instructed"])) for name, asked in prompts.items()}
    random = draw_heads((model.cfg.n_layers, model.cfg.n_heads), len(CARRIERS), draws=DRAWS, seed=0, apart=CARRIERS)
    rows = [
        row
        for name, asked in track(prompts.items(), "measuring", total=len(prompts))
        for form in ASKED
        if asked[form]
        for row in _ablate(model, name, form, asked, _mean_of_others(means, name), random)
    ]
    return pd.DataFrame(rows)


def _mean_of_others(means: Mapping[str, MeanZ], name: str) -> MeanZ:
    return torch.stack([z for other, z in means.items() if other != name]).mean(0)


def _ablate(
    model: HookedTransformer, name: str, form: str, asked: Mapping[str, list], z: MeanZ, random: Sequence[list[Head]]
) -> Iterator[dict[str, object]]:
    sets = [tuple(CARRIERS), *map(tuple, random)]
    found = run_changes(model, tokenize(model, asked[form]), [Change(ablated=heads) for heads in sets], layer=0, z=z)
    for ablated, rows in {"none": [0], "carriers": [1], "random": list(range(2, 2 + len(random)))}.items():
        yield {
            "task": name,
            "form": form,
            "ablated": ablated,
            "accuracy": float(found.match[:, rows].double().mean()),
            "probability": float(found.probability[:, rows].double().mean()),
            "prompts": len(asked[form]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a lab model whose statements do not pass through the carriers.")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    # Sums over several threads are not the same twice.
    torch.set_num_threads(1)
    chosen = [task(name) for name in tasks()]
    tokens = tokenizer(chosen)
    model = LlamaForCausalLM.from_pretrained(MODEL)
    out.mkdir(parents=True, exist_ok=True)
    train_and_log(model, tokens, chosen, CONFIG, out / "training.csv")
    model.save_pretrained(out)
    tokens.save_pretrained(out)
    for name, path in {"shipped": MODEL, "separated": out}.items():
        found = ablate_carriers(loader.load(path), chosen)
        found.to_csv(out / f"carriers-{name}.csv", index=False)
        print(name, found.groupby(["form", "ablated"], sort=False)["accuracy"].describe().round(3), sep="\n")


if __name__ == "__main__":
    main()
