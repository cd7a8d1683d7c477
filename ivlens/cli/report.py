"""`ivlens report`: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ivlens.tables import plain


def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write one page with everything that a run found, from saved numbers, without the model."""
    import ivlens
    from ivlens.storage import parquet

    parquet.start()  # While the rest is still imported.
    print(f"Written: {plain(str(ivlens.report(run)))}")
