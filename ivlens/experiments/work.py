"""What is an open question here, and what does its experiment work on?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from ivlens.analysis.options import MOST_VALIDATION
from ivlens.datasets.task import Pair, Split, Task
from ivlens.experiments.findings import FINDINGS, Found, Line
from ivlens.experiments.settings import ExperimentSettings
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import clean, zero_shot
from ivlens.prompts.choices import Source
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head
from ivlens.steering.controls import draw_heads
from ivlens.storage.run_tables import Tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go
    from transformer_lens import HookedTransformer

    from ivlens.analysis.run_comparison import TunedModel
    from ivlens.models.lora import Adapter
    from ivlens.patching.pace import Pace


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, and what is done about it."""

    sentence: str
    run: Callable[[Work], Iterator[Line]]
    """Lines of `FINDINGS`, whatever is kept of them in between."""
    cost: Callable[[Work, Pace], Mapping[str, float]]
    """Seconds of each stretch of the work, about."""
    verdict: Callable[[Found], str]
    """The answer, in a sentence or two, with intervals."""
    figures: Mapping[str, Mapping[str, str]]
    """By figure: the parts that it draws, with their units. The first one answers at a glance."""
    draw: Mapping[str, Callable[..., go.Figure]] = field(default_factory=dict)
    """By figure, where not every number has a line of its own: what draws it, see `experiment.draw_lines`."""
    needs_tuned: bool = False
    """Whether a second model is asked for, the first one after fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One experiment on its way."""

    model: HookedTransformer
    task: Task
    asked: ExperimentSettings
    memory: int
    tuned: TunedModel | None = None
    """The model after fine-tuning, where the question is about one."""
    update: Callable[[], Adapter] | None = None
    """What fine-tuning did to its weights, which is taken once, by whoever asks first."""
    tables: Tables = field(default_factory=Tables)

    @property
    def settings(self) -> Settings:
        return self.asked.measurement()

    @property
    def grid(self) -> tuple[int, int]:
        """Layers, and heads of each."""
        return self.model.cfg.n_layers, self.model.cfg.n_heads

    @cached_property
    def split(self) -> Split:
        """The task's parts, those that choose and report no longer than was asked for."""
        whole, queries = self.task.split(shots=self.asked.shots, seed=self.asked.seed), self.asked.queries
        return whole.at_most(validation=min(queries, MOST_VALIDATION), evaluation=queries)

    def bare(self, pairs: Sequence[Pair]) -> Tokens:
        """Queries alone."""
        return tokenize(self.model, zero_shot(pairs, template=self.asked.template))

    def shown(self, pairs: Sequence[Pair], source: Source | None = None) -> Tokens:
        """Prompts that show the task, in demonstrations or in writing; as was asked for unless given."""
        prompts = clean(
            self.task,
            pairs,
            self.split.mean,
            source=source or self.asked.source,
            shots=self.asked.shots,
            generator=open_stream(self.asked.seed, Stream.BASELINE_PROMPTS),
            template=self.asked.template,
        )
        return tokenize(self.model, prompts)

    def random_heads(self, apart: Sequence[Head]) -> list[list[Head]]:
        """Draws of as many other heads, or of all where too few others are left."""
        return draw_heads(self.grid, len(apart), draws=self.asked.draws, seed=self.asked.seed, apart=apart)

    def random_orders(self) -> list[list[Head]]:
        """All heads, in orders drawn at random."""
        n_layers, n_heads = self.grid
        return draw_heads(self.grid, n_layers * n_heads, draws=self.asked.draws, seed=self.asked.seed)

    def effects_seconds(self, pace: Pace) -> float:
        """What mean outputs and the effects of all heads take, about."""
        return self.asked.clean_prompts * pace.reading + self.asked.prompts * pace.patching

    def lines(self, name: str, compute: Callable[[], Iterable[Line]]) -> list[Line]:
        """Lines that are kept until the run is complete, under a name of their own."""
        found = self.tables.part(name, lambda: pd.DataFrame(list(compute()), columns=list(FINDINGS)), FINDINGS)
        return [dict(line) for line in found.to_dict("records")]  # pyright: ignore[reportCallIssue, reportArgumentType]
