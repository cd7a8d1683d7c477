"""How does a task of a published benchmark become a stage of a sequence?

Read as they are: TRACE (Wang et al. 2023, arXiv:2310.06762), O-LoRA's folders (Wang et al. 2023, arXiv:2310.14152) and
Super-NaturalInstructions (Wang et al. 2022, arXiv:2204.07705); beside them our own task files and names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ivlens.datasets import benchmark_files
from ivlens.datasets.benchmark_files import FORMATS, Question
from ivlens.datasets.huggingface import HUB, is_saved
from ivlens.datasets.task import Pair, TaskWarning, exists, read_task, task, tasks
from ivlens.errors import TaskError, suggest
from ivlens.lab.sequences import FILES
from ivlens.prompts.template import Prompt
from ivlens.random_streams import Stream, open_stream
from ivlens.storage.json_files import read_given_json
from ivlens.training.stages import FEWEST, TRAIN_SHARE, VALIDATION_SHARE, Stage

QUERY = "{sentence}\nAnswer:"
"""How an O-LoRA sentence is asked for its label."""


def stage(name: str | Path, *, seed: int, limit: int | None = None) -> Stage:
    """A stage by the name of a task or by the path of a file or folder, in whichever format that is.

    Args:
        name: A task of a built-in sequence, a built-in task, a task file, a data set of the hub (see
            `ivlens.task`), or a folder of TRACE or O-LoRA with its three parts.
        seed: Draws the split where the benchmark has none, and which training prompts stay under a limit.
        limit: Training prompts at most; `None` keeps all.

    Raises:
        TaskError: there is no such task, it cannot be read, or it is too small for its split.

    >>> training.stage("class-letter", seed=0, limit=10)
    Stage('class-letter', 10 train, 9 validation, 15 test)
    """
    if limit is not None and limit < FEWEST:
        raise TaskError(f"limit is {limit}; training needs {FEWEST} prompts or more")
    return _limit(_whole(name, seed), seed, limit)


def _whole(name: str | Path, seed: int) -> Stage:
    if str(name) in FILES:
        return Stage.of_task(read_task(FILES[str(name)]), seed=seed)
    path = Path(name)
    if str(name) in tasks() or str(name).startswith(HUB) or (exists(path) and not path.is_dir()):
        return Stage.of_task(task(name), seed=seed)
    if exists(path):
        return _folder(path, seed)
    hint = suggest(name, [*FILES, *tasks()]) or f"give a task's name or a path: {FORMATS}"
    raise TaskError(f"there is no task, file or folder {str(name)!r}; {hint}")


def _limit(whole: Stage, seed: int, limit: int | None) -> Stage:
    if limit is None or len(whole.train) <= limit:
        return whole
    kept = np.sort(open_stream(seed, Stream.BENCHMARK_LIMIT).choice(len(whole.train), limit, replace=False)).tolist()
    return replace(whole, train=tuple(whole.train[i] for i in kept), bare=tuple(whole.bare[i] for i in kept))


def keep_shortest(whole: Stage, *, train: int | None, test: int | None) -> Stage:
    """A stage of the training and the test prompts of the fewest characters; what was left out is said in a warning.

    Args:
        train, test: How many of each; None: all of them.
    """
    parts = {"train": whole.train, "test": whole.test}
    kept = {name: _shortest(parts[name], most) for name, most in (("train", train), ("test", test))}
    said = [
        f"{len(kept[name])} of {len(prompts)} {name} prompts (up to {max(len(prompts[i].text) for i in kept[name])} "
        "characters)"
        for name, prompts in parts.items()
        if len(kept[name]) < len(prompts)
    ]
    if said:
        warnings.warn(f"{whole.name}: kept are the shortest, {' and '.join(said)}", TaskWarning, stacklevel=2)
    return replace(
        whole,
        train=tuple(whole.train[i] for i in kept["train"]),
        bare=tuple(whole.bare[i] for i in kept["train"]),
        test=tuple(whole.test[i] for i in kept["test"]),
    )


def _shortest(prompts: Sequence[Prompt], most: int | None) -> list[int]:
    """Numbers of the shortest prompts, the shortest first."""
    return sorted(range(len(prompts)), key=lambda number: len(prompts[number].text))[:most]


class _Asked(NamedTuple):
    """A prompt, and the same without its instruction."""

    prompt: Prompt
    bare: Prompt


def _folder(path: Path, seed: int) -> Stage:
    if is_saved(path):
        return Stage.of_task(read_task(path), seed=seed)
    kind = benchmark_files.kind(read_given_json(path / "train.json", wanted=FORMATS))
    if kind == "trace":
        return _stage(path, seed, [_trace(path / f"{part}.json") for part in ("train", "eval", "test")])
    if kind == "o-lora":
        labels = benchmark_files.labels(path / "labels.json")
        return _stage(path, seed, [_o_lora(path / f"{part}.json", labels) for part in ("train", "dev", "test")])
    raise TaskError(f"{path / 'train.json'} is of no known format; {FORMATS}")


def _trace(path: Path) -> list[_Asked]:
    """Prompts as they are. The format does not tell where the instruction ends."""
    asked = [_question(one) for one in benchmark_files.questions(path)]
    return [_Asked(prompt, prompt) for prompt in asked]


def _question(one: Question) -> Prompt:
    # A word and the space before it are one token; at a seam that has a space already, one more would be another.
    seam = "" if one.prompt[-1].isspace() or one.answer[0].isspace() else " "
    return Prompt(text=one.prompt, answer=f"{seam}{one.answer}", query=Pair(one.prompt, one.answer.strip()))


def _o_lora(path: Path, labels: Sequence[str]) -> list[_Asked]:
    instruction = f"{benchmark_files.options(labels)}\n"
    asked = []
    for one in benchmark_files.sentences(path, labels):
        query = Pair(one.sentence, one.label)
        bare = Prompt(text=QUERY.replace("{sentence}", one.sentence), answer=f" {one.label}", query=query)
        asked.append(_Asked(replace(bare, text=instruction + bare.text), bare))
    return asked


def _stage(path: Path, seed: int, parts: Sequence[Sequence[_Asked]]) -> Stage:
    """Test prompts as they came; what is asked there is neither validated nor trained on.

    In O-LoRA's folders dev and test are often one file. Where too few prompts are left to validate on, some
    training prompts are drawn for it.
    """
    train, validation, test = parts
    validation = _unlike(validation, test)
    if len(validation) < FEWEST:
        train, validation = _draw_off(_unlike(train, test), seed)
    train = _unlike(train, [*validation, *test])
    dropped = len(parts[0]) - len(train)
    if dropped or len(validation) != len(parts[1]):
        warnings.warn(
            f"{path}: queries stand in more than one of the three files; {dropped} of {len(parts[0])} training prompts "
            f"were left out or validate, and {len(validation)} validate in place of {len(parts[1])}",
            TaskWarning,
            stacklevel=5,
        )
    name = path.resolve().name or str(path)
    for part, prompts in (("train", train), ("validation", validation), ("test", test)):
        if len(prompts) < FEWEST:
            raise TaskError(f"{path} has {len(prompts)} {part} prompts of its own and needs {FEWEST}; add some")
    return Stage(
        name=name,
        train=tuple(asked.prompt for asked in train),
        validation=tuple(asked.prompt for asked in validation),
        test=tuple(asked.prompt for asked in test),
        bare=tuple(asked.bare for asked in train),
    )


def _unlike(some: Iterable[_Asked], others: Iterable[_Asked]) -> list[_Asked]:
    queries = {asked.prompt.query.input for asked in others}
    return [asked for asked in some if asked.prompt.query.input not in queries]


def _draw_off(train: Sequence[_Asked], seed: int) -> tuple[list[_Asked], list[_Asked]]:
    """Training prompts, and some of them to validate on, in the proportion of a task's split."""
    share = VALIDATION_SHARE / (TRAIN_SHARE + VALIDATION_SHARE)
    order = open_stream(seed, Stream.BENCHMARK_VALIDATION).permutation(len(train)).tolist()
    cut = max(FEWEST, round(share * len(train)))
    return [train[i] for i in sorted(order[cut:])], [train[i] for i in sorted(order[:cut])]
