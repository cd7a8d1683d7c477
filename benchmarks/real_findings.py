"""What docs/smollm2.md says, out of the run folders that its commands leave.

    python benchmarks/real_findings.py runs     keeps their numbers in benchmarks/smollm2.json, and prints the tables

A run that stopped behind its heads (`--only heads`) has abilities and effects alone. Of effects, means and intervals
are kept, not single prompts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import stats

from ivlens.analysis.audit import Audit
from ivlens.errors import RunError
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.storage.run_record import read_record

KEPT = Path(__file__).parent / "smollm2.json"
TASKS = ("present-past", "singular-plural", "capitalize", "lowercase_first_letter", "choose_last_of_3")
WAYS = ("shuffled-demonstrations", "shuffled-instruction", "zero-shot-demonstrations", "zero-shot-instruction")
CONTROLS = ("random", "low-AIE", "gaussian", "other-task")
_NO_HEADS = {"mean_z": torch.zeros(0), "settings": Settings(), "task": "", "task_digest": ""}

Found = dict[str, Any]


def keep(folder: Path) -> Found:
    """The numbers of one run folder."""
    record = read_record(folder / "run.json")
    effects = pd.read_parquet(folder / "effects.parquet")
    found = HeadEffects.from_frame(effects, **_NO_HEADS, model="", model_digest="")
    low, high = found.interval()
    bounds = zip(found.aie.flatten().tolist(), low.flatten().tolist(), high.flatten().tolist(), strict=True)
    about = record.model_dump(mode="json", include={"typed", "settings", "sources", "seed", "versions", "finished"})
    is_whole = record.status == "complete"
    table = folder / ("measures.parquet" if is_whole else "parts/abilities.parquet")
    return {
        **about,
        "measures": _lines(pd.read_parquet(table), "measure"),
        "heads": {str(head): _rounded(one) for head, one in zip(_addresses(found), bounds, strict=True)},
        "clear": [str(head) for head in found.clear()],
        "ranking prompts": len(found.cie),
        **(_rest(folder) if is_whole else {}),
    }


def _rest(folder: Path) -> Found:
    audit = Audit.read(folder)
    assert audit.necessity is not None
    ablated = audit.necessity.assign(name=audit.necessity["ablated"].where(audit.necessity["n_heads"] < 2, "all"))
    named = ablated.assign(name=ablated["prompt"] + ", " + ablated["heads"] + ", " + ablated["name"])
    drawn = named["heads"] == "random"
    named.loc[drawn, "name"] = named["prompt"] + ", random, " + named["n_heads"].astype(str)
    return {
        "vector": {
            "heads": list(map(str, audit.vector.heads)),
            "layer": audit.vector.layer,
            "scale": audit.vector.scale,
        },
        "verdict": audit.verdict.short,
        "outcome": audit.verdict.outcome,
        "necessity": _lines(named, "name"),
    }


def _addresses(found: HeadEffects) -> Iterator[str]:
    _, layers, heads = found.cie.shape
    return (f"L{layer}H{head}" for layer in range(layers) for head in range(heads))


def _lines(frame: pd.DataFrame, name: str) -> dict[str, dict[str, float | None]]:
    numbers = frame.set_index(name).select_dtypes("number").to_dict("index")
    return {str(key): {column: _round(value) for column, value in line.items()} for key, line in numbers.items()}


def _rounded(values: Iterable[float]) -> list[float | None]:
    return [_round(value) for value in values]


def _round(value: float) -> float | None:
    return None if value != value else round(float(value), 5)


def told(line: dict[str, Any] | None, name: str = "accuracy", *, digits: int = 2) -> str:
    """A value and its interval."""
    if line is None or line[name] is None:
        return "not measured"
    value, low, high = (line[f"{name}{end}"] for end in ("", "_low", "_high"))
    ends = "" if low is None or low == high == value else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"


def effect(run: Found, head: str) -> str:
    """A head's AIE and its interval."""
    aie, low, high = run["heads"][head]
    return f"{head} {aie:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def ranked(run: Found) -> list[str]:
    """Heads, the largest AIE first."""
    return sorted(run["heads"], key=lambda head: -run["heads"][head][0])


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """As Markdown has it."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def abilities(runs: dict[str, Found], names: Iterable[str]) -> str:
    kinds = ("few-shot", "shuffled", "zero-shot", "instructed")
    found = ((name, runs[name]["measures"]) for name in names)
    lines = [
        [_task(name), *(told(measures.get(kind)) for kind in kinds), told(measures["most frequent answer"])]
        for name, measures in found
    ]
    return table(("task", "10 shots", "10 shots, shuffled", "zero-shot", "instruction", "most frequent answer"), lines)


def vectors(runs: dict[str, Found], names: Iterable[str]) -> str:
    lines = [
        [
            _task(name),
            f"{run['vector']['layer']}, {run['vector']['scale']:g}",
            told(run["measures"]["steered"]),
            *(told(run["measures"].get(f"steered, {control}")) for control in CONTROLS),
            run["verdict"],
        ]
        for name in names
        for run in [runs[name]]
    ]
    head = ("task", "layer, scale", "with the vector", "random heads", "low-AIE heads", "Gaussian", "other tasks")
    return table((*head, "verdict"), lines)


def ways(runs: dict[str, Found], tasks: Iterable[str] = TASKS) -> str:
    """What the AIE finds when the task is taken out, and shown, in another way."""
    lines = []
    for task in tasks:
        usual = runs[f"{task}-{WAYS[0]}"]
        for way in WAYS:
            if (run := runs.get(f"{task}-{way}")) is not None:
                first = "; ".join(effect(run, head) for head in ranked(run)[:2])
                same = "" if run is usual else _alike(run, usual)
                lines.append([task, *_way(way), first, str(len(run["clear"])), same])
    head = ("task", "corrupted", "means from", "two largest AIE", "heads clear of 0")
    return table((*head, "of the ten largest, shared with the first line; Spearman of all heads"), lines)


def necessity(runs: dict[str, Found], names: Iterable[str]) -> str:
    def lost(run: Found, kind: str, name: str) -> str:
        return told(run["necessity"].get(f"{kind}, {name}"), "necessity")

    lines = []
    for name in names:
        run = runs[name]
        first = run["vector"]["heads"][0]
        for kind in ("few-shot", "instructed"):
            whole = run["necessity"].get(f"{kind}, none, ")
            if whole is not None:
                sets = (f"chosen, {first}", "random, 1", "chosen, all", "random, 10")
                lost_of = [lost(run, kind, one) for one in sets]
                lines.append([_task(name), kind, told(whole, "probability"), f"{first}: {lost_of[0]}", *lost_of[1:]])
    head = ("task", "prompts", "P(answer)", "lost without the first head", "a random head", "the ten heads")
    return table((*head, "ten random heads"), lines)


def shared(runs: dict[str, Found], names: Sequence[str], count: int = 10) -> str:
    """Heads by their AIE averaged over tasks, with Student's interval over tasks."""
    frame = pd.DataFrame({name: {head: one[0] for head, one in runs[name]["heads"].items()} for name in names})
    half = float(stats.t.ppf(0.975, len(names) - 1)) * frame.std(axis=1) / len(names) ** 0.5
    ranks, mean = frame.rank(ascending=False), frame.mean(axis=1)
    lines = []
    for head in mean.sort_values(ascending=False).index[:count]:
        clear = sum(head in runs[name]["clear"] for name in names)
        interval = f"{mean[head]:+.3f} [{mean[head] - half[head]:+.3f}, {mean[head] + half[head]:+.3f}]"
        lines.append(
            [str(head), interval, ", ".join(f"{rank:.0f}" for rank in ranks.loc[head]), f"{clear} of {len(names)}"]
        )
    return table(("head", "mean AIE", "rank on each task", "clear of 0 on"), lines)


def _alike(run: Found, other: Found) -> str:
    ten, common = set(ranked(run)[:10]), list(run["heads"])
    grids = ([one["heads"][head][0] for head in common] for one in (run, other))
    return f"{len(ten & set(ranked(other)[:10]))}; {stats.spearmanr(*grids).statistic:.2f}"


def _task(name: str) -> str:
    return next((task for task in TASKS if task in name), name)


def _way(way: str) -> tuple[str, str]:
    source = way.rpartition("-")[2]
    return way.removesuffix(f"-{source}"), source


def tables(runs: dict[str, Found]) -> Iterator[str]:
    """Those of the document, in its order."""
    usual = [f"{task}-{WAYS[0]}" for task in TASKS]
    other = [name for name in runs if name.startswith("gemma-")]
    yield from (abilities(runs, usual), vectors(runs, usual), ways(runs), necessity(runs, usual), shared(runs, usual))
    yield from (abilities(runs, other), vectors(runs, other), necessity(runs, other))


def main(folder: Path) -> None:
    found = {path.parent.name: keep(path.parent) for path in sorted(folder.glob("*/run.json"))}
    if not found:
        raise RunError(f"{folder} has no run folders in it; give the folder that holds them")
    text = ",\n".join(f" {json.dumps(name)}: {json.dumps(run, ensure_ascii=False)}" for name, run in found.items())
    KEPT.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    print(*tables(found), sep="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
