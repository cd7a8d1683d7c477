"""What does a command say beside its tables, and which figures does it draw?"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ivlens.tables import plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ivlens.plots.export import Exported


def complain(message: str) -> int:
    print(f"ivlens: {plain(message)}", file=sys.stderr)
    return 2


def say_stored(model: object) -> None:
    """One line where a model's weights had to be dequantised, or lost something of an adapter."""
    from ivlens.models import hooked

    stored = hooked.stored_as(model)
    if stored:
        print(f"{plain(hooked.model_name(model))}: {stored}.")


def file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name)[:80].strip(".-") or "run"


def draw_missing(drawn: dict[str, Figure], folder: Path) -> None:
    from ivlens.plots import export

    # A page is written after its images: where all pages are, all that could be drawn has been.
    if not all((folder / "figures" / f"{name}.html").is_file() for name in drawn):
        say_notice(export.export(drawn, folder / "figures"))


def say_notice(exported: Exported) -> None:
    if exported.notice:
        complain(exported.notice)
