"""The tables of docs/smollm2.md, out of the run folders that its commands leave.

    python benchmarks/real_findings.py runs     keeps their numbers in benchmarks/smollm2.json, and writes the tables

A run that stopped behind its heads (`--only heads`) has abilities and effects alone. Of effects, means and intervals
are kept, not single prompts. Of a run that the folder does not have the numbers stay that were kept before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from real_audits import LABS, plan
from real_tasks import TASKS
from scipy import stats

from ivlens.analysis.audit import Audit
from ivlens.analysis.options import AuditSettings
from ivlens.errors import RunError
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.storage.run_record import read_record

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "smollm2.md"
KEPT = ROOT / "benchmarks" / "smollm2.json"
WHOLE = ROOT / "figures" / "numbers" / "smollm2-present-past"
"""The run that figures are drawn from, of which all tables are kept."""
WAYS = ("shuffled-demonstrations", "shuffled-instruction", "zero-shot-demonstrations", "zero-shot-instruction")
CONTROLS = ("random", "low-AIE", "gaussian", "other-task")
_SHOWN = ("corruption", "source", "shots", "clean_prompts", "prompts", "queries", "draws")
_SHOWN_HEADS = 10
_UNKNOWN = dict.fromkeys(("task", "task_digest", "model", "model_digest"), "")

Found = dict[str, Any]


def keep(folder: Path) -> Found:
    """The numbers of one run folder."""
    record = read_record(folder)
    assert record is not None
    effects = pd.read_parquet(folder / "effects.parquet")
    unmeasured = torch.zeros(*(effects[["layer", "head"]].max() + 1), 1)  # Mean outputs, which are not asked for.
    found = HeadEffects.from_frame(effects, mean_z=unmeasured, settings=Settings(), **_UNKNOWN)
    low, high = found.interval()
    about = record.model_dump(mode="json", include={"typed", "settings", "sources", "seed", "versions", "finished"})
    del about["settings"]["template"]
    is_whole = record.status == "complete"
    table = folder / ("measures.parquet" if is_whole else "parts/abilities.parquet")
    measures = pd.read_parquet(table).set_index("measure")
    return {
        **about,
        "measures": _lines(measures[~measures.index.str.endswith("scale 1")]),
        "aie": {str(head): _round(found.aie[head]) for head in found.ranked()},
        "intervals": {str(head): [_round(low[head]), _round(high[head])] for head in found.top(_SHOWN_HEADS)},
        "clear": [str(head) for head in found.clear()],
        "ranking prompts": len(found.cie),
        **(_rest(folder) if is_whole else {}),
    }


def _rest(folder: Path) -> Found:
    audit = Audit.read(folder)
    assert audit.necessity is not None
    vector, named = audit.vector, audit.necessity.set_index("prompt")
    first, count = str(vector.heads[0]), len(vector.heads)
    ablated = {
        "nothing": named["heads"] == "none",
        "first head": named["ablated"] == first,
        "random head": (named["heads"] == "random") & (named["n_heads"] == 1),
        "chosen heads": (named["heads"] == "chosen") & (named["n_heads"] == count),
        "random heads": (named["heads"] == "random") & (named["n_heads"] == count),
    }
    return {
        "vector": {"heads": list(map(str, vector.heads)), "layer": vector.layer, "scale": vector.scale},
        "verdict": audit.verdict.short,
        "necessity": {name: _lines(named[chosen]) for name, chosen in ablated.items()},
    }


def _lines(frame: Any) -> dict[str, dict[str, float | None]]:
    numbers = frame.filter(regex="accuracy|probability|necessity").to_dict("index")
    return {str(key): {column: _round(value) for column, value in line.items()} for key, line in numbers.items()}


def _round(value: Any) -> float | None:
    return None if value != value else round(float(value), 5)


def command(name: str, run: Found) -> str:
    """What computes a run, for a task of its form."""
    if run["typed"]:
        return f"ivlens {' '.join(run['typed'])}"
    usual = asdict(AuditSettings())
    settings = usual | run["settings"]
    given = [f"--{key.replace('_', '-')} {settings[key]}" for key in _SHOWN if settings[key] != usual[key]]
    task, ends = _task(name), [] if run["finished"] else ["--only heads"]
    model = run["sources"]["model"]["name"]
    start = f"ivlens audit {LABS.get(model, model)} --task {'$task' if model in LABS else 'tasks/$task.json'}"
    return " ".join([start, *given, *ends, f"--out runs/{name.replace(task, '$task')}"])


def told(line: dict[str, Any] | None, name: str = "accuracy", *, digits: int = 2) -> str:
    """A value and its interval."""
    if line is None or line[name] is None:
        return "not measured"
    value, low, high = (line[f"{name}{end}"] for end in ("", "_low", "_high"))
    ends = "" if low is None or low == high == value else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"


def effect(run: Found, head: str) -> str:
    """A head's AIE and its interval."""
    low, high = run["intervals"][head]
    return f"{head} {run['aie'][head]:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """As Markdown has it; nothing without lines."""
    lines = list(lines)
    return "" if not lines else "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def abilities(runs: dict[str, Found], names: Iterable[str]) -> str:
    kinds = ("few-shot", "shuffled", "zero-shot", "instructed")
    found = ((name, runs[name]["measures"]) for name in names)
    lines = [
        [_task(name), *(told(measures.get(kind)) for kind in kinds), told(measures["most frequent answer"])]
        for name, measures in found
    ]
    return table(("task", "demonstrations", "shuffled", "zero-shot", "instruction", "most frequent answer"), lines)


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
        usual = runs.get(f"{task}-{WAYS[0]}")
        for way in WAYS:
            if usual and (run := runs.get(f"{task}-{way}")):
                first = "; ".join(effect(run, head) for head in list(run["aie"])[:2])
                same = "" if run is usual else _alike(run, usual)
                lines.append([task, *_way(way), first, str(len(run["clear"])), same])
    head = ("task", "corrupted", "means from", "two largest AIE", "heads clear of 0")
    return table((*head, "of the ten largest, shared with the first line; Spearman of all heads"), lines)


def necessity(runs: dict[str, Found], names: Iterable[str]) -> str:
    lines = []
    for name in names:
        ablated = runs[name]["necessity"]
        first = runs[name]["vector"]["heads"][0]
        for kind, whole in ablated["nothing"].items():
            lost = [told(ablated[which].get(kind), "necessity") for which in list(ablated)[1:]]
            left = [told(ablated[which].get(kind)) for which in ("nothing", "chosen heads", "random heads")]
            lines.append([_task(name), kind, told(whole, "probability"), f"{first}: {lost[0]}", *lost[1:], *left])
    head = ("task", "prompts", "P(answer)", "lost without the first head", "a random head", "the ten heads")
    return table((*head, "ten random heads", "accuracy", "without the ten", "without ten random ones"), lines)


def shared(runs: dict[str, Found], names: Sequence[str], count: int = 10) -> str:
    """Heads by their AIE averaged over tasks, with Student's interval over tasks."""
    frame = pd.DataFrame({name: runs[name]["aie"] for name in names})
    half = float(stats.t.ppf(0.975, max(1, len(names) - 1))) * frame.std(axis=1) / len(names) ** 0.5
    ranks, mean = frame.rank(ascending=False), frame.mean(axis=1)
    lines = []
    for head in mean.sort_values(ascending=False).index[:count]:
        clear = sum(head in runs[name]["clear"] for name in names)
        ends = f" [{mean[head] - half[head]:+.3f}, {mean[head] + half[head]:+.3f}]" if len(names) > 1 else ""
        lines.append(
            [
                str(head),
                f"{mean[head]:+.3f}{ends}",
                ", ".join(f"{rank:.0f}" for rank in ranks.loc[head]),
                f"{clear} of {len(names)}",
            ]
        )
    return table(("head", "mean AIE", "rank on each task", "clear of 0 on"), lines)


def models(runs: dict[str, Found], names: Iterable[str]) -> str:
    """One task on several models."""
    lines = []
    for name in names:
        run, without = runs[name], {key: line.get("few-shot") for key, line in runs[name]["necessity"].items()}
        places = [tuple(map(int, head[1:].split("H"))) for head in run["aie"]]
        layers, heads = (1 + max(place[axis] for place in places) for axis in (0, 1))
        lines.append(
            [
                run["sources"]["model"]["name"],
                f"{layers} x {heads}",
                told(without["nothing"], "probability"),
                "; ".join(effect(run, head) for head in list(run["aie"])[:2]),
                f"{len(run['clear'])} of {len(run['aie'])}",
                *(told(run["measures"][kind]) for kind in ("steered", "steered, random")),
                *(told(without[which], "necessity") for which in ("first head", "chosen heads", "random heads")),
            ]
        )
    head = ("model", "layers x heads", "P(answer), demonstrations", "two largest AIE", "heads clear of 0")
    head += ("bare queries with the vector", "with random heads'", "P(answer) lost without the first head")
    return table((*head, "without the ten", "without ten random ones"), lines)


def _alike(run: Found, other: Found) -> str:
    ten, as_many = (set(list(one["aie"])[:10]) for one in (run, other))
    grids = pd.DataFrame([run["aie"], other["aie"]])  # Columns are brought into one order by their names.
    correlation = float(grids.T.corr(method="spearman").iloc[0, 1])
    return f"{len(ten & as_many)}; {correlation:.2f}"


def _task(name: str) -> str:
    return next((task for task in TASKS if task in name), name)


def _way(way: str) -> tuple[str, str]:
    source = way.rpartition("-")[2]
    return way.removesuffix(f"-{source}"), source


def tables(runs: dict[str, Found]) -> dict[str, str]:
    """Those that the runs give by the name that stands around them in the document."""
    usual = [name for task in TASKS if (name := f"{task}-{WAYS[0]}") in runs]
    gemma = [name for name in runs if name.startswith("gemma-")]
    labs = [f"{name}-{TASKS[0]}" for name in LABS]
    whole, whole_gemma = ([name for name in names if "vector" in runs[name]] for names in (usual, gemma))
    whole_models = [name for name, run in runs.items() if "vector" in run]
    beside = (abilities(runs, gemma), shared(runs, gemma), vectors(runs, whole_gemma), necessity(runs, whole_gemma))
    found = {
        "commands": _fenced(dict.fromkeys(command(name, run) for name, run in runs.items() if name != WHOLE.name)),
        "abilities": abilities(runs, usual),
        "ways": ways(runs),
        "shared": shared(runs, usual),
        "vectors": vectors(runs, whole),
        "necessity": necessity(runs, whole),
        "gemma": "\n\n".join(filter(None, beside)),
        "models": models(runs, [name for name in (*labs, *usual[:1], *gemma[:1]) if name in whole_models]),
    }
    return {name: text for name, text in found.items() if text}


def _fenced(lines: Iterable[str]) -> str:
    return "\n".join(["```console", *lines, "```"])


def written(text: str, found: dict[str, str], document: Path = DOCUMENT) -> str:
    """The document with these tables between their marks."""
    for name, lines in found.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, mark, after = rest.partition(end)
        if not mark:
            raise RunError(f"{document.name} has no {start.strip()} ...{end.strip()}; write the two marks")
        text = f"{before}{start}{lines}{mark}{after}"
    return text


def main(folder: Path) -> None:
    names = dict.fromkeys(run.name for run in plan())
    folders = [name for name in names if (folder / name / "effects.parquet").is_file()]
    if not folders:
        raise RunError(f"{folder} has none of the runs in it; give what real_audits.py wrote into")
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    found = kept | {path.name: keep(path) for path in (WHOLE, *(folder / name for name in folders))}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(run, ensure_ascii=False)}" for name, run in found.items())
    KEPT.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8"), tables(found)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
