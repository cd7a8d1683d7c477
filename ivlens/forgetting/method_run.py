"""One method with one seed learns a sequence of tasks: what is measured after every stage?

A method with a seed, a cell of the study's table, is what a study resumes. Its folder holds an adapter, a table of
steps and a table of measures for every stage that is done; in the middle of a stage it goes on from a checkpoint. All
numbers follow from plan and seed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from ivlens.analysis import dependence
from ivlens.analysis.dependence import Dependence
from ivlens.analysis.probes import Probe, measure_grid
from ivlens.datasets.task import Task
from ivlens.errors import RunError, TrainingError
from ivlens.forgetting import cell
from ivlens.forgetting.cell import MethodRun
from ivlens.forgetting.evaluation import COLUMNS, StageEvaluation
from ivlens.models import lora, peft, peft_config, peft_layout
from ivlens.models.adapter import load_adapter, save_adapter
from ivlens.patching import effects
from ivlens.patching.activations import mean_z
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.steering.controls import with_norm
from ivlens.steering.universal_heads import Universal
from ivlens.storage import atomic_files, parquet
from ivlens.training import checkpoints, loop
from ivlens.training.guidance import Guidance, Guide
from ivlens.training.methods import History, Method
from ivlens.training.stages import Stage
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

EVALUATIONS = ("method", "seed", "stage", "task", "kind", "measure", "heads", "value", "n")
LEARNED = "learned"
"""A further column of theirs: after which stage a task has been learned; 0: in none. Runs of before are without it."""
STEPS = ("method", "seed", "stage", "task", "step", "loss", "penalty", "rate", "gradient")
PROBE_BOUNDS = ("probe low", "probe high")
"""Kinds of lines whose values are the 95 % interval of a mean over all probes; over queries and draws."""
GRIDS = ("method", "seed", "stage", "task", "layer", "head", "aie")


@dataclass(frozen=True, kw_only=True)
class PreparedBase:
    """What all cells of a seed share: the base model and everything that was prepared of it."""

    model: HookedTransformer
    universal: Universal
    probes: Mapping[str, tuple[Task, Probe]]
    """Of general tasks, by name."""
    general: tuple[Prompt, ...]
    """Those that the vectors of the universal heads are taken from."""
    random_vectors: Tensor
    """What random heads write there, at equal norm; none where no guidance asks for it."""
    able: Mapping[str, Collection[str]] | None = None
    """See `StageEvaluation.of_able`."""


def run_method(
    run: MethodRun, base: PreparedBase, stages: Sequence[Stage], evaluation: StageEvaluation
) -> Iterator[int]:
    """Learn and measure stage after stage; yields the number of each one when it is done, from 0, the base model.

    With the last stage, all adapters together are written as one PEFT folder, `adapter`, where PEFT knows the model.

    Raises:
        TrainingError: the loss is not finite; what was done stays.
        RunError: the folder cannot be written.
    """
    evaluation = evaluation.of_able(base.able)
    with torch.random.fork_rng():
        if not run.is_done(0):
            _measure(run, 0, stages, base, evaluation)
        yield 0
        method, past = run.plan.method(run.plan.parts(run.method)[0]), list[lora.Adapter]()
        for number in range(1, len(stages) + 1):
            if not run.is_learned(number):
                _learn(run, number, stages, base, method, past)
            past.append(load_adapter(run.path(number, cell.ADAPTER), base.model))
            if not run.is_done(number):
                total = lora.stack(past)
                more = _write_all(run, total, base.model) if number == len(stages) else []
                with lora.merged(base.model, total):
                    _measure(run, number, stages, base, evaluation, more)
            yield number


def _learn(
    run: MethodRun,
    number: int,
    stages: Sequence[Stage],
    base: PreparedBase,
    method: Method,
    past: Sequence[lora.Adapter],
) -> None:
    """Train a new adapter on top of the earlier ones, and keep it with its steps."""
    model, plan, stage = base.model, run.plan, stages[number - 1]
    _keep_whole(run, number)
    history = History(
        adapters=tuple(past),
        prompts=tuple(one.train for one in stages[: number - 1]),
        tokens=tuple(tokenize(model, one.train) for one in stages[: number - 1]),
        general=base.general,
    )
    with run.keeping(number, "method"):
        method.begin(model, history)
    adapter = lora.fresh(model, plan.lora, seed=loop.mix_seeds(run.seed, number))
    examples = _examples(model, stage, method, history, seed=run.seed)
    guidance = plan.parts(run.method)[1]
    old = [lora.stack(past)] if past else []
    own = examples.prompts[: examples.new]
    if guidance and guidance.source == "demonstrations":
        own = tokenize(model, stage.with_demonstrations(plan.evaluation.shots, seed=run.seed))
    with run.keeping(number, "guide"):
        guide = guidance and _make_guide(guidance, base, old, adapter, own, seed=loop.mix_seeds(run.seed, number))
    with lora.attached(model, *old, adapter):
        steps = loop.finetune(
            model,
            adapter,
            examples,
            plan.training,
            method=method,
            guide=guide,
            seed=loop.mix_seeds(run.seed, number),
            name=f"stage {number} ({stage.name})",
            checkpoint=run.path(number, ".checkpoint"),
        )
        taken = _take_steps(run.path(number, "-steps.jsonl"), steps, run.digest(number))
    adapter.requires_grad_(False)
    if not all(bool(factor.isfinite().all()) for factor in adapter.parameters()):
        raise TrainingError(
            f"the last step of stage {number} ({stage.name}), step {plan.training.steps - 1}, made the adapter NaN or "
            "infinite; lower the rate"
        )
    save_adapter(adapter, run.path(number, cell.ADAPTER))
    _write(run.path(number, cell.STEPS), taken.assign(**run.where, stage=number, task=stage.name)[list(STEPS)])
    run.keep_learned(number)


def _write_all(run: MethodRun, total: lora.Adapter, model: HookedTransformer) -> list[Path]:
    """All adapters together as PEFT's folder `adapter`, where PEFT knows the model; its files."""
    if not peft_layout.is_known(model):
        return []
    peft.write_adapter(total, run.folder / "adapter", model, base=run.plan.model)
    return [run.folder / "adapter" / name for name in (peft_config.CONFIG, peft.WEIGHTS)]


def _take_steps(path: Path, steps: Iterator[loop.Step], digest: str) -> pd.DataFrame:
    """Take all steps; a line each is kept at once, so that those before a checkpoint are not lost with the process.

    Args:
        digest: Of the stage, by which its lines are known.
    """
    if path.is_symlink():
        raise RunError(f"{path} is a link, which may lead out of the run folder; remove it")
    with atomic_files.as_run_error(path), path.open("a", encoding="utf-8") as file:
        file.write("\n")  # A killed process may have left half a line.
        for step in steps:
            line = json.dumps({**step._asdict(), "step": step.number, "stage": digest})
            file.write(f"{line}\n")
            file.flush()
    found = _read_lines(path, digest)
    return pd.DataFrame([found[step] for step in sorted(found)])


def _read_lines(path: Path, digest: str) -> dict[int, dict[str, Any]]:
    """Steps of a stage by number. One that went on from a checkpoint took some steps again, to the same numbers."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError):  # The last line of a process that was killed.
            one = atomic_files.parse_json(line)
            if isinstance(one, dict) and type(one.get("step")) is int and one.get("stage") == digest:
                found[one["step"]] = one
    return found


def _keep_whole(run: MethodRun, number: int) -> None:
    """A checkpoint is gone on from if every step before it has its line; else the stage is learned anew."""
    path = run.path(number, ".checkpoint")
    steps = min(checkpoints.steps_of(path), run.plan.training.steps)
    if set(range(steps)) - _read_lines(run.path(number, "-steps.jsonl"), run.digest(number)).keys():
        path.unlink()


def _examples(model: HookedTransformer, stage: Stage, method: Method, history: History, *, seed: int) -> loop.Examples:
    old = method.replayed(history, seed=seed)
    return loop.Examples(
        prompts=tokenize(model, [*stage.train, *old]),
        bare=tokenize(model, [*stage.bare, *old]),
        new=len(stage.train),
        replayed=getattr(method, "share", 0.0) if old else 0.0,
    )


def _make_guide(
    guidance: Guidance,
    base: PreparedBase,
    old: Sequence[lora.Adapter],
    adapter: lora.Adapter,
    prompts: Tokens,
    *,
    seed: int,
) -> Guide:
    """The vectors that a stage is guided by, and its teacher: the model before the first stage, or before this one.

    Args:
        prompts: What the task's own vector is taken from.
    """
    model, universal = base.model, base.universal
    with lora.attached(model, *(old if (guidance.taken_from or guidance.teacher) == "previous" else [])):
        own = write_vector(model, mean_z(model, prompts), universal.heads)[None]
    generator = torch.Generator().manual_seed(seed)
    norms = {"random": own.norm(dim=1), "general-random": universal.vectors.norm(dim=1)}
    if guidance.vector in norms:
        directions = torch.randn(len(norms[guidance.vector]), own.shape[1], generator=generator).to(own)
        vectors = directions * (norms[guidance.vector].to(own) / directions.norm(dim=1))[:, None]
    elif guidance.vector == "other":
        drawn = int(torch.randint(len(universal.vectors), (), generator=generator))
        vectors = with_norm(universal.vectors[drawn : drawn + 1].to(own), float(own.norm()))
    else:
        given = {"task": own, "zero": torch.zeros_like(own), "general": universal.vectors}
        vectors = given.get(guidance.vector, base.random_vectors).to(own)  # general-random-heads
    return Guide(
        guidance=guidance,
        vectors=(universal.scale if guidance.scale is None else guidance.scale) * vectors,
        layer=universal.layer if guidance.layer is None else guidance.layer,
        heads=universal.heads,
        teacher=partial(lora.silenced, model, *([adapter] if guidance.teacher == "previous" else [])),
    )


def _measure(
    run: MethodRun,
    number: int,
    stages: Sequence[Stage],
    base: PreparedBase,
    evaluation: StageEvaluation,
    more: Sequence[Path] = (),
) -> None:
    """Measure the model as it is now, and keep it, with `more` files of the stage."""
    with run.keeping(number, "measured") if number else run.keeping_base():
        _write_measures(run, number, stages, base, evaluation)
    run.keep_measured(number, more)


def _write_measures(
    run: MethodRun, number: int, stages: Sequence[Stage], base: PreparedBase, evaluation: StageEvaluation
) -> None:
    """The table of measures is written last."""
    lines, effects_found, put = [], [], []
    for name, (task, probe) in base.probes.items():
        found, cosine = _measure_probe(base, task, probe)
        put.append(found)
        values = {key: float(values.double().mean()) for key, values in found.values.items()}
        lines += [(name, "probe", *key, value, len(found.values[key])) for key, value in values.items()]
        lines.append((name, "probe", "cosine", "chosen", cosine, base.universal.settings.clean_prompts))
        if run.has(number, cell.GRIDS):
            effects_found.append(measure_grid(base.model, base.universal.settings, name, task))
    lines += _probe_bounds(put)
    if effects_found:
        found = pd.concat(effects_found, ignore_index=True).assign(**run.where, stage=number)
        _write(run.path(number, cell.GRIDS), found[list(GRIDS)])
    frame = pd.concat([evaluation(base.model), pd.DataFrame(lines, columns=list(COLUMNS))], ignore_index=True)
    learned = {stage.name: place for place, stage in enumerate(stages, 1)}
    frame = frame.assign(**run.where, stage=number, learned=[learned.get(name, 0) for name in frame["task"]])
    _write(run.path(number, cell.MEASURES), frame[[*EVALUATIONS, LEARNED]])


def _measure_probe(base: PreparedBase, task: Task, probe: Probe) -> tuple[Dependence, float]:
    """Dependence on the base model's vector and on the model's own, and the cosine of the two."""
    own = write_vector(base.model, effects.task_mean_z(base.model, task, base.universal.settings), probe.heads)
    cosine = torch.cosine_similarity(own.double(), probe.vectors[0].to(own).double(), dim=0)
    return dependence.per_prompt(base.model, probe, own=base.universal.scale * own), float(cosine)


def _probe_bounds(put: Sequence[Dependence]) -> Iterator[tuple[Any, ...]]:
    """Ends of the intervals of accuracies over all probes: what a study of one seed can say of its uncertainty."""
    keys = [key for key in put[0].values if key[0].endswith("accuracy")] if put else []
    for measure, heads in keys:
        found, n = dependence.pooled(put, measure, heads)
        for kind, end in zip(PROBE_BOUNDS, (found.low, found.high), strict=True):
            yield "", kind, measure, heads, end, n


def _write(path: Path, frame: Any) -> None:
    atomic_files.write_whole(path, parquet.to_bytes(frame))
