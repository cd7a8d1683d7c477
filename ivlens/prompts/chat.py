"""How does a conversation ask for a task, in the layout that a chat model was trained on?

The layout is the tokenizer's own chat template: demonstrations are turns of user and assistant, an instruction is the
system's message where the template has a place for one. The template is a program out of the checkpoint: it runs in
transformers' sandbox, in a process of its own (`chat_sandbox`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.datasets.task import Pair
from ivlens.errors import PromptError
from ivlens.prompts import chat_sandbox
from ivlens.prompts.choices import GREEDY_MATCH, Bos, Score, ScoreChoice
from ivlens.prompts.template import Prompt, Template, check_bos, find_template

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CHAT = "chat"
# Stands where an answer would, and in no template of its own.
_ANSWER = "7f3a9c"
# What ivlens itself says to a template.
_TAKEN = ("messages", "add_generation_prompt", "conversations", "chat_template", "tools", "documents")
# Templates that write today's date would make every day's numbers others. Llama's own stands where there is no clock.
UNDATED = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Conversation(Prompt):
    """A prompt as a conversation: all of its special tokens, the first one included, stand in its text."""

    end: str = ""
    """What the template writes behind an answer: the end of the turn."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A tokenizer's chat template, in full.

    Raises:
        PromptError: an option that it does not know or that ivlens sets, or no such choice of BOS.

    >>> jinja = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    >>> jinja += "{% if add_generation_prompt %}<assistant>{% endif %}"
    >>> prompts.ChatTemplate(jinja=jinja, special_tokens={}, system=True).render(pairs[0]).text
    '<user>big<assistant>'
    """

    jinja: str
    """Its source; where it asks for today's date, it gets a fixed one."""
    special_tokens: Mapping[str, str]
    """By name, such as `bos_token`."""
    system: bool
    """Whether it writes a system message; otherwise an instruction stands in front of the first user turn."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of its own that are set, such as `enable_thinking`; JSON values."""
    bos: Bos = "auto"
    """Whether a prompt begins with the BOS token; `auto`: as the template has it."""

    def __post_init__(self) -> None:
        check_bos(self.bos)
        for name in self.options:
            if name in _TAKEN or name in self.special_tokens:
                raise PromptError(f"{name!r} cannot be an option of the chat template: ivlens sets it; leave it out")
            if not re.search(rf"\b{re.escape(name)}\b", self.jinja):
                raise PromptError(
                    f"the chat template knows no option {name!r}; leave it out, or see its text for others"
                )

    @classmethod
    def of(
        cls, tokenizer: Any, *, name: str = "the model", options: Mapping[str, Any] | None = None, bos: Bos = "auto"
    ) -> ChatTemplate:
        """The template of a tokenizer, after a try whether it runs and takes a system message.

        Args:
            tokenizer: Of transformers.
            name: Of the model, for messages.
            options: Variables of the template's own that are set, such as `enable_thinking`.
            bos: Whether a prompt begins with the BOS token; `auto`: as the template has it.

        Raises:
            PromptError: it has none, or one that fails, knows no such option or leaves the query out.

        >>> prompts.ChatTemplate.of(model.tokenizer, name="lab")
        Traceback (most recent call last):
        ivlens.errors.PromptError: the tokenizer of lab has no chat template; choose another template, such as qa
        """
        try:
            jinja = tokenizer.get_chat_template()
        except ValueError as error:
            raise PromptError(
                f"the tokenizer of {name} has no chat template; choose another template, such as qa"
            ) from error
        if not isinstance(jinja, str):
            raise PromptError(
                f"the chat template of {name} is a {type(jinja).__name__}, no text; choose another template, such as qa"
            )
        special = {key: token for key, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        jinja = UNDATED + jinja if "strftime_now" in jinja else jinja
        found = cls(jinja=jinja, special_tokens=special, system=True, options=dict(options or {}), bos=bos)
        probe = "Write any word."
        found.render(Pair(probe, "x"))
        try:
            has_place = probe in found._written([_said("system", probe), _said("user", "x")], opened=True)
        except PromptError:  # Raised by templates that refuse the role.
            has_place = False
        return replace(found, system=has_place)

    def render(
        self, query: Pair, *, demonstrations: Sequence[Pair] = (), instruction: str | None = None
    ) -> Conversation:
        """Write the conversation up to where the assistant answers the query.

        What the template puts in front of an answer is the prompt's, such as an empty thinking block; the answer begins
        with a space where the template has one there.

        Args:
            demonstrations: Turns of user and assistant before the query.
            instruction: The system's message, or in front of the first user turn where there is no place for one.

        Raises:
            PromptError: the template fails, or leaves the query out.

        >>> jinja = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
        >>> layout = prompts.ChatTemplate(jinja=jinja, special_tokens={}, system=False)
        >>> layout.render(pairs[0], demonstrations=pairs[1:2], instruction="Opposite?").text
        '[user: Opposite?\\nsmall][assistant: big][user: big][assistant:'
        """
        messages = [turn for pair in demonstrations for turn in _turns(pair)] + [_said("user", query.input)]
        if instruction is not None and self.system:
            messages = [_said("system", instruction), *messages]
        elif instruction is not None:
            messages[0] = _said("user", f"{instruction}\n{messages[0]['content']}")
        text = self._written(messages, opened=True)
        if query.input.strip() not in text:
            raise PromptError(f"the chat template leaves out the query {query.input[:60]!r}; choose another template")
        text, space, end = _seam(text, self._written([*messages, _said("assistant", _ANSWER)], opened=False))
        return Conversation(text=text, answer=space + query.output, query=query, bos=self.bos, end=end)

    def _written(self, messages: list[Message], *, opened: bool) -> str:
        return chat_sandbox.render_chat(self.jinja, messages, self.special_tokens, opened=opened, options=self.options)


Layout = Template | ChatTemplate


def template(
    name: str | Path,
    model: HookedTransformer | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    bos: Bos = "auto",
) -> Layout:
    """A template by name, `chat` for the model's own, or from a JSON file.

    Names are `qa` (the default), `function-vectors`, `arrow`, `input-output` and `plain`. A file is an object of
    `demonstration`, `query`, `instruction` and `answer`, or of function_vectors' `prefixes` and `separators`; what it
    leaves out is as in the default.

    Args:
        model: Whose chat template is meant.
        options: Variables of the chat template's own, such as `{"enable_thinking": False}`.
        bos: Whether prompts begin with the tokenizer's BOS token; `auto`: where the model is used to it.

    Raises:
        PromptError: there is no such template, the file or the model's own cannot be used, or there are options that
            it does not know.

    >>> ivlens.template("arrow").render(task.pairs[0], demonstrations=task.pairs[1:2]).text
    'small -> big\\nbig ->'
    """
    if str(name) != CHAT:
        if options:
            raise PromptError(
                f"{', '.join(options)} can be set of a chat template only, not of {str(name)!r}; leave it out"
            )
        return replace(find_template(name), bos=bos)
    if model is None or model.tokenizer is None:
        raise PromptError("a chat template is the tokenizer's; give the model, with its tokenizer")
    return ChatTemplate.of(model.tokenizer, name=str(model.cfg.model_name), options=options, bos=bos)


def find_score(choice: ScoreChoice, layout: Layout) -> Score:
    """The score that was chosen, or the one that fits the template: `contains`, as chat models answer in sentences."""
    if choice != "auto":
        return choice
    return "contains" if isinstance(layout, ChatTemplate) else GREEDY_MATCH


def to_record(layout: Layout) -> dict[str, Any]:
    """As run records hold it: options and BOS stand in it where they are not the usual ones."""
    usual = {"options": {}, "bos": "auto"}
    return {name: value for name, value in asdict(layout).items() if name not in usual or value != usual[name]}


def from_record(record: Mapping[str, Any]) -> Layout:
    """What `dataclasses.asdict` made of a template."""
    return ChatTemplate(**record) if "jinja" in record else Template(**record)


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _turns(pair: Pair) -> tuple[Message, Message]:
    return _said("user", pair.input), _said("assistant", pair.output)


def _seam(text: str, whole: str) -> tuple[str, str, str]:
    """The prompt up to the seam, the space in front of an answer, and what stands behind one.

    Some templates write more than space in front of an answer, such as the empty thinking block of a model that is not
    to think: that is the prompt's. Others have the model begin with what no answer of theirs has in front of it: where
    answers are read, it is left out.

    Args:
        text: The conversation with the assistant's turn begun.
        whole: With the turn in full, whose answer is `_ANSWER`.
    """
    before, found, end = whole.partition(_ANSWER)
    if not found:
        return text, "", ""
    begun = before.rstrip()
    if before.startswith(text):
        prompt = text if len(begun) <= len(text) else before.rstrip(" ")
        return prompt, before[len(prompt) :], end
    if text.startswith(begun) and text[len(begun) :].strip():
        return before, "", end
    return text, "", end
