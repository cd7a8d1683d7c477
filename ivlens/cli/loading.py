"""How does a command load a model, and what is checked before?

A command with a parameter of one of these classes has its fields for options; see `options.with_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivlens.cli import options
from ivlens.cli.output import say_stored
from ivlens.errors import IvlensError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from ivlens.datasets.task import Task
    from ivlens.patching.settings import Settings
    from ivlens.prompts.chat import Layout


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How prompts are written, beside their template."""

    bos: Annotated[
        options.BosChoice,
        typer.Option(help="Whether prompts begin with the BOS token; auto: where the model is used to it."),
    ] = options.BosChoice.auto
    template_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A variable of the chat template's own, such as enable_thinking=false; several.",
        ),
    ] = None

    def choose_template(self, name: str) -> Callable[..., Layout]:
        """What makes the template of a model; refuses, before a model is read, what can be refused without it."""
        from ivlens.prompts.chat import CHAT, template

        make = partial(template, name, options=options.parse_template_options(self.template_option), bos=self.bos.value)
        if name != CHAT:
            make()
        return make


@dataclass(frozen=True, kw_only=True)
class Loading(Prompting):
    """Also how the model is loaded."""

    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    backend: Annotated[
        str, typer.Option(help="What the model is loaded into: hooked or bridge (of TransformerLens); auto.")
    ] = "auto"
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="WAY|FILE",
            help="Parts of a large model on several devices, in a bridge: auto, balanced, balanced_low_0, sequential, "
            "or a JSON file.",
        ),
    ] = None

    @property
    def place(self) -> dict[str, Any]:
        """Where and as what, as `ivlens.load` takes it."""
        return {name: getattr(self, name) for name in ("device", "dtype", "backend", "device_map")}

    def load(self, model: str, adapter: Sequence[Path] | None = None) -> HookedTransformer:
        """The model; one line is printed where its weights had to be dequantised, or lost something of an adapter."""
        import ivlens

        hooked = ivlens.load(model, adapter=adapter, **self.place)
        say_stored(hooked)
        return hooked


@dataclass(frozen=True, kw_only=True)
class Patching(Loading):
    """Also how much memory patching may take."""

    memory: Annotated[str, typer.Option(help="What patching may take beside the weights.")] = "2GiB"


def check_early(settings: type[Settings], typed: Mapping[str, Any], task: Task | None = None) -> dict[str, Any]:
    """The options that were typed, read. Refuses, before a large model is read, what can be refused without it."""
    from ivlens.analysis.wordings import check_choice
    from ivlens.patching.effects import check_prompts

    found = options.read_options(settings, typed)
    asked = settings(**found)
    if task is not None:
        check_prompts(task, asked)
        check_choice(task, found.get("instruction", "all"))
    return found


def refuse_short(task: Task) -> None:
    if len(task.pairs) < 10:
        raise IvlensError(
            f"task {task.name!r} has {len(task.pairs)} pairs, but an audit needs 10 and one more for each "
            "demonstration; add pairs"
        )
