"""What did a run of any kind find, and which page tells it?"""

from __future__ import annotations

from pathlib import Path

from ivlens.analysis.audit import Audit
from ivlens.analysis.comparison import Comparison
from ivlens.experiments.experiment import Experiment
from ivlens.forgetting.study import Study
from ivlens.reports.audit_page import audit_page
from ivlens.reports.comparison_page import comparison_page
from ivlens.reports.experiment_page import experiment_page
from ivlens.reports.page import Page
from ivlens.reports.study_page import study_page
from ivlens.storage import run_folder

Found = Audit | Comparison | Study | Experiment


_KINDS: dict[str, type[Found]] = {"audit": Audit, "compare": Comparison, "study": Study, "experiment": Experiment}


def read_findings(folder: Path | str) -> Found:
    """What a complete run of any kind found, without the model.

    Raises:
        RunError: no run, unfinished, or damaged.
    """
    return _KINDS.get(run_folder.read_run(folder).record.command, Audit).read(folder)


def page_of(found: Found) -> Page:
    """The page of a run of any kind."""
    if isinstance(found, Audit):
        return audit_page(found)
    if isinstance(found, Comparison):
        return comparison_page(found)
    return experiment_page(found) if isinstance(found, Experiment) else study_page(found)
