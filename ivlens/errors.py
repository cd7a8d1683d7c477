"""The one family of exceptions that a user sees: what came, what was needed, what to do."""

import difflib
from collections.abc import Iterable


class IvlensError(Exception):
    """The caller can mend it: what came, what was needed, what to do, in one sentence.

    The command line prints that sentence and exits with status 2. All errors below are of this kind.

    >>> ivlens.task("antonim")
    Traceback (most recent call last):
    ivlens.errors.TaskError: there is no built-in task and no file 'antonim'; did you mean antonym or ...
    >>> issubclass(ivlens.errors.TaskError, ivlens.IvlensError)
    True
    """


class TaskError(IvlensError):
    """A task file or a task's pairs cannot serve: unreadable, contradictory, or too few."""


class TaskWarning(UserWarning):
    """A task can be used, but something about it will blur what is measured on it."""


class PromptError(IvlensError):
    """Prompts cannot be built or do not fit the model's context."""


class ModelError(IvlensError):
    """A model cannot be loaded, is not supported, or has NaN in it."""


class ShapeMismatch(IvlensError):
    """Tensors were taken from a model with other heads, layers or widths."""


class RunError(IvlensError):
    """A run folder is of another configuration, of another version, or unreadable."""


class FigureError(IvlensError):
    """A figure cannot be drawn or exported."""


class TrainingError(IvlensError):
    """A training cannot go on: its loss is not finite, or its checkpoint is not its own."""


class StudyError(IvlensError):
    """A study's plan cannot be carried out as it is written."""


def suggest(name: object, known: Iterable[str], *, most: int = 3) -> str:
    """Which of the known names may have been meant, as a question; nothing where none is like what came.

    >>> errors.suggest("antonmy", ["synonym", "antonym", "plural"], most=1), errors.suggest("x", ["antonym"])
    ('did you mean antonym?', '')
    """
    close = difflib.get_close_matches(str(name), list(known), n=most, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def list_choices(name: object, known: Iterable[str], *, lead: str = "there are") -> str:
    """Every name that there is, after the one that may have been meant.

    >>> errors.list_choices("exat", ["exact", "contains"], lead="give")
    'did you mean exact? Give exact, contains'
    """
    known = list(known)
    hint, listed = suggest(name, known, most=1), f"{lead} {', '.join(known)}"
    return f"{hint} {listed[0].upper()}{listed[1:]}" if hint else listed
