"""The one family of exceptions that a user sees: what came, what was needed, what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 500
"""Characters of a message: a file may have put a megabyte into it."""
# What the user's machine refuses, as opposed to a file that we forgot.
_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO, errno.EFBIG),
    *(errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.EBUSY, errno.ESTALE, errno.EPIPE),
}
_FULL = "can't allocate memory"  # A RuntimeError of torch says so.


class IvlensError(Exception):
    """The caller can mend it: what came, what was needed, what to do, in one sentence.

    The command line prints that sentence and exits with status 2. All errors below are of this kind.

    >>> ivlens.task("antonim")
    Traceback (most recent call last):
    ivlens.errors.TaskError: there is no built-in task and no file 'antonim'; did you mean antonym or ...
    >>> issubclass(ivlens.errors.TaskError, ivlens.IvlensError)
    True
    """

    def __str__(self) -> str:
        return shorten(super().__str__())


class TaskError(IvlensError):
    """A task file or a task's pairs cannot serve: unreadable, contradictory, or too few."""


class TaskWarning(UserWarning):
    """A task can be used, but something about it will blur what is measured on it."""


class PromptError(IvlensError):
    """Prompts cannot be built or do not fit the model's context."""


class ModelError(IvlensError):
    """A model cannot be loaded, is not supported, or has NaN in it."""


class ModelWarning(UserWarning):
    """A model can be used, but something about it, or about its files, will blur what is measured.

    >>> issubclass(lora.ModelWarning, UserWarning)
    True
    """


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


class EngineError(IvlensError):
    """Jobs cannot be run: there is no such cluster, no room in it, or their workers are lost again and again."""


def shorten(text: str, most: int = LONGEST) -> str:
    """The beginning and the end of a text that is longer than so many characters."""
    if len(text) <= most:
        return text
    mark = f" [{len(text):,} characters] "
    end = (most - len(mark)) // 3
    return text[: most - len(mark) - end] + mark + text[-end:]


def name_fault(error: BaseException) -> str | None:
    """What the machine, or a file that it was given, did, in a sentence; None for a fault of ours."""
    kind, said = type(error).__name__, str(error)
    if isinstance(error, IvlensError):
        return said
    if kind == "OutOfMemoryError":  # torch's, which is not imported for this.
        return "the device ran out of memory; give a smaller --memory, or --device cpu"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _FULL in said:
        return "this machine ran out of memory; give a smaller --memory, fewer prompts or a smaller model"
    if isinstance(error, OSError) and error.errno in _REFUSED:
        where = "the output" if error.filename is None else error.filename
        return f"cannot use {where}: {error.strerror}; mend that, or give another path"
    if kind == "PanicException":  # So gives up the library of tokenizers, and it is no Exception.
        return f"the model's tokenizer gives up ({shorten(said, 200)}); copy it again, or give another model"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{shorten(error.object, 80)!r} has half a character in it (a lone surrogate); mend it"
    return None


@contextmanager
def as_ivlens_error() -> Iterator[None]:
    """Raise an IvlensError for what `name_fault` has words for; also as a decorator."""
    try:
        yield
    except BaseException as error:
        said = None if isinstance(error, IvlensError) else name_fault(error)
        if said is None:
            raise
        raise IvlensError(said) from error


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
