"""What does a chat template, a program out of somebody's checkpoint, write?

transformers' sandbox keeps it from files and from Python's own objects, but not from taking time or memory without
end, and no part of it can be interrupted while it multiplies. So it runs in a process of its own, which ends when its
time is over and is refused memory. The process is started when it is first needed and serves all later conversations.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ivlens.errors import PromptError
from ivlens.storage.bounded_process import MEMORY, bound_memory, command

SECONDS = 10
"""For one conversation; usual templates take milliseconds."""
LONGEST = 2**20
"""Characters of a conversation."""


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
    reply = _PROCESS.ask({**asked, "seconds": SECONDS})
    if "text" not in reply:
        raise PromptError(f"the chat template fails ({reply['reason']}); choose another template")
    return reply["text"]


class _Process:
    """The process that runs templates; another one after it has ended."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, asked: Mapping[str, Any]) -> dict[str, str]:
        with self._lock:
            process = self._running or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(asked).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            except BaseException:  # Stopped in between: its answer must not be taken for the next one's.
                self.end()
                raise
            if not line.endswith(b"\n"):
                self.end()
                return {"reason": f"it takes more than {SECONDS} s, or more memory than it may have"}
            return json.loads(line)

    def _start(self) -> subprocess.Popen[bytes]:
        self._running = subprocess.Popen(**command("ivlens.prompts.chat_sandbox"), stdin=subprocess.PIPE)
        return self._running

    def end(self) -> None:
        process, self._running = self._running, None
        if process is not None:
            process.kill()
            process.communicate()


_PROCESS = _Process()
atexit.register(_PROCESS.end)


def _serve() -> None:
    """A line of JSON in, a line out."""
    from transformers.utils.chat_template_utils import render_jinja_template

    bound_memory(MEMORY)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        # A watch outside of Python ends the process, whatever it is at.
        faulthandler.dump_traceback_later(asked["seconds"], exit=True)
        try:
            (text,), _ = render_jinja_template(
                conversations=[asked["messages"]],
                chat_template=asked["jinja"],
                add_generation_prompt=asked["opened"],
                **asked["given"],
            )
            reply = _check(text)
        except Exception as error:  # Somebody else's program may fail in any way.
            reply = {"reason": (str(error).splitlines() or [type(error).__name__])[0][:200]}
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.write(f"{json.dumps(reply)}\n")
        sys.stdout.flush()


def _check(text: str) -> dict[str, str]:
    if len(text) > LONGEST:
        raise ValueError(f"it writes {len(text):,} characters; {LONGEST:,} at most are read")
    text.encode()  # Half a character (a lone surrogate) has no tokens.
    return {"text": text}


if __name__ == "__main__":
    _serve()
