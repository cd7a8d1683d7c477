"""How right is a reply?

Every score is between 0 and 1, of words made alike (see `words`), and the best over all right answers. Greedy match is
none of these: it asks of the answer's tokens whether they would be written, not of a reply what it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ivlens.errors import IvlensError
from ivlens.prompts.choices import GREEDY_MATCH
from ivlens.replies.words import compared_words

Words = Sequence[str]


def score_reply(reply: str, answers: Sequence[str], score: str) -> float:
    """How right a reply is, in [0, 1]: the best that it does against any of the right answers.

    - `exact`: it is the answer, word for word;
    - `first-word`: it begins with the answer's first word;
    - `contains`: the answer's words stand in it, one behind the other, as whole words;
    - `f1`: harmonic mean of the share of its words that are the answer's and the share of the answer's that it has;
    - `rouge-l`: the same of the longest sequence of words that both have in this order (Lin 2004, ROUGE-L).

    Raises:
        IvlensError: greedy match, which is no score of a reply, or none of these.
    """
    if score not in _SCORES:
        wrong = "is of tokens, not of a reply" if score == GREEDY_MATCH else "is no score"
        raise IvlensError(f"score {score!r} {wrong}; of a reply there are {', '.join(_SCORES)}")
    if not answers:
        raise IvlensError("there are no right answers to compare the reply with; give at least one")
    return max(_SCORES[score](*compared_words(reply, answer)) for answer in answers)


def _exact(reply: Words, answer: Words) -> float:
    return float(reply == answer)


def _first_word(reply: Words, answer: Words) -> float:
    return float(reply[:1] == answer[:1])


def _contains(reply: Words, answer: Words) -> float:
    return float(any(reply[at : at + len(answer)] == answer for at in range(len(reply))))


def _f1(reply: Words, answer: Words) -> float:
    return _harmonic(sum((Counter(reply) & Counter(answer)).values()), reply, answer)


def _rouge_l(reply: Words, answer: Words) -> float:
    # Row by row: the longest common sequence of the reply so far and each beginning of the answer.
    row = [0] * (1 + len(answer))
    for word in reply:
        above, row = row, [0]
        for at, wanted in enumerate(answer):
            row.append(above[at] + 1 if word == wanted else max(above[at + 1], row[-1]))
    return _harmonic(row[-1], reply, answer)


def _harmonic(common: int, reply: Words, answer: Words) -> float:
    """Of precision `common / len(reply)` and recall `common / len(answer)`."""
    return 2 * common / (len(reply) + len(answer)) if common else 0.0


_SCORES = {"exact": _exact, "first-word": _first_word, "contains": _contains, "f1": _f1, "rouge-l": _rouge_l}
