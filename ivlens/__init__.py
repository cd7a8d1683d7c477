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
    open    = ivlens.experiment("latents", model, task)   # what carries the task beside the vector
    page    = ivlens.report("runs/antonym")              # one HTML file about a run
    heads   = ivlens.explore(model, task, effects)       # every head, to be clicked on

    sites   = ivlens.site_effects(model, task, site="mlp_out", positions=["query", "last"])  # MLPs, attention, layers
    shared  = ivlens.universal_heads(model)              # heads that carry many tasks
    layout  = ivlens.template("chat", model)             # how prompts are written: template=layout
    ivlens.convert("vector.gguf", "vector.safetensors")  # other tools' vectors, there and back
    ivlens.plots.head_heatmap(effects.aie)               # figures, also of one's own numbers

Prompts are made by `ivlens.prompts`, such as `zero_shot(task.pairs)`. Whatever is wrong with what was given is said in
one sentence, by an `ivlens.IvlensError`.

Public names are imported when they are first used: importing ivlens itself costs nothing.

Docstrings go on from here as cells of one notebook do; those of a room, such as `ivlens.prompts`, also from its own.

    >>> import ivlens
    >>> model, task = ivlens.load("lab"), ivlens.task("antonym")
    >>> effects = ivlens.indirect_effects(model, task)
    >>> vector = ivlens.instruction_vector(model, task, effects=effects)
    >>> vector.vector.shape
    torch.Size([128])
    >>> sites = ivlens.site_effects(model, task, site="mlp_out", positions=["query", "last"])
    >>> ranked = ivlens.compare_rankings(model, task, top=3, draws=2, queries=8, shots=5, prompts=6)

Audits, an adapter that changes a little, a comparison and a study, all of them as short as they can be:

    >>> few = {"shots": 5, "clean_prompts": 8, "prompts": 6, "draws": 1}
    >>> audit = ivlens.audit(model, task, out="runs/antonym", top=2, other_tasks=0, **few)
    >>> short = {"top": 2, "other_tasks": 0, "workers": 1, **few}
    >>> matrix = ivlens.audit_many("lab", ["antonym", "synonym"], out="runs/two", **short)
    >>> adapter = ivlens.lora.fresh(model, ivlens.lora.LoraConfig(rank=2))
    >>> for factors in adapter.factors.values():
    ...     factors.B[:] = 0.02
    >>> change = ivlens.compare(model, adapter, task, queries=8, **few)
    >>> plan = ivlens.Plan(
    ...     name="short", tasks=("class-letter",), general=("antonym", "country-capital"), methods=("lora", "replay"),
    ...     seeds=(0,), train_prompts=16, training=ivlens.training.Training(steps=2),
    ... )
    >>> study = ivlens.study(plan, out="runs/short", model=model)
    >>> study.folder.name
    'short'
    >>> brief = {"shots": 5, "clean_prompts": 8, "prompts": 6, "queries": 6, "top": 3, "draws": 2}
    >>> experiment = ivlens.experiment("rankings", model, task, out="runs/rankings", **brief)
    >>> explorer = ivlens.explore(model, task, effects, shown=1)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivlens import plots as plots
    from ivlens import prompts as prompts
    from ivlens import training as training
    from ivlens.analysis.comparison import Comparison as Comparison
    from ivlens.analysis.run_audit import Audit as Audit
    from ivlens.analysis.run_audit import audit as audit
    from ivlens.analysis.run_comparison import compare as compare
    from ivlens.attribution.head_scores import head_scores as head_scores
    from ivlens.attribution.logit_parts import logit_attribution as logit_attribution
    from ivlens.attribution.paths import path_effects as path_effects
    from ivlens.attribution.rankings import Rankings as Rankings
    from ivlens.attribution.rankings import compare_rankings as compare_rankings
    from ivlens.attribution.site_effects import SiteEffects as SiteEffects
    from ivlens.attribution.site_patching import site_effects as site_effects
    from ivlens.attribution.trained_vector import train_vector as train_vector
    from ivlens.attribution.two_models import donor_effects as donor_effects
    from ivlens.attribution.vector_comparison import compare_vectors as compare_vectors
    from ivlens.datasets.task import Task as Task
    from ivlens.datasets.task import task as task
    from ivlens.datasets.task import tasks as tasks
    from ivlens.errors import IvlensError as IvlensError
    from ivlens.experiments.experiment import Experiment as Experiment
    from ivlens.experiments.run_experiment import experiment as experiment
    from ivlens.explorer.explorer import Explorer as Explorer
    from ivlens.explorer.run_explorer import explore as explore
    from ivlens.forgetting.plan import Plan as Plan
    from ivlens.forgetting.run_study import Study as Study
    from ivlens.forgetting.run_study import study as study
    from ivlens.matrix.audit_matrix import AuditMatrix as AuditMatrix
    from ivlens.matrix.run_matrix import audit_many as audit_many
    from ivlens.models import lora as lora
    from ivlens.models.loader import load as load
    from ivlens.patching.effects import HeadEffects as HeadEffects
    from ivlens.patching.effects import indirect_effects as indirect_effects
    from ivlens.patching.settings import Settings as Settings
    from ivlens.prompts.chat import template as template
    from ivlens.prompts.template import Template as Template
    from ivlens.replies.inquiry import Replies as Replies
    from ivlens.replies.inquiry import ask as ask
    from ivlens.reports.html import report as report
    from ivlens.shapes import Head as Head
    from ivlens.steering.steered_model import steered as steered
    from ivlens.steering.universal_heads import Universal as Universal
    from ivlens.steering.universal_heads import universal_heads as universal_heads
    from ivlens.steering.vector_building import instruction_vector as instruction_vector
    from ivlens.vectors.convert import convert as convert
    from ivlens.vectors.instruction_vector import InstructionVector as InstructionVector

    __version__: str

_HOME = {
    "Audit": "analysis.audit",
    "AuditMatrix": "matrix.audit_matrix",
    "Comparison": "analysis.comparison",
    "Experiment": "experiments.experiment",
    "Explorer": "explorer.explorer",
    "Head": "shapes",
    "HeadEffects": "patching.head_effects",
    "InstructionVector": "vectors.instruction_vector",
    "IvlensError": "errors",
    "Plan": "forgetting.plan",
    "Rankings": "attribution.rankings",
    "Replies": "replies.inquiry",
    "Settings": "patching.settings",
    "SiteEffects": "attribution.site_effects",
    "Study": "forgetting.study",
    "Task": "datasets.task",
    "Template": "prompts.template",
    "Universal": "steering.universal_heads",
    "ask": "replies.inquiry",
    "audit": "analysis.run_audit",
    "audit_many": "matrix.run_matrix",
    "compare": "analysis.run_comparison",
    "compare_rankings": "attribution.rankings",
    "compare_vectors": "attribution.vector_comparison",
    "convert": "vectors.convert",
    "donor_effects": "attribution.two_models",
    "experiment": "experiments.run_experiment",
    "explore": "explorer.run_explorer",
    "head_scores": "attribution.head_scores",
    "indirect_effects": "patching.effects",
    "instruction_vector": "steering.vector_building",
    "load": "models.loader",
    "logit_attribution": "attribution.logit_parts",
    "lora": "models.lora",
    "path_effects": "attribution.paths",
    "plots": "plots",
    "prompts": "prompts",
    "report": "reports.html",
    "site_effects": "attribution.site_patching",
    "steered": "steering.steered_model",
    "study": "forgetting.run_study",
    "task": "datasets.task",
    "tasks": "datasets.task",
    "template": "prompts.chat",
    "train_vector": "attribution.trained_vector",
    "training": "training",
    "universal_heads": "steering.universal_heads",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # Written once, in pyproject.toml; looked up when it is asked for.
        return import_module("importlib.metadata").version("ivlens")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"ivlens.{_HOME[name]}")
    return getattr(home, name, home)  # Some are public as a whole, such as `plots`.


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
