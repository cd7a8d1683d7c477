"""lab-func and smollm2-func: what can be computed from two facts about a word?

Inputs and prompt form are those of the general tasks, so that only the instruction tells old from new. The functions
are those that the lab model learns for words it was not trained on: what a second look-up would have to be made for
(the French word for the opposite, the letter after the first letter) it only learns by heart.
"""

from __future__ import annotations

from dataclasses import replace

from ivlens.datasets.task import BUILT_IN, Task, read_task
from ivlens.lab.sequences.facts import draw, facts, new_task, words

VERBS, ADJECTIVES, NOUNS = "present-past", "comparative", "singular-plural"
REWORDED = (
    "animal-class",
    "word-category",
    "animal-young",
    "english-german",
    "next-item",
    "french-article",
    "indefinite-article",
    "next-two",
)


def functions() -> list[Task]:
    return [kind_language(), class_letter(), kind_form(), continent_letter(), length_and_one()]


def factorial_functions() -> list[Task]:
    """lab-factorial: one function more, and what the lab model can do already, in a wording that it has never read."""
    return [kind_answer(), continent(), *map(reworded, REWORDED)]


def reworded(name: str) -> Task:
    """A built-in task under its last wording, which no document of the lab model's training has."""
    old = read_task(BUILT_IN / f"{name}.json")
    return Task(name=f"{name}-reworded", instructions=old.instructions[-1:], pairs=old.pairs)


def real_functions() -> list[Task]:
    """smollm2-func: labels that mean nothing, and compositions of two functions of the last of three words."""
    return [kind_direction(), last_spanish(), last_capital()]


def _by_kind(name: str, instruction: str, *, noun: str, verb: str, adjective: str) -> Task:
    """A function that asks another built-in task of every kind of word."""
    asked = {
        word: facts(task)[word]
        for kind, task in ((NOUNS, noun), (ADJECTIVES, adjective), (VERBS, verb))
        for word in words(kind, task)
    }
    return new_task(name, instruction, asked, lambda word: asked[word])


def kind_language() -> Task:
    return _by_kind(
        "kind-language",
        "Say a noun in French, a verb in Spanish and an adjective in German.",
        noun="english-french",
        verb="english-spanish",
        adjective="english-german",
    )


def kind_form() -> Task:
    return _by_kind(
        "kind-form",
        "Give the plural of a noun, the past of a verb and the comparative of an adjective.",
        noun=NOUNS,
        verb=VERBS,
        adjective=ADJECTIVES,
    )


def kind_answer() -> Task:
    return _by_kind(
        "kind-answer",
        "Say a noun in German, a verb in French and an adjective in Spanish.",
        noun="english-german",
        verb="english-french",
        adjective="english-spanish",
    )


def continent() -> Task:
    """Of the countries whose continent is one word."""
    old = reworded("country-continent")
    return replace(old, pairs=tuple(pair for pair in old.pairs if " " not in pair.output))


def class_letter() -> Task:
    classes = facts("animal-class")
    return new_task(
        "class-letter",
        "Give the first letter of the class of the animal.",
        classes,
        lambda animal: classes[animal][0],
    )


def continent_letter() -> Task:
    continents = facts("country-continent")
    return new_task(
        "continent-letter",
        "Give the first letter of the continent of the country.",
        continents,
        lambda country: continents[country][0],
    )


def length_and_one() -> Task:
    length, following = facts("word-length"), facts("next-item")
    return new_task(
        "length-and-one",
        "What is one more than the number of letters?",
        length,
        lambda word: following[length[word]],
    )


def kind_direction() -> Task:
    kinds = {"north": facts("animal-class"), "south": facts("country-continent"), "east": facts(VERBS)}
    owner = {word: kind for kind, owned in kinds.items() for word in draw("kind-direction", owned, 40)}
    return new_task("kind-direction", "Give the direction of the word.", owner, lambda word: owner[word])


def last_spanish() -> Task:
    spanish = facts("english-spanish")
    return new_task(
        "last-spanish",
        "Give the last of the three words in Spanish.",
        draw_threes("last-spanish", list(spanish)),
        lambda three: spanish[three.split(", ")[-1]],
    )


def last_capital() -> Task:
    return new_task(
        "last-capital",
        "Give the last of the three words with a capital letter.",
        draw_threes("last-capital", list(facts("singular-plural"))),
        lambda three: three.split(", ")[-1].capitalize(),
    )


def draw_threes(name: str, listed: list[str]) -> list[str]:
    """Three words a query; each word is the last of one query at most."""
    orders = [draw(f"{name} {place}", listed) for place in range(3)]
    return [", ".join(three) for three in zip(*orders, strict=True) if len(set(three)) == 3]
