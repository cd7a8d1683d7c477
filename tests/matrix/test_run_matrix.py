"""A matrix holds the audits that one would have made one by one, and runs none of them twice."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from choreographer.browsers.chromium import Chromium

import ivlens
from ivlens.cli import output
from ivlens.cli.app import main
from ivlens.cli.output import about, forecast_seconds
from ivlens.engine.packed_files import unpack_files
from ivlens.engine.worker import use_threads
from ivlens.errors import EngineError, IvlensError, PromptError, RunError, TaskError
from ivlens.matrix import audit_jobs, kept_audits
from ivlens.matrix.audit_jobs import AskedAudit, Layout, Named, audit_apart, pack_run, prepare_audit
from ivlens.matrix.audit_matrix import AuditMatrix
from ivlens.matrix.run_matrix import plan_audits
from ivlens.patching import pace
from ivlens.patching.pace import Pace
from ivlens.prompts.tokens import tokenize
from ivlens.steering import trial_plan
from ivlens.storage.run_record import RECORD

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {
    "shots": 3,
    "clean_prompts": 6,
    "prompts": 4,
    "draws": 1,
    "queries": 6,
    "other_tasks": 0,
    "top": 3,
}
TASKS = ["antonym", "synonym"]


def files_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text())["files"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix") / "out"


@pytest.fixture(scope="module")
def found(folder: Path) -> AuditMatrix:
    return ivlens.audit_many("lab", TASKS, out=folder, workers=1, **SHORT)


@pytest.fixture
def not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivlens.models.loader.load", None)


def test_every_audit_is_the_one_that_would_be_made_alone(found: AuditMatrix, tmp_path: Path) -> None:
    with use_threads(1):
        ivlens.audit("lab", "synonym", out=tmp_path / "alone", **SHORT)
    assert files_of(tmp_path / "alone") == files_of(found.folders[1])
    assert found.audit("synonym").effects.top(3) == list(found.audits[1].top)


def test_the_table_over_all_is_written_down(found: AuditMatrix, folder: Path) -> None:
    table = pd.read_csv(folder / "recurring_heads.csv")
    pd.testing.assert_frame_equal(table, found.recurring)
    assert table["head"][0] == "L3H3" and table["top"][0] == table["audits"][0] == 2


def test_what_is_there_is_not_run_again(found: AuditMatrix, folder: Path, not_computed: None) -> None:
    again = ivlens.audit_many("lab", TASKS[::-1], out=folder, workers=1, **SHORT)
    assert again.names == TASKS[::-1]
    pd.testing.assert_frame_equal(again.recurring, found.recurring)


def test_what_is_damaged_or_of_other_options_is_not_taken_for_it(
    found: AuditMatrix, folder: Path, tmp_path: Path
) -> None:
    digests = kept_audits.read_kept(folder)
    asked = AskedAudit(folder="lab-antonym", model=Named("lab"), task=ivlens.task("antonym"), options=SHORT, memory=1)
    assert digests.keys() == {"lab-antonym", "lab-synonym"} and kept_audits.is_kept(folder, asked, digests)
    for other in (
        replace(asked, options={**SHORT, "seed": 1}),
        replace(asked, model=Named("lab", dtype="float64")),
        replace(asked, task=ivlens.task("synonym")),
        replace(asked, layout=Layout("arrow")),
        replace(asked, folder="lab-synonym"),
    ):
        assert not kept_audits.is_kept(folder, other, digests)
    with pytest.raises(RunError, match=r"lab-antonym: .* holds another run: prompts is 5 here but 4 in that run"):
        ivlens.audit_many("lab", "antonym", out=folder, workers=1, **{**SHORT, "prompts": 5})
    for content in ("{}", "[", "[1]", '{"lab-antonym": 1}'):
        (tmp_path / kept_audits.MATRIX).write_text(content)
        assert kept_audits.read_kept(tmp_path) == {}


def test_another_checkpoint_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked = AskedAudit(folder="x", model=Named(str(tmp_path)), task=ivlens.task("antonym"), memory=1)
    before = asked.digest
    assert before == asked.digest
    (tmp_path / "config.json").write_text("{} ")
    assert before != asked.digest


def test_an_audit_that_fails_is_named_and_the_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = audit_jobs.run_audit

    def failing(work: Any, out: Path) -> Any:
        if work.task.name == "antonym":
            raise PromptError("a prompt does not fit")
        return audit(work, out)

    with monkeypatch.context() as patch:
        patch.setattr(audit_jobs, "run_audit", failing)
        with pytest.raises(PromptError, match=r"^lab-antonym: a prompt does not fit; the other 1 are done and kept$"):
            ivlens.audit_many("lab", TASKS, out=tmp_path, workers=1, **SHORT)
    assert kept_audits.read_kept(tmp_path).keys() == {"lab-synonym"}


def test_an_audit_made_elsewhere_comes_back_whole_and_goes_on_from_what_is_here(
    found: AuditMatrix, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = AskedAudit(
        folder="lab-antonym", model=Named("lab"), task=ivlens.task("antonym"), options=SHORT, memory=2**31
    )
    here = tmp_path / "here"
    begun = json.loads((folder / "lab-antonym" / RECORD).read_text()) | {"status": "running", "finished": None}
    begun["files"] = {"effects.parquet": begun["files"]["effects.parquet"]}
    here.mkdir()
    (here / RECORD).write_text(json.dumps(begun))
    content = (folder / "lab-antonym" / "effects.parquet").read_bytes()
    (here / "effects.parquet").write_bytes(content)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the effects are here")

    monkeypatch.setattr("ivlens.analysis.measure.measure_effects", never)
    with use_threads(1):
        (sent,) = audit_apart(asked, pack_run(here))
    audit_jobs.load.cache_clear()
    files = unpack_files(sent)
    assert list(files)[-1] == RECORD
    kept_audits.take_run(here, files)
    assert files_of(here) == files_of(folder / "lab-antonym")
    assert ivlens.Audit.read(here).vector.heads == found.audit("antonym").vector.heads


def test_a_run_that_is_not_whole_is_not_taken(found: AuditMatrix, tmp_path: Path) -> None:
    files = unpack_files(pack_run(found.folders[0]))
    record = json.loads(files[RECORD])
    wrong = [
        {name: content for name, content in files.items() if name != RECORD},
        {name: content for name, content in files.items() if name != "effects.parquet"},
        files | {"effects.parquet": files["effects.parquet"][:-1]},
        files | {"more.json": b"{}"},
        files | {RECORD: json.dumps(record | {"status": "running"}).encode()},
        files | {RECORD: b"[]"},
    ]
    for one in wrong:
        with pytest.raises(EngineError, match="a worker sent a run"):
            kept_audits.take_run(tmp_path / "run", one)
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(RunError, match="holds other files"):
        kept_audits.take_run(tmp_path / "other", files)


def test_a_run_that_arrives_in_part_is_an_unfinished_one(
    found: AuditMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, write = unpack_files(pack_run(found.folders[0])), kept_audits.write_whole

    def stop(path: Path, content: bytes) -> None:
        if path.name == "places.parquet":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kept_audits, "write_whole", stop)
        kept_audits.take_run(tmp_path / "run", files)
    with pytest.raises(RunError, match="is unfinished"):
        ivlens.Audit.read(tmp_path / "run")
    kept_audits.take_run(tmp_path / "run", files)
    assert files_of(tmp_path / "run") == files_of(found.folders[0])


def test_nothing_of_a_folder_that_is_not_there_is_sent(tmp_path: Path) -> None:
    assert not zipfile.ZipFile(io.BytesIO(pack_run(tmp_path))).namelist()


@pytest.mark.parametrize(
    ("models", "tasks", "options", "error", "sentence"),
    [
        ("lab", [], {}, IvlensError, "there is nothing to audit; name a model and a task"),
        ("lab", ["antonym", "antonym"], {}, IvlensError, "two audits would be called lab-antonym; name each model"),
        (["a/m", "b/m"], "antonym", {}, IvlensError, "two audits would be called m-antonym"),
        ("lab", ["antonym", "antonim"], {}, TaskError, "there is no built-in task and no file 'antonim'"),
        ("lab", "antonym", {"threads": 0}, IvlensError, "threads is 0; it must be 1 or more"),
        ("lab", "antonym", {"worker": 2}, IvlensError, "there is no option 'worker'"),
        ("lab", "antonym", {"gpus": 1}, IvlensError, "gpus say what of a Ray cluster is used"),
        ("lab", "antonym", {"shots": 10**5}, TaskError, "task 'antonym' has"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_read(
    not_computed: None, tmp_path: Path, models: Any, tasks: Any, options: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as refused:
        ivlens.audit_many(models, tasks, out=tmp_path / "out", **options)
    assert sentence in str(refused.value) and not (tmp_path / "out").exists()


TYPED = [part for key, value in SHORT.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def test_the_command_prints_the_table_and_draws_the_figure(
    found: AuditMatrix,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)  # Images take seconds; pages are enough here.
    out = tmp_path / "out"
    line = ["audit", "lab", "--task", "antonym", "--task", "synonym", "--out", str(out), "--workers", "1", *TYPED]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "Heads that are among the top of two audits or more" in shown and "2 of 2" in shown
    assert (out / "figures" / "recurring-heads.html").is_file()
    for name in ("lab-antonym", "lab-synonym"):
        assert files_of(out / name) == files_of(folder / name)
        assert json.loads((out / name / RECORD).read_text())["typed"] == line
    monkeypatch.setattr("ivlens.models.loader.load", None)
    assert main(line) == 0 and capsys.readouterr().out == shown


def test_what_several_audits_do_is_said_beforehand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = Pace(reading=9.0, patching=9.0, token=1.0, row=2.0)
    monkeypatch.setattr(pace, "measure_pace", lambda *given, **more: slow)
    out = tmp_path / "out"
    line = ["audit", "lab", "gone", *(f"--task={task}" for task in TASKS), "--out", str(out), "--workers", "2", *TYPED]
    assert main([*line, "--dry-run"]) == 0 and not out.exists()
    first, lab, gone = capsys.readouterr().out.splitlines()
    each = [about(sum(forecast_seconds(work, output._of_task(slow, work)).values())) for work in works()]
    assert first.startswith("4 audits: about ") and first.endswith(" h, 2 at once")
    assert lab.startswith("lab: 2 audits, about ") and all(one in lab for one in each)
    assert gone.startswith("gone: not known, since ")


def test_the_pace_of_a_model_on_a_task_is_that_of_its_tokens_and_rows() -> None:
    first, second = works()
    of_model = pace.measure_pace(first.model, first.task, first.settings, memory=first.memory)
    known = Pace(reading=0.0, patching=0.0, token=of_model.token, row=of_model.row)
    tokens = tokenize(second.model, second.asked_prompts["few-shot"])
    read = of_model.token * float(tokens.mask.sum()) / len(tokens)
    assert output._of_task(known, second).reading == pytest.approx(read)
    assert output._of_task(known, second).patching == pytest.approx(read + 48 * of_model.row)


def test_long_audits_are_announced_and_short_ones_are_not(
    folder: Path,
    found: AuditMatrix,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    line = ["audit", "lab", *(f"--task={task}" for task in TASKS), "--workers", "1", *TYPED]
    monkeypatch.setattr(ivlens, "audit_many", lambda *given, **asked: None)
    monkeypatch.setattr("ivlens.matrix.tables.print_matrix", lambda found: 1 / 0)
    for floor, said in ((10**15, ""), (0, "ivlens: 2 audits: ")):
        monkeypatch.setattr(trial_plan, "FLOOR", floor)
        with pytest.raises(ZeroDivisionError):
            main([*line, "--out", str(tmp_path / "out")])
        err = capsys.readouterr().err
        assert err.startswith(said) and bool(err) == bool(said)


def test_what_is_there_is_not_left(folder: Path, found: AuditMatrix) -> None:
    plan = plan_audits("lab", TASKS, **SHORT)
    assert plan.left(folder) == {} and len(plan.left(folder.parent)) == 2


def works() -> list[Any]:
    return [prepare_audit(one) for one in plan_audits("lab", TASKS, **SHORT).asked]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            ["--task", "antonym", "--workers", "2"],
            "workers says how several audits are run; name more models",
        ),
        (
            ["--task", "antonym", "--threads", "2"],
            "threads says how several audits are run; name more models",
        ),
        (
            ["--task", "antonym", "--task", "synonym", "--only", "heads"],
            "--only is of one audit; name",
        ),
        (["--task", "antonym", "--task", "synonym", "--engine", "dask"], "'dask' is not one of 'local', 'ray'"),
        (["--task", "antonym", "--task", "synonym", "--address", "here"], "address is 'here'; give auto, HOST:PORT"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], not_computed: None, tmp_path: Path, typed: list[str], sentence: str
) -> None:
    assert main(["audit", "lab", *typed, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
