"""Tasks of function_vectors' files with written instructions, as docs/smollm2.md and `smollm2-trace` have them.

    python benchmarks/real_tasks.py function_vectors/dataset_files --into tasks

The files (github.com/ericwtodd/function_vectors, MIT) are bare lists of inputs and outputs, so that nothing can be
measured of an instruction. The wordings here are ours; the pairs are as they come. Of commonsense_qa, questions whose
right option's letter is asked for, two tasks are made that share no question: one asks for the letter, with the option
itself behind a statement; the other for the option.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ivlens
from ivlens.datasets.task import Pair
from ivlens.errors import TaskError

INSTRUCTIONS = {
    "present-past": ("Give the past tense of the verb.", "Write the verb in the past tense."),
    "singular-plural": ("Give the plural of the noun.", "Write the noun in the plural."),
    "capitalize": ("Capitalize the word.", "Write the word with a capital first letter."),
    "lowercase_first_letter": (
        "Give the first letter of the word in lower case.",
        "Write the first letter of the word as a small letter.",
    ),
    "choose_last_of_3": ("Give the last word of the three.", "Write the last word of the list."),
}
TASKS = tuple(INSTRUCTIONS)
QUESTIONS = "commonsense_qa"
LONGEST = 160
"""Characters of a question with its options; longer ones are left out."""


def find_files(folder: Path) -> dict[str, Path]:
    """The file of every task, wherever in a folder it lies (in a clone, in `dataset_files/abstractive`, say)."""
    names = (*INSTRUCTIONS, QUESTIONS)
    found = {name: sorted(folder.rglob(f"{name}.json")) for name in names}
    missing = [f"{name}.json" for name, paths in found.items() if not paths]
    if missing:
        raise TaskError(f"{folder} has no {', '.join(missing)}; give the folder of function_vectors' task files")
    return {name: paths[0] for name, paths in found.items()}


def with_options(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """What is asked, its letter, and the option that has this letter in front."""
    found = []
    for question, letter in pairs:
        option = re.search(rf"^{re.escape(letter)}: (.+)$", question, re.MULTILINE)
        if option is not None and len(question) <= LONGEST:
            found.append({"input": question, "output": letter, "knowledge": option[1].strip()})
    return found


def question_tasks(path: Path) -> list[dict[str, Any]]:
    """The letter and the option of the questions, asked for in turns."""
    found = with_options(ivlens.task(path).pairs)
    asked_in_words = [{"input": one["input"], "output": one["knowledge"]} for one in found[1::2]]
    letter = ["Answer with the letter of the right option.", "Which option is right? Give its letter."]
    option = ["Answer with the right option, without its letter.", "Which option is right? Write it out."]
    return [
        {"name": QUESTIONS, "instructions": letter, "statement": "{input}\nThe answer is", "pairs": found[::2]},
        {"name": "commonsense_options", "instructions": option, "pairs": asked_in_words},
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    asked = parser.parse_args(arguments)
    asked.into.mkdir(parents=True, exist_ok=True)
    files = find_files(asked.folder)
    written = question_tasks(files[QUESTIONS])
    for name in TASKS:
        pairs = [{"input": pair.input, "output": pair.output} for pair in ivlens.task(files[name]).pairs]
        written.append({"name": name, "instructions": INSTRUCTIONS[name], "pairs": pairs})
    for task in written:
        content = json.dumps(task, ensure_ascii=False, indent=1)
        (asked.into / f"{task['name']}.json").write_text(content, encoding="utf-8")
        print(f"{task['name']}: {len(task['pairs'])} pairs, {len(task['instructions'])} wordings")


if __name__ == "__main__":
    main()
