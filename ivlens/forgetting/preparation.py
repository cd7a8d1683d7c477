"""What does a study need before its first cell? General tasks, stages, and what is prepared of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ivlens.analysis import probes
from ivlens.analysis.wordings import part_wordings
from ivlens.datasets.huggingface import HUB
from ivlens.datasets.task import Task, exists, tasks
from ivlens.datasets.task import task as find_task
from ivlens.errors import StudyError, TaskError
from ivlens.forgetting.cell import BASE
from ivlens.forgetting.evaluation import Evaluation, find_able, prepare_evaluation
from ivlens.forgetting.method_run import PreparedBase
from ivlens.forgetting.plan import Plan
from ivlens.lab.sequences import FILES
from ivlens.patching.effects import mean_prompts, task_mean_z
from ivlens.patching.settings import Settings
from ivlens.prompts.tokens import tokenize
from ivlens.steering.controls import draw_heads, with_norm
from ivlens.steering.universal_heads import Universal, universal_heads
from ivlens.steering.vector_building import instruction_vector
from ivlens.storage.run_folder import Run
from ivlens.storage.run_tables import Tables
from ivlens.training import benchmark_stages, stages
from ivlens.training.pace import measure_pace
from ivlens.training.stages import Stage
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def general_tasks(asked: Plan) -> list[Task]:
    """The general tasks of a plan, refused before the model is read where they cannot serve.

    Raises:
        StudyError: tasks of the plan are missing, one is trained on, too, or a guide, a probe or a member of a family
            is not among them.
        TaskError: one has no instruction, too few wordings, or too few pairs.
    """
    _refuse_missing(asked)
    names = asked.general or tuple(tasks())
    found = {name: find_task(asked.locate(name)) for name in names}
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
        part_wordings(task, asked.evaluation.kept_back)
        if {name, task.name} & set(asked.evaluation.probes):
            task.split(shots=shots)
    return list(found.values())


def _refuse_missing(asked: Plan) -> None:
    """All that are missing in a folder at once, rather than one after the other."""
    wanted = [name for name in dict.fromkeys((*asked.tasks, *asked.general)) if name not in {*tasks(), *FILES}]
    missing = [name for name in wanted if not name.startswith(HUB) and not exists(Path(asked.locate(name)))]
    if missing and (asked.tasks_in is not None or asked.tasks_from):
        where = "are not built in" if asked.tasks_in is None else f"are neither built in nor in {asked.tasks_in}"
        about = f" ({asked.tasks_from})" if asked.tasks_from else ""
        raise StudyError(
            f"study {asked.name} needs {len(missing)} tasks that {where}: {', '.join(missing)}{about}; give the folder "
            "that has them (--tasks DIR, in Python tasks_in)"
        )


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
    limit, most = asked.train_prompts, asked.evaluation.learned_queries
    places = map(asked.locate, asked.ordered(seed))
    found = [benchmark_stages.stage(place, seed=seed, limit=None if asked.shortest else limit) for place in places]
    if asked.shortest:
        found = [benchmark_stages.keep_shortest(one, train=limit, test=most) for one in found]
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
            chosen = asked.evaluation.of(seed)
            guides = [part_wordings(task, chosen.kept_back)[0] for task in guiding_tasks(asked, general)]
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
    guided = [part_wordings(task, asked.evaluation.kept_back)[0] for task in general if task.name in universal.tasks]
    prompts = [prompt for task in guided for prompt in mean_prompts(task, universal.settings)]
    forms = [asked.parts(method)[1] for method in asked.methods]
    wanted = guided if any(form and form.vector == "general-random-heads" for form in forms) else []
    return PreparedBase(
        model=base,
        universal=universal,
        probes=found,
        general=tuple(prompts),
        random_vectors=_write_at_random(base, universal, wanted),
        able=find_able(base, general, asked.evaluation.of(seed)),
    )


def _write_at_random(base: HookedTransformer, universal: Universal, guided: Sequence[Task]) -> Tensor:
    """Of each task, what as many other heads, drawn once for all, write on its prompts: as long as its vector is."""
    if not guided:
        return universal.vectors[:0]
    grid, settings = tuple(universal.aie.shape), universal.settings
    (drawn,) = draw_heads(grid, len(universal.heads), draws=1, seed=settings.seed, apart=universal.heads)
    written = torch.stack([write_vector(base, task_mean_z(base, task, settings), drawn) for task in guided])
    theirs = universal.vectors[[universal.tasks.index(task.name) for task in guided]]
    return with_norm(written, theirs.norm(dim=1, keepdim=True).to(written))


class Cost(NamedTuple):
    """How long a study takes, in seconds, about."""

    once: float
    """Before the first cell."""
    seed: float
    """All methods of a seed."""
    measuring: float
    """Of the latter, what is not training."""

    def seeds_within(self, seconds: float) -> int:
        """How many seeds fit.

        Raises:
            StudyError: not even one.
        """
        fitting = int((seconds - self.once) // self.seed)
        if fitting < 1:
            raise StudyError(
                f"one seed takes about {(self.once + self.seed) / 60:.0f} minutes here, and the budget is "
                f"{seconds / 60:.0f}; give more, or fewer methods or steps"
            )
        return fitting


def estimate_cost(asked: Plan, base: HookedTransformer, general: Sequence[Task]) -> Cost:
    """From the pace of a first batch and from how many tokens there are of each kind.

    Counted are tokens that are read, rows that are carried up the layers (a sweep's through half of them) and steps of
    training; what is not counted (files, penalties that read nothing) is small beside them.
    """
    chosen, learned = asked.evaluation.of(asked.seeds[0]), sequence(asked, asked.seeds[0], general)
    with torch.random.fork_rng():
        pace = measure_pace(base, learned[0], asked.lora, asked.training)
    sets, n_probes = prepare_evaluation(base, learned, general, chosen).prompt_sets, len(chosen.probes)
    clean = next(one for one in sets if one.accuracy == "few-shot accuracy").n_mean
    sweep, probe = _count_sweep(base, chosen, clean), _count_probe(base, chosen, clean)
    stage = sum(one.n_read for one in sets) + n_probes * probe
    guides = len(guiding_tasks(asked, general)) * (2 * chosen.clean_prompts * clean + sweep)
    once = pace.read * (guides + stage + n_probes * sweep)
    measuring = pace.read * len(asked.methods) * (len(learned) * stage + n_probes * sweep)
    per_step = sum(_step_tokens(asked, method, one, base, clean) for method in asked.methods for one in learned)
    seed = measuring + pace.trained * asked.training.steps * asked.training.batch * per_step
    if chosen.drawn == "once":
        return Cost(once=once, seed=seed, measuring=measuring)
    return Cost(once=0.0, seed=once + seed, measuring=once + measuring)


def _count_sweep(base: HookedTransformer, chosen: Evaluation, clean: float) -> float:
    """Tokens that take as long as patching every head on the prompts of a probe."""
    n_heads = base.cfg.n_layers * base.cfg.n_heads
    return chosen.probe_prompts * (clean + n_heads * (0.5 + _unembedding(base)))


def _count_probe(base: HookedTransformer, chosen: Evaluation, clean: float) -> float:
    """Tokens that take as long as putting one probe to a model."""
    return chosen.clean_prompts * clean + chosen.probe_prompts * (1.5 * clean + PROBE_ROWS * (1 + _unembedding(base)))


def _unembedding(base: HookedTransformer) -> float:
    """Of a token that is read to its logits, beside its blocks."""
    return base.cfg.d_vocab_out / (12 * base.cfg.n_layers * base.cfg.d_model)


PROBE_ROWS = 41
"""Variants of a prompt's end that a probe asks for, over all forms of prompts; see `dependence.per_prompt`."""


def _step_tokens(asked: Plan, method: str, stage: Stage, base: HookedTransformer, clean: float) -> float:
    """Tokens of a prompt in a step of plain training that take as long as one in a step of this method."""
    tokens = tokenize(base, stage.train)
    width, (name, guidance) = tokens.prompts.shape[1] + tokens.answers.shape[1] - 1, asked.parts(method)
    if name == "replay-general":
        width = max(width, round(clean))
    passes = 1.5 if name == "lwf" else 1.0  # A pass without gradients is half of one with them.
    if guidance is not None:
        compares = guidance.kl > 0 or guidance.kl_everywhere > 0
        passes += 0.5 * compares + 1.0 * guidance.rehearsal + 0.5 * (guidance.heads > 0)
    return passes * width


def _settings(chosen: Evaluation) -> Settings:
    return Settings(
        source="instruction" if chosen.kept_back else "demonstrations",
        shots=chosen.shots,
        clean_prompts=chosen.clean_prompts,
        prompts=chosen.probe_prompts,
        seed=chosen.seed,
    )
