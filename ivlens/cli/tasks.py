"""`ivlens tasks`, `ivlens prompts`: which tasks are there, is a file one, and what does a model read of it?"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ivlens.cli import options
from ivlens.cli.loading import Prompting, check_early, refuse_short
from ivlens.errors import IvlensError
from ivlens.patching.settings import Settings
from ivlens.tables import Table, folded, plain, print_table

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from ivlens.datasets.task import Task
    from ivlens.prompts.template import Prompt


def list_tasks(
    file: Annotated[str | None, typer.Argument(help="A task file to check, or a built-in task to show.")] = None,
    columns: options.Columns = None,
) -> None:
    """List the built-in tasks, or check a task file."""
    from ivlens.datasets.task import task, tasks

    if file is None:
        print_tasks([task(name) for name in tasks()])
        return
    found = task(file, columns=options.parse_columns(columns))
    refuse_short(found)
    print_task(found)


def print_tasks(tasks: Iterable[Task]) -> None:
    """One line a task."""
    lines = [
        (task.name, str(len(task.pairs)), str(len(task.instructions)), " → ".join(task.pairs[0])) for task in tasks
    ]
    print_table(Table("", ("task", "pairs", "wordings", "example"), (lines,)))


def print_task(task: Task) -> None:
    """One task in full, with its first pairs."""
    print_table(Table("", (task.name, ""), (task.lines(),)), justify="left")


_KINDS = {
    "clean": "Clean: the mean output of heads is taken over such prompts",
    "corrupted": "Corrupted: heads are patched on such prompts",
    "instructed": "Instructed",
    "zero-shot": "Zero-shot: vectors are added here",
    "statement": "Statement: knowledge is read off it",
}
_LACKING = {
    "instructed": 'the task has no written instruction; add "instructions": ["Write the opposite."] to it',
    "statement": 'the task has no statement; add "statement": "The opposite of {input} is" to it',
}


@options.with_options(Settings)
def show_prompts(
    task: options.TaskName,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Print the tokens, too, as this model reads them: {options.MODEL_WORDS}",
            autocompletion=options.complete_model,
        ),
    ] = None,
    columns: options.Columns = None,
    *,
    prompting: Prompting,
    **typed: Any,
) -> None:
    """Print what a model reads of a task: the first prompt of each kind in an audit with the same options."""
    import ivlens

    chosen = ivlens.task(task, columns=options.parse_columns(columns))
    given = check_early(Settings, typed, chosen)
    template = prompting.choose_template(typed["template"])
    if model is None and given.get("answered_only"):
        raise IvlensError("answered-only asks the model which queries it answers; give --model")
    hooked = None if model is None else ivlens.load(model)
    given["template"] = template(hooked)
    settings = Settings(**given)
    for kind, prompt in first_prompts(chosen, settings, hooked).items():
        print(f"{_KINDS[kind]}.\n")
        print_prompt(prompt, hooked) if prompt else print(folded(f"  None: {_LACKING[kind]}\n"))


def first_prompts(task: Task, settings: Settings, model: HookedTransformer | None) -> dict[str, Prompt | None]:
    """The first prompt of each kind in an audit; None where the task lacks what it is made of."""
    from ivlens.analysis.probes import ability_prompts
    from ivlens.patching.effects import Queries, find_queries, mean_prompts, rank_prompts
    from ivlens.prompts.long_pairs import leave_out_long

    if model is not None:
        task = leave_out_long(model, task, shots=settings.shots, template=settings.template)
    split = task.split(shots=settings.shots, seed=settings.seed)
    asked = Queries(split.mean, split.rank) if model is None else find_queries(model, task, settings)
    about = {"shots": settings.shots, "template": settings.template, "seed": settings.seed}
    others = ability_prompts(task, split.evaluation, split.mean, **about)
    return {
        "clean": mean_prompts(task, settings, asked.mean)[0],
        "corrupted": rank_prompts(task, settings, asked.rank)[0],
        **{kind: next(iter(others[kind]), None) for kind in ("instructed", "zero-shot", "statement")},
    }


def print_prompt(prompt: Prompt, model: HookedTransformer | None) -> None:
    """The text line by line, then the answer; and the tokens of both, as the model reads them."""
    print(*(f"  {plain(line)}" for line in prompt.text.split("\n")), sep="\n")
    print(f"\n  answer: {plain(repr(prompt.answer))}")
    if model is not None:
        from ivlens.prompts.tokens import tokenize

        tokens, tokenizer = tokenize(model, [prompt]), cast(Any, model.tokenizer)
        for name, ids in (("tokens", tokens.prompts[0]), ("of the answer", tokens.answers[0])):
            texts = (repr(str(tokenizer.decode([number]))) for number in ids.tolist())
            shown = f"{len(ids)} {name} (· is a space): {' '.join(text.replace(' ', '·') for text in texts)}"
            print(textwrap.fill(shown, 80, initial_indent="  ", subsequent_indent="    ", break_long_words=False))
    print()
