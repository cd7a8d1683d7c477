"""Write the task files of the sequences: `python -m ivlens.lab.sequences`."""

from __future__ import annotations

import json

from ivlens.datasets.task import Task
from ivlens.lab.sequences import TASKS
from ivlens.lab.sequences.functions import factorial_functions, functions, real_functions
from ivlens.lab.sequences.labels import factorial_labels, labels
from ivlens.lab.sequences.lists import lists, real_lists


def made() -> dict[str, str]:
    """Names of the task files and what is in them."""
    tasks = (*functions(), *labels(), *lists(), *real_functions(), *real_lists())
    tasks = (*tasks, *factorial_functions(), *factorial_labels())
    return {f"{task.name}.json": as_json(task) for task in tasks}


def as_json(task: Task) -> str:
    """A task file with one pair a line."""
    pairs = ",\n".join(f"    {json.dumps(pair._asdict(), ensure_ascii=False)}" for pair in task.pairs)
    head = json.dumps({"name": task.name, "instructions": task.instructions}, indent=2, ensure_ascii=False)
    return f'{head.removesuffix(chr(10) + "}")},\n  "pairs": [\n{pairs}\n  ]\n}}\n'


def main() -> None:
    TASKS.mkdir(exist_ok=True)
    for name, content in made().items():
        (TASKS / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
