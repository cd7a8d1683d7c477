"""Draw all figures of a folder again, from the small numbers that lie in it, each with a record of where it is from.

    python -m ivlens.reports.gallery figures

`figures/numbers/NAME` is a run folder (of which its tables are enough), a folder with a `factorial.json`, or one of
vectors, one a task. Figures are drawn into `figures/drawn`, as `NAME-FIGURE.html`, `.svg`, `.pdf` and `.png`. An image
that lies in `figures` as well, because a document shows it, is replaced there. `figures/NAME-FIGURE.json` says which
command, settings, seed, model, number of prompts and versions the numbers are from, what is drawn, and the digests of
the images beside it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from ivlens import plots
from ivlens.analysis.audit import Audit
from ivlens.analysis.comparison import Comparison
from ivlens.errors import RunError
from ivlens.experiments.experiment import Experiment
from ivlens.forgetting.study import Study
from ivlens.matrix.factorial import KEPT, Factorial
from ivlens.plots import export
from ivlens.plots.notebook import figure_json
from ivlens.reports import findings
from ivlens.storage import run_folder
from ivlens.storage.atomic_files import write_whole
from ivlens.storage.run_record import RECORD
from ivlens.vectors.drift import chance_jaccard
from ivlens.vectors.instruction_vector import InstructionVector
from ivlens.vectors.similarity import overlap, similarity

DRAWN = "drawn"
"""The folder of the figures that can be drawn again at any time."""


class Drawn(NamedTuple):
    """A figure, and where its numbers are from."""

    figure: go.Figure
    origin: dict[str, Any]


def draw_folder(folder: Path | str) -> export.Exported:
    """Draw every figure of a folder into its `drawn`, and write the records and the images that documents show.

    Raises:
        RunError: numbers are missing, damaged or do not belong together, or the disk refuses.
    """
    folder = Path(folder)
    found = draw(folder)
    exported = export.export({name: one.figure for name, one in found.items()}, folder / DRAWN, alone=False, dots=2)
    shown = [path for path in exported.written if (folder / path.name).is_file()]
    for path in shown:
        write_whole(folder / path.name, path.read_bytes())
    for name, one in found.items():
        files = {path.suffix[1:]: digest(path.read_bytes()) for path in shown if path.stem == name}
        write_whole(folder / f"{name}.json", _record(one, files).encode())
    return exported


def draw(folder: Path | str) -> dict[str, Drawn]:
    """Every figure of a folder by its name.

    Raises:
        RunError: as for `draw_folder`.
    """
    numbers = Path(folder) / "numbers"
    folders = sorted(path for path in numbers.glob("*") if path.is_dir())
    if not folders:
        raise RunError(f"{numbers} has no folders in it; put run folders or folders of vectors there")
    return {
        f"{path.name}-{name}": Drawn(figure, {"figure": name, "numbers": f"numbers/{path.name}", **origin})
        for path in folders
        for name, (figure, origin) in _of(path)
    }


def _of(path: Path) -> Iterator[tuple[str, Drawn]]:
    if (path / KEPT).is_file():
        return _of_factorial(path)
    return _of_run(path) if (path / RECORD).is_file() else _of_vectors(path)


def digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()


def _record(drawn: Drawn, files: dict[str, str]) -> str:
    """One line a setting; what is drawn, in which nobody reads single numbers, is one line."""
    origin = json.dumps({**drawn.origin, "files": files}, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{origin},\n "drawn": {figure_json(drawn.figure)}\n}}\n'


def _of_run(path: Path) -> Iterator[tuple[str, Drawn]]:
    record = run_folder.read_run(path).record
    found = findings.read_findings(path)
    origin = record.model_dump(mode="json", include={"command", "settings", "sources", "seed", "versions", "finished"})
    of_study = f" {record.settings['name']}" if record.command in ("study", "experiment") else ""
    origin = {**origin, "command": f"ivlens {record.command}{of_study}", "n": _counts(found)}
    for name, figure in found.figures().items():
        yield name, Drawn(figure, origin)


def _counts(found: findings.Found) -> dict[str, int]:
    match found:
        case Experiment():
            return {"queries": int(found.table["queries"].to_numpy().max())}
        case Study():
            return {"seeds": len(set(found.evaluations["seed"])), "stages": len(found.plan.tasks)}
        case Comparison():
            return {"ranking prompts": len(found.base.cie), "queries": int(found.measures["n"].to_numpy().max())}
        case Audit():
            return {
                "ranking prompts": len(found.effects.cie),
                "queries": int(found.measures["prompts"].to_numpy().max()),
            }


def _of_factorial(path: Path) -> Iterator[tuple[str, Drawn]]:
    found = Factorial.read(path)
    counts = {"tasks": len(found.tasks), "seeds": len({one.seed for one in found.trained})}
    for name, figure in found.figures().items():
        yield name, Drawn(figure, {**found.origin, "n": counts})


def _of_vectors(path: Path) -> Iterator[tuple[str, Drawn]]:
    vectors = [InstructionVector.load(file) for file in sorted(path.glob("*.safetensors"))]
    if len({vector.model_digest for vector in vectors}) != 1:
        raise RunError(f"{path} holds vectors of several models, or none; put the vectors of one model there")
    first = vectors[0]
    z, settings = first.measured()
    origin = {
        "command": "ivlens.instruction_vector",
        "settings": asdict(settings),
        "sources": {
            "model": {"name": first.model, "digest": first.model_digest},
            **{f"task {one.task}": {"name": one.task, "digest": one.task_digest} for one in vectors},
        },
        "seed": settings.seed,
        "versions": first.versions,
        "n": {"tasks": len(vectors), "clean prompts": settings.clean_prompts, "heads": len(first.heads)},
    }
    k, n_heads = len(first.heads), len(z) * z.shape[1]
    title = f"Top {k} heads that tasks share, by chance {chance_jaccard(n_heads, k):.2f}: {first.model}"
    yield "overlap", Drawn(plots.overlap_heatmap(overlap(vectors), title=title), origin)
    title = f"Cosine of the instruction vectors of {len(vectors)} tasks: {first.model}"
    yield "similarity", Drawn(plots.similarity_heatmap(similarity(vectors), title=title), origin)


if __name__ == "__main__":
    done = draw_folder(*sys.argv[1:])
    sys.exit(done.notice)
