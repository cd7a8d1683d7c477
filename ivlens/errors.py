"""The one family of exceptions that a user sees: what came, what was needed, what to do."""


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
