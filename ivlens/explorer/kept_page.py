"""The explorer that a run folder keeps, for its report: the page, and the numbers on it."""

from __future__ import annotations

from pathlib import Path

from ivlens.analysis.audit import Audit
from ivlens.analysis.comparison import Comparison
from ivlens.errors import RunError
from ivlens.explorer.encoding import check_packed
from ivlens.explorer.page import write_page
from ivlens.explorer.page_data import Encoded
from ivlens.patching.head_effects import HeadEffects
from ivlens.storage.atomic_files import LARGEST_TEXT, reason, refuse_unusual, write_whole
from ivlens.storage.run_folder import Run
from ivlens.vectors.instruction_vector import InstructionVector

NUMBERS, PAGE = "explorer.json", "explorer.html"
_LARGEST_ATTENTION = 2**28
"""Bytes that all of it may unfold to, as of 1,024 heads on 6 prompts of 20,000 tokens."""
_ROLES = {"audit": ("model",), "compare": ("base", "tuned")}
"""Whose heads a run of that command is about."""


def model_name(run: Run) -> str:
    """What the model that the run is of was called when it was loaded.

    Raises:
        RunError: it is no run of one task on one model.
    """
    return run.source(_roles(run)[0]).name


def read_found(run: Run) -> tuple[HeadEffects, InstructionVector]:
    """The effects of the run's model (of a comparison: before fine-tuning), and its vector."""
    if run.record.command == "compare":
        compared = Comparison.read(run.folder)
        return compared.base, compared.base_vector
    found = Audit.read(run.folder)
    return found.effects, found.vector


def keep(run: Run, encoded: Encoded) -> Path:
    """Write numbers and page into a run folder.

    Returns:
        Where the page is.

    Raises:
        RunError: the run is of another task or model, or the disk refuses.
    """
    _refuse_another(run, encoded)
    write_whole(run.path(NUMBERS), encoded.model_dump_json().encode())
    write_whole(run.path(PAGE), write_page(encoded).encode(errors="replace"))
    return run.path(PAGE)


def read_kept(run: Run) -> Encoded | None:
    """What `keep` left there; None where nothing was kept.

    Raises:
        RunError: it is damaged, or of another task or model.
    """
    path = run.path(NUMBERS)
    if not path.exists():
        return None
    try:
        refuse_unusual(path, LARGEST_TEXT)
        found = Encoded.model_validate_json(path.read_bytes())
        _check_attention(found)
    except (OSError, ValueError) as error:  # pydantic's is one.
        raise RunError(f"{path} cannot be read ({reason(error)}); delete it, or run ivlens explore again") from error
    _refuse_another(run, found)
    return found


def _check_attention(found: Encoded) -> None:
    """A small text may unfold to any size, in the browser of whoever opens the page."""
    left = _LARGEST_ATTENTION
    for one in found.models:
        for text, prompt in zip(one.attention, found.shown, strict=True):
            left -= check_packed(text, found.layers * found.heads, len(prompt.tokens), most=left)


def _roles(run: Run) -> tuple[str, ...]:
    if run.record.command not in _ROLES:
        raise RunError(
            f"{run.folder} is of `ivlens {run.record.command}`; heads are explored of an audit or a comparison"
        )
    return _ROLES[run.record.command]


def _refuse_another(run: Run, found: Encoded) -> None:
    known = [run.source(role).digest for role in _roles(run)]
    digests = [model.digest for model in found.models]
    if found.task_digest != run.source("task").digest or digests != known[: len(digests)]:
        raise RunError(
            f"the explorer is of {found.task} on {found.models[-1].name}, and {run.folder} of another task or other "
            "weights; explore what the run is of, or delete its explorer.json"
        )
