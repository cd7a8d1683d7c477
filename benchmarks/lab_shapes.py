"""The tables of docs/lab_model.md on other shapes, out of what its commands leave.

    python benchmarks/lab_shapes.py runs     keeps the numbers in benchmarks/lab_shapes.json, and writes the tables

`runs` has, of lab, lab-gpt2 and lab-neox, the heads of `ivlens universal` as NAME.json and the study NAME-func; the
models' own records lie with them, in ivlens/lab and models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from real_audits import LABS
from real_findings import ROOT, table, told, written

from ivlens.forgetting.study import Study
from ivlens.lab import RECORD
from ivlens.lab.architecture import CARRIERS

DOCUMENT = ROOT / "docs" / "lab_model.md"
KEPT = ROOT / "benchmarks" / "lab_shapes.json"
ABILITIES = {
    "instructed": "instructed accuracy",
    "unseen-wording": "accuracy with the unseen wording",
    "ten-shot": "10-shot accuracy",
    "neither": "accuracy with neither instruction nor demonstrations",
    "shuffled-probability": "P(answer), shuffled demonstrations",
    "steered-lift": "lift by the IV of 10 heads, tasks below 0.5",
    "steered-random-lift": "lift by 10 random heads, tasks below 0.5",
}
MEASURES = ("learned", "AP", "GP", "GP kept")
BROUGHT_BACK = {
    ("instruction", "no vector"): "with the instruction",
    ("query alone", "no vector"): "bare query",
    ("query alone", "base vector"): "+ base model's vector",
    ("query alone", "own vector"): "+ own vector",
    ("query alone", "random heads"): "+ random heads'",
}
PLAIN = "lora"

Found = dict[str, Any]


def keep(name: str, runs: Path) -> Found:
    """The numbers of one shape."""
    record = RECORD if name == "lab" else ROOT / LABS[name] / RECORD.name
    about = json.loads(record.read_text(encoding="utf-8"))
    ranked = json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))
    study = Study.read(runs / f"{name}-func")
    summary = study.summary.set_index(["method", "measure"])
    last = study.recovery[(study.recovery["method"] == PLAIN) & (study.recovery["stage"] == len(study.plan.tasks))]
    back = last.set_index(["prompts", "vector"])
    return {
        "shape": about["training"]["architecture"],
        "parameters": about["model"]["parameters"],
        "sha256": about["model"]["sha256"],
        "abilities": {key: _line(about["means"][key], "mean") for key in ABILITIES},
        "heads": {head: round(aie, 4) for head, aie in zip(ranked["heads"], ranked["heads_aie"], strict=True)},
        "seeds": len(study.plan.seeds),
        "study": {
            method: {key: _line(summary.loc[method, key]) for key in MEASURES if (method, key) in summary.index}
            for method in study.plan.methods
        },
        "recovery": {label: _line(back.loc[place]) for place, label in BROUGHT_BACK.items()},
    }


def _line(found: Any, name: str = "value") -> dict[str, float | None]:
    """A value and its bounds, as `told` takes them."""
    numbers = {"accuracy": found[name], "accuracy_low": found["low"], "accuracy_high": found["high"]}
    return {key: None if value is None or value != value else round(float(value), 4) for key, value in numbers.items()}


def tables(kept: dict[str, Found]) -> dict[str, str]:
    """Every table of the section, by the name of its marks."""
    shapes = [f"`{name}`" for name in kept]
    carriers = [str(head) for head in CARRIERS]
    lines = [[label, *(told(one["abilities"][key]) for one in kept.values())] for key, label in ABILITIES.items()]
    lines.append(["largest mean AIE", *("; ".join(_led(one)) for one in kept.values())])
    among = [sum(head in carriers for head in one["heads"]) for one in kept.values()]
    lines.append(["carriers among the ten of largest mean AIE", *(f"{n} of {len(carriers)}" for n in among)])
    return {
        "shapes": table(("", *shapes), lines),
        "shapes-study": table(("model", "method", *MEASURES), _study_lines(kept)),
        "shapes-recovery": table(
            ("model", *BROUGHT_BACK.values()),
            [[f"`{name}`", *map(told, one["recovery"].values())] for name, one in kept.items()],
        ),
    }


def _led(one: Found) -> list[str]:
    return [f"{head} {aie:+.3f}" for head, aie in list(one["heads"].items())[:2]]


def _study_lines(kept: dict[str, Found]) -> list[list[str]]:
    return [
        [f"`{name}`", f"`{method}`", *(told(found[key]) if key in found else "" for key in MEASURES)]
        for name, one in kept.items()
        for method, found in one["study"].items()
    ]


def main(runs: Path) -> None:
    kept = {name: keep(name, runs) for name in LABS}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = written(DOCUMENT.read_text(encoding="utf-8"), tables(kept), DOCUMENT)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
