import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ivlens.errors import RunError
from ivlens.kept_batches import keep_batch, keeping
from ivlens.storage import atomic_files
from ivlens.storage.run_folder import open_run, read_run
from ivlens.storage.run_record import Source
from ivlens.storage.run_tables import Tables, batch_keeper, keeping_beside

MODEL = Source(name="lab", digest="ab12cd34ef567890")
TASK = Source(name="antonym", digest="77")


def start(folder, *, model=MODEL, seed=0, command="audit", **settings):
    sources = {"model": model, "task": TASK}
    return open_run(folder, command=command, settings={"shots": 10} | settings, sources=sources, seed=seed)


def effects() -> pd.DataFrame:
    return pd.DataFrame({"layer": [0, 1], "head": [2, 3], "cie": [0.1, math.nan]})


def never() -> pd.DataFrame:
    raise AssertionError("computed a table that was already there")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".ivlens-tmp-*"))


def edit_record(folder: Path, **changes) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_new_run_says_what_was_asked(tmp_path):
    with start(tmp_path / "new" / "run", shots=5) as run:
        assert not run.is_complete
        record = json.loads((tmp_path / "new/run/run.json").read_text())
    assert record["status"] == "running" and record["finished"] is None
    assert record["command"] == "audit" and record["settings"] == {"shots": 5} and record["seed"] == 0
    assert record["sources"]["model"] == {"name": "lab", "digest": "ab12cd34ef567890"}
    assert set(record["versions"]) == {"ivlens", "torch", "transformer-lens"}


@pytest.mark.slow
def test_an_unfinished_run_is_resumed_and_its_tables_are_read(tmp_path):
    with start(tmp_path) as run:
        first = run.table("numbers", effects)
        started = run.record.started
    with start(tmp_path) as run:
        pd.testing.assert_frame_equal(run.table("numbers", never), first)
        assert run.record.started == started


def test_a_table_comes_back_as_it_was_given_with_nan_as_nan(tmp_path):
    with start(tmp_path) as run:
        frame = run.table("numbers", effects, columns=["layer", "head", "cie"])
    pd.testing.assert_frame_equal(frame, effects())


def test_equal_tables_are_equal_files(tmp_path):
    for name in "ab":
        with start(tmp_path / name) as run:
            run.write_table("numbers", effects())
    assert (tmp_path / "a/numbers.parquet").read_bytes() == (tmp_path / "b/numbers.parquet").read_bytes()


def test_a_complete_run_comes_back_complete_and_takes_no_more_files(tmp_path):
    with start(tmp_path) as run:
        run.table("numbers", effects)
        before = run
        run = run.complete()
        with pytest.raises(RunError, match="would change it"):
            before.write_bytes("late.bin", b"")
    assert run.is_complete and run.record.finished is not None
    for done in (before, run, start(tmp_path), read_run(tmp_path)):
        with pytest.raises(RunError, match="would change it"):
            done.write_bytes("late.bin", b"")
    assert start(tmp_path).is_complete
    pd.testing.assert_frame_equal(start(tmp_path).table("numbers", never), effects())
    assert not (tmp_path / "late.bin").exists()


def test_a_complete_run_is_opened_without_writing_to_its_folder(tmp_path):
    start(tmp_path).complete()
    (tmp_path / ".ivlens-lock").unlink()
    assert start(tmp_path).is_complete and read_run(tmp_path).is_complete
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_differences_to_another_configuration_are_named_key_by_key(tmp_path):
    start(tmp_path, lora={"rank": 8}, layers=(1, 2)).complete()
    with pytest.raises(RunError) as caught:
        start(tmp_path, shots=5, lora={"rank": 4, "alpha": 16}, layers=(1, 2), seed=1)
    assert str(caught.value) == (
        f"{tmp_path} holds another run: seed is 1 here but 0 in that run; "
        "shots is 5 here but 10 in that run; lora.rank is 4 here but 8 in that run; "
        "lora.alpha is 16 here but not set in that run; choose another --out or ask for the same"
    )


def test_a_model_is_the_same_by_its_digest_not_by_its_name(tmp_path):
    start(tmp_path).complete()
    assert start(tmp_path, model=Source(name="models/lab", digest=MODEL.digest)).is_complete
    other = Source(name="lab", digest="ff")
    with pytest.raises(RunError, match=r"the model is lab \(digest ff\) here but lab \(digest ab12cd34ef56\)"):
        start(tmp_path, model=other)
    with pytest.raises(RunError, match='command is "compare" here but "audit" in that run'):
        start(tmp_path, command="compare")


def test_a_setting_named_like_a_field_of_the_record_is_not_mistaken_for_it(tmp_path):
    with start(tmp_path, seed=3, command="audit", version="x"):
        pass
    with pytest.raises(RunError, match='version is "y" here but "x"'):
        start(tmp_path, seed=3, version="y")


def test_half_a_run_is_not_finished_by_another_version_but_a_whole_one_is_read(tmp_path):
    start(tmp_path / "half").complete()
    edit_record(tmp_path / "half", versions={"ivlens": "0.0.1"}, status="running")
    with pytest.raises(RunError, match=r'ivlens is .* here but "0.0.1" in that run'):
        start(tmp_path / "half")
    edit_record(tmp_path / "half", status="complete")
    assert start(tmp_path / "half").is_complete


def test_a_folder_of_other_files_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds other files \(thesis.tex, ...\) and no run.json"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_becomes_a_run(tmp_path):
    (tmp_path / ".ivlens-lock").touch()
    (tmp_path / ".ivlens-tmp-0-run.json").write_text('{"schema')  # Killed before run.json took its name.
    with start(tmp_path):
        assert (tmp_path / "run.json").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file, not a folder"):
        start(tmp_path / "run")


@pytest.mark.parametrize("version", [0, 2])
def test_a_run_of_another_format_is_refused(tmp_path, version):
    start(tmp_path).complete()
    edit_record(tmp_path, schema_version=version)
    for attempt in (start, read_run):
        with pytest.raises(RunError, match=rf"another version of ivlens \(its format is {version}"):
            attempt(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read"),
        (b'{"schema_version": 1, "comm', "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "is not the record of a run"),
        (b'{"schema_version": true}', "is not the record of a run"),
        (
            b'{"schema_version": 1, "command": "audit"}',
            r"is not the record of a run \(settings: Field required",
        ),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, content, sentence):
    (tmp_path / "run.json").write_bytes(content)
    for attempt in (start, read_run):
        with pytest.raises(RunError, match=sentence):
            attempt(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == content


def test_an_unknown_key_in_the_record_is_named(tmp_path):
    start(tmp_path).complete()
    edit_record(tmp_path, colour="red")
    with pytest.raises(RunError, match="colour: Extra inputs"):
        read_run(tmp_path)


def test_settings_that_json_cannot_hold_are_refused(tmp_path):
    for value in (math.nan, Path("x")):
        with pytest.raises(RunError, match="cannot be recorded as JSON"):
            start(tmp_path, rate=value)
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_a_complete_run(tmp_path):
    with pytest.raises(RunError, match="is not a run of ivlens"):
        read_run(tmp_path / "nowhere")
    with start(tmp_path), pytest.raises(RunError, match=r"is unfinished \(ivlens audit, started"):
        read_run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_table_is_never_believed(tmp_path, keep):
    with start(tmp_path) as run:
        path = run.write_table("numbers", effects())
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(RunError, match=r"numbers.parquet cannot be read .*; delete it and run the same"):
            run.table("numbers", never)


def test_a_flipped_bit_in_the_numbers_of_a_table_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    with start(tmp_path) as run:
        path = run.write_table("numbers", pd.DataFrame({"cie": rng.normal(size=1000)}))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(RunError, match="cannot be read"):
            run.read_table("numbers")


def test_a_table_without_an_expected_column_is_refused(tmp_path):
    with start(tmp_path) as run:
        run.write_table("numbers", effects())
        with pytest.raises(RunError, match=r"numbers\.parquet lacks the column prompt"):
            run.read_table("numbers", columns=["prompt", "layer"])


def test_a_missing_table_of_a_complete_run_is_named(tmp_path):
    run = start(tmp_path).complete()
    with pytest.raises(RunError, match=r"has no numbers\.parquet"):
        run.read_table("numbers")


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    with start(tmp_path / "shots=5") as run:
        assert list(run.table("numbers", effects).columns) == ["layer", "head", "cie"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../../x",
        "/etc/x",
        "run.json",
        "./run.json",
        "Run.JSON",
        ".ivlens-lock",
        "a\\b",
        "a\0b",
    ],
)
def test_names_that_leave_the_run_folder_are_refused(tmp_path, name):
    with start(tmp_path / "run") as run:
        before = (tmp_path / "run/run.json").read_bytes()
        with pytest.raises(RunError, match="cannot name a file of a run"):
            run.write_bytes(name, b"x")
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_a_link_out_of_the_run_folder_is_refused(tmp_path):
    with start(tmp_path / "run") as run:
        (tmp_path / "run" / "out").symlink_to(tmp_path)
        with pytest.raises(RunError, match="is a link out of the run folder"):
            run.write_bytes("out/x", b"x")


def test_files_are_written_into_folders_of_the_run(tmp_path):
    with start(tmp_path) as run:
        run.write_json("stages/0/notes.json", {"ü": None})
        run.write_with("vector.safetensors", lambda path: path.write_bytes(b"tensor"))
        assert run.table("stages/0/numbers", effects).shape == (2, 3)
        assert run.has("stages/0/numbers.parquet") and not run.has("stages/1/numbers.parquet")
    assert json.loads((tmp_path / "stages/0/notes.json").read_text()) == {"ü": None}
    assert (tmp_path / "vector.safetensors").read_bytes() == b"tensor"
    assert leftovers(tmp_path) == []


def test_an_interrupted_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    def interrupted(path: Path) -> None:
        path.write_bytes(b"ha")
        raise KeyboardInterrupt

    with start(tmp_path) as run:
        run.write_bytes("notes", b"whole")
        with pytest.raises(KeyboardInterrupt):
            run.write_with("notes", interrupted)
    assert (tmp_path / "notes").read_bytes() == b"whole"
    assert leftovers(tmp_path) == []


def test_files_are_readable_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        atomic_files.write_whole(tmp_path / "notes", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "notes").stat().st_mode & 0o777 == 0o644


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("refuses", ["os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.replace"])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(tmp_path, monkeypatch, refuses):
    with start(tmp_path) as run:
        with monkeypatch.context() as patch:
            patch.setattr(refuses, no_space)
            with pytest.raises(RunError, match=r"cannot write .*numbers.parquet \(No space left on device\)"):
                run.table("numbers", effects)
        assert leftovers(tmp_path) == [] and not run.has("numbers.parquet")
        with monkeypatch.context() as patch:
            patch.setattr(refuses, no_space)
            with pytest.raises(RunError, match="No space left"):
                run.complete()
    with start(tmp_path) as run:
        assert run.table("numbers", effects).shape == (2, 3)
        assert run.complete().is_complete


def test_a_new_run_on_a_full_disk_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(RunError, match="No space left"):
        start(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".ivlens-lock"]
    monkeypatch.undo()
    start(tmp_path / "run").complete()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(RunError, match=r"cannot write .*run \(Permission denied\)"):
        start(tmp_path / "run")


def finish(folder: Path, scale: float = 1.0, **asked) -> None:
    """Two tables, the second of which is made of the first."""
    with start(folder, **asked) as run:
        first = run.table("first", lambda: effects() * scale)
        run.table("second", lambda: first * 2)
        run.complete()


@pytest.mark.slow
@pytest.mark.parametrize("status", ["complete", "running"])
@pytest.mark.parametrize("damage", ["away", "another run's", "empty", "a link", "a folder"])
def test_a_file_that_is_not_as_the_run_wrote_it_is_named_and_made_again(tmp_path, status, damage):
    finish(tmp_path / "run")
    finish(tmp_path / "other", scale=3.0, seed=1)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.parquet")}
    path = tmp_path / "run" / "first.parquet"
    path.unlink()
    if damage == "another run's":
        path.write_bytes((tmp_path / "other" / "first.parquet").read_bytes())
    elif damage == "empty":
        path.touch()
    elif damage == "a link":
        path.symlink_to("first.parquet")
    elif damage == "a folder":
        path.mkdir()
    if status == "running":
        edit_record(tmp_path / "run", status="running", finished=None)
    else:
        with pytest.raises(RunError, match=r"first\.parquet .*run the same command with the same --out again"):
            read_run(tmp_path / "run")
    if damage == "a folder":
        path.rmdir()
    finish(tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.parquet")} == wanted
    assert read_run(tmp_path / "run").has("first.parquet")


def test_a_file_that_the_run_did_not_write_is_no_result(tmp_path):
    with start(tmp_path) as run:
        run.write_table("first", effects())
        (tmp_path / "second.parquet").write_bytes((tmp_path / "first.parquet").read_bytes())
        assert run.has("first.parquet") and not run.has("second.parquet")
        assert run.table("second", lambda: effects() * 2)["layer"].tolist() == [0, 2]


def test_what_a_complete_run_has_lost_is_not_made_by_another_version(tmp_path):
    finish(tmp_path)
    edit_record(tmp_path, versions={"ivlens": "0.0.1"})
    assert start(tmp_path).is_complete
    (tmp_path / "first.parquet").unlink()
    with pytest.raises(RunError, match=r'ivlens is .* here but "0.0.1" in that run'):
        start(tmp_path)


def test_a_file_that_goes_while_the_run_is_open_keeps_it_from_being_complete(tmp_path):
    with start(tmp_path) as run:
        run.table("first", effects)
        (tmp_path / "first.parquet").unlink()
        with pytest.raises(RunError, match=r"first\.parquet is missing; run the same command"):
            run.complete()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    finish(tmp_path)
    assert read_run(tmp_path).is_complete


@pytest.mark.slow
@pytest.mark.parametrize("successor", [False, True])
def test_a_folder_that_is_renamed_midway_is_complete_nowhere(tmp_path, successor):
    old, new = tmp_path / "old", tmp_path / "new"
    with start(old) as run:
        run.table("first", effects)
        old.rename(new)
        if successor:  # Another run has the name now.
            start(old, seed=1).complete()
        before = sorted(tmp_path.rglob("*"))
        tables = Tables(run)
        for write in (lambda: run.table("second", effects), lambda: tables.part("third", effects), run.complete):
            with pytest.raises(RunError, match="was renamed or removed while ivlens was at work in it"):
                write()
        with tables.keeping("base"), pytest.raises(RunError, match="was renamed or removed"):
            keep_batch("x", [], lambda: {"x": torch.ones(2)}, device="cpu")
        assert sorted(tmp_path.rglob("*")) == before and old.exists() == successor
    assert json.loads((new / "run.json").read_text())["status"] == "running"
    finish(new)
    assert read_run(new).has("second.parquet")


def test_a_batch_is_given_back_for_the_same_question_to_the_same_model_alone(tmp_path):
    def ask(value: float, question: float = 0.0, model: str = "a") -> float:
        with keeping(batch_keeper(tmp_path, model)):
            asked, found = [torch.tensor(question)], {"x": torch.tensor(value)}
            return float(keep_batch("x", asked, lambda: found, device="cpu")["x"])

    assert [ask(1.0), ask(2.0), ask(3.0, question=1.0), ask(4.0, question=1.0)] == [1.0, 1.0, 3.0, 3.0]
    assert ask(5.0, model="b") == 5.0, "of another model"
    first, second = sorted(tmp_path.glob("*.safetensors"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(b"")
    assert [ask(6.0, question=one, model="b") for one in (0.0, 1.0)] == [6.0, 6.0], "damaged"


def test_batches_beside_a_file_go_when_it_is_written_and_nothing_of_others_does(tmp_path):
    file, beside = tmp_path / "heads.json", tmp_path / "heads.json.parts"

    def ask() -> None:
        keep_batch("x", [], lambda: {"x": torch.ones(1)}, device="cpu")

    with pytest.raises(KeyboardInterrupt), keeping_beside(file, "a"):
        ask()
        raise KeyboardInterrupt
    assert len(list(beside.iterdir())) == 1
    (beside / ".ivlens-tmp-12ab34cd-0123456789abcdef0123456789abcdef.safetensors").touch()  # Of one that was killed.
    with keeping_beside(file, "a"):
        ask()
    assert not beside.exists()
    beside.mkdir()
    (beside / "mine.safetensors").touch()
    with keeping_beside(file, "a"):
        ask()
    assert [path.name for path in beside.iterdir()] == ["mine.safetensors"]


def test_two_at_once_are_refused_and_one_after_the_other_is_not(tmp_path):
    first = start(tmp_path)
    with pytest.raises(RunError, match="another process is at work in"):
        start(tmp_path)
    with first:
        pass
    with start(tmp_path):
        pass


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ivlens-lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"\.ivlens-lock is a link, which would have a file made elsewhere"):
        start(tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*")] == ["run", ".ivlens-lock"]


def test_a_lock_is_given_back_by_another_thread_than_took_it(tmp_path):
    run = start(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run.write_bytes, "notes", b"whole").result()
        pool.submit(run.complete).result()
    assert (tmp_path / "notes").read_bytes() == b"whole"
    atomic_files.Lock.take(tmp_path).release()


def test_a_disk_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def unsupported(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(RuntimeWarning, match="No locks available"):
        run = start(tmp_path)
    assert run.complete().is_complete


KILLED = """
import os, signal, sys
from pathlib import Path
import pandas as pd
from ivlens.storage.run_folder import Source, open_run

run = open_run(Path(sys.argv[1]), command="audit", settings={}, sources={}, seed=0)
run.table("first", lambda: pd.DataFrame({"x": [0.1, 0.2]}))

def killed(path):
    path.write_bytes(b"half")
    print("writing", flush=True)
    signal.pause()

run.write_with("second.parquet", killed)
"""


@pytest.mark.command
def test_a_killed_run_leaves_only_whole_files_and_resumes_to_the_same_bytes(tmp_path):
    def finish(folder):
        with open_run(folder, command="audit", settings={}, sources={}, seed=0) as run:
            numbers = run.table("first", lambda: pd.DataFrame({"x": [0.1, 0.2]}))
            run.table("second", lambda: numbers * 3)
            run.complete()

    folder = tmp_path / "killed"
    arguments = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        with pytest.raises(RunError, match="another process is at work"):
            finish(folder)
        process.send_signal(signal.SIGKILL)
    assert len(leftovers(folder)) == 1 and not (folder / "second.parquet").exists()
    first = (folder / "first.parquet").stat().st_mtime_ns
    finish(folder)
    finish(tmp_path / "undisturbed")
    assert leftovers(folder) == [] and (folder / "first.parquet").stat().st_mtime_ns == first
    for name in ("first.parquet", "second.parquet"):
        assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
