"""lab-func: what can be computed from two facts about a single word?

Inputs and prompt form are those of the general tasks, so that only the instruction tells old from new. The functions
are those that the lab model learns for words it was not trained on: what a second look-up would have to be made for
(the French word for the opposite, the letter after the first letter) it only learns by heart.
"""

from __future__ import annotations

from ivlens.datasets.task import Task
from ivlens.lab.sequences.facts import facts, new_task, words

VERBS, ADJECTIVES, NOUNS = "present-past", "comparative", "singular-plural"


def functions() -> list[Task]:
    return [kind_language(), class_letter(), kind_form(), continent_letter(), length_and_one()]


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
