"""lab-long: into which of two to four classes does a short input fall?"""

from __future__ import annotations

from ivlens.lab.sequences.facts import MOST_PAIRS, drawn, facts, new_task, words
from ivlens.tasks import Task

PERSONS = ["king", "queen", "man", "woman", "child", "mother", "father", "brother", "sister", "friend", "enemy"]
NOT_THINGS = ["night", "day", "week", "summer", "winter", "war", "life", "death"]


def labels() -> list[Task]:
    return [
        word_class(),
        half("first-letter", "Is the first letter early or late in the alphabet?", ("early", "late")),
        noun_kind(),
        long_or_short(),
        french_gender(),
        same_or_opposite(),
        half("last-letter", "Is the last letter before or after m?", ("b", "a")),
        place("animal", "In which place is the animal, one, two or three?", ("one", "two", "three")),
        country_euro(),
        letter_or_number(),
        spanish_gender(),
        warm_blood(),
        place("color", "Give the place of the color in digits.", ("1", "2", "3")),
        opposite_count(),
        half("second-letter", "Is the second letter low or high in the alphabet?", ("low", "high")),
    ]


def word_class() -> Task:
    kinds = {"n": "singular-plural", "v": "present-past", "a": "comparative"}
    owner = {word: kind for kind, name in kinds.items() for word in facts(name)}
    return new_task(
        "word-class", "Write n for a noun, v for a verb and a for an adjective.", owner, lambda word: owner[word]
    )


def half(name: str, instruction: str, halves: tuple[str, str]) -> Task:
    """In which half of the alphabet is the first, second or last letter?"""
    return new_task(f"{name}-half", instruction, words(name), lambda word: halves[facts(name)[word] > "m"])


def noun_kind() -> Task:
    animals = facts("animal-class")
    kinds = {word: "a" for word in [*animals, "bird"] if word in facts("singular-plural")}
    kinds |= dict.fromkeys(PERSONS, "p")
    left = [word for word in facts("singular-plural") if word not in (*kinds, *NOT_THINGS)]
    kinds |= dict.fromkeys(left, "t")
    return new_task(
        "noun-kind", "Write p for a person, a for an animal and t for a thing.", kinds, lambda word: kinds[word]
    )


def long_or_short() -> Task:
    short = {"two", "three", "four"}
    return new_task(
        "long-or-short",
        "Is the word long or short?",
        words("word-length"),
        lambda word: "short" if facts("word-length")[word] in short else "long",
    )


def french_gender() -> Task:
    return new_task(
        "french-gender",
        "In French, is the word m or f?",
        words("french-article"),
        lambda word: "m" if facts("french-article")[word].startswith("le ") else "f",
    )


def spanish_gender() -> Task:
    return new_task(
        "spanish-gender",
        "In Spanish, is the word o or a?",
        words("spanish-article"),
        lambda word: "o" if facts("spanish-article")[word].startswith("el ") else "a",
    )


def same_or_opposite() -> Task:
    """Two words that mean the same, or the opposite; each first word asks for both where it can."""
    opposite, same = facts("antonym"), facts("synonym")
    kinds = {f"{word}, {same[word]}": "s" for word in same}
    kinds |= {f"{word}, {opposite[word]}": "o" for word in opposite if word in same or len(word) < 5}
    return new_task(
        "same-or-opposite", "Write s for the same meaning and o for the opposite.", kinds, lambda both: kinds[both]
    )


def place(kind: str, instruction: str, names: tuple[str, str, str]) -> Task:
    """Where in a list of three words is the one of this kind?"""
    found = facts(f"choose-{kind}")
    return new_task(f"{kind}-place", instruction, found, lambda three: names[three.split(", ").index(found[three])])


def country_euro() -> Task:
    return new_task(
        "country-euro",
        "Write e for the euro and c for another currency.",
        words("country-currency"),
        lambda word: "e" if facts("country-currency")[word] == "euro" else "c",
    )


def letter_or_number() -> Task:
    letters = {*facts("next-letter"), *facts("previous-letter")}
    kinds = dict.fromkeys(sorted(letters), "l") | dict.fromkeys(facts("number-digits"), "n")
    return new_task("letter-or-number", "Write l for a letter and n for a number.", kinds, lambda word: kinds[word])


def warm_blood() -> Task:
    warm = {"mammal", "bird"}
    return new_task(
        "warm-blood",
        "Is the animal hot or cold?",
        words("animal-class"),
        lambda word: "hot" if facts("animal-class")[word] in warm else "cold",
    )


def opposite_count() -> Task:
    """Words of the general tasks with an opposite, and as many nouns without one."""
    opposite = facts("antonym")
    without = [word for word in words("singular-plural", "english-french") if word not in opposite]
    inputs = [*opposite, *drawn("opposite-count", without, min(len(opposite), MOST_PAIRS))]
    return new_task(
        "opposite-count",
        "How many opposite words does the word have, zero or one?",
        inputs,
        lambda word: "one" if word in opposite else "zero",
    )
