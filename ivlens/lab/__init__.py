"""The lab model: a small model organism that the package trains itself and ships.

It knows a few thousand facts, follows written instructions and learns in context, so that every measurement can be
tried offline, in seconds. It is not evidence about large models.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""The shipped Hugging Face folder."""
RECORD = Path(__file__).parent / "record.json"
"""What the shipped model can do, written by `python -m ivlens.lab.evaluate`."""
TRAINING = Path(__file__).parent / "training.csv"
"""The log of the training of the shipped model."""
SETTINGS = Path(__file__).parent / "training.json"
"""What the shipped model was trained with, and for how long."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "translation": (
        "english-french",
        "english-german",
        "english-spanish",
        "french-article",
        "spanish-article",
        "indefinite-article",
    ),
    "inflection": (
        "comparative",
        "present-gerund",
        "present-past",
        "present-third-person",
        "singular-plural",
        "superlative",
    ),
    "country": (
        "country-capital",
        "country-continent",
        "country-currency",
        "country-language",
        "country-nationality",
    ),
    "choice": ("choose-animal", "choose-color", "choose-first", "choose-last"),
    "spelling": ("first-letter", "last-letter", "second-letter", "word-length"),
    "case": ("capitalize", "uppercase"),
    "succession": ("next-item", "next-letter", "next-two", "previous-item", "previous-letter"),
    "meaning": ("antonym", "synonym"),
    "kind": ("animal-class", "animal-young", "word-category"),
    "digits": ("number-digits",),
}
"""Built-in tasks that are alike: of them all, or of none, something may be seen before one of them is said to be new.

By what is done (translated, inflected, spelled) or, where that is no more than to know a fact, by what it is asked of.
"""
