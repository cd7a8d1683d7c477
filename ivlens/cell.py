"""One method with one seed learns a sequence of tasks: what is measured after every stage?

A cell is the unit of a study that is resumed. Its folder holds an adapter, a table of steps and a table of measures for
every stage that is done; in the middle of a stage it goes on from a checkpoint. All numbers follow from plan and seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ivlens import adapters, dependence, effects, files, finetune, frames, layouts, lora, snapshots
from ivlens.activations import mean_z
from ivlens.controls import with_norm
from ivlens.errors import TrainingError
from ivlens.examination import COLUMNS, Examination
from ivlens.guidance import Guidance, Guide
from ivlens.methods import History, Method
from ivlens.plan import Plan
from ivlens.probes import Probe
from ivlens.prompts import Tokens, tokenize
from ivlens.stages import Stage
from ivlens.tasks import Task
from ivlens.universal import Universal
from ivlens.vectors import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

EVALUATIONS = ("method", "seed", "stage", "task", "kind", "measure", "heads", "value", "n")
STEPS = ("method", "seed", "stage", "task", "step", "loss", "penalty", "rate", "gradient")
GRIDS = ("method", "seed", "stage", "task", "layer", "head", "aie")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is run, and where it is kept."""

    plan: Plan
    method: str
    seed: int
    folder: Path

    @property
    def where(self) -> dict[str, Any]:
        return {"method": self.method, "seed": self.seed}

    def path(self, stage: int, suffix: str) -> Path:
        return self.folder / f"stage-{stage}{suffix}"

    def is_done(self, stage: int) -> bool:
        """The table of measures is written last."""
        return self.path(stage, ".parquet").is_file()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells of a study share: the base model and everything that was prepared of it."""

    model: HookedTransformer
    universal: Universal
    probes: Mapping[str, tuple[Task, Probe]]
    """Of general tasks, by name."""


def run(cell: Cell, bench: Bench, stages: Sequence[Stage], examination: Examination) -> Iterator[int]:
    """Learn and measure stage after stage; yields the number of each one when it is done, from 0, the base model.

    With the last stage, all adapters together are written as one PEFT folder, `adapter`, where PEFT knows the model.

    Raises:
        TrainingError: the loss is not finite; what was done stays.
        RunError: the folder cannot be written.
    """
    with torch.random.fork_rng():
        if not cell.is_done(0):
            _measure(cell, 0, bench, examination, grids=True)
        yield 0
        method, past = cell.plan.method(cell.plan.parts(cell.method)[0]), list[lora.Adapter]()
        for number in range(1, len(stages) + 1):
            if cell.is_done(number):
                past.append(lora.load(cell.path(number, ".safetensors"), bench.model))
            else:
                adapter = _learn(cell, number, stages, bench, method, past)
                past.append(adapter)
                total, is_last = lora.stack(past), number == len(stages)
                if is_last and layouts.is_known(bench.model):
                    adapters.write_adapter(total, cell.folder / "adapter", bench.model, base=cell.plan.model)
                with lora.merged(bench.model, total):
                    _measure(cell, number, bench, examination, grids=is_last)
                cell.path(number, ".checkpoint").unlink(missing_ok=True)
            yield number


def _learn(
    cell: Cell, number: int, stages: Sequence[Stage], bench: Bench, method: Method, past: Sequence[lora.Adapter]
) -> lora.Adapter:
    """Train a new adapter on top of the earlier ones, and keep it with its steps."""
    model, plan, stage = bench.model, cell.plan, stages[number - 1]
    earlier = stages[: number - 1]
    _keep_whole(cell, number)
    history = History(
        adapters=tuple(past),
        prompts=tuple(one.train for one in earlier),
        tokens=tuple(tokenize(model, one.train) for one in earlier),
    )
    method.begin(model, history)
    adapter = lora.fresh(model, plan.lora, seed=finetune.mixed(cell.seed, number))
    examples = _examples(model, stage, method, history, seed=cell.seed)
    guidance = plan.parts(cell.method)[1]
    old = [lora.stack(past)] if past else []
    new = examples.prompts[: examples.new]
    guide = guidance and _guide(guidance, bench, old, adapter, new, seed=finetune.mixed(cell.seed, number))
    with lora.attached(model, *old, adapter):
        steps = finetune.finetune(
            model,
            adapter,
            examples,
            plan.training,
            method=method,
            guide=guide,
            seed=finetune.mixed(cell.seed, number),
            name=f"stage {number} ({stage.name})",
            checkpoint=cell.path(number, ".checkpoint"),
        )
        taken = _taken(cell.path(number, "-steps.jsonl"), steps)
    adapter.requires_grad_(False)
    if not all(bool(factor.isfinite().all()) for factor in adapter.parameters()):
        raise TrainingError(
            f"the last step of stage {number} ({stage.name}), step {plan.training.steps - 1}, made the adapter NaN or "
            "infinite; lower the rate"
        )
    lora.save(adapter, cell.path(number, ".safetensors"))
    taken = taken.assign(**cell.where, stage=number, task=stage.name)
    _write(cell.path(number, "-steps.parquet"), taken[list(STEPS)])
    return adapter


def _taken(path: Path, steps: Iterator[finetune.Step]) -> pd.DataFrame:
    """Take all steps; a line each is kept at once, so that those before a checkpoint are not lost with the process."""
    with files.as_run_error(path), path.open("a", encoding="utf-8") as file:
        file.write("\n")  # A killed process may have left half a line.
        for step in steps:
            line = json.dumps({**step._asdict(), "step": step.number})
            file.write(f"{line}\n")
            file.flush()
    found = _lines(path)
    return pd.DataFrame([found[step] for step in sorted(found)])


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    """Steps by number. One that went on from a checkpoint took some steps again, to the same numbers."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError):  # The last line of a process that was killed.
            one = files.parse_json(line)
            if isinstance(one, dict) and type(one.get("step")) is int:
                found[one["step"]] = one
    return found


def _keep_whole(cell: Cell, number: int) -> None:
    """A checkpoint is gone on from if every step before it has its line; else the stage is learned anew."""
    path = cell.path(number, ".checkpoint")
    steps = min(snapshots.steps_of(path), cell.plan.training.steps)
    if set(range(steps)) - _lines(cell.path(number, "-steps.jsonl")).keys():
        path.unlink()


def _examples(
    model: HookedTransformer, stage: Stage, method: Method, history: History, *, seed: int
) -> finetune.Examples:
    old = method.replayed(history, seed=seed)
    return finetune.Examples(
        prompts=tokenize(model, [*stage.train, *old]),
        bare=tokenize(model, [*stage.bare, *old]),
        new=len(stage.train),
        replayed=getattr(method, "share", 0.0) if old else 0.0,
    )


def _guide(
    guidance: Guidance,
    bench: Bench,
    old: Sequence[lora.Adapter],
    adapter: lora.Adapter,
    prompts: Tokens,
    *,
    seed: int,
) -> Guide:
    """The vectors that a stage is guided by, and its teacher: the model before the first stage, or before this one."""
    model, universal = bench.model, bench.universal
    with lora.attached(model, *(old if guidance.teacher == "previous" else [])):
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
        vectors = {"task": own, "zero": torch.zeros_like(own), "general": universal.vectors.to(own)}[guidance.vector]
    return Guide(
        guidance=guidance,
        vectors=(universal.scale if guidance.scale is None else guidance.scale) * vectors,
        layer=universal.layer if guidance.layer is None else guidance.layer,
        heads=universal.heads,
        teacher=partial(lora.silenced, model, *([adapter] if guidance.teacher == "previous" else [])),
    )


def _measure(cell: Cell, number: int, bench: Bench, examination: Examination, *, grids: bool) -> None:
    """Measure the model as it is now; the table of measures is written last."""
    lines, effects_found = [], []
    for name, (task, probe) in bench.probes.items():
        lines += _probed(bench, name, task, probe)
        if grids:
            effects_found.append(_grid(bench, name, task))
    if effects_found:
        found = pd.concat(effects_found, ignore_index=True).assign(**cell.where, stage=number)
        _write(cell.path(number, "-aie.parquet"), found[list(GRIDS)])
    frame = pd.concat([examination(bench.model), pd.DataFrame(lines, columns=list(COLUMNS))], ignore_index=True)
    _write(cell.path(number, ".parquet"), frame.assign(**cell.where, stage=number)[list(EVALUATIONS)])


def _probed(bench: Bench, name: str, task: Task, probe: Probe) -> Iterator[tuple[Any, ...]]:
    """Dependence on the base model's vector, and how far the model's own has drifted from it."""
    for (measure, heads), values in dependence.per_prompt(bench.model, probe).values.items():
        yield name, "probe", measure, heads, float(values.double().mean()), len(values)
    own = write_vector(bench.model, effects.task_mean_z(bench.model, task, bench.universal.settings), probe.heads)
    cosine = float(torch.cosine_similarity(own.double(), probe.vectors[0].to(own).double(), dim=0))
    yield name, "probe", "cosine", "chosen", cosine, bench.universal.settings.clean_prompts


def _grid(bench: Bench, name: str, task: Task) -> pd.DataFrame:
    """The model's own AIE, of its own mean head outputs."""
    settings = bench.universal.settings
    z = effects.task_mean_z(bench.model, task, settings)
    aie = effects.measure_effects(bench.model, task, z, settings, model_digest="").aie.cpu().numpy()
    layers, heads = np.indices(aie.shape).reshape(2, -1)
    return pd.DataFrame({"task": name, "layer": layers, "head": heads, "aie": aie.reshape(-1)})


def _write(path: Path, frame: Any) -> None:
    files.write_whole(path, frames.to_bytes(frame))
