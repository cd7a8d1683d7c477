"""Scores of replies: cases by hand, and a slow twin of each that is written otherwise."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest

from ivlens.errors import IvlensError
from ivlens.prompts.choices import Score
from ivlens.replies.scores import score_reply
from ivlens.replies.words import compared_words, split_words

OF_REPLIES = [score for score in get_args(Score) if score != "greedy-match"]
SENTENCE = "The capital of Poland is Warsaw."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The capital of Poland is Warsaw.", "capital of poland is warsaw"),
        ("", ""),
        ("  \n ", ""),
        ("the", ""),
        ("**Paris**", "paris"),
        ("well-known", "well known"),
        ("Paris's l'eau “Rome”", "paris s l eau rome"),
        ("the U.S.A., e.g. Washington, D.C.", "usa eg washington dc"),
        ("Warsaw—the capital", "warsaw capital"),
        ("Straße STRASSE", "strasse strasse"),
        ("Ｗａｒｓａｗ ﬁne e\N{COMBINING ACUTE ACCENT}", "warsaw fine é"),
        ("São Paulo", "são paulo"),
        ("¿Qué? «oui» 「はい」。", "qué oui は い"),
        ("法国的首都是巴黎。", "法 国 的 首 都 是 巴 黎"),
        ("서울은 수도다", "서울은 수도다"),
        ("1,000,000 people", "1000000 people"),
        ("1,2,3", "1 2 3"),
        ("3.14 and 314.", "3.14 and 314"),
        ("-5 \N{MINUS SIGN}5 5-6 (-7) **-8**", "-5 -5 5 6 -7 -8"),
        (".5 $-.5 ... 5", ".5 -.5 5"),
        ("$5, 5% and №7", "5 5 and no7"),
        ("１２", "12"),
        ("👍 yes", "👍 yes"),
    ],
)
def test_words_are_compared_without_case_punctuation_and_articles(text: str, words: str) -> None:
    assert split_words(text) == words.split()


@pytest.mark.parametrize(
    ("reply", "answers", "wanted"),
    [
        # exact, first-word, contains, f1, rouge-l
        (SENTENCE, ["Warsaw"], (0, 0, 1, 1 / 3, 1 / 3)),
        ("Warsaw", ["Warsaw"], (1, 1, 1, 1, 1)),
        ("warsaw.", ["The Warsaw!"], (1, 1, 1, 1, 1)),
        ("Warsaw is the capital", ["Warsaw"], (0, 1, 1, 1 / 2, 1 / 2)),
        ("", ["Warsaw"], (0, 0, 0, 0, 0)),
        ("...", ["Warsaw"], (0, 0, 0, 0, 0)),
        ("Warsawa", ["Warsaw"], (0, 0, 0, 0, 0)),
        ("New York City", ["New York"], (0, 1, 1, 4 / 5, 4 / 5)),
        ("York, New", ["New York"], (0, 0, 0, 1, 1 / 2)),
        ("New Old York", ["New York"], (0, 1, 0, 4 / 5, 4 / 5)),
        ("It is either Rome or Paris", ["London", "Paris"], (0, 0, 1, 2 / 7, 2 / 7)),
        ("car", ["automobile", "car", "vehicle"], (1, 1, 1, 1, 1)),
        ("It has 1,000 members.", ["1000"], (0, 0, 1, 2 / 5, 2 / 5)),
        ("pi is 3.14", ["314"], (0, 0, 0, 0, 0)),
        ("5", ["-5"], (0, 0, 0, 0, 0)),
        ("法国的首都是巴黎。", ["巴黎"], (0, 0, 1, 2 * 2 / 10, 2 * 2 / 10)),
        ("very very good", ["very good"], (0, 1, 1, 4 / 5, 4 / 5)),
        ("good", ["good good"], (0, 1, 0, 2 / 3, 2 / 3)),
        # Answers of nothing but an article or of punctuation are compared with it.
        ("The answer is A.", ["A"], (0, 0, 1, 2 / 5, 2 / 5)),
        ("b", ["a"], (0, 0, 0, 0, 0)),
        ("a", ["the"], (0, 0, 0, 0, 0)),
        ("It ends with !", ["!"], (0, 0, 1, 2 / 5, 2 / 5)),
        ("It ends with ?", ["!"], (0, 0, 0, 0, 0)),
    ],
)
def test_scores_are_those_counted_by_hand(reply: str, answers: list[str], wanted: Sequence[float]) -> None:
    assert [score_reply(reply, answers, score) for score in OF_REPLIES] == pytest.approx(wanted)


def slow_twin(reply: list[str], answer: list[str]) -> dict[str, float]:
    """Every score by definition: subsequences are all tried, words are crossed out one by one."""
    subsequences = {way for n in range(len(reply) + 1) for way in itertools.combinations(reply, n)}
    of_answer = {way for n in range(len(answer) + 1) for way in itertools.combinations(answer, n)}
    longest = max(len(way) for way in subsequences & of_answer)
    left, common = list(answer), 0
    for word in reply:
        if word in left:
            left.remove(word)
            common += 1

    def mean(shared: int) -> float:
        if not shared:
            return 0.0
        precision, recall = shared / len(reply), shared / len(answer)
        return 2 / (1 / precision + 1 / recall)

    return {
        "exact": float(" ".join(reply) == " ".join(answer)),
        "first-word": float(bool(reply) and reply[0] == answer[0]),
        "contains": float(re.search(rf"(^| ){re.escape(' '.join(answer))}( |$)", " ".join(reply)) is not None),
        "f1": mean(common),
        "rouge-l": mean(longest),
    }


@pytest.mark.slow
def test_scores_equal_their_slow_twins() -> None:
    generator, seen = random.Random(0), {score: set() for score in OF_REPLIES}
    for _ in range(300):
        reply = [generator.choice("xyz") for _ in range(generator.randint(0, 7))]
        answer = [generator.choice("xyz") for _ in range(generator.randint(1, 4))]
        twin = slow_twin(reply, answer)
        for score in OF_REPLIES:
            found = score_reply(" ".join(reply), [" ".join(answer)], score)
            assert found == pytest.approx(twin[score]), (score, reply, answer)
            seen[score].add(found)
    assert all({0.0, 1.0} <= values for values in seen.values())


@pytest.mark.parametrize(
    ("answer", "reply", "wanted"),
    [
        ("cat sat on mat", "on mat sat cat", 0.5),
        ("police killed gunman", "police kill gunman", 0.666667),
        ("to be or not to be", "not to be or to be that is", 0.714286),
        ("one two three", "three two one", 0.333333),
        ("x y", "z", 0.0),
    ],
)
def test_rouge_l_is_that_of_the_package_rouge_score(answer: str, reply: str, wanted: float) -> None:
    # From `rouge_scorer.RougeScorer(["rougeL"]).score(answer, reply)` of rouge-score 0.1.2.
    assert score_reply(reply, [answer], "rouge-l") == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("score", OF_REPLIES)
@pytest.mark.parametrize("spell", [str.upper, str.title, "  {}\n".format, '"{}".'.format, "the {}".format])
def test_how_a_reply_is_spelled_changes_no_score(score: Any, spell: Callable[[str], str]) -> None:
    for reply, answer in [("new york city", "new york"), ("york", "new york"), ("", "x")]:
        assert score_reply(spell(reply), [answer], score) == score_reply(reply, [answer], score)
        assert score_reply(reply, [spell(answer)], score) == score_reply(reply, [answer], score)


def test_what_is_compared_depends_on_the_answer_alone() -> None:
    assert compared_words("the A-team", "a") == (["the", "a", "team"], ["a"])
    assert compared_words("the A-team", "b") == (["team"], ["b"])


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(IvlensError, match="'greedy-match' is of tokens, not of a reply; of a reply there are exact, f"):
        score_reply("x", ["x"], "greedy-match")
    with pytest.raises(IvlensError, match="'bleu' is no score; of a reply there are exact, first-word, contains, f1,"):
        score_reply("x", ["x"], "bleu")
    with pytest.raises(IvlensError, match="no right answers"):
        score_reply("x", [], "exact")
