"""The table of smollm2-trace in docs/real_forgetting.md is that of the record that figures/numbers keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ivlens.forgetting.study import Study

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "real_forgetting.md").read_text(encoding="utf-8")
MEASURES = ("learned", "AP", "GP", "IP", "IP change")
PROBES = (
    *(("demonstrations", vector) for vector in ("no vector", "base vector", "own vector", "random heads")),
    ("query alone", "base vector"),
)


def lines(study: Study) -> list[str]:
    """A line a method: measures after the last stage, then accuracies on the probes."""
    last = study.recovery[study.recovery["stage"] == len(study.plan.tasks)]
    found = []
    for method in study.plan.methods:
        own: Any = study.summary[study.summary["method"] == method].set_index("measure")["value"]
        back: Any = last[last["method"] == method].set_index(["prompts", "vector"])["value"]
        cells = [f"{own[measure]:{'+' * ('change' in measure)}.2f}" for measure in MEASURES]
        found.append(f"| `{method}` | {' | '.join([*cells, *(f'{back[place]:.2f}' for place in PROBES)])} |")
    return found


def test_the_table_is_that_of_the_record() -> None:
    _, _, table = TEXT.partition("<!-- trace -->\n")
    written = table.partition("\n<!-- /trace -->")[0].splitlines()[2:]
    assert written == lines(Study.read(ROOT / "figures" / "numbers" / "smollm2-trace"))
