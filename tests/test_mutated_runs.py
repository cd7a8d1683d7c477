"""Whoever hands over a folder, its reader gives a value or one sentence, and writes and ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutated_runs import COUNTED, fuzz, total
from run_folders import audit_folder

from ivlens.cli.app import main
from ivlens.errors import RunError
from ivlens.storage.atomic_files import LOCK, Lock

FEW = {"values": 30, "bits": 240}


@pytest.mark.long
@pytest.mark.command
@pytest.mark.parametrize("what", FEW)
def test_a_changed_file_is_a_value_or_a_sentence_and_ends_no_process(what: str) -> None:
    found = total(fuzz(what, FEW[what], seed=0))
    assert found["aborted"] == found["broken"] == 0, found["faults"]
    assert found["tried"] == sum(found[outcome] for outcome in COUNTED) and found["refused"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the run, which nothing may be written into."""
    audit_folder(tmp_path / "run")
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


@pytest.mark.slow
def test_figures_are_not_written_through_a_link(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = outside.parent / "run"
    (run / "figures").symlink_to(outside, target_is_directory=True)
    assert main(["figures", str(run), "--format", "html"]) == 2
    assert "figures is a link out of the run folder" in capsys.readouterr().err
    assert not list(outside.iterdir())


@pytest.mark.slow
def test_a_figure_or_page_takes_the_place_of_a_link_or_is_refused(outside: Path) -> None:
    run, kept = outside.parent / "run", outside / "kept"
    kept.write_text("as it was")
    (run / "figures").mkdir()
    (run / "figures" / "aie.html").symlink_to(kept)
    assert main(["figures", str(run), "--format", "html"]) == 0
    assert not (run / "figures" / "aie.html").is_symlink()
    (run / "report.html").symlink_to(outside / "new")
    assert main(["report", str(run)]) == 2
    assert [path.name for path in outside.iterdir()] == ["kept"] and kept.read_text() == "as it was"


def test_a_link_in_place_of_the_lock_makes_no_file_elsewhere(outside: Path) -> None:
    (outside.parent / "run" / LOCK).unlink(missing_ok=True)
    (outside.parent / "run" / LOCK).symlink_to(outside / "new")
    with pytest.raises(RunError, match=f"{LOCK} is a link, which would have a file made elsewhere"):
        Lock.take(outside.parent / "run")
    assert not list(outside.iterdir())
