"""Which pairs, instructions and statements make up a task?

A task is a set of input/output pairs that one instruction turns into each other. The built-in set is a folder of
task files in the very format that a user writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ivlens.datasets import python_pairs, task_files
from ivlens.datasets.entries import Pair as Pair
from ivlens.datasets.entries import check_pair, check_text
from ivlens.datasets.entries import list_names as list_names
from ivlens.datasets.huggingface import HUB
from ivlens.datasets.mistakes import name_folder_mistake, name_mistake
from ivlens.datasets.records import Columns
from ivlens.datasets.task_files import Content
from ivlens.errors import TaskError, suggest
from ivlens.errors import TaskWarning as TaskWarning
from ivlens.random_streams import Stream, open_stream
from ivlens.tables import html_table

if TYPE_CHECKING:
    import pandas as pd

BUILT_IN = Path(__file__).parents[1] / "lab" / "tasks"
_LONGEST_NAME = 500
_SHOWN = 50


class Split(NamedTuple):
    """Parts of a task's pairs that share no pair, so that nothing is judged on what it was chosen on."""

    mean: tuple[Pair, ...]
    """Gives `mean_z` and all demonstrations."""
    rank: tuple[Pair, ...]
    """Ranks heads."""
    validation: tuple[Pair, ...]
    """Chooses the layer."""
    evaluation: tuple[Pair, ...]
    """Measures; nothing is chosen on it."""

    def at_most(self, *, validation: int, evaluation: int) -> Split:
        """The same with no more pairs that choose, and that measure, than asked for."""
        return self._replace(validation=self.validation[:validation], evaluation=self.evaluation[:evaluation])


@dataclass(frozen=True, kw_only=True)
class Task:
    """Pairs, the instructions that ask for them, and the plain statement of the same fact.

    Raises:
        TaskError: no name, no pairs, an empty side or instruction, or a statement without `{input}`.

    >>> from ivlens.datasets.task import Pair
    >>> pairs = (Pair("cat", "cats"), Pair("dog", "dogs"))
    >>> ivlens.Task(name="plural", pairs=pairs, instructions=("Write the plural of the word.",))
    Task('plural', 2 pairs, 1 instructions)
    """

    name: str
    pairs: tuple[Pair, ...]
    instructions: tuple[str, ...] = ()
    """Wordings of one instruction, such as "Write the opposite of the word."."""
    statement: str | None = None
    """The fact without an instruction, up to the output: "The opposite of {input} is"."""

    def __post_init__(self) -> None:
        check_text(self.name, "the name of a task", _LONGEST_NAME)
        if not self.name.strip():
            raise TaskError("a task needs a name; give it one")
        object.__setattr__(self, "pairs", tuple(self.pairs))
        if not self.pairs:
            raise TaskError(f"task {self.name!r} has no pairs; add pairs of an input and an output")
        if isinstance(self.instructions, str):
            raise TaskError(f"the instructions of task {self.name!r} are one text; give a list of wordings")
        object.__setattr__(self, "instructions", tuple(self.instructions))
        for pair in self.pairs:
            check_pair(pair, f"task {self.name!r}")
        for wording in self.instructions:
            check_text(wording, f"an instruction of task {self.name!r}")
            if not wording.strip():
                raise TaskError(f"task {self.name!r} has an empty instruction; fill it in or drop it")
        if self.statement is not None:
            check_text(self.statement, f"the statement of task {self.name!r}")
            if "{input}" not in self.statement:
                raise TaskError(
                    f"the statement of task {self.name!r} is {self.statement!r}, without {{input}}; "
                    "write {input} where the query goes"
                )

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Sequence[Any]] | Mapping[Any, Any],
        *,
        name: str,
        instructions: str | Sequence[str] = (),
        statement: str | None = None,
    ) -> Task:
        """A task of inputs and their outputs; numbers are written out, and a list of outputs is all right answers.

        Pairs without an input or an output are left out with a warning.

        Args:
            name: What the task is called.
            instructions: One wording or several.
            statement: The plain statement of a fact, with `{input}` where the query goes.

        Raises:
            TaskError: no pair can be used, or the rest is refused (see `Task`).

        >>> ivlens.Task.from_pairs([("cat", "cats"), ("octopus", ["octopuses", "octopi"])], name="plural").pairs[1]
        Pair(input='octopus', output='octopuses', also=('octopi',))
        """
        return cls(
            name=name,
            pairs=tuple(python_pairs.read_pairs(pairs, f"task {name!r}")),
            instructions=(instructions,) if isinstance(instructions, str) else tuple(instructions),
            statement=statement,
        )

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        input: str,
        output: str,
        name: str | None = None,
        instructions: str | Sequence[str] = (),
        statement: str | None = None,
    ) -> Task:
        """A task of two columns of a table; see `from_pairs`, which `instructions` and `statement` go to.

        Args:
            frame: A table of pandas.
            input, output: The names of two of its columns.
            name: By default those names.

        Raises:
            TaskError: there is no such column, or no line can be used.

        >>> import pandas as pd
        >>> frame = pd.DataFrame({"word": ["hot", "up", None], "opposite": ["cold", "down", "left"]}).dropna()
        >>> ivlens.Task.from_frame(frame, input="word", output="opposite")
        Task('word-opposite', 2 pairs, 0 instructions)
        """
        pairs = zip(*(python_pairs.column_of(frame, column) for column in (input, output)), strict=True)
        named = f"{input}-{output}" if name is None else name
        return cls.from_pairs(pairs, name=named, instructions=instructions, statement=statement)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that prompts are built from, in hexadecimal; the name is no part of it.

        >>> import dataclasses
        >>> len(task.digest), dataclasses.replace(task, name="opposites").digest == task.digest
        (64, True)
        """
        beside = [(pair.also, pair.knowledge) if pair.knowledge is not None else (pair.also,) for pair in self.pairs]
        pairs = [[*pair, *more] if any(more) else pair for pair, more in zip(self.pairs, beside, strict=True)]
        content = [pairs, self.instructions, self.statement]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self.pairs)} pairs, {len(self.instructions)} instructions)"

    def lines(self) -> list[tuple[str, str]]:
        """What a task is, by name: its size, its wordings, its statement and its first pairs.

        >>> task.lines()[0], task.lines()[-1]
        (('pairs', '80: enough for up to 70 shots'), ('example', 'hot → cold'))
        """
        more = len(self.instructions) - _SHOWN
        return [
            ("pairs", f"{len(self.pairs)}: enough for up to {max(0, len(self.pairs) - 10)} shots"),
            *(("instruction", wording) for wording in self.instructions[:_SHOWN] or ["none: not measured"]),
            *([("instructions", f"and {more:,} more")] if more > 0 else []),
            ("statement", self.statement or "none: not measured"),
            *(("example", f"{pair.input} → {' or '.join(pair.outputs)}") for pair in self.pairs[:3]),
        ]

    def _repr_html_(self) -> str:
        return html_table((self.name, ""), self.lines(), texts=True)

    def split(self, *, shots: int = 10, seed: int = 0) -> Split:
        """Part the pairs at random into four sets without overlap.

        Two fifths, and at least `shots + 1`, go to the mean (and to demonstrations); of the rest a third ranks
        heads, a quarter chooses the layer and the others evaluate.

        Args:
            shots: Demonstrations that a prompt is to have.
            seed: Draws the order of the pairs.

        Raises:
            TaskError: fewer pairs than `shots` + 10.

        >>> parts = task.split(shots=10, seed=0)
        >>> {name: len(pairs) for name, pairs in parts._asdict().items()}
        {'mean': 32, 'rank': 16, 'validation': 12, 'evaluation': 20}
        """
        if shots < 0:
            raise TaskError(f"shots is {shots}; it must be 0 or more")
        total = len(self.pairs)
        if total < shots + 10:
            raise TaskError(
                f"task {self.name!r} has {total} pairs, but {shots} shots need at least {shots + 10} "
                "(demonstrations, ranking, validation and evaluation share none); add pairs or use fewer shots"
            )
        order = open_stream(seed, Stream.SPLIT_PAIRS).permutation(total)
        shuffled = [self.pairs[i] for i in order]
        mean = max(shots + 1, round(0.4 * total))
        rank = mean + max(2, (total - mean) // 3)
        validation = rank + max(2, (total - mean) // 4)
        bounds = [0, mean, rank, validation, total]
        return Split(*(tuple(shuffled[a:b]) for a, b in pairwise(bounds)))


def tasks() -> list[str]:
    """Names of the built-in tasks, in alphabetical order.

    >>> ivlens.tasks()[:3]
    ['animal-class', 'animal-young', 'antonym']
    """
    return sorted(path.stem for path in BUILT_IN.glob("*.json"))


def task(name: str | Path | Task, *, columns: Columns | None = None) -> Task:
    """A built-in task by name, a task file or folder by path, or a data set of the hub by `hf:NAME`.

    What cannot be used of a file, such as an entry without an answer, is left out with a warning that counts it.

    Args:
        name: A file may be ours, function_vectors', TRACE's, O-LoRA's or Super-NaturalInstructions' JSON; records of
            JSON, JSONL, CSV or parquet with input and output under their common names, alpaca's keys, or messages; a
            folder one of TRACE, of O-LoRA, or what `save_to_disk` of Hugging Face's `datasets` wrote. In full, `hf:` is
            `hf:NAME[:CONFIGURATION][@SPLIT]`. A task is returned as it is.
        columns: Which columns of a table, or keys of records, are input and output, where they have no common names.

    Raises:
        TaskError: there is no such task or file, or it cannot be used.

    >>> from pathlib import Path
    >>> written = Path("plural.csv").write_text("input,output\\ncat,cats\\ndog,dogs\\n")
    >>> ivlens.task("plural.csv").pairs
    (Pair(input='cat', output='cats'), Pair(input='dog', output='dogs'))
    """
    if isinstance(name, Task):
        return name
    if not isinstance(name, str | Path):
        raise TaskError(name_mistake(name))
    built_in = BUILT_IN / f"{name}.json"
    if str(name) in tasks():
        return read_task(built_in, columns=columns)
    if str(name).startswith(HUB):
        return _of(task_files.read_hub(str(name), columns))
    mistake = name_folder_mistake(name)
    if mistake is not None:
        raise TaskError(mistake)
    path = Path(name)
    if exists(path):
        return read_task(path, columns=columns)
    hint = suggest(name, tasks()) or "`ivlens tasks` lists the built-in ones."
    raise TaskError(f"there is no built-in task and no file {str(name)!r}; {hint}")


def exists(path: Path) -> bool:
    """Whether there is such a file or folder."""
    with suppress(OSError, ValueError):  # A name too long for the file system, or with a null in it, is no file.
        return path.exists()
    return False


def read_task(path: Path, *, columns: Columns | None = None) -> Task:
    """A task file or folder in whichever of the known formats it is; see `task`.

    Raises:
        TaskError: not readable, of no known format, with unknown keys, or without an entry that can be used.
    """
    return _of(task_files.read_content(path, columns))


def _of(content: Content) -> Task:
    return Task(
        name=content.name,
        pairs=tuple(content.entries),
        instructions=content.instructions,
        statement=content.statement,
    )
