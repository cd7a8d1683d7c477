"""What a table of a run may hold, and the sentence for what it may not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folders import (
    FOLDERS,
    audit_folder,
    audit_tables,
    comparison_tables,
    experiment_tables,
    forget_digests,
    study_tables,
)

import ivlens
from ivlens.analysis import audit, comparison, dependence, measure, wordings
from ivlens.errors import IvlensError, RunError
from ivlens.experiments.findings import FINDINGS
from ivlens.forgetting import method_run
from ivlens.patching import rounding
from ivlens.patching.head_effects import EFFECTS
from ivlens.reports.findings import read_findings
from ivlens.steering import head_choice, necessity, trials
from ivlens.steering.universal_heads import Considered
from ivlens.storage import parquet
from ivlens.storage.table_schema import TABLES, check_table
from ivlens.vectors import drift

WRITTEN = {
    "audit": {
        "effects": EFFECTS,
        "measures": audit.MEASURES,
        "steering": audit.STEERING,
        "heads": audit.HEADS,
        "places": trials.PLACES,
        "draws": trials.DRAWS,
        "layer_draws": trials.DRAWS,
        "by_query": trials.BY_QUERY,
        "necessity": necessity.NECESSITY,
        "instructions": wordings.WORDINGS,
        "universal_tasks": Considered._fields,
        "universal": head_choice.RANKED,
        "ranking": measure.RANKING,
        "precision": rounding.ROUNDING,
    },
    "compare": {
        "base_effects": EFFECTS,
        "tuned_effects": EFFECTS,
        "aie": drift.AIE,
        "measures": comparison.CHANGES,
        "drift": drift.DRIFT,
        "recovery": dependence.DEPENDENCE,
    },
    "study": {
        "evaluations": (*method_run.EVALUATIONS, "learned"),
        "steps": method_run.STEPS,
        "aie": method_run.GRIDS,
    },
    "experiment": {"findings": FINDINGS},
}
MADE = {
    "audit": audit_tables,
    "compare": comparison_tables,
    "study": study_tables,
    "experiment": experiment_tables,
}


@pytest.mark.parametrize("command", WRITTEN)
def test_the_schema_of_a_table_has_the_columns_that_are_written(command: str) -> None:
    for name, columns in WRITTEN[command].items():
        assert set(TABLES[command][name].columns) == set(columns), name


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITTEN)
def test_every_column_refuses_what_it_cannot_hold(command: str) -> None:
    """In each column of each table: another type, and a number beyond its bounds."""
    for name, frame in MADE[command]().items():
        for column, about in TABLES[command][name].columns.items():
            wrong = [0.5, None] if about.kind == "text" else ["x", pd.Timestamp(0)]
            if about.kind in ("whole", "number") and about.high < np.inf:
                wrong.append(1e300)
            for value in wrong:
                changed = frame.assign(**{column: [value] * len(frame)})
                with pytest.raises(RunError, match=rf"a\.parquet has .* in the column {column}; needed is .*; again"):
                    check_table(command, name, changed, Path("a.parquet"), "again")


def test_effects_of_other_heads_than_the_vector_are_refused(tmp_path: Path) -> None:
    audit_folder(tmp_path)
    forget_digests(tmp_path)
    path = tmp_path / "effects.parquet"
    path.write_bytes(parquet.to_bytes(parquet.read_table(path, remedy="").query("layer == 0")))
    with pytest.raises(IvlensError, match=r"is of \(1, 4\) layers and heads, but mean_z of \(2, 4\); run again"):
        ivlens.Audit.read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("places", lambda one: one.assign(layer=10**7), "has '10000000' in the column layer; needed is a whole number"),
        ("places", lambda one: one.assign(layer=one["layer"] + 1), "has 2 in the column layer, but there are 2"),
        ("places", lambda one: one[1:], r"has 3 lines; needed is one for every combination of layer, scale"),
        ("places", lambda one: one.assign(chosen=False), "has 0 lines that are chosen; needed is one"),
        ("draws", lambda one: one.assign(scale=np.nan), "has 'nan' in the column scale; needed is a number from"),
        ("measures", lambda one: one.assign(accuracy=1.5), "has '1.5' in the column accuracy; .* from 0 to 1, or NaN"),
        ("measures", lambda one: one[1:], "has no line of measure 'zero-shot'"),
        ("measures", lambda one: pd.concat([one, one[:1]]), "has two lines of measure 'zero-shot'; one is needed"),
        ("measures", lambda one: one[:0], "has 0 lines; 1 to 1,000 are needed"),
        ("heads", lambda one: one[one["heads"] != "random"], "has no line of n_heads 1, heads 'random'"),
        ("by_query", lambda one: one[1:], "has 15 lines; needed is one for every combination of query, heads and draw"),
        ("effects", lambda one: one.drop(columns="query"), "lacks the column query"),
    ],
)
def test_a_changed_table_is_a_sentence(
    name: str, change: Callable[[pd.DataFrame], pd.DataFrame], sentence: str, tmp_path: Path
) -> None:
    audit_folder(tmp_path)
    forget_digests(tmp_path)
    path = tmp_path / f"{name}.parquet"
    path.write_bytes(parquet.to_bytes(change(parquet.read_table(path, remedy=""))))
    with pytest.raises(RunError, match=rf"{path.name} {sentence}"):
        ivlens.Audit.read(tmp_path)


def test_effects_of_two_models_on_other_prompts_are_refused(tmp_path: Path) -> None:
    FOLDERS["compare"](tmp_path)
    forget_digests(tmp_path)
    path = tmp_path / "tuned_effects.parquet"
    frame = parquet.read_table(path, remedy="")
    path.write_bytes(parquet.to_bytes(frame.assign(query=frame["prompt"])))
    with pytest.raises(RunError, match="effects of base and tuned model on other prompts or heads"):
        ivlens.Comparison.read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda one: one[one["stage"] < 2], "is of other methods, seeds or stages than the plan"),
        (lambda one: one[one["seed"] == 0], "is of other methods, seeds or stages than the plan"),
        (lambda one: one.assign(learned=9), "has 9 in the column learned, but there are 3"),
        (lambda one: one.drop(index=one.index[0]), r"has 23 lines of sequence 'accuracy'; needed are 24"),
    ],
)
def test_a_study_that_lacks_what_its_plan_asks_for_is_a_sentence(
    change: Callable[[pd.DataFrame], pd.DataFrame], sentence: str, tmp_path: Path
) -> None:
    FOLDERS["study"](tmp_path)
    forget_digests(tmp_path)
    path = tmp_path / "evaluations.parquet"
    path.write_bytes(parquet.to_bytes(change(parquet.read_table(path, remedy=""))))
    with pytest.raises(RunError, match=rf"{path.name} {sentence}"):
        ivlens.Study.read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_run_that_does_not_say_its_versions_is_read(kind: str, tmp_path: Path) -> None:
    FOLDERS[kind](tmp_path)
    record: dict[str, Any] = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "versions": {}}))
    assert read_findings(tmp_path)
    if kind == "audit":
        assert "ivlens of an unknown version" in ivlens.report(tmp_path).read_text()


def test_a_file_that_ends_its_reader_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(parquet._PROCESS, "ask", lambda *_, **__: None)
    with pytest.raises(IvlensError, match=r"a\.parquet cannot be read \(to read it ends the process that does"):
        parquet.read_table(tmp_path / "a.parquet", remedy="again")
