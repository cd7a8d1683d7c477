"""What can an audit and a comparison be asked for, beside how effects are measured?

An option is written once, as those of `Settings` are: the functions, `run.json` and the command line are made of these.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ivlens.patching.settings import Options, Ranking, Settings, document_options, option
from ivlens.prompts.choices import SCORE_WORDS, Score, ScoreChoice

if TYPE_CHECKING:
    from ivlens.steering.head_choice import Asked

Choice = Literal["all", "best"] | int
"""Of wordings: all in turn, the one that validates best, or the N-th, counted from 1."""

MOST_VALIDATION = 30
"""Pairs that layers and scales are chosen on."""


class AnalysisOptions(Options, total=False):
    """The fields of `AnalysisSettings`, for functions that take them one by one."""

    top: int
    heads: Asked | None
    instruction: Choice
    draws: int
    score: ScoreChoice


class AuditOptions(AnalysisOptions, total=False):
    """The fields of `AuditSettings`."""

    rank: Ranking
    other_tasks: int
    queries: int


class ComparisonOptions(AnalysisOptions, total=False):
    """The fields of `ComparisonSettings`."""

    queries: int


@document_options
@dataclass(frozen=True, kw_only=True)
class AnalysisSettings(Settings):
    """What an audit and a comparison are both asked for."""

    top: int = field(
        default=10, metadata=option("Heads of the vector; as many as are given, where heads are given.", least=1)
    )
    heads: Asked | None = field(
        default=None,
        metadata=option(
            "In place of those of largest AIE: L9H6,L3H2, a file of heads, or universal (those that carry the other "
            "built-in tasks).",
            metavar="LIST|FILE",
        ),
    )
    instruction: Choice = field(
        default="all",
        metadata=option(
            "Wordings of the instruction: all in turn, the best on validation pairs, or the N-th.",
            metavar="all|best|N",
            typed="all",
        ),
    )
    draws: int = field(
        default=20,
        metadata=option("Sets of random heads that results stand beside; of other controls five at most.", least=1),
    )
    score: ScoreChoice = field(default="auto", metadata=option(SCORE_WORDS, choices=ScoreChoice))

    @property
    def accuracy_score(self) -> Score:
        """The score that was asked for, or the one that fits the template."""
        from ivlens.prompts import chat

        return chat.find_score(self.score, self.template)

    def record(self) -> dict[str, Any]:
        """As a run keeps it, which has a place of its own for the seed.

        Heads, wordings, `answered_only` and the score stand in it where they are not the usual ones: those of largest
        AIE, all in turn, every query, and the score that fits the template.
        """
        from ivlens.prompts import chat

        values = asdict(self) | {"template": chat.to_record(self.template)}
        del values["seed"]
        heads, instruction = values.pop("heads"), values.pop("instruction")
        if heads is not None:
            values["heads"] = heads if isinstance(heads, str) else [str(head) for head in heads]
        if instruction != "all":
            values["instruction"] = instruction
        if values["score"] == "auto":  # A run of before has none.
            del values["score"]
        if not self.answered_only:
            del values["answered_only"]
        return values


@document_options
@dataclass(frozen=True, kw_only=True)
class AuditSettings(AnalysisSettings):
    """What an audit is asked for."""

    rank: Ranking = field(
        default="aie",
        metadata=option(
            "What heads of the vector are chosen by: AIE, its estimate by one gradient, or what is lost when each is "
            "ablated alone.",
            choices=Ranking,
        ),
    )
    other_tasks: int = field(
        default=3, metadata=option("Built-in tasks whose vectors are controls; 0 for none.", least=0)
    )
    queries: int = field(
        default=100,
        metadata=option(
            f"Pairs that numbers are of, and up to {MOST_VALIDATION} others that layer and scale are chosen on; "
            "fewer where the task has fewer.",
            least=1,
        ),
    )

    def record(self) -> dict[str, Any]:
        """Also the ranking, where it is not the usual one."""
        values = super().record()
        if self.rank == "aie":  # A run of before has none.
            del values["rank"]
        return values


@document_options
@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(AnalysisSettings):
    """What a comparison is asked for."""

    queries: int = field(
        default=50,
        metadata=option(
            "Evaluation pairs that dependence on the vector is measured on; fewer where the task has fewer.", least=1
        ),
    )
