"""Which words of a reply are compared with an answer?

Case, punctuation and articles say nothing about whether a reply is right: SQuAD's evaluation leaves them out
(Rajpurkar et al. 2016, arXiv:1606.05250). Here punctuation is that of every script, parts words where it stands, and
belongs to a number where the number would be another without it.
"""

from __future__ import annotations

import re
import string
import unicodedata

ARTICLES = frozenset({"a", "an", "the"})
# A number keeps its sign and its decimal point, and loses the commas between thousands.
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OF_NUMBER = re.compile(r"(?<=\d)\.(?=\d)|(?<![\w.])\.(?=\d)|(?<!\w)-(?=\.?\d)")
_ABBREVIATION = re.compile(r"\b[^\W\d_](?:\.[^\W\d_])+\b\.?")
# Scripts that put no space between words: every character counts as one.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def compared_words(reply: str, answer: str) -> tuple[list[str], list[str]]:
    """The words of both, made alike.

    Articles stay where the answer is nothing else (the letter "a"), and so does punctuation.
    """
    for split in (split_words, _split_with_articles):
        wanted = split(answer)
        if wanted:
            return split(reply), wanted
    return _fold(reply).split(), _fold(answer).split()


def split_words(text: str) -> list[str]:
    """Words without case, punctuation and articles.

    `1,000` is `1000`, and `3.14` and `-5` keep what makes them other numbers than 314 and 5.
    """
    return [word for word in _split_with_articles(text) if word not in ARTICLES]


def _split_with_articles(text: str) -> list[str]:
    plain = _THOUSANDS.sub("", _fold(text))
    plain = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), plain)
    kept = {found.start() for found in _OF_NUMBER.finditer(plain)}
    spaced = "".join(" " if _is_mark(one) and at not in kept else one for at, one in enumerate(plain))
    return _UNSPACED.sub(r" \g<0> ", spaced).split()


def _fold(text: str) -> str:
    """One spelling of what looks alike: full-width letters, ligatures, composed accents, the minus sign; no case."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded).replace("\N{MINUS SIGN}", "-")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P") or character in string.punctuation
