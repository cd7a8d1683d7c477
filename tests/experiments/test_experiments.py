"""Every experiment says what its measurements say, goes on where it was stopped, and refuses what makes no sense."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import run_folders
import torch
from conftest import WORD_TEMPLATE

import ivlens
from ivlens.attribution import trained_vector, vector_comparison
from ivlens.cli.app import main
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, RunError, TaskWarning
from ivlens.experiments import rankings, run_experiment, trained_vectors
from ivlens.experiments.experiment import QUESTIONS
from ivlens.experiments.findings import ABLE, ASKED, FINDINGS, NONE, SAME, Found, number, share
from ivlens.patching.pace import Pace
from ivlens.storage import parquet
from ivlens.storage.run_tables import Tables

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SHORT: dict[str, Any] = {"shots": 4, "clean_prompts": 8, "prompts": 6}
WANTED: dict[str, Any] = {"top": 3, "draws": 3, "queries": 8, **SHORT}


@pytest.mark.slow
def test_rankings_are_those_of_the_comparison(lab: HookedTransformer) -> None:
    found = ivlens.experiment("rankings", lab, "antonym", **WANTED)
    told, table = Found(found.table), ivlens.compare_rankings(lab, "antonym", **WANTED).table
    known: Any = table.set_index("ranking")
    for by in ("aie", "gradient", "ablation"):
        for part, column in ((rankings.STEERED, "steered"), (rankings.LOST, "lost")):
            wanted = known.loc[by, [column, f"{column}_low", f"{column}_high"]].tolist()
            assert tuple(told(part, by)) == pytest.approx(wanted, abs=1e-6)
        assert told(rankings.SHARED, by).mean == known.loc[by, "shared"]
        assert told(rankings.CORRELATION, by).mean == pytest.approx(known.loc[by, "spearman"])
    gain = told(f"{rankings.LOST}, {rankings.OVER_AIE}", "ablation")
    assert tuple(gain) == pytest.approx(
        known.loc["ablation", ["lost_gain", "lost_gain_low", "lost_gain_high"]].tolist()
    )
    above = told(f"{rankings.LOST}, {rankings.OVER_RANDOM}", "aie")
    assert above.mean == pytest.approx(-known.loc["random", "lost_gain"], abs=1e-6)


@pytest.mark.slow
def test_trained_vectors_are_those_of_the_comparison(lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_vectors, "COUNTS", (5, 10))
    monkeypatch.setattr(trained_vectors, "STEPS", 5)
    found = ivlens.experiment("trained-vectors", lab, "antonym", **WANTED)
    asked = {**WANTED, "counts": [5, 10], "wrong": trained_vectors.WRONG, "steps": 5}
    known = ivlens.compare_vectors(lab, "antonym", **asked)
    cells = {part for part in found.table["part"] if part.startswith("accuracy,")}
    assert cells == {f"accuracy, {share} of outputs wrong" for share in ("0%", "25%", "50%")}
    own: Any = found.table[found.table["part"].isin(list(cells))]
    # Of five pairs, a quarter and a half are as many that change places.
    assert len(own) == len(known) == 5 * 6
    assert (
        own[["value", "low", "high"]].to_numpy().tolist()
        == known.filter(["accuracy", "accuracy_low", "accuracy_high"]).to_numpy().tolist()
    )
    assert set(own.loc[own["kind"] == vector_comparison.RANDOM, "draws"]) == {3}


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on_to_the_same_numbers(
    lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second half: what the first one took is not computed again."""
    run = dict(WANTED, out=tmp_path / "run")
    kept, calls = Tables.part, []

    def stop(self: Tables, name: str, compute: Any, columns: Any = ()) -> pd.DataFrame:
        if name == "ablation":
            raise KeyboardInterrupt
        return kept(self, name, compute, columns)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tables, "part", stop)
        ivlens.experiment("latents", lab, "antonym", **run)
    with pytest.raises(RunError, match=r"is unfinished \(ivlens experiment"):
        ivlens.Experiment.read(tmp_path / "run")
    train = trained_vector.train_vector
    with monkeypatch.context() as patch:
        patch.setattr("ivlens.experiments.latent_vectors.train_vector", lambda *_, **__: calls.append(1))
        resumed = ivlens.experiment("latents", lab, "antonym", **run)
    assert not calls and trained_vector.train_vector is train
    whole = ivlens.experiment("latents", lab, "antonym", **WANTED)
    pd.testing.assert_frame_equal(resumed.table, whole.table)
    assert resumed.verdict == whole.verdict and not (tmp_path / "run" / "parts").exists()
    with pytest.raises(RunError, match='name is "rankings" here but "latents" in that run'):
        ivlens.experiment("rankings", lab, "antonym", **run)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUESTIONS)
def test_what_an_experiment_costs_is_said_before(name: str, lab: HookedTransformer) -> None:
    tuned = ivlens.lora.fresh(lab, ivlens.lora.LoraConfig(rank=1)) if QUESTIONS[name].needs_tuned else None
    work = run_experiment.prepare(name, lab, "antonym", tuned=tuned, **WANTED)
    slow, fast = (
        sum(QUESTIONS[name].cost(work, Pace(reading=one, patching=one, token=one, row=one)).values())
        for one in (1.0, 0.25)
    )
    assert slow == pytest.approx(4 * fast) and slow > 100


@pytest.mark.slow
def test_the_command_lists_runs_and_shows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab: HookedTransformer
) -> None:
    assert main(["experiment"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {question.sentence}" in listed for name, question in QUESTIONS.items())
    monkeypatch.setattr(ivlens, "load", lambda *_, **__: lab)
    monkeypatch.setattr("ivlens.cli.study.draw_missing", lambda figures, folder: print(*figures))
    line = ["experiment", "rankings", "lab", "--out", str(tmp_path / "run")]
    for name, value in WANTED.items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    assert main([*line, "--dry-run"]) == 0 and not (tmp_path / "run").exists()
    assert re.match(r"rankings: (about|under) .*AIE, .*ablating sets, ", capsys.readouterr().out)
    assert main(line) == 0
    said = capsys.readouterr().out
    found = ivlens.Experiment.read(tmp_path / "run")
    assert " ".join(found.verdict.split()) in " ".join(said.split()) and "\nrandom heads " in said
    assert main(["show", str(tmp_path / "run")]) == 0
    assert "rank correlation with the AIE: gradient" in " ".join(capsys.readouterr().out.split())


def test_what_makes_no_sense_is_refused(lab: HookedTransformer, tmp_path: Path) -> None:
    wrong: Any
    for name, wrong, said in (
        ("ranking", {}, "there is no experiment 'ranking'; did you mean rankings"),
        ("rankings", {"tuned": "lab"}, "rankings is about one model; leave the tuned one out"),
        ("rankings", {"learned": "class-letter"}, "rankings is about one model, which learned nothing in it"),
        ("overshadowing", {"tuned": "x", "learned": "class-lettre"}, "no built-in task and no file 'class-lettre'"),
        ("rankings", {"top": 49}, "top is 49, but the model has 48 heads; take fewer"),
        ("rankings", {"draws": 1}, "draws is 1; it must be 2 or more"),
    ):
        with pytest.raises(IvlensError, match=re.escape(said)):
            ivlens.experiment(name, lab, "antonym", **wrong)
    assert not list(tmp_path.iterdir())


def test_the_command_needs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "latents"]) == 2
    assert "there is no model; write ivlens experiment latents MODEL" in capsys.readouterr().err


def test_a_table_without_the_lines_of_the_answer_is_refused(tmp_path: Path) -> None:
    run_folders.experiment_folder(tmp_path)
    assert ivlens.Experiment.read(tmp_path).table.columns.tolist() == list(FINDINGS)
    run_folders.forget_digests(tmp_path)
    table = run_folders.experiment_tables()["findings"].query("part != @rankings.SHARED")
    (tmp_path / "findings.parquet").write_bytes(parquet.to_bytes(table))
    with pytest.raises(RunError, match=r"findings\.parquet lacks lines that the answer is made of"):
        ivlens.Experiment.read(tmp_path)


@pytest.mark.parametrize(("right", "is_said"), [(0.2, True), (0.55, True), (0.95, False)])
def test_a_task_that_a_model_does_not_do_is_said_first(right: float, is_said: bool) -> None:
    table = run_folders.experiment_tables()["findings"]
    able = [share(ABLE, ASKED, NONE, (torch.arange(20) < 20 * right).double()), number(ABLE, SAME, NONE, 0.5)]
    found = ivlens.Experiment(name="rankings", model="m", task="t", table=pd.concat([table, pd.DataFrame(able)]))
    assert found.verdict.startswith(f"The model does not clearly do this task ({right:.2f} [") == is_said
    assert found.verdict.endswith(ivlens.Experiment(name="rankings", model="m", task="t", table=table).verdict)


@pytest.mark.slow
def test_a_model_that_cannot_do_a_task_is_said_before_the_work(tiny: HookedTransformer, word_task: Task) -> None:
    adapter = ivlens.lora.fresh(tiny, ivlens.lora.LoraConfig(rank=1, layers=(1,)))
    adapter.factors["blocks.1.attn.W_V"].B.fill_(0.1)
    asked = {**WANTED, "template": WORD_TEMPLATE, "shots": 2, "draws": 2, "tuned": adapter}
    with pytest.warns(TaskWarning, match=r"does not clearly do this task \(0\.00"):
        found = ivlens.experiment("overshadowing", tiny, word_task, **asked)
    assert found.verdict.startswith("The model does not clearly do this task (0.00")


def test_numbers_that_are_not_there_are_nan() -> None:
    table = pd.DataFrame([("a", "b", "chosen", 0.5, 0.4, 0.6, 1, 8)], columns=list(FINDINGS))
    assert tuple(Found(table)("a", "b")) == (0.5, 0.4, 0.6) and bool(torch.tensor(Found(table)("a", "c")).isnan().all())


def test_a_page_says_the_answer_and_how_to_do_it_again(tmp_path: Path) -> None:
    run_folders.experiment_folder(tmp_path)
    found = ivlens.Experiment.read(tmp_path)
    page = unescape(ivlens.report(tmp_path).read_text(encoding="utf-8"))
    assert found.question.sentence in page and found.verdict in page
    assert "ivlens.experiment(\n    'rankings', 'tiny', 'tiny',\n    out='run',\n" in page and "tuned='tiny'" in page
