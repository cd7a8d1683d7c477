"""What does a study need before its first cell? General tasks, stages, and what is prepared of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivlens.analysis import probes
from ivlens.datasets.task import Task, tasks
from ivlens.datasets.task import task as find_task
from ivlens.errors import StudyError, TaskError
from ivlens.forgetting.cell import BASE
from ivlens.forgetting.evaluation import Evaluation, find_able
from ivlens.forgetting.method_run import PreparedBase
from ivlens.forgetting.plan import Plan
from ivlens.patching.effects import mean_prompts
from ivlens.patching.settings import Settings
from ivlens.steering.universal_heads import Universal, universal_heads
from ivlens.steering.vector_building import instruction_vector
from ivlens.storage.run_folder import Run
from ivlens.storage.run_tables import Tables
from ivlens.training import benchmark_stages, stages
from ivlens.training.stages import Stage

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def general_tasks(asked: Plan) -> list[Task]:
    """The general tasks of a plan, refused before the model is read where they cannot serve.

    Raises:
        StudyError: one is trained on, too, or a guide, a probe or a member of a family is not among them.
        TaskError: one has no instruction, or too few pairs.
    """
    names = asked.general or tuple(tasks())
    found = {name: find_task(name) for name in names}
    own = [task.name for task in found.values()]
    repeated = sorted({name for name in own if own.count(name) > 1})
    if repeated:
        raise StudyError(f"two general tasks are called {', '.join(repeated)}; rename one")
    listed = {"guides": asked.guides, "evaluation.probes": asked.evaluation.probes}
    listed |= {f"families.{name}": chosen for name, chosen in asked.families.items()}
    for kind, chosen in listed.items():
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
    """What is learned, in this seed's order and with its split.

    Raises:
        StudyError: one of them is a general task, too.
        TaskError: there is no such task, it is too small for its split or for the demonstrations of a guidance, or it
            is named twice.
    """
    found = [benchmark_stages.stage(name, seed=seed, limit=asked.train_prompts) for name in asked.ordered(seed)]
    stages.check_sequence(found)
    both = sorted({stage.name for stage in found} & {task.name for task in general})
    if both:
        raise StudyError(f"{', '.join(both)} is trained on and measured as a general task; choose one of the two")
    guidances = [asked.parts(method)[1] for method in asked.methods]
    if any(guidance is not None and guidance.source == "demonstrations" for guidance in guidances):
        for stage in found:  # Refused here rather than after the stages before it.
            stage.with_demonstrations(asked.evaluation.shots, seed=seed)
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


def guiding_tasks(asked: Plan, general: Sequence[Task]) -> list[Task]:
    """Those that universal heads are ranked on and general vectors are of."""
    if asked.guides:
        return _choose_tasks(asked, general, asked.guides)
    if asked.held_out == "task":
        return list(general)[::2]
    families = list(dict.fromkeys(asked.family(task.name) for task in general))
    return [task for task in general if asked.family(task.name) in families[::2]]


def universal_files(asked: Plan, folder: Path) -> dict[int, Path]:
    """Where the universal heads of every seed are kept; one file for all where nothing is drawn by seed."""
    once = asked.evaluation.drawn == "once"
    return {seed: folder / f"universal{'' if once else f'-{seed}'}.safetensors" for seed in asked.seeds}


def keep_universal(asked: Plan, base: HookedTransformer, general: Sequence[Task], run: Run) -> None:
    """Universal heads of the base model, written into the run folder where they are missing."""
    for seed, path in universal_files(asked, run.folder).items():
        if not run.has(path.name):
            chosen, guides = asked.evaluation.of(seed), guiding_tasks(asked, general)
            with Tables(run).keeping(BASE):
                found = universal_heads(base, guides, _settings(chosen), top=chosen.top, scale=chosen.scale)
            run.write_with(path.name, found.save)


def prepare_base(
    asked: Plan, seed: int, base: HookedTransformer, general: Sequence[Task], folder: Path
) -> PreparedBase:
    """What the cells of a seed share, from its universal heads that were kept."""
    universal = Universal.load(universal_files(asked, folder)[seed])
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
    guided = [task for task in general if task.name in universal.tasks]
    prompts = [prompt for task in guided for prompt in mean_prompts(task, universal.settings)]
    able = find_able(base, general, asked.evaluation.of(seed))
    return PreparedBase(model=base, universal=universal, probes=found, general=tuple(prompts), able=able)


def _settings(chosen: Evaluation) -> Settings:
    return Settings(
        shots=chosen.shots, clean_prompts=chosen.clean_prompts, prompts=chosen.probe_prompts, seed=chosen.seed
    )
