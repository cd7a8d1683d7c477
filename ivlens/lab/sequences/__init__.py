"""Which new tasks does a model learn one after the other, to see what it forgets?

Three sequences for the lab model in the spirit of the three of Jiang et al. 2024, arXiv:2406.12227 (FUNC, LONG and
TRACE): functions of the general tasks' own words, many small classifications, and tasks of unlike form with longer
answers. No built-in task asks for any of it; every fact needed is one that a built-in task teaches. One for models
that were not trained here, of the same words. `python -m ivlens.lab.sequences` writes the task files anew.
"""

from __future__ import annotations

from pathlib import Path

TASKS = Path(__file__).parent / "tasks"
"""A task file for every name in `SEQUENCES`."""

SEQUENCES: dict[str, tuple[str, ...]] = {
    "lab-func": (
        "kind-language",
        "class-letter",
        "kind-form",
        "continent-letter",
        "length-and-one",
    ),
    "lab-long": (
        "word-class",
        "item-kind",
        "noun-kind",
        "synonym-count",
        "french-gender",
        "same-or-opposite",
        "big-number",
        "animal-place",
        "country-euro",
        "letter-or-number",
        "spanish-gender",
        "warm-blood",
        "color-place",
        "opposite-count",
        "first-kind",
    ),
    "lab-trace": (
        "two-translations",
        "reverse-list",
        "plural-french",
        "list-digits",
        "capital-continent",
        "previous-three",
        "past-of-two",
        "list-french",
    ),
}
"""Names of task files in the order in which they are learned."""

REAL_SEQUENCES: dict[str, tuple[str, ...]] = {
    "smollm2-func": (
        "kind-direction",
        "last-spanish",
        "last-capital",
    ),
    "smollm2-trace": (
        "number-sum",
        "reverse-three",
        "country-sentence",
    ),
}
"""The same for real models, whose words are in pieces."""

FACTORIAL: tuple[str, ...] = (
    "kind-answer",
    "class-letters",
    "continent-letters",
    "category-letters",
    "animal-class-reworded",
    "word-category-reworded",
    "country-continent-reworded",
    "animal-young-reworded",
    "english-german-reworded",
    "next-item-reworded",
    "french-article-reworded",
    "indefinite-article-reworded",
    "next-two-reworded",
)
"""Of lab-factorial, beside tasks of the sequences: labels of two tokens, and what the model can do already."""

FILES: dict[str, Path] = {
    name: TASKS / f"{name}.json"
    for names in (*SEQUENCES.values(), *REAL_SEQUENCES.values(), FACTORIAL)
    for name in names
}
"""The file of every task of a sequence, by its name."""
