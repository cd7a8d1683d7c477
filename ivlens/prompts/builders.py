"""What does the model read? Clean, corrupted, zero-shot and instructed prompts.

A prompt ends where the answer begins. Clean prompts let the task be read off demonstrations or an instruction;
corrupted prompts ask the same query with the task corrupted, which does not remove it from every model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import cycle, islice

import numpy as np

from ivlens.datasets.task import Pair, Task
from ivlens.errors import PromptError, TaskError
from ivlens.prompts.chat import Layout
from ivlens.prompts.choices import Bos, Corruption, Source
from ivlens.prompts.template import DEFAULT as DEFAULT
from ivlens.prompts.template import Prompt as Prompt
from ivlens.prompts.template import Template as Template


def instructed(task: Task, pairs: Sequence[Pair], *, template: Layout = DEFAULT) -> list[Prompt]:
    """One prompt a pair: a written instruction (wordings in turn) and no demonstrations.

    Raises:
        TaskError: the task has no instructions.

    >>> for prompt in prompts.instructed(task, pairs[:2]):
    ...     print(repr(prompt.text))
    'Give the opposite of the word.\\nQ: big\\nA:'
    'What is the opposite?\\nQ: small\\nA:'
    """
    if not task.instructions:
        raise TaskError(
            f"task {task.name!r} has no written instruction; add 'instructions' to it, or read the task off "
            "demonstrations"
        )
    wordings = cycle(task.instructions)
    return [template.render(pair, instruction=next(wordings)) for pair in pairs]


def zero_shot(pairs: Sequence[Pair], *, template: Layout = DEFAULT) -> list[Prompt]:
    """One prompt a pair: the query alone, with neither instruction nor demonstrations.

    >>> [prompt.text for prompt in prompts.zero_shot(pairs[:2])]
    ['Q: big\\nA:', 'Q: small\\nA:']
    """
    return [template.render(pair) for pair in pairs]


def few_shot(
    pairs: Sequence[Pair],
    pool: Sequence[Pair],
    *,
    shots: int,
    generator: np.random.Generator,
    shuffled: bool = False,
    template: Layout = DEFAULT,
) -> list[Prompt]:
    """One prompt a pair, with `shots` demonstrations drawn from `pool` without the query.

    Args:
        pool: Where demonstrations come from; a pair that is asked is none of its own.
        shuffled: Permute the demonstrations' outputs, so that the task cannot be read off them.

    Raises:
        PromptError: fewer than `shots` pairs beside the query.

    >>> (prompt,) = prompts.few_shot(pairs[:1], pool, shots=5, generator=np.random.default_rng(0), shuffled=True)
    >>> prompt.text.count("Q:"), prompt.text.endswith("Q: big\\nA:"), prompt.answer
    (6, True, ' small')
    """
    if not shuffled:
        drawn = (_draw(pair, pool, shots, generator) for pair in pairs)
        return [template.render(pair, demonstrations=shown) for pair, shown in zip(pairs, drawn, strict=True)]
    return [prompt for _, prompt in twins(pairs, pool, shots=shots, generator=generator, template=template)]


def twins(
    pairs: Sequence[Pair],
    pool: Sequence[Pair],
    *,
    shots: int,
    generator: np.random.Generator,
    template: Layout = DEFAULT,
) -> list[tuple[Prompt, Prompt]]:
    """Of each pair the prompt that `few_shot` shuffles, with its demonstrations as they were and with outputs permuted.

    For the other arguments see `few_shot`.

    Raises:
        PromptError: fewer than `shots` pairs beside the query.

    >>> ((kept, shuffled),) = prompts.twins(pairs[:1], pool, shots=5, generator=np.random.default_rng(0))
    >>> len(kept.text) == len(shuffled.text), kept.text == shuffled.text
    (True, False)
    """
    found = []
    for pair in pairs:
        drawn = _draw(pair, pool, shots, generator)
        both = (drawn, shuffle_outputs(drawn, generator))
        kept, shuffled = (template.render(pair, demonstrations=shown) for shown in both)
        found.append((kept, shuffled))
    return found


def _draw(pair: Pair, pool: Sequence[Pair], shots: int, generator: np.random.Generator) -> list[Pair]:
    others = [candidate for candidate in pool if candidate != pair]
    if len(others) < shots:
        raise PromptError(f"{shots} shots need {shots} pairs beside the query, but there are {len(others)}")
    return [others[i] for i in generator.choice(len(others), shots, replace=False)]


def statements(task: Task, pairs: Sequence[Pair], *, bos: Bos = "auto") -> list[Prompt]:
    """One prompt a pair: the task's plain statement; none where the task has no statement.

    Read from them is the knowledge probability P(y | x) of Jiang et al. 2024, arXiv:2406.12227.

    Args:
        bos: Whether they begin with the tokenizer's BOS token; `auto`: where the model is used to it.

    >>> [prompt.text + prompt.answer for prompt in prompts.statements(task, pairs[:1])]
    ['The opposite of big is small']
    """
    if task.statement is None:
        return []
    text = task.statement.rstrip()
    told = [(text.replace("{input}", pair.input), pair.stated) for pair in pairs]
    return [Prompt(text=one, answer=f" {pair.output}", query=pair, bos=bos) for one, pair in told]


def shuffle_outputs(pairs: Sequence[Pair], generator: np.random.Generator) -> list[Pair]:
    """Permute the outputs so that as few pairs as possible keep theirs (none, unless one output is a majority).

    Outputs are sorted in a random order of their values and rotated by the most frequent one's count: no
    output then meets its own value unless it fills more than half of the places. It cannot loop for ever.

    >>> shuffled = prompts.shuffle_outputs(pairs, np.random.default_rng(0))
    >>> [new.output == old.output for new, old in zip(shuffled, pairs)]
    [False, False, False]
    """
    if len(pairs) < 2:
        return list(pairs)
    counts = Counter(pair.output for pair in pairs)
    rank = {output: generator.random() for output in counts}
    order = sorted(generator.permutation(len(pairs)).tolist(), key=lambda i: rank[pairs[i].output])
    least, most = max(counts.values()), len(pairs) - max(counts.values())
    shift = int(generator.integers(least, most + 1)) if most >= least else least
    moved = order[shift % len(order) :] + order[: shift % len(order)]
    outputs = {to: pairs[source].output for to, source in zip(order, moved, strict=True)}
    return [Pair(pair.input, outputs[i]) for i, pair in enumerate(pairs)]


def cycled(pairs: Sequence[Pair], n: int) -> list[Pair]:
    """The first `n` pairs; a short list starts over.

    >>> [pair.input for pair in prompts.cycled(pairs, 5)]
    ['big', 'small', 'hot', 'big', 'small']
    """
    return list(islice(cycle(pairs), n))


def clean(
    task: Task,
    pairs: Sequence[Pair],
    pool: Sequence[Pair],
    *,
    source: Source = "demonstrations",
    shots: int = 10,
    generator: np.random.Generator,
    template: Layout = DEFAULT,
) -> list[Prompt]:
    """Prompts off which the task can be read, from demonstrations or from the written instruction.

    Args:
        pool: Where demonstrations come from.
        shots: Demonstrations of a prompt; none where `source` is the `instruction`.

    Raises:
        PromptError: demonstrations are asked for, and `shots` is 0 or more than the pool has.
        TaskError: the instruction is asked for, and the task has none.

    >>> found = prompts.clean(task, pairs, pool, shots=4, generator=np.random.default_rng(0))
    >>> len(found), found[0].text.count("A:")
    (3, 5)
    """
    if source == "instruction":
        return instructed(task, pairs, template=template)
    if shots < 1:
        raise PromptError("clean prompts with source='demonstrations' need 1 shot or more; shots is 0")
    return few_shot(pairs, pool, shots=shots, generator=generator, template=template)


def corrupted(
    pairs: Sequence[Pair],
    pool: Sequence[Pair],
    *,
    corruption: Corruption = "shuffled",
    shots: int = 10,
    generator: np.random.Generator,
    template: Layout = DEFAULT,
) -> list[Prompt]:
    """The same queries with the task corrupted: outputs of the demonstrations permuted, or nothing but the query.

    `shuffled` is the corruption of Todd et al. 2024, arXiv:2310.15213; `zero-shot` that of arXiv:2502.11019's code.

    Args:
        pool: Where demonstrations come from.
        shots: Demonstrations of a prompt, 2 or more; none where the `corruption` is `zero-shot`.

    Raises:
        PromptError: demonstrations are asked for, and `shots` is below 2 or more than the pool has.

    >>> found = prompts.corrupted(pairs, pool, corruption="zero-shot", generator=np.random.default_rng(0))
    >>> found == prompts.zero_shot(pairs)
    True
    """
    if corruption == "zero-shot":
        return zero_shot(pairs, template=template)
    if shots < 2:
        raise PromptError(f"outputs of {shots} demonstrations cannot be permuted; take 2 shots or more, or zero-shot")
    return few_shot(pairs, pool, shots=shots, generator=generator, shuffled=True, template=template)


def as_prompts(prompts: str | Prompt | Sequence[str | Prompt]) -> tuple[Prompt, ...]:
    """Texts as they are, as prompts without an answer, and prompts themselves.

    Raises:
        PromptError: what is neither, or an empty text.
    """
    found: list[Prompt] = []
    for one in prompts if isinstance(prompts, Iterable) and not isinstance(prompts, str) else [prompts]:
        if not isinstance(one, str | Prompt):
            raise PromptError(
                f"a prompt is of type {type(one).__name__}; give a text, or prompts such as "
                "ivlens.prompts.zero_shot(pairs)"
            )
        if isinstance(one, str) and not one.strip():
            raise PromptError('a prompt is empty; give a text, such as "The capital of France is"')
        found.append(Prompt(text=one, answer="", query=Pair(one, "?")) if isinstance(one, str) else one)
    return tuple(found)
