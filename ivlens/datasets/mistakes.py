"""What was given in place of a task, and what is to be given?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

WANTED = "give a name out of ivlens.tasks(), the path of a task file, or an ivlens.Task"
MODEL_FIRST = "the model comes first, then the task"
LAB = "lab"


def name_mistake(given: object) -> str:
    """The sentence about something that is neither a task nor its name."""
    kinds = {base.__name__ for base in type(given).__mro__}
    if isinstance(given, type):
        return f"the class {given.__name__} is no task; {WANTED}, such as ivlens.task('antonym')"
    if "DataFrame" in kinds:
        return "a DataFrame is no task yet; give ivlens.Task.from_frame(frame, input=..., output=...) of two columns"
    if kinds & {"HookedTransformer", "TransformerBridge", "PreTrainedModel"}:
        return f"a {type(given).__name__} is a model, no task; {MODEL_FIRST}"
    if isinstance(given, Mapping) or (isinstance(given, Iterable) and not isinstance(given, bytes)):
        return f"a {type(given).__name__} is no task yet; give ivlens.Task.from_pairs(pairs, name=...) of its pairs"
    return (
        f"{str(given)[:60]} is no task; {WANTED}" if given is None else f"a {type(given).__name__} is no task; {WANTED}"
    )


def name_folder_mistake(name: str | Path) -> str | None:
    """The sentence about a name or folder that is a model's, not a task's; None for any other."""
    if str(name) == LAB:
        return f"'{LAB}' is a model, no task; {MODEL_FIRST}"
    with suppress(OSError, ValueError):
        for file, kind in (("config.json", "a model"), ("adapter_config.json", "an adapter")):
            if (Path(name) / file).is_file():
                return f"{name} is the folder of {kind}, no task; {MODEL_FIRST}"
    return None
