"""Which heads carry instructions in general, and what do they write on each task?

Universal heads are ranked by their AIE averaged over the tasks that the model can do; their vector for a task is what
they write on its clean prompts. Source: Todd et al. 2024, arXiv:2310.15213, who rank heads over several tasks, too.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from ivlens import files, tensors
from ivlens.activations import answer_logits
from ivlens.effects import Settings, measure_effects, task_mean_z
from ivlens.errors import IvlensError, PromptError, ShapeMismatch, TaskError
from ivlens.measures import greedy_match
from ivlens.progress import track
from ivlens.prompts import clean, tokenize, zero_shot
from ivlens.shapes import GIB, Head, HeadGrid
from ivlens.steering import steer_every_layer
from ivlens.tasks import Task, TaskWarning
from ivlens.vectors import check_head, check_layer, write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FORMAT = "ivlens.universal/1"


# Columns of a grid of AIE as a table.
AIE = ("layer", "head", "aie")


@dataclass(frozen=True, kw_only=True)
class Universal:
    """Heads that carry the tasks of a list, and their vectors."""

    aie: HeadGrid
    """Mean over `tasks`, in the unit of the settings' effect."""
    heads: tuple[Head, ...]
    layer: int
    """Where the vectors, added to zero-shot prompts of validation pairs, are right most often."""
    tasks: tuple[str, ...]
    """Those that the model can do, on which heads were ranked."""
    vectors: Float[Tensor, "task d_model"]
    """What `heads` write on each of `tasks`."""
    settings: Settings

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        held = {"aie": self.aie.cpu().contiguous(), "vectors": self.vectors.cpu().contiguous()}
        record = {"heads": [str(head) for head in self.heads], "layer": self.layer, "tasks": list(self.tasks)}
        metadata = {"format": FORMAT, "record": json.dumps({**record, "settings": asdict(self.settings)})}
        files.write_whole(path, save(held, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> Universal:
        """Read what `save` wrote.

        Raises:
            IvlensError: not such a file.
        """
        found, metadata = tensors.read(path, remedy="delete it and run again")
        if metadata.get("format") != FORMAT:
            raise IvlensError(
                f"{path} is of format {metadata.get('format')!r}, not {FORMAT!r}; delete it and run again"
            )
        try:
            record = files.parse_json(metadata["record"])
            loaded = cls(
                aie=tensors.as_floats(found["aie"], path, "an AIE grid"),
                vectors=tensors.as_floats(found["vectors"], path, "vectors"),
                heads=tuple(Head.parse(head) for head in record["heads"]),
                layer=record["layer"],
                tasks=tuple(map(str, record["tasks"])),
                settings=Settings.from_record(record["settings"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IvlensError(f"{path} is no complete record of heads ({error}); delete it and run again") from error
        loaded._check(path)
        return loaded

    def _check(self, path: Path) -> None:
        if self.aie.dim() != 2 or self.vectors.dim() != 2 or len(self.vectors) != len(self.tasks):
            raise ShapeMismatch(
                f"{path} holds AIE {tuple(self.aie.shape)} and vectors {tuple(self.vectors.shape)} of "
                f"{len(self.tasks)} tasks; needed are [layer, head] and [task, d_model]; delete it and run again"
            )
        for head in self.heads:
            check_head(head, tuple(self.aie.shape))
        check_layer(self.layer, len(self.aie))


def universal_heads(
    model: HookedTransformer,
    tasks: Sequence[Task],
    settings: Settings,
    *,
    top: int = 10,
    memory: int = 2 * GIB,
) -> Universal:
    """Rank heads over tasks, and choose a layer for all of their vectors.

    Args:
        top: How many heads.

    Raises:
        IvlensError: the model can do none of the tasks, or has fewer heads.
    """
    total = model.cfg.n_layers * model.cfg.n_heads
    if not 1 <= top <= total:
        raise IvlensError(f"top is {top}, but the model has {total} heads; take 1 to {total}")
    done, grids, outputs = [], [], []
    for task in track(tasks, "universal heads", total=len(tasks)):
        if not _can_do(model, task, settings):
            continue
        z = task_mean_z(model, task, settings)
        grids.append(measure_effects(model, task, z, settings, memory=memory, model_digest="").aie)
        outputs.append(z)
        done.append(task)
    if not done:
        raise IvlensError(
            f"the model can do none of the {len(tasks)} general tasks better than by their most frequent answer; "
            "name tasks that it can do"
        )
    aie = torch.stack(grids).mean(0)
    order = torch.argsort(aie.flatten(), descending=True, stable=True)[:top].tolist()
    heads = tuple(Head(index // model.cfg.n_heads, index % model.cfg.n_heads) for index in order)
    vectors = torch.stack([write_vector(model, z, heads) for z in outputs])
    return Universal(
        aie=aie,
        heads=heads,
        layer=_best_layer(model, done, vectors, settings, memory=memory),
        tasks=tuple(task.name for task in done),
        vectors=vectors,
        settings=settings,
    )


def _can_do(model: HookedTransformer, task: Task, settings: Settings) -> bool:
    """Is the model right on clean prompts more often than the most frequent answer would be?"""
    try:
        split = task.split(shots=settings.shots, seed=settings.seed)
        prompts = clean(
            task,
            split.rank,
            split.mean,
            source=settings.source,
            shots=settings.shots,
            generator=np.random.default_rng([settings.seed, 10]),
            template=settings.template,
        )
        tokens = tokenize(model, prompts)
    except (TaskError, PromptError) as error:
        warnings.warn(f"left out of the universal heads: {error}", TaskWarning, stacklevel=3)
        return False
    right = greedy_match(answer_logits(model, tokens), tokens.answers, tokens.answer_mask).double().mean()
    majority = max(Counter(pair.output for pair in task.pairs).values()) / len(task.pairs)
    return float(right) > majority


def _best_layer(
    model: HookedTransformer, tasks: Sequence[Task], vectors: Tensor, settings: Settings, *, memory: int
) -> int:
    """The layer at which a task's vector makes most zero-shot prompts right, on average over tasks."""
    found = []
    for task, vector in zip(tasks, vectors, strict=True):
        pairs = task.split(shots=settings.shots, seed=settings.seed).validation
        tokens = tokenize(model, zero_shot(pairs, template=settings.template))
        found.append(steer_every_layer(model, tokens, vector[None], memory=memory).match[:, 1:].double().mean(0))
    return int(torch.stack(found).mean(0).argmax())
