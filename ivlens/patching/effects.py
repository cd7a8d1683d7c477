"""Which heads carry the task? The average indirect effect of every head, with its uncertainty.

Source: Todd et al. 2024, arXiv:2310.15213 (AIE on shuffled prompts); `corruption="zero-shot"` follows the published
code of arXiv:2502.11019. Clean prompts and ranking prompts share no query pair.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ivlens.datasets.task import Split, Task
from ivlens.errors import IvlensError
from ivlens.measures import bootstrap, group_means
from ivlens.models import hooked
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z
from ivlens.prompts import answer_check, chat
from ivlens.prompts.builders import DEFAULT, Corruption, Prompt, Source, Tokens, clean, corrupted, cycled, tokenize
from ivlens.prompts.chat import Layout
from ivlens.shapes import GIB, Cie, Head, HeadGrid, MeanZ

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens import HookedTransformer


# Columns of a table of effects.
EFFECTS = ("prompt", "query", "layer", "head", "cie", "baseline")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How effects are measured; part of every record."""

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
        """Of an effect: `probability` or `nats`."""
        return "nats" if self.effect == "nll" else "probability"

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Settings:
        """What `dataclasses.asdict` made."""
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


@dataclass(frozen=True, kw_only=True)
class HeadEffects:
    """Causal indirect effects of every head on every prompt, and what they were measured with."""

    cie: Cie
    """Patched minus unpatched, per prompt: probability (`prob`) or nats (`nll`)."""
    baseline: Float[Tensor, " prompt"]
    """Unpatched probability (`prob`) or log-likelihood in nats (`nll`) of the answer."""
    queries: Int[Tensor, " prompt"]
    """Prompts of one number ask the same query; they are drawn together when intervals are computed."""
    mean_z: MeanZ
    """What was patched in."""
    settings: Settings
    task: str
    task_digest: str
    model: str
    model_digest: str

    @property
    def aie(self) -> HeadGrid:
        """Average indirect effect: the mean over queries, each query being the mean over its prompts."""
        return group_means(self.cie, self.queries).mean(0)

    @property
    def unit(self) -> str:
        return self.settings.unit

    def interval(self, confidence: float = 0.95) -> tuple[HeadGrid, HeadGrid]:
        """Lower and upper bound of the percentile bootstrap interval over queries; NaN where there is only one."""
        return bootstrap(self.cie, self.queries, confidence=confidence, seed=self.settings.seed)

    def ranked(self) -> list[Head]:
        """All heads, the largest AIE first; equal ones by address."""
        n_heads = self.cie.shape[2]
        order = torch.argsort(self.aie.flatten(), descending=True, stable=True).tolist()
        return [Head(index // n_heads, index % n_heads) for index in order]

    def top(self, k: int = 10) -> list[Head]:
        """The k heads of largest AIE. Never report their AIE on the prompts that chose them as their effect."""
        return self._first(self.ranked(), k)

    def bottom(self, k: int = 10) -> list[Head]:
        """The k heads of smallest AIE, the smallest first: a control."""
        return self._first(self.ranked()[::-1], k)

    def _first(self, heads: list[Head], k: int) -> list[Head]:
        if not 1 <= k <= len(heads):
            raise IvlensError(f"k is {k}, but the model has {len(heads)} heads; take 1 to {len(heads)}")
        return heads[:k]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, **others: Any) -> HeadEffects:
        """What `to_frame` made; `others` are the fields that a table does not hold."""
        cie = cie_of(frame)
        return cls(cie=cie, baseline=of_prompts(frame, "baseline"), queries=of_prompts(frame, "query"), **others)

    def to_frame(self) -> pd.DataFrame:
        """One line per prompt and head: `prompt`, `query`, `layer`, `head`, `cie`, `baseline`."""
        return table_of(self.cie, self.queries, self.baseline)

    def figure(self, *, marked: Sequence[Head] = ()) -> go.Figure:
        """Heatmap of the AIE, layers down and heads across; `marked` heads are outlined."""
        from ivlens.plots import head_heatmap

        low, high = self.interval()
        return head_heatmap(
            self.aie.cpu().numpy(),
            low=low.cpu().numpy(),
            high=high.cpu().numpy(),
            unit=self.unit,
            marked=marked,
            title=f"AIE of every head of {self.model}, {self.task}",
        )

    def __repr__(self) -> str:
        low, high = self.interval()
        best = [f"{head} {self.aie[head]:+.3f} [{low[head]:+.3f}, {high[head]:+.3f}]" for head in self.top(3)]
        return (
            f"HeadEffects({self.task} on {self.model}: {len(self.cie)} prompts, {self.cie.shape[1]}x"
            f"{self.cie.shape[2]} heads, {self.unit}; top {', '.join(best)})"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The figure where plotly has a renderer for notebooks, and one line of text everywhere."""
        return {"text/plain": repr(self), **self.figure()._repr_mimebundle_()}


def table_of(cie: Cie, queries: Int[Tensor, " prompt"], baseline: Float[Tensor, " prompt"]) -> pd.DataFrame:
    """Effects as a table of `EFFECTS`, one line per prompt and head."""
    import pandas as pd

    axes = np.indices(cie.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "prompt": axes[0],
            "query": queries.cpu().numpy()[axes[0]],
            "layer": axes[1],
            "head": axes[2],
            "cie": cie.cpu().numpy().reshape(-1),
            "baseline": baseline.cpu().numpy()[axes[0]],
        }
    )


def cie_of(frame: pd.DataFrame) -> Cie:
    """The effects in a table, in whichever order its lines are.

    Raises:
        IvlensError: it has not one line for every prompt and head, or columns of another kind than numbers.
    """
    axes = [frame[axis].to_numpy() for axis in ("prompt", "layer", "head")]
    kinds = "".join(frame[name].dtype.kind for name in EFFECTS)
    if not len(frame) or not re.fullmatch("i{4}ff", kinds):
        raise IvlensError(f"the table of effects has {len(frame)} lines of kinds {kinds}; run the audit again")
    shape = tuple(int(axis.max()) + 1 for axis in axes)
    order = np.lexsort(axes[::-1])
    # Sizes first: a number of a damaged file may be of any size.
    if len(frame) != math.prod(shape) or not np.array_equal(np.stack(axes)[:, order], np.indices(shape).reshape(3, -1)):
        n_prompts, n_layers, n_heads = shape
        raise IvlensError(
            f"the table of effects has {len(frame)} lines, but {n_prompts} prompts of {n_layers}x{n_heads} heads "
            "need one each; run the audit again"
        )
    return torch.tensor(frame["cie"].to_numpy()[order]).reshape(shape)


def of_prompts(frame: pd.DataFrame, column: str) -> Shaped[Tensor, " prompt"]:
    """What every prompt of a table of effects has but once: its `query`, its `baseline`."""
    per_prompt = frame.sort_values(["prompt", "layer", "head"]).drop_duplicates("prompt")
    return torch.tensor(np.asarray(per_prompt[column]))


def indirect_effects(
    model: HookedTransformer,
    task: Task,
    *,
    shots: int = 10,
    clean_prompts: int = 100,
    prompts: int = 25,
    corruption: Corruption = "shuffled",
    source: Source = "demonstrations",
    effect: sweep.Effect = "prob",
    seed: int = 0,
    memory: int = 2 * GIB,
    template: Layout = DEFAULT,
) -> HeadEffects:
    """Causal indirect effect of every attention head, exact, in one pass per prompt.

    In 16 bits the AIE of the lab model is within 0.01 (bfloat16) and 0.001 (float16) of float32's, or 0.03 and 0.003
    nats. On a TransformerBridge there is one pass per head.

    Args:
        shots: Demonstrations of a prompt.
        clean_prompts: Number of prompts that give `mean_z`; short tasks ask a query again with other demonstrations.
        prompts: Number of corrupted prompts that heads are patched on.
        corruption: `shuffled`: demonstrations with permuted outputs; `zero-shot`: the query alone.
        source: Where clean prompts show the task: `demonstrations` or the written `instruction`.
        effect: `prob`: first answer token; `nll`: log-likelihood of the whole answer, in nats.
        memory: Bytes that the sweep may take beside the weights.

    Raises:
        TaskError: too few pairs, or no instruction where `source` asks for one.
        PromptError: prompts longer than the context, or than `memory` can hold.
        ModelError: NaN or infinite activations.
    """
    settings = Settings(
        shots=shots,
        clean_prompts=clean_prompts,
        prompts=prompts,
        corruption=corruption,
        source=source,
        effect=effect,
        seed=seed,
        template=template,
    )
    return measure_effects(model, task, task_mean_z(model, task, settings), settings, memory=memory)


def measure_effects(
    model: HookedTransformer,
    task: Task,
    z: MeanZ,
    settings: Settings,
    *,
    memory: int = 2 * GIB,
    model_digest: str | None = None,
) -> HeadEffects:
    """Patch given mean outputs `z` into the task's ranking prompts.

    Args:
        model_digest: Where it is known already: it reads every weight of the model.
    """
    queries, tokens = ranking_prompts(model, task, settings)
    baseline, cie = sweep.sweep(model, tokens, z, effect=settings.effect, memory=memory)
    return HeadEffects(
        cie=cie,
        baseline=baseline,
        queries=queries,
        mean_z=z,
        settings=settings,
        task=task.name,
        task_digest=task.digest,
        model=hooked.model_name(model),
        model_digest=model_digest or hooked.weight_digest(model),
    )


def task_mean_z(model: HookedTransformer, task: Task, settings: Settings) -> MeanZ:
    """Mean head output over `settings.clean_prompts` clean prompts of the task's mean part."""
    return mean_z(model, clean_prompts(model, task, settings)[1])


def clean_prompts(model: HookedTransformer, task: Task, settings: Settings) -> tuple[Int[Tensor, " prompt"], Tokens]:
    """What mean head outputs are the mean over, and the number of each one's query."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    prompts = _clean(task, split, settings, settings.clean_prompts)
    return torch.arange(len(prompts)) % len(split.mean), tokenize(model, prompts)


def _clean(task: Task, split: Split, settings: Settings, n: int) -> list[Prompt]:
    return clean(
        task,
        cycled(split.mean, n),
        split.mean,
        source=settings.source,
        shots=settings.shots,
        generator=np.random.default_rng([settings.seed, 1]),
        template=settings.template,
    )


def example_prompts(task: Task, settings: Settings) -> dict[str, dict[str, str]]:
    """The first clean and the first corrupted prompt, as the model reads them, each with its `answer`."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    first = {"clean": _clean(task, split, settings, 1), "corrupted": _corrupted(split, settings, 1)}
    return {kind: {"text": prompts[0].text, "answer": prompts[0].answer} for kind, prompts in first.items()}


def ranking_prompts(model: HookedTransformer, task: Task, settings: Settings) -> tuple[Int[Tensor, " prompt"], Tokens]:
    """Corrupted prompts of the task's ranking part, and the number of each one's query.

    A part shorter than `settings.prompts` is asked again with other demonstrations; where there are none
    (zero-shot) the same prompt twice would only pretend to be evidence, and there are fewer prompts.
    """
    split = task.split(shots=settings.shots, seed=settings.seed)
    n = settings.prompts
    if settings.corruption == "zero-shot":
        n = min(n, len(split.rank))
    prompts = _corrupted(split, settings, n)
    tokens = tokenize(model, prompts)
    answer_check.check(model, task, [prompt.query.output for prompt in prompts], tokens)
    return torch.arange(n, device=tokens.prompts.device) % len(split.rank), tokens


def _corrupted(split: Split, settings: Settings, n: int) -> list[Prompt]:
    return corrupted(
        cycled(split.rank, n),
        split.mean,
        corruption=settings.corruption,
        shots=settings.shots,
        generator=np.random.default_rng([settings.seed, 2]),
        template=settings.template,
    )
