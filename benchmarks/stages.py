"""What does measuring a stage of a study cost, beside training it for 100 steps of 16 prompts?

    python benchmarks/stages.py figures/numbers/smollm2-func

From the folder of a study, of which the plan and the universal heads are read. Measured on the base model, which costs
what a tuned one does: every set of prompts as the plan asks for them and, for comparison, with demonstrations drawn for
every query, all forms and all prompts of the learned tasks. `make bench` leaves the comparison out, and takes the first
task and the first probe for all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from measurements import clock
from rich.console import Console
from rich.table import Table
from transformer_lens import HookedTransformer

import ivlens
from ivlens.checkpoints import known_models
from ivlens.forgetting import method_run, preparation
from ivlens.forgetting.evaluation import StageEvaluation, prepare_evaluation
from ivlens.forgetting.plan import Plan
from ivlens.models import lora
from ivlens.prompts.tokens import tokenize
from ivlens.training.loop import Examples, finetune
from ivlens.training.methods import Lora
from ivlens.training.stages import Stage

STEPS, BATCH = 100, 16
NUMBERS = Path(__file__).parents[1] / "figures" / "numbers"


def seconds(run: Callable[[], object], device: str) -> float:
    with clock(device) as found:
        run()
    return found[0]


def training_seconds(model: HookedTransformer, plan: Plan, stages: Sequence[Stage], device: str) -> float:
    """Of 100 plain steps, on average over the tasks; two are taken of each, and the first does not count."""
    taken = []
    for stage in stages:
        tokens, adapter = tokenize(model, stage.train), lora.fresh(model, plan.lora, seed=0)
        examples = Examples(prompts=tokens, bare=tokens, new=len(tokens))
        with lora.attached(model, adapter):
            steps = finetune(model, adapter, examples, replace(plan.training, batch=BATCH), method=Lora())
            next(steps)
            taken.append(seconds(lambda steps=steps: next(steps), device))
    return STEPS * sum(taken) / len(taken)


def asking_seconds(model: HookedTransformer, evaluation: StageEvaluation, device: str) -> dict[str, float]:
    """Of every set of prompts, by what its accuracy is called."""
    return {one.accuracy: seconds(lambda one=one: list(one.lines(model)), device) for one in evaluation.prompt_sets}


class Measured(NamedTuple):
    """Seconds."""

    training: float
    asked: dict[str, float]
    """Of each part of measuring, as the plan asks."""
    every: dict[str, float]
    """Of all that could be asked; nothing where that is left out."""


def measure(folder: Path, device: str, *, everything: bool = True) -> Measured:
    plan = ivlens.Study.read(folder).plan
    n_probes, probes = len(plan.evaluation.probes), plan.evaluation.probes[: None if everything else 1]
    plan = plan.with_changes(evaluation=replace(plan.evaluation, probes=probes))
    model, general = ivlens.load(plan.model, device=device), preparation.general_tasks(plan)
    model.requires_grad_(False)
    torch.set_num_threads(plan.threads)
    stages = preparation.sequence(plan, plan.seeds[0], general)
    base = preparation.prepare_base(plan, plan.seeds[0], model, general, folder)
    chosen = plan.evaluation.of(plan.seeds[0])
    asked = prepare_evaluation(model, stages, general, chosen).of_able(base.able)
    probed = {
        f"probe {name}": seconds(lambda task=task, probe=probe: method_run._measure_probe(base, task, probe), device)
        for name, (task, probe) in base.probes.items()
    }
    if not everything:
        probed = {f"{n_probes} probes like {probes[0]}": n_probes * sum(probed.values())} if probes else {}
    whole = replace(chosen, able_only=False, demonstrations="query", learned_queries=None)
    all_sets = prepare_evaluation(model, stages, general, whole) if everything else None
    return Measured(
        training_seconds(model, plan, stages if everything else stages[:1], device),
        asking_seconds(model, asked, device) | probed,
        asking_seconds(model, all_sets, device) | probed if all_sets is not None else {},
    )


def print_stage(console: Console, folder: Path, device: str, *, everything: bool = True) -> None:
    """What each part of measuring a stage takes, and all of it beside training."""
    trained, *columns = measure(folder, device, everything=everything)
    columns = [one for one in columns if one]
    table = Table(title=f"Seconds of measuring a stage of {folder.name}")
    for head in ("measured", "as the plan asks", "everything, query by query")[: 1 + len(columns)]:
        table.add_column(head, justify="left" if head == "measured" else "right")
    for name in columns[0]:
        table.add_row(name, *(f"{one[name]:.1f}" for one in columns))
    sums = [sum(one.values()) for one in columns]
    table.add_row("a stage", *(f"{one:.1f}" for one in sums))
    table.add_row(f"beside {STEPS} steps of {BATCH}: {trained:.0f} s", *(f"{one / trained:.2f}" for one in sums))
    console.print(table)


def print_usual(console: Console, device: str) -> None:
    """Of SmolLM2, if it was fetched; else of the lab model."""
    is_there = known_models.find("smollm2") is not None
    print_stage(console, NUMBERS / ("smollm2-func" if is_there else "lab-func"), device, everything=False)


if __name__ == "__main__":
    print_stage(Console(), Path(sys.argv[1]), "cuda" if torch.cuda.is_available() else "cpu")
