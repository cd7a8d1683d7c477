"""How it is asked: templates, chat, clean and corrupted prompts, tokens and seams.

Makers of prompts take a `template`, how prompts are written (see `ivlens.template`), and a `generator` where they draw:
the same state draws the same. Examples of this room go on from these lines.

    >>> import numpy as np
    >>> from ivlens import prompts
    >>> pairs, pool = task.pairs[:3], task.pairs[3:]
    >>> for prompt in prompts.few_shot(pairs[:1], pool, shots=2, generator=np.random.default_rng(0)):
    ...     print(prompt.text, prompt.answer, sep="|")
    Q: heavy
    A: light
    <BLANKLINE>
    Q: live
    A: die
    <BLANKLINE>
    Q: big
    A:| small
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivlens.prompts.builders import Prompt as Prompt
    from ivlens.prompts.builders import Template as Template
    from ivlens.prompts.builders import clean as clean
    from ivlens.prompts.builders import corrupted as corrupted
    from ivlens.prompts.builders import cycled as cycled
    from ivlens.prompts.builders import few_shot as few_shot
    from ivlens.prompts.builders import instructed as instructed
    from ivlens.prompts.builders import shuffle_outputs as shuffle_outputs
    from ivlens.prompts.builders import statements as statements
    from ivlens.prompts.builders import zero_shot as zero_shot
    from ivlens.prompts.chat import ChatTemplate as ChatTemplate
    from ivlens.prompts.choices import Corruption as Corruption
    from ivlens.prompts.choices import Source as Source
    from ivlens.prompts.tokens import Tokens as Tokens
    from ivlens.prompts.tokens import tokenize as tokenize

_BUILDERS = ("Prompt", "Template", "clean", "corrupted", "cycled", "few_shot", "instructed", "shuffle_outputs")
_HOME = {
    **dict.fromkeys((*_BUILDERS, "statements", "zero_shot"), "builders"),
    "ChatTemplate": "chat",
    **dict.fromkeys(("Corruption", "Source"), "choices"),
    **dict.fromkeys(("Tokens", "tokenize"), "tokens"),
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ivlens.prompts.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
