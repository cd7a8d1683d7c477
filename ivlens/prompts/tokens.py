"""Which tokens are a prompt's, and which are its answer's?

At the seam of both, the tokens are those of the joined text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from ivlens.datasets.entries import LONGEST
from ivlens.errors import PromptError, as_ivlens_error
from ivlens.prompts.chat import Conversation
from ivlens.prompts.template import DEFAULT as DEFAULT
from ivlens.prompts.template import Prompt as Prompt
from ivlens.prompts.template import Template as Template

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


LONGEST_TOKEN = 16
"""Characters that are read for each token of a long context; texts have about four."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Prompts as token ids, padded on the left, and their answers, padded on the right.

    Pads are told by the masks, never by the id. The last column of `prompts` is the last prompt token.

    >>> tokens = prompts.tokenize(model, prompts.instructed(task, task.pairs))
    >>> isinstance(tokens, prompts.Tokens), len(tokens), tokens.prompts.dtype, tokens.mask.dtype
    (True, 80, torch.int64, torch.bool)
    >>> len(tokens[:5])
    5
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
        width, stop = torch.stack([mask.sum(1).max(), answer_mask.sum(1).max()]).tolist()
        start = mask.shape[1] - width
        return Tokens(
            prompts=self.prompts[rows, start:],
            mask=mask[:, start:],
            answers=self.answers[rows, :stop],
            answer_mask=answer_mask[:, :stop],
        )

    def to(self, device: torch.device | str | None) -> Tokens:
        """The same on a device; itself where it is there already.

        >>> prompts.tokenize(model, prompts.zero_shot(pairs)).to("cpu").prompts.device
        device(type='cpu')
        """
        # What is copied to a GPU need not be waited for; what comes from one must be.
        goes_on = torch.device(device or "cpu").type != "cpu"
        return Tokens(**{name: held.to(device, non_blocking=goes_on) for name, held in vars(self).items()})

    def first(self) -> Tokens:
        """The same prompts, of the answers only the first token.

        >>> prompts.tokenize(model, prompts.zero_shot(pairs)).first().answers.shape  # [prompt answer]
        torch.Size([3, 1])
        """
        return Tokens(
            prompts=self.prompts, mask=self.mask, answers=self.answers[:, :1], answer_mask=self.answer_mask[:, :1]
        )

    def followed_by(self, others: Tokens) -> Tokens:
        """These prompts and then others, all of one width.

        >>> bare, asked = prompts.zero_shot(pairs), prompts.instructed(task, pairs)
        >>> both = prompts.tokenize(model, bare).followed_by(prompts.tokenize(model, asked))
        >>> both.prompts.shape, both.mask.sum(1).tolist()  # [prompt pos]
        (torch.Size([6, 11]), [4, 4, 4, 11, 9, 8])
        """
        width = max(self.prompts.shape[1], others.prompts.shape[1])
        answer = max(self.answers.shape[1], others.answers.shape[1])

        def widened(tokens: Tokens) -> list[Tensor]:
            left, right = width - tokens.prompts.shape[1], answer - tokens.answers.shape[1]
            prompts = [pad(part, (left, 0)) for part in (tokens.prompts, tokens.mask)]
            return prompts + [pad(part, (0, right)) for part in (tokens.answers, tokens.answer_mask)]

        prompts, mask, answers, answer_mask = map(torch.cat, zip(widened(self), widened(others), strict=True))
        return Tokens(prompts=prompts, mask=mask, answers=answers, answer_mask=answer_mask)


@as_ivlens_error()
def tokenize(model: HookedTransformer, prompts: Sequence[Prompt], *, answered: bool = True) -> Tokens:
    """Token ids of prompts and answers; the answer's tokens are those of the joined text.

    Args:
        answered: Refuse a prompt with no answer. Without one there is nothing to read a probability at, but a model
            may be asked to write on.

    Raises:
        PromptError: no prompts, no tokenizer, an answer of no token, or a prompt longer than the context.

    >>> tokens = prompts.tokenize(model, prompts.zero_shot(pairs))
    >>> model.to_str_tokens(tokens.prompts[0]), model.to_string(tokens.answers[0])
    (['<s>', 'Q:', ' big', '\\nA:'], ' small')
    """
    if not prompts:
        raise PromptError("there are no prompts to tokenize; give at least one")
    if model.tokenizer is None:
        raise PromptError("the model has no tokenizer; give it one with model.set_tokenizer(...)")
    split, n_ctx = [], model.cfg.n_ctx
    for ids, answer in (_token_ids(model, prompt, answered) for prompt in prompts):
        if len(ids) + len(answer) > n_ctx:
            raise PromptError(
                f"a prompt has {len(ids)} tokens and its answer {len(answer)}, but the model's context is "
                f"{n_ctx}; use fewer shots"
            )
        split.append((ids, answer))
    width = max(len(ids) for ids, _ in split)
    answer_width = max(len(answer) for _, answer in split)
    device = model.cfg.device
    return Tokens(
        prompts=torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in split], device=device),
        mask=torch.tensor([[False] * (width - len(ids)) + [True] * len(ids) for ids, _ in split], device=device),
        answers=torch.tensor(
            [answer + [0] * (answer_width - len(answer)) for _, answer in split], dtype=torch.long, device=device
        ),
        answer_mask=torch.tensor(
            [[True] * len(answer) + [False] * (answer_width - len(answer)) for _, answer in split],
            dtype=torch.bool,
            device=device,
        ),
    )


def _token_ids(model: HookedTransformer, prompt: Prompt, answered: bool) -> tuple[list[int], list[int]]:
    tokenizer: Any = model.tokenizer
    length, most = len(prompt.text) + len(prompt.answer), max(LONGEST, LONGEST_TOKEN * model.cfg.n_ctx)
    if length > most:  # Tokens take a hundred times the memory of their text.
        raise PromptError(
            f"a prompt has {length:,} characters, and may have {most:,}; use fewer shots, or leave long pairs out"
        )
    encode = partial(tokenizer.encode, add_special_tokens=False)
    joined = encode(prompt.text + prompt.answer)
    cut = _seam(tokenizer, prompt, encode(prompt.text), joined)
    prompt_ids, answer = _begin(model, prompt, joined[:cut]), joined[cut:]
    if not answer and (answered or prompt.answer):
        raise PromptError(f"the answer {prompt.answer!r} has no token of its own after {prompt.text[-30:]!r}")
    if not prompt_ids:
        raise PromptError(f"the prompt {prompt.text!r} has no tokens; the model needs at least one to read")
    beyond = [token for token in (*prompt_ids, *answer) if token >= model.cfg.d_vocab]
    if beyond:
        raise PromptError(
            f"a prompt has the token {tokenizer.convert_ids_to_tokens(beyond[0])!r}, which was added to the tokenizer "
            f"and has no embedding in {model.cfg.model_name}; resize the model's embeddings, or leave it out"
        )
    return prompt_ids, answer


def _begin(model: HookedTransformer, prompt: Prompt, ids: list[int]) -> list[int]:
    """The prompt with or without the BOS token, as is asked for; a conversation has its own in the text."""
    tokenizer: Any = model.tokenizer
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if prompt.bos == "auto":
        return [*bos, *ids] if model.cfg.default_prepend_bos and not isinstance(prompt, Conversation) else ids
    if prompt.bos == "yes" and not bos:
        raise PromptError(
            f"bos is 'yes', but the tokenizer of {model.cfg.model_name} has no BOS token; take bos='auto'"
        )
    own = ids[1:] if ids[:1] == bos else ids
    return [*bos, *own] if prompt.bos == "yes" else own


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
