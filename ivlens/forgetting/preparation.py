"""What does a study need before its first cell? General tasks, stages, and what is prepared of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivlens.analysis import probes
from ivlens.datasets.task import Task, tasks
from ivlens.datasets.task import task as find_task
from ivlens.errors import StudyError, TaskError
from ivlens.forgetting.method_run import PreparedBase
from ivlens.forgetting.plan import Plan
from ivlens.patching.settings import Settings
from ivlens.steering.universal_heads import Universal, universal_heads
from ivlens.steering.vector_building import instruction_vector
from ivlens.storage import run_folder
from ivlens.training import benchmark_stages, stages
from ivlens.training.stages import Stage

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def general_tasks(asked: Plan) -> list[Task]:
    """The general tasks of a plan, refused before the model is read where they cannot serve.

    Raises:
        StudyError: one is trained on, too, or a guide or probe is not among them.
        TaskError: one has no instruction, or too few pairs.
    """
    names = asked.general or tuple(tasks())
    found = {name: find_task(name) for name in names}
    own = [task.name for task in found.values()]
    repeated = sorted({name for name in own if own.count(name) > 1})
    if repeated:
        raise StudyError(f"two general tasks are called {', '.join(repeated)}; rename one")
    for kind, chosen in {"guides": asked.guides, "evaluation.probes": asked.evaluation.probes}.items():
        unknown = sorted(set(chosen) - set(names) - set(own))
        if unknown:
            raise StudyError(f"{kind} names {', '.join(unknown)}, which is not among the general tasks; add it there")
    shots = asked.evaluation.shots
    for name, task in found.items():
        _refuse_unfit(task, shots)
        if {name, task.name} & set(asked.evaluation.probes):
            task.split(shots=shots)
    return list(found.values())


def _refuse_unfit(task: Task, shots: int) -> None:
    if not task.instructions:
        raise TaskError(f"general task {task.name!r} has no instruction; add one, or leave the task out")
    if len(task.pairs) <= shots:
        raise TaskError(
            f"general task {task.name!r} has {len(task.pairs)} pairs, but {shots} demonstrations and a query need "
            "more; add pairs or use fewer shots"
        )


def _choose_tasks(asked: Plan, general: Sequence[Task], chosen: Sequence[str]) -> list[Task]:
    """Those of the general tasks that a list of names or paths means."""
    names = asked.general or tuple(tasks())
    return [task for name, task in zip(names, general, strict=True) if {name, task.name} & set(chosen)]


def sequence(asked: Plan, seed: int, general: Sequence[Task]) -> list[Stage]:
    """What is learned, with this seed's split.

    Raises:
        StudyError: one of them is a general task, too.
        TaskError: there is no such task, it is too small for its split, or it is named twice.
    """
    found = [benchmark_stages.stage(name, seed=seed, limit=asked.train_prompts) for name in asked.tasks]
    stages.check_sequence(found)
    both = sorted({stage.name for stage in found} & {task.name for task in general})
    if both:
        raise StudyError(f"{', '.join(both)} is trained on and measured as a general task; choose one of the two")
    return found


def refuse_unfit_guidance(asked: Plan, base: HookedTransformer) -> None:
    """Raises StudyError where a form of guidance names a layer that the model does not have."""
    for method in asked.methods:
        guidance = asked.parts(method)[1]
        if guidance is not None and guidance.layer is not None and not 0 <= guidance.layer < base.cfg.n_layers:
            raise StudyError(
                f"the guidance of {method} is at layer {guidance.layer}, but the model has {base.cfg.n_layers} layers, "
                "counted from 0; name one of them"
            )


def prepare_base(asked: Plan, base: HookedTransformer, general: Sequence[Task], run: run_folder.Run) -> PreparedBase:
    """Universal heads, their vectors and the probes, of the base model; the heads are kept in the run folder."""
    path = run.path("universal.safetensors")
    if not path.exists():
        guides = _choose_tasks(asked, general, asked.guides) if asked.guides else list(general)[::2]
        chosen = asked.evaluation
        universal_heads(base, guides, _settings(asked), top=chosen.top, scale=chosen.scale).save(path)
    return prepare_from(asked, base, general, path)


def prepare_from(asked: Plan, base: HookedTransformer, general: Sequence[Task], path: Path) -> PreparedBase:
    """What cells share, from the universal heads that were kept."""
    universal = Universal.load(path)
    found = {}
    for task in _choose_tasks(asked, general, asked.evaluation.probes):
        vector = instruction_vector(
            base,
            task,
            heads=universal.heads,
            layer=universal.layer,
            scale=universal.scale,
            settings=universal.settings,
        )
        found[task.name] = (
            task,
            probes.prepare(
                base, task, vector, prompts=asked.evaluation.probe_prompts, others=general, demonstrations=True
            ),
        )
    return PreparedBase(model=base, universal=universal, probes=found)


def _settings(asked: Plan) -> Settings:
    chosen = asked.evaluation
    return Settings(
        shots=chosen.shots, clean_prompts=chosen.clean_prompts, prompts=chosen.probe_prompts, seed=chosen.seed
    )
