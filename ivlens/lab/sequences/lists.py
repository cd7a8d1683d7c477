"""lab-trace and smollm2-trace: what is written out in several words, and asked for in queries of unlike form?

Answers are words with nothing between them: the lab model has never written a comma or an "and", and what it has never
written it hardly learns to write.
"""

from __future__ import annotations

from itertools import islice, permutations, product

from ivlens.datasets.task import Task
from ivlens.lab.sequences.facts import draw, facts, new_task, words

NUMBERS = 20
"""Lists of numbers are made of the numbers below."""
LIST_WORDS = 60
"""Other lists are made of so many words."""
SUMMANDS = 12
"""Sums are of two of the numbers from one to this."""


def lists() -> list[Task]:
    return [
        two_translations(),
        reverse_list(),
        plural_french(),
        list_digits(),
        capital_continent(),
        previous_three(),
        past_of_two(),
        list_french(),
    ]


def two_translations() -> Task:
    return new_task(
        "two-translations",
        "Give the German and the Spanish word.",
        words("english-german", "english-spanish"),
        lambda word: f"{facts('english-german')[word]} {facts('english-spanish')[word]}",
    )


def reverse_list() -> Task:
    return new_task(
        "reverse-list",
        "Start with the last word of the list and end with the first.",
        draw("reverse-list", [", ".join(two) for two in permutations(_list_words(), 2)]),
        lambda listed: " ".join(reversed(listed.split(", "))),
    )


def _list_words() -> list[str]:
    """Words that the general tasks choose from lists."""
    chosen = dict.fromkeys(word for kind in ("first", "last") for word in facts(f"choose-{kind}").values())
    return list(islice(chosen, LIST_WORDS))


def plural_french() -> Task:
    return new_task(
        "plural-french",
        "Give the plural of the word and the French word.",
        words("singular-plural", "english-french"),
        lambda word: f"{facts('singular-plural')[word]} {facts('english-french')[word]}",
    )


def list_digits() -> Task:
    digits = facts("number-digits")
    return new_task(
        "list-digits",
        "Write every number in digits.",
        draw("list-digits", [", ".join(three) for three in permutations(list(digits)[:NUMBERS], 3)]),
        lambda listed: " ".join(digits[number] for number in listed.split(", ")),
    )


def capital_continent() -> Task:
    capitals, continents = facts("country-capital"), facts("country-continent")
    return new_task(
        "capital-continent",
        "Give the capital and the continent of the country.",
        words("country-capital", "country-continent"),
        lambda country: f"{capitals[country]} {continents[country]}",
    )


def previous_three() -> Task:
    """Three steps back in the numbers, the year, the week or the alphabet."""
    before = dict(facts("previous-item")) | dict(facts("previous-letter"))
    following = {given: [before.get(given, "")] for given in before}
    for steps in following.values():
        steps.extend(before.get(steps[-1], "") for _ in range(2))
    return new_task(
        "previous-three",
        "What are the previous three?",
        [given for given, steps in following.items() if all(steps)],
        lambda given: " ".join(following[given]),
    )


def past_of_two() -> Task:
    past = facts("present-past")
    return new_task(
        "past-of-two",
        "Say it in the past tense.",
        draw("past-of-two", [" and ".join(two) for two in permutations(past, 2)]),
        lambda both: " ".join(past[verb] for verb in both.split(" and ")),
    )


def list_french() -> Task:
    french = facts("english-french")
    return new_task(
        "list-french",
        "Translate every word of the list into French.",
        draw("list-french", [", ".join(three) for three in permutations(islice(french, LIST_WORDS), 3)]),
        lambda listed: " ".join(french[word] for word in listed.split(", ")),
    )


def real_lists() -> list[Task]:
    """For models that were not trained here, which write whole sentences."""
    return [number_sum(), reverse_three(), country_sentence()]


def number_sum() -> Task:
    numbers = list(facts("number-digits"))
    pairs = product(range(1, SUMMANDS + 1), repeat=2)
    sums = {f"{numbers[a]} and {numbers[b]}": f"{numbers[a]} plus {numbers[b]} is {numbers[a + b]}" for a, b in pairs}
    return new_task("number-sum", "Add the two numbers in words.", draw("number-sum", sums), sums.__getitem__)


def reverse_three() -> Task:
    return new_task(
        "reverse-three",
        "Write the list from its end to its beginning.",
        draw("reverse-three", [", ".join(three) for three in permutations(_list_words(), 3)]),
        lambda listed: ", ".join(reversed(listed.split(", "))),
    )


def country_sentence() -> Task:
    capitals, currencies = facts("country-capital"), facts("country-currency")
    return new_task(
        "country-sentence",
        "Write a sentence about the country.",
        words("country-capital", "country-currency"),
        lambda country: f"The capital of {country} is {capitals[country]}, and it pays with the {currencies[country]}.",
    )
