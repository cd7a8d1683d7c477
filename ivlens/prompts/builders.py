"""What does the model read? Clean, corrupted, zero-shot and instructed prompts, and their tokens.

A prompt ends where the answer begins. Clean prompts let the task be read off demonstrations or an instruction;
corrupted prompts ask the same query with the task removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from ivlens.datasets.task import Pair, Task
from ivlens.errors import PromptError, TaskError
from ivlens.prompts.chat import Conversation, Layout
from ivlens.prompts.template import DEFAULT as DEFAULT
from ivlens.prompts.template import Prompt as Prompt
from ivlens.prompts.template import Template as Template

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Source = Literal["demonstrations", "instruction"]
Corruption = Literal["shuffled", "zero-shot"]


def instructed(task: Task, pairs: Sequence[Pair], *, template: Layout = DEFAULT) -> list[Prompt]:
    """One prompt a pair: a written instruction (wordings in turn) and no demonstrations.

    Raises:
        TaskError: the task has no instructions.
    """
    if not task.instructions:
        raise TaskError(
            f"task {task.name!r} has no written instruction; add 'instructions' to it, or read the task off "
            "demonstrations"
        )
    wordings = cycle(task.instructions)
    return [template.render(pair, instruction=next(wordings)) for pair in pairs]


def zero_shot(pairs: Sequence[Pair], *, template: Layout = DEFAULT) -> list[Prompt]:
    """One prompt a pair: the query alone, with neither instruction nor demonstrations."""
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
        shuffled: Permute the demonstrations' outputs, so that the task cannot be read off them.
    """
    prompts = []
    for pair in pairs:
        others = [candidate for candidate in pool if candidate != pair]
        if len(others) < shots:
            raise PromptError(f"{shots} shots need {shots} pairs beside the query, but there are {len(others)}")
        drawn = [others[i] for i in generator.choice(len(others), shots, replace=False)]
        shown = shuffle_outputs(drawn, generator) if shuffled else drawn
        prompts.append(template.render(pair, demonstrations=shown))
    return prompts


def statements(task: Task, pairs: Sequence[Pair]) -> list[Prompt]:
    """One prompt a pair: the task's plain statement; none where the task has no statement."""
    if task.statement is None:
        return []
    text = task.statement.rstrip()
    return [Prompt(text=text.replace("{input}", pair.input), answer=f" {pair.output}", query=pair) for pair in pairs]


def shuffle_outputs(pairs: Sequence[Pair], generator: np.random.Generator) -> list[Pair]:
    """Permute the outputs so that as few pairs as possible keep theirs (none, unless one output is a majority).

    Outputs are sorted in a random order of their values and rotated by the most frequent one's count: no
    output then meets its own value unless it fills more than half of the places. It cannot loop for ever.
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
    """The first `n` pairs; a short list starts over."""
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
    """Prompts off which the task can be read, from demonstrations or from the written instruction."""
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
    """The same queries with the task removed: outputs of the demonstrations permuted, or nothing but the query."""
    if corruption == "zero-shot":
        return zero_shot(pairs, template=template)
    if shots < 2:
        raise PromptError(f"outputs of {shots} demonstrations cannot be permuted; take 2 shots or more, or zero-shot")
    return few_shot(pairs, pool, shots=shots, generator=generator, shuffled=True, template=template)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Prompts as token ids, padded on the left, and their answers, padded on the right.

    Pads are told by the masks, never by the id. The last column of `prompts` is the last prompt token.
    """

    prompts: Int[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"]
    answers: Int[Tensor, "prompt answer"]
    answer_mask: Bool[Tensor, "prompt answer"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | Int[Tensor, " row"]) -> Tokens:
        """Some of the prompts, by a slice or by their numbers, with columns that none of them needs cut off."""
        mask, answer_mask = self.mask[rows], self.answer_mask[rows]
        start = mask.shape[1] - int(mask.sum(1).max())
        stop = int(answer_mask.sum(1).max())
        return Tokens(
            prompts=self.prompts[rows, start:],
            mask=mask[:, start:],
            answers=self.answers[rows, :stop],
            answer_mask=answer_mask[:, :stop],
        )

    def first(self) -> Tokens:
        """The same prompts, of the answers only the first token."""
        return Tokens(
            prompts=self.prompts, mask=self.mask, answers=self.answers[:, :1], answer_mask=self.answer_mask[:, :1]
        )

    def followed_by(self, others: Tokens) -> Tokens:
        """These prompts and then others, all of one width."""
        width = max(self.prompts.shape[1], others.prompts.shape[1])
        answer = max(self.answers.shape[1], others.answers.shape[1])

        def widened(tokens: Tokens) -> list[Tensor]:
            left, right = width - tokens.prompts.shape[1], answer - tokens.answers.shape[1]
            prompts = [pad(part, (left, 0)) for part in (tokens.prompts, tokens.mask)]
            return prompts + [pad(part, (0, right)) for part in (tokens.answers, tokens.answer_mask)]

        prompts, mask, answers, answer_mask = map(torch.cat, zip(widened(self), widened(others), strict=True))
        return Tokens(prompts=prompts, mask=mask, answers=answers, answer_mask=answer_mask)


def tokenize(model: HookedTransformer, prompts: Sequence[Prompt]) -> Tokens:
    """Token ids of prompts and answers; the answer's tokens are those of the joined text.

    Raises:
        PromptError: no prompts, no tokenizer, an answer of no token, or a prompt longer than the context.
    """
    if not prompts:
        raise PromptError("there are no prompts to tokenize; give at least one")
    if model.tokenizer is None:
        raise PromptError("the model has no tokenizer; give it one with model.set_tokenizer(...)")
    split = [_token_ids(model, prompt) for prompt in prompts]
    width = max(len(ids) for ids, _ in split)
    longest, n_ctx = max(split, key=lambda ids: len(ids[0]) + len(ids[1])), model.cfg.n_ctx
    if len(longest[0]) + len(longest[1]) > n_ctx:
        raise PromptError(
            f"a prompt has {len(longest[0])} tokens and its answer {len(longest[1])}, but the model's context is "
            f"{n_ctx}; use fewer shots"
        )
    answer_width = max(len(answer) for _, answer in split)
    device = model.cfg.device
    return Tokens(
        prompts=torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in split], device=device),
        mask=torch.tensor([[False] * (width - len(ids)) + [True] * len(ids) for ids, _ in split], device=device),
        answers=torch.tensor([answer + [0] * (answer_width - len(answer)) for _, answer in split], device=device),
        answer_mask=torch.tensor(
            [[True] * len(answer) + [False] * (answer_width - len(answer)) for _, answer in split], device=device
        ),
    )


def _token_ids(model: HookedTransformer, prompt: Prompt) -> tuple[list[int], list[int]]:
    tokenizer: Any = model.tokenizer
    encode = partial(tokenizer.encode, add_special_tokens=False)
    has_bos = model.cfg.default_prepend_bos and tokenizer.bos_token_id is not None
    bos = [tokenizer.bos_token_id] if has_bos and not isinstance(prompt, Conversation) else []
    joined = encode(prompt.text + prompt.answer)
    cut = _seam(tokenizer, prompt, encode(prompt.text), joined)
    prompt_ids, answer = bos + joined[:cut], joined[cut:]
    if not answer:
        raise PromptError(f"the answer {prompt.answer!r} has no token of its own after {prompt.text[-30:]!r}")
    if not prompt_ids:
        raise PromptError(f"the prompt {prompt.text!r} has no tokens; the model needs at least one to read")
    return prompt_ids, answer


def _seam(tokenizer: Any, prompt: Prompt, alone: list[int], joined: list[int]) -> int:
    """How many tokens of the joined text are the prompt's.

    Where a token spans the seam (a prompt that ends in a space, say), it is the answer's, and the prompt ends before.
    """
    shared = next((i for i, (a, b) in enumerate(zip(alone, joined, strict=False)) if a != b), len(alone))
    if shared == len(alone) or not tokenizer.is_fast:
        return shared
    # Cut otherwise by what follows, the prompt may still have tokens of its own behind the last that both share.
    text = prompt.text + prompt.answer
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = (_end(text, spans[i], tokenizer.decode([joined[i]])) for i in range(shared, len(joined)))
    return shared + next((i for i, end in enumerate(ends) if end > len(prompt.text)), len(joined) - shared)


def _end(text: str, span: tuple[int, int], piece: str) -> int:
    """Where a token ends; byte-level tokenizers leave the white space behind it out of its span."""
    covered = text[span[0] : span[1]]
    left_out = len(piece) - len(piece.rstrip()) if piece.strip() and covered == covered.rstrip() else 0
    return span[1] + left_out
