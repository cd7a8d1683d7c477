"""Does a tokenizer out of somebody's checkpoint take time and memory in proportion to what it is given?

A tokenizer.json is a small program: it replaces by regular expressions, one replacement after the other. How far a text
can grow is read off it, and one with expressions that may try without end is tried out in a process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.bounded_process import Answer, BoundedProcess, serve
from ivlens.errors import ModelError

MOST_GROWTH = 256
"""Times that a text may become longer than it was; usual tokenizers stay below 80."""
MOST_ADDED = 1000
"""Characters, or tokens, that may be put to every text; usual ones are one or two."""
LONGEST_WORD = 1000
"""`max_input_chars_per_word` of WordPiece, whose time grows with its square."""
DEEPEST = 50
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MEMORY = 2**30
_SECONDS, _BYTES_A_SECOND = 10, 2**21
_PROCESS = BoundedProcess("ivlens.checkpoints.tokenizer_bounds")
# A character becomes its bytes, each a character.
_GROWTHS = {"ByteLevel": 4, "Metaspace": 2, "BertNormalizer": 3}
_SAMPLES = (
    *(sign * 200 for sign in ("a", "A", "0", " ", "\n", "-", "\u00e9", "\u4e2d", "\U0001f600", "a ", "a1", "\u2581")),
    "Q: What is 12 + 34?\nA: It's 46.\n\n" * 10,
    "".join(map(chr, range(32, 127))) * 2,
)


class Growth(NamedTuple):
    """A text of n characters becomes one of at most `times` n + `more`."""

    times: float
    more: float

    def then(self, following: Growth) -> Growth:
        return Growth(self.times * following.times, self.more * following.times + following.more)


def check_tokenizer(path: Path, content: Mapping[str, Any]) -> None:
    """See that a tokenizer.json is one that can be used within bounds.

    Raises:
        ModelError: it multiplies texts, or does not come to an end on some lines of text, or fails on them.
    """
    for name in _PARTS:
        grown = _growth(content.get(name), path)
        if grown.times > MOST_GROWTH or grown.more > MOST_ADDED:
            raise ModelError(
                f"the {name} in {path} makes {min(grown.times, 1e9):.4g} n + {min(grown.more, 1e9):.4g} of n "
                f"characters, and may make {MOST_GROWTH} n + {MOST_ADDED:,}; give another tokenizer"
            )
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    if model.get("dropout"):
        raise ModelError(f"{path} splits words at random (dropout = {model['dropout']!r}); set it to null")
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > LONGEST_WORD:
        raise ModelError(f"{path} reads words of {longest:,} characters; at most {LONGEST_WORD:,} are possible")
    if any(_may_be_endless(part) for name in _PARTS for part in _walk(content.get(name), path)):
        size = path.stat().st_size
        asked = {"path": str(path.resolve()), "samples": _SAMPLES}
        found = _PROCESS.ask(asked, seconds=_SECONDS + size / _BYTES_A_SECOND, memory=_MEMORY + 16 * size)
        if found is None:
            raise ModelError(
                f"the tokenizer in {path} comes to no end on some lines of text, or breaks off; give another"
            )
        if fault := found[0].get("reason"):
            raise ModelError(f"the tokenizer in {path} fails on some lines of text ({fault}); copy it again")


def _walk(part: object, path: Path, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A part and all that it consists of."""
    if depth > DEEPEST:
        raise ModelError(f"{path} is nested more than {DEEPEST} deep; copy it again")
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        if isinstance(inner, dict | list):
            yield from _walk(inner, path, depth + 1)


def _may_be_endless(part: Mapping[str, Any]) -> bool:
    """Does it repeat an expression, or come packed?"""
    pattern = part.get("Regex")
    return part.get("type") == "Precompiled" or (isinstance(pattern, str) and re.search(r"[*+?{]", pattern) is not None)


def _growth(part: object, path: Path, depth: int = 0) -> Growth:
    grown = Growth(1, 0)
    if depth > DEEPEST:
        raise ModelError(f"{path} is nested more than {DEEPEST} deep; copy it again")
    if not isinstance(part, dict):
        return grown
    kind = part.get("type")
    if kind == "Sequence":
        for name in ("normalizers", "pretokenizers", "processors", "decoders"):
            for inner in part.get(name) or ():
                grown = grown.then(_growth(inner, path, depth + 1))
    elif kind == "Replace":
        grown = _growth_of_replacing(part.get("pattern"), part.get("content"))
    elif kind == "Prepend" and isinstance(part.get("prepend"), str):
        grown = Growth(1, len(part["prepend"]))
    elif kind == "TemplateProcessing":
        grown = Growth(1, _added_tokens(part, path))
    return grown if kind not in _GROWTHS else Growth(_GROWTHS[str(kind)], 1)


def _growth_of_replacing(pattern: object, content: object) -> Growth:
    text = pattern.get("String") if isinstance(pattern, dict) else None
    length = len(content) if isinstance(content, str) else 0
    if isinstance(text, str) and text:
        return Growth(max(1.0, length / len(text)), 0)
    # An expression may match between all characters.
    return Growth(1 + length, length)


def _added_tokens(part: Mapping[str, Any], path: Path) -> int:
    """How many tokens stand beside a text."""
    known, count = part.get("special_tokens"), 0
    for piece in part.get("single") or ():
        name = piece["SpecialToken"].get("id") if isinstance(piece, dict) and "SpecialToken" in piece else None
        if name is None:
            continue
        if not isinstance(known, dict) or not isinstance(known.get(name), dict):
            raise ModelError(
                f"the post_processor in {path} names {str(name)!r}, which it does not explain; copy it again"
            )
        ids = known[name].get("ids")
        count += len(ids) if isinstance(ids, list) else 1
    return count


def _try_out(asked: dict[str, Any]) -> Answer:
    """In the bounded process; what fails there is the answer."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(asked["path"])
        for sample in asked["samples"]:
            tokenizer.decode(tokenizer.encode(sample).ids)
    except BaseException as error:  # The library gives up by what is no Exception.
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    return {}, b""


if __name__ == "__main__":
    serve(_try_out)
