"""`ivlens ask`: what does a model write, and what does it write with an adapter or a vector?"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ivlens.cli import options
from ivlens.cli.loading import Loading
from ivlens.cli.output import complain
from ivlens.errors import IvlensError
from ivlens.tables import Table, plain, print_table

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from ivlens.prompts.chat import Layout
    from ivlens.prompts.template import Prompt

_SHOWN = 26
"""Letters of a prompt that stand beside its replies: the last ones."""


class Said(NamedTuple):
    """What a model wrote, and how right that is where the answers are known."""

    replies: Sequence[str]
    probabilities: Sequence[float] = ()
    """Of the answers' first tokens."""
    score: str = ""


@options.with_options()
def ask(
    model: options.ModelName,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="What to ask; - reads standard input, line by line."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Prompts, one a line, each with its right answer behind a tab where it has one.")
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option(help="The right answer of the prompt, to be scored; one for each prompt.")
    ] = None,
    adapter: options.Adapter = None,
    vector: Annotated[
        Path | None, typer.Option(help="A vector to add: its .safetensors file, or the run folder of an audit.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="How many times; what the vector's trials chose.")] = None,
    layer: Annotated[
        int | None, options.number("Where to add it: after block N, from 0; what its trials chose.")
    ] = None,
    every_token: Annotated[
        bool, typer.Option("--every-token", help="Add it at every new token, too, not at the last of the prompt alone.")
    ] = False,
    new_tokens: Annotated[int, options.number("Of a reply, at most; it ends with the line or the turn.")] = 32,
    score: Annotated[
        options.AskedScore, typer.Option(help="How replies are scored where there are answers; none: not at all.")
    ] = options.AskedScore.auto,
    template: Annotated[
        str, typer.Option(help="How prompts are written: plain, as they are; or qa, chat, ... as in an audit.")
    ] = "plain",
    *,
    loading: Loading,
) -> None:
    """Print replies to prompts side by side: of the model, with an adapter, and with a vector added."""
    asked = _read(texts or (), file, answer or ())
    if vector is None and (scale, layer, every_token) != (None, None, False):
        raise IvlensError("scale, layer and every-token say how a vector is added; give --vector, too")
    make = loading.choose_template(template)
    import ivlens
    from ivlens.models.hooked import model_name
    from ivlens.models.loader import merge_adapter
    from ivlens.vectors.instruction_vector import InstructionVector

    added = None if vector is None else InstructionVector.load(_vector_file(vector))
    found: dict[str, Said] = {}

    def put(hooked: HookedTransformer, name: str) -> None:
        found[name] = _put(hooked, _write(asked, make(hooked)), score.value, new_tokens)

    hooked = loading.load(model)
    put(hooked, model_name(hooked))
    if adapter:  # Into the model that is there: a second one would take as much memory again.
        for folder in adapter:
            merge_adapter(hooked, folder)
        put(hooked, f"+ {' + '.join(path.resolve().name for path in adapter)}")
    if added is not None:
        with ivlens.steered(hooked, added, scale=scale, layer=layer, every_token=every_token):
            put(hooked, "+ vector")
        print(
            f"The vector ({plain(added.task or 'of an unknown task')}) is added at layer "
            f"{added.layer if layer is None else layer}, {added.scale if scale is None else scale:g} times.\n"
        )
    _print(asked, found)


def _read(texts: Sequence[str], file: Path | None, answers: Sequence[str]) -> list[tuple[str, str]]:
    """Prompts as they were typed, then those of the file, each with its right answer; nothing where it has none.

    Raises:
        IvlensError: no prompt, an empty one, or answers that are not as many as prompts.
    """
    from ivlens.storage.json_files import read_text

    if any(re.search(r"\\n(?![a-z])", text) for text in texts):
        complain("a prompt has the two letters \\n in it; a line break is typed in bash and zsh as $'Q: hot\\nA:'")
    typed = [line for text in texts for line in (sys.stdin.read().splitlines() if text == "-" else [text])]
    if answers and len(answers) != len(typed):
        raise IvlensError(f"there are {len(answers)} answers to {len(typed)} prompts; give one for each, or none")
    lines = list(zip(typed, answers, strict=True)) if answers else [_part(line) for line in typed]
    if file is not None:
        lines += [_part(line) for line in read_text(file, wanted="give a file of prompts, one a line").splitlines()]
    lines = [(text, answer.strip()) for text, answer in lines if text.strip()]
    if not lines:
        raise IvlensError('there is no prompt; give one, such as "The capital of France is", or a file of them')
    return lines


def _part(line: str) -> tuple[str, str]:
    text, _, answer = line.partition("\t")
    return text, answer


def _vector_file(path: Path) -> Path:
    return path / "vector.safetensors" if path.is_dir() else path


def _write(asked: Sequence[tuple[str, str]], layout: Layout) -> list[Prompt]:
    """Prompts whose answer is known end where it begins; of the others nothing is read behind the prompt."""
    from ivlens.datasets.task import Pair

    written = [layout.render(Pair(text, answer or "?")) for text, answer in asked]
    return [one if answer else replace(one, answer="") for one, (_, answer) in zip(written, asked, strict=True)]


def _put(model: HookedTransformer, prompts: Sequence[Prompt], score: str, new_tokens: int) -> Said:
    """Replies to prompts, scored where that is asked for.

    Raises:
        IvlensError: a score was asked for, and some prompt has no answer.
    """
    from ivlens.replies import inquiry

    unanswered = sum(not prompt.answer for prompt in prompts)
    if unanswered and score not in ("none", "auto"):
        raise IvlensError(
            f"{unanswered} of {len(prompts)} prompts have no answer to score; give --answer, or --score none"
        )
    found = inquiry.ask(model, prompts, new_tokens=new_tokens)
    if unanswered or score == "none":
        return Said(found.reply)
    chosen: Any = found.usual_score if score == "auto" else score
    return Said(found.reply, found.first.tolist(), f"{chosen} {found.score(chosen).text(2)}")


def _print(asked: Sequence[tuple[str, str]], found: Mapping[str, Said]) -> None:
    """A line a prompt, with what each model wrote; below, how right each was."""
    columns = ["prompt"]
    lines = [[text if len(text) <= _SHOWN else f"…{text[1 - _SHOWN :]}"] for text, _ in asked]
    for name, said in found.items():
        columns += [name, "P(answer)"] if said.probabilities else [name]
        for line, *cells in zip(lines, *said[: 1 + bool(said.probabilities)], strict=True):
            line += [cells[0] or "(nothing)", *(f"{value:.3f}" for value in cells[1:])]
    print_table(Table("", tuple(columns), ([tuple(line) for line in lines],)), justify="left")
    for name, said in found.items():
        if said.score:
            print(f"{plain(name)}: {said.score}")
