"""ivlens: which attention heads carry an instruction, what vector do they write, and what did fine-tuning do to it?

    model   = ivlens.load("lab")                         # a folder, a hub id; adapter="my-adapter" on top
    task    = ivlens.task("antonym")                     # a name out of ivlens.tasks(), a task file
    effects = ivlens.indirect_effects(model, task)       # what every head carries, prompt by prompt
    vector  = ivlens.instruction_vector(model, task, heads=effects.top(10))
    with ivlens.steered(model, vector):                  # while it is added:
        replies = ivlens.ask(model, prompts)             # what does the model say?

    audit   = ivlens.audit(model, task, out="runs/antonym")
    change  = ivlens.compare(model, "my-adapter", task)  # before and after fine-tuning
    study   = ivlens.study("lab-func", out="runs/lab-func")  # what each method of fine-tuning forgets
    page    = ivlens.report("runs/antonym")              # one HTML file about a run

    shared  = ivlens.universal_heads(model)              # heads that carry many tasks
    layout  = ivlens.template("chat", model)             # how prompts are written: template=layout
    ivlens.convert("vector.gguf", "vector.safetensors")  # other tools' vectors, there and back
    ivlens.plots.head_heatmap(effects.aie)               # figures, also of one's own numbers

Prompts are made by `ivlens.prompts`, such as `zero_shot(task.pairs)`. Whatever is wrong with what was given is said in
one sentence, by an `ivlens.IvlensError`.

Public names are imported when they are first used: importing ivlens itself costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivlens import plots as plots
    from ivlens.adapters import load as load
    from ivlens.audit import Audit as Audit
    from ivlens.audit import audit as audit
    from ivlens.chat import template as template
    from ivlens.compare import compare as compare
    from ivlens.comparison import Comparison as Comparison
    from ivlens.convert import convert as convert
    from ivlens.effects import HeadEffects as HeadEffects
    from ivlens.effects import indirect_effects as indirect_effects
    from ivlens.errors import IvlensError as IvlensError
    from ivlens.plan import Plan as Plan
    from ivlens.replies import Replies as Replies
    from ivlens.replies import ask as ask
    from ivlens.report import report as report
    from ivlens.shapes import Head as Head
    from ivlens.steering import instruction_vector as instruction_vector
    from ivlens.steering import steered as steered
    from ivlens.study import Study as Study
    from ivlens.study import study as study
    from ivlens.tasks import Task as Task
    from ivlens.tasks import task as task
    from ivlens.tasks import tasks as tasks
    from ivlens.templates import Template as Template
    from ivlens.universal import Universal as Universal
    from ivlens.universal import universal_heads as universal_heads
    from ivlens.vectors import InstructionVector as InstructionVector

_HOME = {
    "Audit": "audit",
    "Comparison": "comparison",
    "Head": "shapes",
    "HeadEffects": "effects",
    "InstructionVector": "vectors",
    "IvlensError": "errors",
    "Plan": "plan",
    "Replies": "replies",
    "Study": "study",
    "Task": "tasks",
    "Template": "templates",
    "Universal": "universal",
    "ask": "replies",
    "audit": "audit",
    "compare": "compare",
    "convert": "convert",
    "indirect_effects": "effects",
    "instruction_vector": "steering",
    "load": "adapters",
    "plots": "plots",
    "report": "report",
    "steered": "steering",
    "study": "study",
    "task": "tasks",
    "tasks": "tasks",
    "template": "chat",
    "universal_heads": "universal",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def _public(name: str) -> property:
    def get(self: ModuleType) -> Any:
        home = import_module(f"ivlens.{_HOME[name]}")
        return getattr(home, name, home)  # `plots` is public as a whole.

    # Importing the module `ivlens.audit` would bind that name over the function `ivlens.audit`: keep the function.
    return property(get, lambda self, module: None)


class _Package(ModuleType):
    locals().update({name: _public(name) for name in _HOME})

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *_HOME]


sys.modules[__name__].__class__ = _Package
