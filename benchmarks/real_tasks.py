"""Tasks of function_vectors' files with written instructions, as docs/smollm2.md and `smollm2-trace` have them.

    python benchmarks/real_tasks.py function_vectors/dataset_files --into tasks

The files (github.com/ericwtodd/function_vectors, MIT) are bare lists of inputs and outputs, so that nothing can be
measured of an instruction. The wordings here are ours; the pairs are as they come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ivlens
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
LEARNED = {
    "commonsense_qa": ("Answer with the letter of the right option.", "Which option is right? Give its letter."),
}
"""What `ivlens study smollm2-trace --tasks tasks` trains on beside tasks of its own."""


def find_files(folder: Path) -> dict[str, Path]:
    """The file of every task, wherever in a folder it lies (in a clone, in `dataset_files/abstractive`, say)."""
    found = {name: sorted(folder.rglob(f"{name}.json")) for name in INSTRUCTIONS | LEARNED}
    missing = [f"{name}.json" for name, paths in found.items() if not paths]
    if missing:
        raise TaskError(f"{folder} has no {', '.join(missing)}; give the folder of function_vectors' task files")
    return {name: paths[0] for name, paths in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    asked = parser.parse_args(arguments)
    asked.into.mkdir(parents=True, exist_ok=True)
    for name, path in find_files(asked.folder).items():
        pairs = [{"input": pair.input, "output": pair.output} for pair in ivlens.task(path).pairs]
        wordings = (INSTRUCTIONS | LEARNED)[name]
        task = {"name": name, "instructions": wordings, "pairs": pairs}
        (asked.into / f"{name}.json").write_text(json.dumps(task, ensure_ascii=False, indent=1), encoding="utf-8")
        print(f"{name}: {len(pairs)} pairs, {len(wordings)} wordings")


if __name__ == "__main__":
    main()
