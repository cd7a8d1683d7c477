"""What does a JSON or TOML file that somebody else wrote hold, and what is wrong with it?

Sizes are bounded, nothing is waited for, and every complaint is one sentence that names the place.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from ivlens.errors import StudyError, TaskError
from ivlens.storage.atomic_files import LARGEST_TEXT, parse_json, refuse_unusual

Entry = TypeVar("Entry", bound=BaseModel)
_DOTTED = re.compile(r"""(?:\.[ \t]*[\w"'-]+[ \t]*){50}""")


def read_json(path: Path) -> Any:
    """What a JSON file of usual size holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, or nested without end.
    """
    return parse_json(_decode(path))


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text says; raises ValueError where it is none, or nested without end."""
    if _DOTTED.search(text):  # The time that Python's parser takes for one key grows with the square of its parts.
        raise ValueError("a key has more than 50 parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_given_json(path: Path, *, wanted: str = "give the path of a task file") -> Any:
    """The same of a file that the user gave: what is wrong with it is said in a sentence.

    Raises:
        TaskError: it cannot be read, or is not JSON.
    """
    text = read_text(path, wanted=wanted)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; mend that place"
        ) from error
    except ValueError as error:  # A number of thousands of digits, a list in a list in a list.
        raise TaskError(f"{path} is not JSON: {error}; mend that place") from error


def read_text(path: Path, *, kind: str = "JSON", wanted: str = "give the path of a task file") -> str:
    """The text of a file of at most `LARGEST_TEXT` bytes; a byte order mark is dropped.

    Args:
        kind: What the file should be, for the complaint.
        wanted: What to do where it cannot be read.

    Raises:
        TaskError: no file, too large, or no UTF-8.
    """
    try:
        return _decode(path)
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror}); {wanted}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8 {kind}") from error


def _decode(path: Path) -> str:
    refuse_unusual(path, LARGEST_TEXT)
    # Bytes first: line ends stay as they are.
    return path.read_bytes().decode("utf-8-sig")


def check_object(form: type[Entry], content: object, where: str) -> Entry:
    """One object of a form.

    Raises:
        TaskError: it is of another form.
    """
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{where}: {_first_complaint(error)}") from error


def as_type(kind: Any, content: Any, where: str) -> Any:
    """A value, or a dataclass of a table of values, nothing of which is taken for something of another type.

    Raises:
        StudyError: a value of another type, or a missing one.
    """
    try:
        # From JSON, where a list may become a tuple, while a number in quotes stays a text.
        return TypeAdapter(kind).validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(filter(None, [where, *map(str, first["loc"])]))
        if first["type"] == "missing":
            raise StudyError(f"{key} is missing; add it") from error
        wanted = first["msg"].replace("Input", "it").replace("a valid array", "a list").replace("an object", "a table")
        raise StudyError(f"{key} is {first['input']!r}; {wanted}") from error


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = next((repr(part) for part in first["loc"] if isinstance(part, str)), "it")
    match first["type"]:
        case "missing":
            return f"{key} is missing; add it"
        case "model_type":
            return "it is no JSON object; write an object"
        case "too_short" | "string_too_short" | "string_pattern_mismatch":
            return f"{key} is empty; fill it in"
        case "string_unicode":
            return f"{key} has half a character in it (a lone surrogate); mend it"
        case _:
            return f"{key} is {_kind(first['input'])}, but should be text or a list of texts; write it so"


def _kind(content: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(content), "a number")
