"""Learn every task of a plan alone, in a study of its own, and see which property of a task makes a model forget.

python -m ivlens.matrix.run_factorial lab-factorial --out runs/lab-factorial
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from ivlens.engine.options import EngineOptions
from ivlens.errors import IvlensError
from ivlens.forgetting import metrics
from ivlens.forgetting.plan import Plan, read_plan
from ivlens.forgetting.preparation import Cost, estimate_cost, general_tasks, sequence
from ivlens.forgetting.run_study import study
from ivlens.forgetting.study import Study
from ivlens.matrix.factorial import ABLE, LABEL, LONG, LOST, Factorial, LearnedTask, Trained
from ivlens.matrix.factorial_tables import print_cost, print_done, print_factorial
from ivlens.measures import interval
from ivlens.models import loader
from ivlens.plots import export
from ivlens.prompts.tokens import tokenize
from ivlens.steering.verdict import most_frequent_share
from ivlens.storage.run_folder import read_run

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_LEARNED = "learned task 1"
"""Whose source a study of one task has under that role."""


def alone(asked: Plan) -> list[Plan]:
    """A plan for each task of a plan."""
    names = {task: Path(task).stem for task in asked.tasks}
    return [asked.with_changes(name=f"{asked.name}-{names[task]}", tasks=(task,), order="seed") for task in names]


def run_studies(asked: Plan, out: Path, **options: Unpack[EngineOptions]) -> Iterator[Study]:
    """Each task's study, one after the other, in the run folder `out/TASK`, which the same call goes on with.

    Args:
        options: Of the engine, as for `ivlens.study`.
    """
    for one in alone(asked):
        yield study(one, out=out / Path(one.tasks[0]).stem, **options)


def gather(asked: Plan, base: HookedTransformer, found: Sequence[Study], *, typed: str) -> Factorial:
    """What the studies of one task each say together.

    Args:
        typed: How the plan was asked for: its name or path.
    """
    records = [read_run(one.folder).record for one in found]
    sources = {role: source for record in records for role, source in record.sources.items() if role != _LEARNED}
    sources |= {f"learned task {record.sources[_LEARNED].name}": record.sources[_LEARNED] for record in records}
    return Factorial(
        tasks=tuple(find_levels(one, base) for one in found),
        trained=tuple(line for one in found for line in _trained(one)),
        origin={
            "command": f"python -m ivlens.matrix.run_factorial {typed}",
            "settings": asked.record(),
            "sources": {role: source.model_dump() for role, source in sources.items()},
            "seed": asked.evaluation.seed,
            "versions": records[0].versions,
        },
    )


def find_levels(found: Study, base: HookedTransformer) -> LearnedTask:
    """The levels of a study's only task; what the base model can do of it is measured on the first seed's prompts."""
    plan, seed = found.plan, found.plan.seeds[0]
    (stage,) = sequence(plan, seed, general_tasks(plan))
    prompts = (*stage.test, *stage.train)
    answers = [prompt.query.output for prompt in prompts]
    own: Any = found.evaluations.query("stage == 0 and kind == 'sequence' and seed == @seed")
    own = own[(own["method"] == plan.methods[0]) & own["measure"].isin(["accuracy", "trained accuracy"])]
    right = round(float((own["value"] * own["n"]).sum()))
    accuracy = interval((torch.arange(len(prompts)) < right).double())
    share, tokens = most_frequent_share(answers), tokenize(base, prompts).answer_mask.sum(1).double().mean()
    return LearnedTask(
        name=stage.name,
        able=accuracy.low > max(ABLE, share),
        labels=len(answers) / len(set(answers)) >= LABEL,
        long=float(tokens) >= LONG,
        accuracy=accuracy.mean,
        share=share,
        queries=len(prompts),
    )


def _trained(found: Study) -> Iterator[Trained]:
    (task,) = found.evaluations.query("learned > 0")["task"].unique()
    values: Any = metrics.cells(found.evaluations).set_index(["method", "seed", "measure"])["value"]
    losses: Any = found.steps.query("step == 0").set_index(["method", "seed"])["loss"]
    for method, seed in itertools.product(found.plan.methods, found.plan.seeds):
        own = values[method, seed]
        yield Trained(
            task=task,
            method=method,
            seed=seed,
            loss=float(losses[method, seed]),
            learned=float(own["learned"]),
            lost={name: -float(own[f"{name.removesuffix(' lost')} change"]) for name in LOST},
        )


def estimate(asked: Plan, base: HookedTransformer) -> Cost:
    """Of all studies, from the pace of the first one's."""
    first = alone(asked)[0]
    one = estimate_cost(first, base, general_tasks(first))
    return Cost(*(len(asked.tasks) * seconds for seconds in one))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="a built-in study such as lab-factorial, or a TOML file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the studies, to go on with")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="say how long it takes; run nothing")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except IvlensError as error:
        parser.exit(2, f"ivlens: {error}\n")


def _run(given: argparse.Namespace) -> None:
    asked = read_plan(given.plan)
    base = loader.load(asked.model)
    print_cost(asked, estimate(asked, base))
    if given.dry_run:
        return
    found = []
    for one in run_studies(asked, given.out, workers=given.workers):
        found.append(one)
        print_done(one, len(found), len(asked.tasks))
    gathered = gather(asked, base, found, typed=given.plan)
    gathered.write(given.out)
    print_factorial(gathered)
    export.export(gathered.figures(), given.out / "figures")


if __name__ == "__main__":
    main()
