"""`ivlens universal`: which heads carry many tasks?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ivlens.cli import options
from ivlens.cli.checks import check_early, settings_of
from ivlens.cli.options import parse_bytes
from ivlens.errors import IvlensError
from ivlens.tables import plain


def universal(
    model: Annotated[str, typer.Argument(help="lab, a local Hugging Face folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="File for the heads: .json, or .safetensors with vectors.")],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tasks that heads are ranked on, with commas; all built-in ones.")
    ] = None,
    adapter: options.Adapter = None,
    template: options.LayoutName = "qa",
    shots: options.Shots = 10,
    clean_prompts: options.CleanPrompts = 100,
    prompts: options.Prompts = 25,
    top: options.Top = 10,
    corruption: options.CorruptionOption = options.Corruption.shuffled,
    source: options.SourceOption = options.Source.demonstrations,
    effect: options.EffectOption = options.Effect.prob,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    memory: options.Memory = "2GiB",
) -> None:
    """Rank heads over many tasks, and say which tasks entered and why."""
    budget = parse_bytes(memory)
    if out.suffix.lower() not in (".json", ".safetensors"):
        raise IvlensError(f"out is {str(out)!r}; give a name that ends in .json or .safetensors")
    import ivlens
    from ivlens.analysis import audit_tables
    from ivlens.patching.settings import Settings

    chosen = [ivlens.task(name) for name in (ivlens.tasks() if tasks is None else options.split_list(tasks))]
    settings = settings_of(shots, clean_prompts, prompts, corruption, source, effect, seed)
    check_early(None, settings, template=template)
    hooked = ivlens.load(model, adapter=adapter, device=device, dtype=dtype)
    asked = Settings(**settings, template=ivlens.template(template, hooked))
    found = ivlens.universal_heads(hooked, chosen, asked, top=top, memory=budget)
    found.save(out)
    audit_tables.print_universal(found)
    print(f"In {plain(str(out))}; give it to --heads.")
