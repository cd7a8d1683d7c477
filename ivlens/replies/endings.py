"""Where does a reply end: with its line, with its turn, or with the text?

A plain prompt asks for a line, a conversation for a turn. Behind the end a model goes on with the next question, or
with the user's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ivlens.prompts.chat import Conversation
from ivlens.prompts.template import Prompt

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class Ending(NamedTuple):
    """What a reply to a prompt ends before."""

    tokens: frozenset[int]
    """Those that are no text: the end of the text or of a turn, a new turn's beginning."""
    mark: str = ""
    """What the chat template writes behind an answer, if it is not one of the tokens; nothing for a plain prompt."""
    lines: int = 0
    """After how many lines; 0: as many as the turn has."""
    skips_break: bool = False
    """Whether a line break in front is the template's, as it is in front of its own answers."""

    def cut(self, written: Sequence[int], tokenizer: Any) -> tuple[str, bool]:
        """The reply so far, and whether it has ended."""
        stop = next((at for at, token in enumerate(written) if token in self.tokens), len(written))
        text = tokenizer.decode(list(written[:stop]), clean_up_tokenization_spaces=False)
        ends = [end for end in (self._end_of_turn(text), self._end_of_line(text)) if end >= 0]
        return text[: min(ends, default=len(text))].strip(), bool(ends) or stop < len(written)

    def _end_of_turn(self, text: str) -> int:
        return text.find(self.mark) if self.mark else -1

    def _end_of_line(self, text: str) -> int:
        """Where the last line that counts ends; -1 where it goes on."""
        end = len(text) - len(text.lstrip()) - 1 if self.skips_break else -1
        for _ in range(self.lines):
            end = text.find("\n", end + 1)
            if end < 0:
                break
        return end if self.lines else -1


def find_endings(model: HookedTransformer, prompts: Sequence[Prompt]) -> list[Ending]:
    """Where the reply to each prompt ends."""
    tokenizer: Any = model.tokenizer
    controls = _control_tokens(tokenizer)
    return [_ending(prompt, controls, tokenizer) for prompt in prompts]


def _ending(prompt: Prompt, controls: frozenset[int], tokenizer: Any) -> Ending:
    if not isinstance(prompt, Conversation):
        answer = prompt.answer.strip()
        lead = prompt.answer[: len(prompt.answer) - len(prompt.answer.lstrip())]
        return Ending(controls, lines=1 + answer.count("\n"), skips_break="\n" in lead)
    mark = prompt.end.strip()
    whole_tokens = (controls | set(tokenizer.added_tokens_decoder)) - {tokenizer.unk_token_id}
    first = whole_tokens.intersection(tokenizer.encode(mark, add_special_tokens=False)[:1])
    if first:
        return Ending(controls | first)
    return Ending(controls, mark=mark.split("\n")[0])


def _control_tokens(tokenizer: Any) -> frozenset[int]:
    """Tokens that are no text: that for unknown text among them, which nobody can read."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | set(tokenizer.all_special_ids))
