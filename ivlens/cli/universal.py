"""`ivlens universal`: which heads carry many tasks?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ivlens.cli import options
from ivlens.cli.checks import check_early
from ivlens.cli.options import parse_bytes
from ivlens.errors import IvlensError
from ivlens.patching.settings import Settings
from ivlens.tables import plain


@options.with_options(Settings)
def universal(
    model: Annotated[str, typer.Argument(help="lab, a local Hugging Face folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="File for the heads: .json, or .safetensors with vectors.")],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tasks that heads are ranked on, with commas; all built-in ones.")
    ] = None,
    adapter: options.Adapter = None,
    top: Annotated[int, options.number("Heads that are kept.")] = 10,
    *,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    memory: options.Memory = "2GiB",
    **typed: Any,
) -> None:
    """Rank heads over many tasks, and say which tasks entered and why."""
    budget = parse_bytes(memory)
    if out.suffix.lower() not in (".json", ".safetensors"):
        raise IvlensError(f"out is {str(out)!r}; give a name that ends in .json or .safetensors")
    import ivlens
    from ivlens.analysis import audit_tables

    chosen = [ivlens.task(name) for name in (ivlens.tasks() if tasks is None else options.split_list(tasks))]
    given = check_early(Settings, typed)
    hooked = ivlens.load(model, adapter=adapter, device=device, dtype=dtype, backend=backend)
    given["template"] = ivlens.template(typed["template"], hooked)
    found = ivlens.universal_heads(hooked, chosen, top=top, memory=budget, **given)
    found.save(out)
    audit_tables.print_universal(found)
    print(f"In {plain(str(out))}; give it to --heads.")
