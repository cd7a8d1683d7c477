"""Which texts does a regular expression out of somebody's file match?

Python's engine may try without end (`((.|.)*)*x`): what is more than a name is matched in a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ivlens.bounded_process import Answer, BoundedProcess, serve

MOST = 10_000
"""Expressions of one file."""
# Names, also as PEFT looks for them at the end of a path: these cannot take long.
_PLAIN = re.compile(r"(\(\.\*\\\.\)\?\()?[A-Za-z0-9_.-]{0,200}(\)\$)?")
_SECONDS, _MEMORY = 5.0, 2**29
_PROCESS = BoundedProcess("ivlens.patterns")


def find_matches(patterns: Sequence[str], texts: Sequence[str], *, whole: bool = False) -> list[list[int]]:
    """The numbers of the texts that each expression matches: all of a text if `whole`, else its beginning.

    Raises:
        ValueError: one is no regular expression, or takes more time or memory than it may.
    """
    if len(patterns) > MOST:
        raise ValueError(f"there are {len(patterns):,} expressions; {MOST:,} at most are read")
    asked = {"patterns": list(patterns), "texts": list(texts), "whole": whole}
    if all(map(_PLAIN.fullmatch, patterns)):
        return _match(asked)[0]["found"]
    found = _PROCESS.ask(asked, seconds=_SECONDS, memory=_MEMORY)
    if found is None:
        raise ValueError(
            f"its expressions take more than {_SECONDS:.0f} s, or more memory than they may; name layers in a list"
        )
    answer, _ = found
    if "reason" in answer:
        raise ValueError(answer["reason"])
    return answer["found"]


def _match(asked: dict[str, Any]) -> Answer:
    found = []
    for pattern in asked["patterns"]:
        try:
            compiled = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern[:100]!r} is not a regular expression ({str(error)[:100]}); mend it") from error
        match = compiled.fullmatch if asked["whole"] else compiled.match
        found.append([number for number, text in enumerate(asked["texts"]) if match(text)])
    return {"found": found}, b""


if __name__ == "__main__":
    serve(_match)
