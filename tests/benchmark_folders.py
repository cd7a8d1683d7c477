"""Folders and files of TRACE, O-LoRA and Super-NaturalInstructions in small, and files of anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

LABELS = ["good", "bad", "neither"]


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def questions(part: str, n: int = 6) -> list[dict[str, Any]]:
    return [{"prompt": f"{part} {i}?\nAnswer:", "answer": f"yes {i}"} for i in range(n)]


def trace(path: Path, **parts: object) -> Path:
    for part in ("train", "eval", "test"):
        write(path / f"{part}.json", parts.get(part, questions(part)))
    return path


def sentences(part: str, n: int = 6) -> list[dict[str, Any]]:
    return [{"label": LABELS[i % 3], "sentence": f"Title: {part}\nText: {i}\n"} for i in range(n)]


def o_lora(path: Path, **parts: object) -> Path:
    for part in ("train", "dev", "test"):
        write(path / f"{part}.json", parts.get(part, sentences(part)))
    write(path / "labels.json", parts.get("labels", LABELS))
    return path


def instructions(n: int = 20) -> dict[str, Any]:
    return {
        "Contributors": ["Somebody"],
        "Source": ["somewhere"],
        "Categories": ["Question Answering"],
        "Definition": ["Answer the question."],
        "Positive Examples": [{"input": "a", "output": "b", "explanation": "c"}],
        "Negative Examples": [],
        "Instances": [
            {"id": f"task-{i}", "input": f"Question {i}", "output": [f"first {i}", "second"]} for i in range(n)
        ],
        "Instance License": ["MIT"],
    }


KEYS = ["prompt", "answer", "sentence", "label", "Definition", "Instances", "input", "output", "pairs", "instructions"]
ANY_TEXT = st.text(st.characters())  # Half characters, too.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from([*KEYS, *LABELS]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=12,
)
FILES = st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode())
