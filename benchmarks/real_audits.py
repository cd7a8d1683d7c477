"""The runs of docs/smollm2.md, one after the other, with every model loaded once.

    python benchmarks/real_audits.py tasks --into runs

`tasks` is what benchmarks/real_tasks.py wrote. Each run is what `ivlens audit` computes by the command that the
document gives for it; one that is complete is only read, one that was killed goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

from real_tasks import TASKS

import ivlens
from ivlens.analysis.run_audit import audit_heads, prepare, run_audit

FEW: dict[str, Any] = {"shots": 5, "clean_prompts": 40, "prompts": 12, "draws": 10}
LABS = {"lab": "lab"} | {f"lab-{shape}": f"models/lab-{shape}" for shape in ("gpt2", "neox")}
"""The shipped lab model, and those of other shapes, which `python -m ivlens.lab.train --architecture` trains."""
QUERIES, FEWER = 30, 6
"""Of a run that is to be whole, and of one that asks for its heads only."""


class Run(NamedTuple):
    """One folder."""

    name: str
    model: str
    task: str
    """Of the lab the built-in one of that name, in words that it knows."""
    options: dict[str, Any]
    is_whole: bool
    """Or stops behind the AIE of its heads."""


def plan() -> list[Run]:
    """Heads come first, so that little time gives a little of everything; a whole run goes on from its heads."""
    usual = [Run(f"{task}-shuffled-demonstrations", "smollm2", task, {}, True) for task in TASKS]
    heads = [run._replace(is_whole=False) for run in usual]
    for corruption, source in (
        ("zero-shot", "instruction"),
        ("zero-shot", "demonstrations"),
        ("shuffled", "instruction"),
    ):
        options = {"corruption": corruption, "source": source}
        heads += [Run(f"{task}-{corruption}-{source}", "smollm2", task, options, False) for task in TASKS]
    gemma = [Run(f"gemma-{task}", "gemma3-270m", task, {}, True) for task in (TASKS[0], TASKS[-1])]
    labs = [Run(f"{name}-{TASKS[0]}", model, TASKS[0], {}, True) for name, model in LABS.items()]
    # Present-past comes last: `make smollm2` is a whole run of it, on verbs of our own.
    return [*heads[:10], gemma[0]._replace(is_whole=False), *reversed(usual), *gemma, *labs, *heads[10:]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--only", help="runs whose names have this in them")
    asked = parser.parse_args(arguments)
    models: dict[str, Any] = {}
    for run in plan():
        if asked.only and asked.only not in run.name:
            continue
        if run.model.startswith("models/") and not Path(run.model).is_dir():
            print(f"{run.name}: left out; there is no {run.model}", flush=True)
            continue
        start = time.process_time()
        model = models[run.model] = models.get(run.model) or ivlens.load(run.model)
        queries = FEWER if run.options else QUERIES
        task = run.task if run.model in LABS.values() else asked.tasks / f"{run.task}.json"
        work = prepare(model, task, queries=queries, **run.options, **FEW)
        (run_audit if run.is_whole else audit_heads)(work, asked.into / run.name)
        print(f"{run.name}: {time.process_time() - start:.0f} s of one core", flush=True)


if __name__ == "__main__":
    main()
