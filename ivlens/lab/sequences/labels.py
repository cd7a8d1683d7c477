"""lab-long: into which of two to four classes does a short input fall?

Labels are words that the lab model has written before, letters and digits mostly: one that never was an answer in its
training has next to no chance of becoming one.
"""

from __future__ import annotations

from itertools import permutations

from ivlens.datasets.task import Task
from ivlens.lab.sequences.facts import draw, facts, new_task, words

PERSONS = ["king", "queen", "man", "woman", "child", "mother", "father", "brother", "sister", "friend", "enemy"]
NOT_THINGS = ["night", "day", "week", "summer", "winter", "war", "life", "death"]


def labels() -> list[Task]:
    return [
        word_class(),
        item_kind(),
        noun_kind(),
        synonym_count(),
        french_gender(),
        same_or_opposite(),
        big_number(),
        place("animal", "In which place is the animal, one, two or three?", ("one", "two", "three")),
        country_euro(),
        letter_or_number(),
        spanish_gender(),
        warm_blood(),
        place("color", "Give the place of the color in digits.", ("1", "2", "3")),
        opposite_count(),
        first_kind(),
    ]


def factorial_labels() -> list[Task]:
    """lab-factorial: labels of two letters, in two tokens, beside those of one."""
    return [
        two_letters("class-letters", "animal-class", "class of the animal"),
        two_letters("continent-letters", "country-continent", "continent of the country"),
        two_letters("category-letters", "word-category", "category of the word"),
    ]


def two_letters(name: str, known: str, asked: str) -> Task:
    return new_task(
        name,
        f"Give the first letter and the last letter of the {asked}.",
        facts(known),
        lambda word: f"{facts(known)[word][0]} {facts(known)[word][-1]}",
    )


def word_class() -> Task:
    kinds = {"n": "singular-plural", "v": "present-past", "a": "comparative"}
    owner = {word: kind for kind, name in kinds.items() for word in facts(name)}
    return new_task(
        "word-class", "Write n for a noun, v for a verb and a for an adjective.", owner, lambda word: owner[word]
    )


def noun_kind() -> Task:
    animals = facts("animal-class")
    kinds = {word: "a" for word in [*animals, "bird"] if word in facts("singular-plural")}
    kinds |= dict.fromkeys(PERSONS, "p")
    left = [word for word in facts("singular-plural") if word not in (*kinds, *NOT_THINGS)]
    kinds |= dict.fromkeys(left, "t")
    return new_task(
        "noun-kind", "Write p for a person, a for an animal and t for a thing.", kinds, lambda word: kinds[word]
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
    """Two words that mean the same, or the opposite; as many of these as of those."""
    opposite, same = facts("antonym"), facts("synonym")
    kinds = {f"{word}, {same[word]}": "s" for word in same}
    kinds |= {f"{word}, {opposite[word]}": "o" for word in draw("same-or-opposite", opposite, len(same))}
    return new_task(
        "same-or-opposite",
        "Write s for the same meaning and o for the opposite.",
        kinds,
        lambda both: kinds[both],
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
    inputs = [*opposite, *draw("opposite-count", without, len(opposite))]
    return new_task(
        "opposite-count",
        "How many opposite words does the word have, zero or one?",
        inputs,
        lambda word: "one" if word in opposite else "zero",
    )


def synonym_count() -> Task:
    synonym = facts("synonym")
    without = [word for word in words("english-french") if word not in {*synonym, *synonym.values()}]
    inputs = [*synonym, *draw("synonym-count", without, len(synonym))]
    return new_task(
        "synonym-count",
        "Write 1 for a word with a synonym and 0 for another word.",
        inputs,
        lambda word: "1" if word in synonym else "0",
    )


def item_kind() -> Task:
    kinds = {word: kind[0] for word, kind in facts("word-category").items() if kind in ("day", "month")}
    kinds |= dict.fromkeys(facts("number-digits"), "n")
    return new_task(
        "item-kind", "Write d for a day, m for a month and n for a number.", kinds, lambda word: kinds[word]
    )


def big_number() -> Task:
    digits = facts("number-digits")
    return new_task(
        "big-number",
        "Is the big number the first or the last, f or l?",
        draw("big-number", [", ".join(two) for two in permutations(digits, 2)]),
        lambda two: "f" if int(digits[two.split(", ")[0]]) > int(digits[two.split(", ")[1]]) else "l",
    )


def first_kind() -> Task:
    """Of a list of three, in which exactly one is an animal and exactly one a color."""
    animal, color = facts("choose-animal"), facts("choose-color")
    return new_task(
        "first-kind",
        "Which comes first, the animal or the color, a or c?",
        animal,
        lambda three: "a" if three.split(", ").index(animal[three]) < three.split(", ").index(color[three]) else "c",
    )
