"""What can a measurement be asked for?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ivlens.errors import IvlensError
from ivlens.patching import sweep
from ivlens.prompts import chat
from ivlens.prompts.builders import Corruption, Source
from ivlens.prompts.chat import Layout
from ivlens.prompts.template import DEFAULT


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How effects are measured; part of every record.

    Raises:
        IvlensError: a choice that there is not, or a number below its least.

    >>> settings = ivlens.Settings(shots=5, corruption="zero-shot")
    >>> settings.shots, settings.clean_prompts, settings.effect
    (5, 100, 'prob')
    """

    shots: int = 10
    """Demonstrations of a clean (or shuffled) prompt."""
    clean_prompts: int = 100
    """Prompts that `mean_z` is the mean over."""
    prompts: int = 25
    """Corrupted prompts that heads are patched on."""
    corruption: Corruption = "shuffled"
    source: Source = "demonstrations"
    effect: sweep.Effect = "prob"
    seed: int = 0
    template: Layout = DEFAULT

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
        return cls(**{**record, "template": chat.from_record(record["template"])})

    def __post_init__(self) -> None:
        known = {"corruption": ("shuffled", "zero-shot"), "source": ("demonstrations", "instruction")}
        known["effect"] = ("prob", "nll")
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise IvlensError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(map(repr, choices))}")
        for name, least in {"shots": 0, "clean_prompts": 1, "prompts": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise IvlensError(f"{name} is {getattr(self, name)}; it must be {least} or more")
