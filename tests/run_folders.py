"""A small, whole and valid folder of each kind of run, of made-up numbers: for tests of what reads them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ivlens.experiments import rankings
from ivlens.experiments.settings import ExperimentSettings
from ivlens.forgetting import plan
from ivlens.patching.head_effects import HeadEffects, table_of
from ivlens.patching.settings import Settings
from ivlens.shapes import Head
from ivlens.steering.universal_heads import Considered, Universal
from ivlens.storage import run_folder as runs
from ivlens.vectors.drift import aie_table
from ivlens.vectors.instruction_vector import InstructionVector

LAYERS, HEADS = 2, 4
CHOSEN = (Head(1, 1), Head(0, 3))
SHARES = {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75}
SHARES |= {"probability": 0.4, "probability_low": 0.2, "probability_high": 0.6}
VALUES = {**SHARES, "prompts": 4}
_ABOUT: dict[str, Any] = {"task": "antonym", "task_digest": "77", "model": "tiny", "model_digest": "ab"}


def vector() -> InstructionVector:
    return InstructionVector(
        vector=torch.randn(20),
        heads=CHOSEN,
        layer=1,
        mean_z=torch.randn(LAYERS, HEADS, 6),
        aie=torch.randn(LAYERS, HEADS),
        settings=Settings(),
        **_ABOUT,
    )


def universal() -> Universal:
    return Universal(
        aie=torch.randn(LAYERS, HEADS),
        heads=CHOSEN,
        layer=1,
        tasks=("a", "b"),
        vectors=torch.randn(2, 20),
        settings=Settings(),
    )


def effects() -> HeadEffects:
    """Of eight prompts on four queries; every effect and probability within what it can be."""
    return HeadEffects(
        cie=torch.rand(8, LAYERS, HEADS) - 0.5,
        baseline=torch.rand(8),
        queries=torch.arange(8) // 2,
        mean_z=torch.randn(LAYERS, HEADS, 6),
        settings=Settings(),
        **_ABOUT,
    )


def effects_table() -> pd.DataFrame:
    found = effects()
    return table_of(found.cie, found.queries, found.baseline)


def audit_tables() -> dict[str, pd.DataFrame]:
    kinds, layers = ("chosen", "random", "low-AIE"), range(LAYERS)
    names = ["zero-shot", "instructed", "few-shot", "shuffled", "statement", "most frequent answer"]
    names += ["steered", "steered, random", "steered, low-AIE", "steered, scale 1", "steered, random, scale 1"]
    draws = [("chosen", n, 0) for n in (1, 2)] + [("random", n, draw) for n in (1, 2) for draw in range(3)]
    ablated = [("none", "", 0), *(("chosen", str(head), 1) for head in CHOSEN), ("random", "", 1)]
    ablated += [("chosen", " ".join(map(str, CHOSEN)), 2), ("random", "", 2)]
    place = {"layer": 1, "scale": 1.0, "accuracy": 0.5, "probability": 0.4}
    lost = {"necessity": 0.1, "necessity_low": -0.1, "necessity_high": 0.3}
    columns = ("heads", "n_heads", "draw")
    return {
        "effects": effects_table(),
        "measures": _frame({"measure": name, **VALUES, "score": "greedy-match"} for name in names),
        "steering": _frame(
            {"heads": kind, "n_heads": 2, "layer": layer, "scale": 1.0, "draws": 3, **VALUES}
            for kind, layer in itertools.product(kinds, layers)
        ),
        "heads": _frame(
            {"n_heads": n, "heads": kind, "layers": "1", "scales": "1", "draws": 3, **VALUES}
            for n, kind in itertools.product((1, 2), kinds)
        ),
        "places": _frame(
            {"layer": layer, "scale": scale, "share": 0.5, "accuracy": 0.5, "probability": 0.4, "prompts": 4}
            | {"chosen": (layer, scale) == (1, 1.0)}
            for layer, scale in itertools.product(layers, (0.5, 1.0))
        ),
        "draws": _frame(dict(zip(columns, draw, strict=True)) | place for draw in draws),
        "layer_draws": _frame(
            dict(zip(columns, draw, strict=True)) | place | {"layer": layer}
            for draw, layer in itertools.product(draws[5:], layers)
        ),
        "by_query": _frame(
            {"query": query, "heads": kind, "draw": draw, "accuracy": query > 1, "probability": 0.1 * (query + draw)}
            for (kind, _, draw), query in itertools.product([draws[1], *draws[5:]], range(4))
        ),
        "necessity": _frame(
            {"prompt": prompt, "heads": kind, "ablated": heads, "n_heads": n, "draws": 3, **VALUES, **lost}
            for prompt, (kind, heads, n) in itertools.product(("instructed", "few-shot"), ablated)
        ),
        "instructions": _frame(
            {"number": number, "wording": f"Wording {number}.", "chosen": number == 2, **VALUES} for number in (1, 2)
        ),
        "precision": _frame(
            [{"dtype": "bfloat16", "prompts": 4, "largest_aie": 0.5, "difference": 0.01, "share": 0.02, "reason": ""}]
        ),
        "universal_tasks": pd.DataFrame([Considered(name, "12", 0.9, 0.1, True, "above") for name in ("a", "b")]),
    }


def audit_folder(folder: Path) -> None:
    with _run(folder, "audit", dataclasses.asdict(Settings()), audit_tables()) as run:
        run.write_with("vector.safetensors", vector().save)
        run.write_json("prompts.json", {kind: {"text": "hot ->", "answer": " cold"} for kind in ("clean", "shuffled")})
        run.complete()


def comparison_tables() -> dict[str, pd.DataFrame]:
    base, number = effects(), {"value": 0.3, "low": 0.1, "high": 0.5, "n": 4}
    tuned = dataclasses.replace(base, cie=base.cie / 2)
    plain = [f"{kind} {of}" for kind in ("instruction", "knowledge", "zero-shot") for of in ("probability", "accuracy")]
    paired = [
        *("sufficiency", "necessity", "shift"),
        *(f"steered zero-shot {of}" for of in ("probability", "accuracy")),
    ]
    keys = [(name, "") for name in plain] + list(itertools.product(paired, ("chosen", "random")))
    lines = [
        {"measure": name, "heads": heads, "n_heads": 2 if heads else 0, "model": model}
        | {"vector": "base" if heads else "", **number}
        for (name, heads), model in itertools.product(keys, ("base", "tuned", "difference"))
    ]
    lines += [{**lines[-1], "measure": "most frequent answer", "heads": "", "model": "base", "vector": ""}]
    lines += [{**line, "vector": "tuned"} for line in lines if line["heads"] and line["model"] == "tuned"]
    drifted = {"cosine": ("own", "base", "random"), "jaccard": ("chosen", "random"), "spearman": ("",)}
    regained = [
        ("lost instruction accuracy", ""),
        *(("regained instruction accuracy", h) for h in ("chosen", "random")),
    ]
    return {
        **{f"{name}_effects": table_of(one.cie, one.queries, one.baseline) for name, one in _sides(base, tuned)},
        "aie": aie_table(base, tuned),
        "measures": pd.DataFrame(lines),
        "drift": _frame({"measure": m, "heads": h, **number} for m, own in drifted.items() for h in own),
        "recovery": _frame({"measure": m, "heads": h, "n_heads": 2, **number} for m, h in regained),
    }


def comparison_folder(folder: Path) -> None:
    with _run(folder, "compare", dataclasses.asdict(Settings()), comparison_tables()) as run:
        for name in ("base", "tuned"):
            run.write_with(f"{name}_vector.safetensors", vector().save)
        run.complete()


STUDY = plan.Plan(
    name="mine",
    tasks=("class-letter", "kind-form"),
    general=("antonym", "capitalize"),
    methods=("lora", "lora+kl"),
    seeds=(0, 1),
    evaluation=plan.Evaluation(drawn="once", probes=("antonym",)),
)


def study_tables() -> dict[str, pd.DataFrame]:
    levels = [f"{kind} {of}" for kind in ("instruction", "knowledge") for of in ("accuracy", "probability")]
    asked = [(task, "sequence", name, "") for task in STUDY.tasks for name in ("accuracy", "trained accuracy")]
    asked += [(task, "general", name, "") for task in STUDY.general for name in [*levels, "few-shot accuracy"]]
    asked += [("antonym", "probe", name, "") for name in ("zero-shot accuracy", "instruction accuracy")]
    steered = ("sufficiency", "necessity", "shift", "steered zero-shot accuracy", "steered instruction accuracy")
    asked += [("antonym", "probe", name, heads) for name in steered for heads in ("chosen", "random")]
    asked += [("antonym", "probe", "cosine", "chosen")]
    cells = [{"method": method, "seed": seed} for method, seed in itertools.product(STUDY.methods, STUDY.seeds)]
    stages, step = range(len(STUDY.tasks) + 1), dict.fromkeys(("loss", "penalty", "rate", "gradient"), 0.1)
    return {
        "evaluations": _frame(
            {**cell, "stage": stage, "task": task, "kind": kind, "measure": measure, "heads": heads}
            | {"value": 0.1 * (stage + 3), "n": 4}
            | {"learned": STUDY.tasks.index(task) + 1 if task in STUDY.tasks else 0}
            for cell, stage, (task, kind, measure, heads) in itertools.product(cells, stages, asked)
        ),
        "steps": _frame(
            {**cell, "stage": stage, "task": STUDY.tasks[stage - 1], "step": number, **step}
            for cell, stage, number in itertools.product(cells, stages[1:], range(3))
        ),
        "aie": _frame(
            {**cell, "stage": stage, "task": "antonym", "layer": layer, "head": head, "aie": 0.1 * head}
            for cell, stage, layer, head in itertools.product(cells, (0, 2), range(LAYERS), range(HEADS))
        ),
    }


def study_folder(folder: Path) -> None:
    with _run(folder, "study", STUDY.record(), study_tables()) as run:
        run.write_with("universal.safetensors", universal().save)
        run.complete()


def experiment_tables() -> dict[str, pd.DataFrame]:
    number = {"value": 0.3, "low": 0.1, "high": 0.5, "draws": 1, "queries": 4}
    parts = (rankings.STEERED, rankings.PROBABLE, rankings.LOST, rankings.SHARED)
    keys = [(part, by, "chosen") for part in parts for by in ("aie", "gradient", "ablation")]
    keys += [(part, rankings.RANDOM_HEADS, "random") for part in parts]
    return {"findings": _frame({"part": part, "at": at, "kind": kind, **number} for part, at, kind in keys)}


def experiment_folder(folder: Path) -> None:
    with _run(folder, "experiment", {"name": "rankings", **ExperimentSettings().record()}, experiment_tables()) as run:
        run.complete()


FOLDERS = {
    "audit": audit_folder,
    "compare": comparison_folder,
    "study": study_folder,
    "experiment": experiment_folder,
}


def forget_digests(folder: Path) -> None:
    """As runs of before, which did not say how their files were when they were written."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    record.pop("files", None)
    path.write_text(json.dumps(record, indent=1))


def _run(folder: Path, command: str, chosen: dict[str, Any], tables: Mapping[str, pd.DataFrame]) -> runs.Run:
    roles = {role: runs.Source(name="tiny", digest="ab") for role in ("model", "task", "base", "tuned")}
    run = runs.open_run(folder, command=command, settings=chosen, sources=roles, seed=0)
    for name, frame in tables.items():
        run.write_table(name, frame)
    return run


def _frame(lines: Any) -> pd.DataFrame:
    return pd.DataFrame(list(lines))


def _sides(base: HeadEffects, tuned: HeadEffects) -> list[tuple[str, HeadEffects]]:
    return [("base", base), ("tuned", tuned)]
