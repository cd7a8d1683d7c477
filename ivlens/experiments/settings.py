"""What can an experiment be asked for, beside how effects are measured? An option is written once, as in an audit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ivlens.analysis.options import MOST_VALIDATION
from ivlens.patching.settings import Options, Settings, document_options, option

STEPS = 100
"""Of a trained vector."""


class ExperimentOptions(Options, total=False):
    """The fields of `ExperimentSettings`, for functions that take them one by one."""

    top: int
    draws: int
    queries: int
    learned: str | None


@document_options
@dataclass(frozen=True, kw_only=True)
class ExperimentSettings(Settings):
    """What an experiment is asked for."""

    top: int = field(default=10, metadata=option("Heads that are taken together: of a vector, or ablated.", least=1))
    draws: int = field(default=20, metadata=option("Draws of every random control.", least=2))
    queries: int = field(
        default=100,
        metadata=option(
            f"Pairs that numbers are of, and up to {MOST_VALIDATION} others that choose; fewer where the task has "
            "fewer.",
            least=2,
        ),
    )

    learned: str | None = field(
        default=None,
        metadata=option(
            "Of a question about fine-tuning: the task that was learned, to see which part does it; a name or a file.",
            metavar="TASK",
        ),
    )

    def record(self) -> dict[str, Any]:
        """As a run keeps it, which has a place of its own for the seed."""
        from ivlens.prompts import chat

        values = asdict(self) | {"template": chat.to_record(self.template)}
        del values["seed"]
        if self.learned is None:
            del values["learned"]
        return values
