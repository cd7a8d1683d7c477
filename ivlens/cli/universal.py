"""`ivlens universal`: which heads carry many tasks?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ivlens.cli import options
from ivlens.cli.loading import Patching, check_early
from ivlens.cli.options import parse_bytes
from ivlens.errors import IvlensError
from ivlens.patching.settings import Settings
from ivlens.tables import UNMEASURED, Table, plain, print_table

if TYPE_CHECKING:
    from ivlens.steering.universal_heads import Considered, Universal

_MOST_HEADS = 20
"""Heads that are printed; the file has all."""


@options.with_options(Settings)
def universal(
    model: options.ModelName,
    out: Annotated[Path, typer.Option(help="File for the heads: .json, or .safetensors with vectors.")],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tasks that heads are ranked on, with commas; all built-in ones.")
    ] = None,
    adapter: options.Adapter = None,
    top: Annotated[int, options.number("Heads that are kept.")] = 10,
    *,
    score: options.ScoreOption = options.ScoreKind.auto,
    loading: Patching,
    **typed: Any,
) -> None:
    """Rank heads over many tasks, and say which tasks entered and why.

    What is done lies in a folder beside the file until that is written: the same command goes on from there.
    """
    budget = parse_bytes(loading.memory)
    if out.suffix.lower() not in (".json", ".safetensors"):
        raise IvlensError(f"out is {str(out)!r}; give a name that ends in .json or .safetensors")
    import ivlens
    from ivlens.models.hooked import weight_digest
    from ivlens.storage.run_tables import keeping_beside

    chosen = [ivlens.task(name) for name in (ivlens.tasks() if tasks is None else options.split_list(tasks))]
    given = check_early(Settings, typed)
    template = loading.choose_template(typed["template"])
    hooked = loading.load(model, adapter)
    given["template"] = template(hooked)
    with keeping_beside(out, weight_digest(hooked)):
        found = ivlens.universal_heads(hooked, chosen, top=top, score=score.value, memory=budget, **given)
        found.save(out)
    _print(_shown(found))
    print(f"In {plain(str(out))}; give it to --heads.")


class _Shown(NamedTuple):
    """What is printed of universal heads, so far as both kinds of their files hold it."""

    model: str
    considered: Sequence[Considered]
    heads: Sequence[tuple[str, float]]
    """With their mean AIE."""
    unit: str
    layer: int
    scale: float


def print_file(path: Path) -> None:
    """Print what a file of universal heads holds.

    Raises:
        IvlensError: it is no such file.
    """
    from ivlens.steering.universal_heads import Universal

    _print(_read_json(path) if path.suffix.lower() == ".json" else _shown(Universal.load(path)))


def _shown(found: Universal) -> _Shown:
    heads = [(str(head), float(found.aie[head])) for head in found.heads]
    return _Shown(found.model, found.considered, heads, found.settings.unit, found.layer, found.scale)


def _read_json(path: Path) -> _Shown:
    from ivlens.steering.universal_heads import CONSIDERED
    from ivlens.storage.json_files import read_given_json

    content = read_given_json(path, wanted="give a run folder, or a file of universal heads")
    try:
        return _Shown(
            str(content["model"]),
            CONSIDERED.validate_python(content["considered"]),
            [(str(head), float(aie)) for head, aie in zip(content["heads"], content["heads_aie"], strict=True)],
            Settings.from_record(content["settings"]).unit,
            int(content["layer"]),
            float(content["scale"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise IvlensError(f"{path} is no file that `ivlens universal` wrote ({error}); give one, or a run") from error


def _print(found: _Shown) -> None:
    """Every task that was tried, and the heads with their mean AIE over those that entered."""
    entered = sum(one.entered for one in found.considered)
    print(f"{entered} of {len(found.considered)} tasks entered on {plain(found.model)}:\n")
    lines = [
        (
            one.task,
            UNMEASURED if one.accuracy is None else f"{one.accuracy:.2f}",
            f"{one.majority:.2f}",
            "entered" if one.entered else f"left out: {one.reason}" if one.accuracy is None else "left out",
        )
        for one in found.considered
    ]
    print_table(Table("", ("task", "accuracy", "majority answer", ""), (lines,)))
    print("\nA task enters if the model is right more often than its most frequent answer would be.\n")
    heads = [(head, f"{aie:+.4f}") for head, aie in found.heads[:_MOST_HEADS]]
    print_table(Table("", ("universal head", f"mean AIE ({found.unit})"), (heads,)))
    print(
        f"\nVectors of these {len(found.heads)} heads are added best at layer {found.layer}, {found.scale:g} times.\n"
    )
