"""What does a chat template, a program out of somebody's checkpoint, write?

transformers' sandbox keeps it from files and from Python's own objects, but not from taking time or memory without
end, and no part of it can be interrupted while it multiplies. So it runs in a bounded process (`bounded_process`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ivlens.bounded_process import Answer, BoundedProcess, serve
from ivlens.errors import PromptError

SECONDS = 10
"""For one conversation; usual templates take milliseconds."""
LONGEST = 2**20
"""Characters of a conversation."""
_MEMORY = 2**29
_PROCESS = BoundedProcess("ivlens.prompts.chat_sandbox")


def render_chat(
    jinja: str,
    messages: Sequence[Mapping[str, str]],
    special: Mapping[str, str],
    *,
    opened: bool,
    options: Mapping[str, Any] | None = None,
) -> str:
    """What a template makes of a conversation.

    Args:
        special: The tokenizer's special tokens by name, which the template may write.
        opened: Whether the assistant's next turn is begun.
        options: The template's own variables, such as `enable_thinking`; JSON values.

    Raises:
        PromptError: the template fails, or takes more time, memory or text than it may have.
    """
    given = {**special, **(options or {})}
    asked = {"jinja": jinja, "messages": list(messages), "given": given, "opened": opened}
    found = _PROCESS.ask(asked, seconds=float(SECONDS), memory=_MEMORY)
    ended = {"reason": f"it takes more than {SECONDS} s, or more memory than it may have"}
    reply = ended if found is None else found[0]
    if "text" not in reply:
        raise PromptError(f"the chat template fails ({reply['reason']}); choose another template")
    return reply["text"]


def _render(asked: dict[str, Any]) -> Answer:
    """In the bounded process."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(
        conversations=[asked["messages"]],
        chat_template=asked["jinja"],
        add_generation_prompt=asked["opened"],
        **asked["given"],
    )
    return _check(text), b""


def _check(text: str) -> dict[str, str]:
    if len(text) > LONGEST:
        raise ValueError(f"it writes {len(text):,} characters; {LONGEST:,} at most are read")
    text.encode()  # Half a character (a lone surrogate) has no tokens.
    return {"text": text}


if __name__ == "__main__":
    import transformers.utils.chat_template_utils  # noqa: F401  Before memory is bounded.

    serve(_render)
