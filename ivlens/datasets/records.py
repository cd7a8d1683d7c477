"""Which question and answers does a record hold: an object of a list, a line of JSONL, a row of a table?

By its keys: input and output under their common names, alpaca's (instruction, input and output), or a conversation
(`messages`, or ShareGPT's `conversations`) of one question and its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ivlens.datasets.entries import Pair, list_names, read_each, say, texts_of
from ivlens.errors import TaskError

INPUTS = ("input", "question", "query", "prompt", "source", "text", "sentence", "word", "x")
OUTPUTS = ("output", "answer", "response", "completion", "target", "label", "y", "outputs", "answers")
"""Names that are taken without being asked for, the first of them that is there."""
KNOWLEDGE = "knowledge"
"""What is right behind the task's statement, where that is not the output."""
CONVERSATIONS = ("messages", "conversations")
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
KNOWN = (
    f"an input ({', '.join(INPUTS)}) with an output ({', '.join(OUTPUTS)}), an instruction with an output, messages or "
    "conversations"
)

Columns = tuple[str, str]


class Asked(NamedTuple):
    """A record, read; "" where it has no instruction, or nothing beside it."""

    instruction: str
    input: str
    outputs: tuple[str, ...]
    knowledge: str | None = None
    """See `Pair`."""


class Form(NamedTuple):
    """Which keys are read, and how."""

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], Asked]


def find_form(names: Sequence[str], columns: Columns | None, where: str) -> Form:
    """How records of these keys are read: by the two asked for, else by common names.

    Raises:
        TaskError: there are none such.
    """
    if columns is not None:
        for name in columns:
            if name not in names:
                raise TaskError(f"{where} has no column {name!r}; it has {list_names(names, 12)}")
        return Form(columns, partial(_pair, *columns))
    by_name = {name.strip().casefold(): name for name in reversed(names)}
    conversation = next((by_name[name] for name in CONVERSATIONS if name in by_name), None)
    given, right = (next((by_name[name] for name in known if name in by_name), None) for known in (INPUTS, OUTPUTS))
    if conversation is not None:
        form = Form((conversation,), partial(_conversation, conversation))
    elif "instruction" in by_name and right is not None:
        beside = by_name.get("input", by_name.get("context", ""))
        keys = (by_name["instruction"], beside, right)
        form = Form(tuple(filter(None, keys)), partial(_alpaca, *keys))
    elif given is not None and right is not None:
        beside = by_name.get(KNOWLEDGE)
        form = Form(tuple(filter(None, (given, right, beside))), partial(_pair, given, right, beside=beside))
    else:
        raise TaskError(
            f"{where} has {list_names(names, 12)}, which do not tell input and output; known are {KNOWN}. Name two "
            "others as columns, such as --columns country,capital"
        )
    return form


def read_records(
    records: Sequence[object],
    where: str,
    columns: Columns | None = None,
    *,
    names: Sequence[str] = (),
    unit: str = "entry",
    numbers: Sequence[int] | None = None,
) -> tuple[list[Pair], tuple[str, ...]]:
    """The entries of some records, and their instruction where all have the same.

    Args:
        columns: Which keys are input and output.
        names: All keys, where they are known; records may lack those that are not read.
        unit: What a record is called: entry, line, row.
        numbers: Of each record; counted from 1 unless given.

    Raises:
        TaskError: their keys tell no input and output, or none of them has both.
    """
    found = names or dict.fromkeys(name for record in records if isinstance(record, dict) for name in record)
    if not found:
        raise TaskError(f'{where}, {unit} 1 is no JSON object; write one such as {{"input": "hot", "output": "cold"}}')
    form = find_form(list(found), columns, where)
    unread = [name for name in found if name not in form.keys]
    if unread and columns is None:
        say(f"{where}: read are {list_names(form.keys)}; not read are {list_names(unread)}")
    return _write_instructions(read_each(partial(_read, form), records, where, unit=unit, numbers=numbers), where)


def _write_instructions(asked: Sequence[Asked], where: str) -> tuple[list[Pair], tuple[str, ...]]:
    """Entries, and the instruction that all of them have; where they have several, each stands before its input."""
    wordings = dict.fromkeys(one.instruction for one in asked)
    if len(wordings) == 1 and all(one.input for one in asked):
        return [Pair.of(*one[1:]) for one in asked], tuple(filter(None, wordings))
    if len(wordings) > 1:
        say(f"{where} has {len(wordings)} instructions: each is read as a part of its input, and the task has none")
    return [Pair.of("\n".join(filter(None, one[:2])), *one[2:]) for one in asked], ()


def _read(form: Form, record: object, place: str) -> Asked:
    if not isinstance(record, dict):
        raise TaskError(f"{place} is no JSON object; write one")
    return form.read(record, place)


def _texts(record: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
    if key not in record:
        raise TaskError(f"{place}: {key!r} is missing; add it")
    return texts_of(record[key], f"{place}: {key!r}")


def _pair(given: str, right: str, record: Mapping[str, Any], place: str, *, beside: str | None = None) -> Asked:
    knowledge = None
    if beside is not None and record.get(beside) not in (None, ""):
        knowledge = _texts(record, beside, place)[0]
    # Of several inputs the first, as function_vectors takes it of its queries.
    return Asked("", _texts(record, given, place)[0], _texts(record, right, place), knowledge)


def _alpaca(instruction: str, beside: str, right: str, record: Mapping[str, Any], place: str) -> Asked:
    has_input = record.get(beside) not in (None, "")
    given = _texts(record, beside, place)[0] if has_input else ""
    return Asked(_texts(record, instruction, place)[0], given, _texts(record, right, place))


def _conversation(key: str, record: Mapping[str, Any], place: str) -> Asked:
    turns = record.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise TaskError(f"{place}: {key!r} is no list of objects with role and content; write one")
    said: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for turn in turns:
        role = ROLES.get(str(turn.get("role", turn.get("from"))))
        if role is None:
            raise TaskError(f"{place}: {key!r} has a turn that is of none of {', '.join(ROLES)}; drop it")
        said[role] += texts_of(turn.get("content", turn.get("value")), f"{place}: {key!r}")[:1]
    if (len(said["user"]), len(said["assistant"])) != (1, 1):
        raise TaskError(
            f"{place}: {key!r} has {len(said['user'])} questions and {len(said['assistant'])} answers; keep one of each"
        )
    return Asked("\n".join(said["system"]), said["user"][0], tuple(said["assistant"]))
