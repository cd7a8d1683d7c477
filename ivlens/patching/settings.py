"""What can a measurement be asked for?

An option is written once, here: its name, default, bounds or choices, and the words that explain it. `Options` repeats
names and types for functions that take options one by one. Functions, the record of a run and the command line are made
of these definitions, so that importing them costs nothing: neither torch nor NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, get_args

from ivlens.errors import IvlensError, suggest
from ivlens.prompts.choices import Corruption, Source

if TYPE_CHECKING:
    from ivlens.prompts.chat import Layout

Effect = Literal["prob", "nll"]
Ranking = Literal["aie", "gradient", "ablation"]
"""By what heads are ranked: see `attribution.head_scores`."""
MOST = 1_000_000
"""Of prompts, heads, draws: whatever is counted."""
SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
Kind = TypeVar("Kind")


def parse_bytes(size: str | int) -> int:
    """Bytes of a size such as `2GiB`, `500 MB` or `1048576`; a whole number is taken for bytes.

    Raises:
        IvlensError: not a size, or not above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", size) if isinstance(size, str) else None
    if isinstance(size, Integral) and not isinstance(size, bool):
        found = int(size)
    else:
        found = 0 if match is None else int(Fraction(match[1]) * SIZES.get(match[2].upper(), 0))
    if found < 1:
        raise IvlensError(f"memory is {size!r}; write a size above 0 such as 2GiB, 500MB or 1048576")
    return found


def option(
    words: str, *, least: int | None = None, choices: Any = None, typed: str | None = None, metavar: str | None = None
) -> dict[str, Any]:
    """What is to be known of an option beside its type and its default: the metadata of a field.

    Args:
        words: What it is, as the command line and the docstring have it.
        least: Of a whole number.
        choices: The `Literal` of all of them.
        typed: How the default is typed, where it is no text itself.
        metavar: What stands for the value in the command line's help.
    """
    return {"words": words, "least": least, "choices": get_args(choices), "typed": typed, "metavar": metavar}


def _default_template() -> Layout:
    from ivlens.prompts.template import DEFAULT

    return DEFAULT


def document_options(kind: type[Kind]) -> type[Kind]:
    """Write the options into a class's docstring."""
    lines = [f"    {one.name}: {one.metadata['words']}" for one in fields(kind)]  # pyright: ignore[reportArgumentType]
    kind.__doc__ = "\n".join([str(kind.__doc__), "", "Options:", *lines])
    return kind


class Options(TypedDict, total=False):
    """The fields of `Settings`, for functions that take them one by one."""

    shots: int
    clean_prompts: int
    prompts: int
    corruption: Corruption
    source: Source
    effect: Effect
    answered_only: bool
    seed: int
    template: Layout


@document_options
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How effects are measured; part of every record.

    Raises:
        IvlensError: a choice that there is not, or a number below its least.

    >>> settings = ivlens.Settings(shots=5, corruption="zero-shot")
    >>> settings.shots, settings.clean_prompts, settings.effect
    (5, 100, 'prob')
    """

    shots: int = field(default=10, metadata=option("Demonstrations of a clean or shuffled prompt.", least=0))
    clean_prompts: int = field(
        default=100,
        metadata=option(
            "Prompts that give the mean head outputs; short tasks ask a query again with other demonstrations.", least=1
        ),
    )
    prompts: int = field(default=25, metadata=option("Corrupted prompts that heads are patched on.", least=1))
    corruption: Corruption = field(
        default="shuffled",
        metadata=option(
            "How the task is taken out of a prompt: outputs of the demonstrations permuted, or the query alone.",
            choices=Corruption,
        ),
    )
    source: Source = field(
        default="demonstrations",
        metadata=option(
            "Where clean prompts show the task: in demonstrations, or in the written instruction.", choices=Source
        ),
    )
    effect: Effect = field(
        default="prob",
        metadata=option(
            "Probability of the first answer token, or log-likelihood of the whole answer in nats.", choices=Effect
        ),
    )
    answered_only: bool = field(
        default=False,
        metadata=option(
            "Means and effects from queries that the model answers right on a clean prompt; the others are left out."
        ),
    )
    seed: int = field(default=0, metadata=option("Decides splits, prompts and draws.", least=0))
    template: Layout = field(
        default_factory=_default_template,
        metadata=option(
            "How prompts are written: qa, function-vectors, arrow, input-output, plain, chat (the model's own), or a "
            "JSON file.",
            typed="qa",
        ),
    )

    @property
    def unit(self) -> str:
        """Of an effect: `probability` or `nats`.

        >>> ivlens.Settings(effect="nll").unit
        'nats'
        """
        return "nats" if self.effect == "nll" else "probability"

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Settings:
        """What `dataclasses.asdict` made, as run folders and vector files hold it.

        >>> import dataclasses
        >>> record = dataclasses.asdict(ivlens.Settings(shots=5))
        >>> ivlens.Settings.from_record(record) == ivlens.Settings(shots=5)
        True
        """
        from ivlens.prompts import chat

        return cls(**{**record, "template": chat.from_record(record["template"])})

    def measurement(self) -> Settings:
        """These settings without what an analysis adds to them.

        >>> audit.vector.settings.measurement() == audit.vector.settings
        True
        """
        return Settings(**{one.name: getattr(self, one.name) for one in fields(Settings)})

    def values(self) -> dict[str, Any]:
        """All fields by name, as they are.

        >>> ivlens.Settings(shots=5).values()["shots"]
        5
        """
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def __post_init__(self) -> None:
        from ivlens.prompts.chat import ChatTemplate
        from ivlens.prompts.template import Template

        check_options(self)
        if not isinstance(self.answered_only, bool):
            raise IvlensError(f"answered_only is {self.answered_only!r}; it must be True or False")
        if not isinstance(self.template, Template | ChatTemplate):
            raise IvlensError(
                f"template is {self.template!r}, no template; give ivlens.template({self.template!r}, model)"
            )


def check_options(asked: Any) -> None:
    """See that the options of a dataclass are of their choices and within their bounds.

    Raises:
        IvlensError: one is not.
    """
    for one in fields(asked):
        value, about = getattr(asked, one.name), one.metadata
        if about["choices"] and value not in about["choices"]:
            raise IvlensError(f"{one.name} is {value!r}; it must be {' or '.join(map(repr, about['choices']))}")
        if about["least"] is not None and (value, one.default) != (None, None):
            # Numbers of NumPy become Python's, as JSON wants them.
            object.__setattr__(asked, one.name, _whole(one.name, value, about["least"]))


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise IvlensError(f"{name} is {value!r}; it must be a whole number")
    found, most = int(value), 2**63 - 1 if name == "seed" else MOST
    if found < least:
        raise IvlensError(f"{name} is {found}; it must be {least} or more")
    if found > most:
        raise IvlensError(f"{name} is more than {most:,}; give less")
    return found


def gather_options(kind: type[Kind], settings: Settings | None, options: Mapping[str, Any]) -> Kind:
    """What a function was given, settings, options or both, as one.

    Args:
        kind: `Settings`, or what an analysis adds to them.

    Raises:
        IvlensError: there is no such option, or it contradicts the settings.
    """
    known = [one.name for one in fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in options:
        if name not in known:
            hint = suggest(name, known, most=1) or f"there are {', '.join(known)}"
            raise IvlensError(f"there is no option {name!r}; {hint}")
    if settings is None:
        return kind(**options)
    refuse_contradictions("settings", settings, options)
    return kind(**{**settings.values(), **options})


def refuse_contradictions(origin: str, settings: Settings, options: Mapping[str, Any]) -> None:
    """Raises IvlensError where an option is another than in settings that were given beside it.

    Args:
        origin: Where these are from: `settings`, `effects`.
    """
    known = settings.values()
    for name, value in options.items():
        if name in known and known[name] != value:
            raise IvlensError(
                f"{name} is {value!r}, but the {origin} have {name} {known[name]!r}; leave one of the two out"
            )
