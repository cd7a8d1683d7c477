"""What is a model asked, to see how much its outputs depend on an instruction vector?

A probe is prepared once, of the base model, and then put to every model that was made of it: the same prompts, the
same heads and vector, the same random heads beside them, the same means in the place of ablated heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.datasets.task import Pair, Split, Task
from ivlens.errors import IvlensError
from ivlens.patching import effects
from ivlens.patching.activations import mean_z
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import few_shot, instructed, statements, zero_shot
from ivlens.prompts.chat import Layout
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head, MeanZ, Residual
from ivlens.steering import controls
from ivlens.steering.necessity import other_prompts
from ivlens.vectors.head_writing import write_vector
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Prompts of evaluation pairs, the vector and its heads, and their controls."""

    task: str
    heads: tuple[Head, ...]
    """The chosen ones, which write the vector."""
    random: tuple[tuple[Head, ...], ...]
    """Draws of as many others: the control."""
    vectors: Float[Tensor, "vector d_model"]
    """The instruction vector at its scale, then one of equal norm for each draw of random heads."""
    unscaled: Residual | None
    """The vector at scale 1; None where that is its scale."""
    layer: int
    """Vectors are added after this block."""
    z: MeanZ
    """Mean head output over instructed prompts of other tasks: what ablated heads are replaced by."""
    zero_shot: Tokens
    instructed: Tokens | None
    """None: the task has no instruction."""
    statement: Tokens | None
    """None: the task has no statement."""
    prompts: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)
    """The same as text, by the ability that they ask for, so that replies can be written and scored."""
    seed: int
    few_shot: Tokens | None = None
    """None: not asked for."""

    @property
    def sets(self) -> tuple[tuple[Head, ...], ...]:
        """The chosen heads, then every draw of random ones."""
        return (self.heads, *self.random)

    def __repr__(self) -> str:
        lacking = [name for name in ("instructed", "statement") if getattr(self, name) is None]
        without = f", without {' and '.join(lacking)} prompts" if lacking else ""
        return (
            f"Probe({self.task}: {len(self.zero_shot)} queries, {len(self.heads)} heads at layer {self.layer} beside "
            f"{len(self.random)} random draws{without})"
        )


def prepare(
    model: HookedTransformer,
    task: Task,
    vector: InstructionVector,
    *,
    prompts: int = 20,
    draws: int = 5,
    others: Sequence[Task] | None = None,
    demonstrations: bool = False,
) -> Probe:
    """What to ask this model, and those made of it, about a task.

    Args:
        vector: Of this task, with a layer; its settings decide the split, the template and the seed.
        prompts: Evaluation pairs to ask about; fewer where the task has fewer.
        draws: Sets of random heads.
        others: Tasks whose instructed prompts give the means for ablation; ten built-in ones unless given. The task
            itself and tasks without an instruction are left out.
        demonstrations: Ask with demonstrations, too: as many as the vector's prompts have, from the same pairs.

    Raises:
        IvlensError: the vector is of another task or has no layer, or no other task is left.
        ShapeMismatch: the vector is of a model of other heads or width.
        PromptError: prompts longer than the context.
    """
    for name, value in (("prompts", prompts), ("draws", draws)):
        if value < 1:
            raise IvlensError(f"{name} is {value}; it must be 1 or more")
    if vector.task_digest != task.digest:
        raise IvlensError(f"the vector is of task {vector.task!r}, not of {task.name!r}; build it on this task")
    if vector.layer is None:
        raise IvlensError("the vector has no layer yet; take vector.at(layer)")
    z, settings = vector.measured()
    split = task.split(shots=settings.shots, seed=settings.seed)
    pairs = split.evaluation[:prompts]
    random = random_sets(vector, draws=draws)
    written = torch.stack([write_vector(model, z, heads) for heads in random])
    added = vector.added
    asked = instructed(task, pairs, template=settings.template) if task.instructions else []
    told = statements(task, pairs, bos=settings.template.bos)
    bare = zero_shot(pairs, template=settings.template)
    return Probe(
        task=task.name,
        heads=vector.heads,
        random=random,
        vectors=torch.cat([added[None], controls.with_norm(written, float(added.norm()))]),
        unscaled=None if vector.scale == 1.0 else vector.vector,
        layer=vector.layer,
        z=other_mean_z(model, task, others, template=settings.template, seed=settings.seed),
        zero_shot=tokenize(model, bare),
        instructed=tokenize(model, asked) if asked else None,
        statement=tokenize(model, told) if told else None,
        prompts={"instruction": tuple(asked), "knowledge": tuple(told), "zero-shot": tuple(bare)},
        seed=settings.seed,
        few_shot=tokenize(model, _few_shot(split, pairs, settings)) if demonstrations else None,
    )


def _few_shot(split: Split, pairs: Sequence[Pair], settings: Settings) -> list[Prompt]:
    generator = open_stream(settings.seed, Stream.BASELINE_PROMPTS)
    return few_shot(pairs, split.mean, shots=settings.shots, generator=generator, template=settings.template)


def random_sets(vector: InstructionVector, *, draws: int) -> tuple[tuple[Head, ...], ...]:
    """Sets of as many heads as the vector has, of heads that it has not; of all where too few others are left."""
    z, settings = vector.measured()
    found = controls.draw_heads(
        tuple(z.shape[:2]), len(vector.heads), draws=draws, seed=settings.seed, apart=vector.heads
    )
    return tuple(map(tuple, found))


def other_mean_z(
    model: HookedTransformer, task: Task, others: Sequence[Task] | None, *, template: Layout, seed: int
) -> MeanZ:
    """Mean head output at the last token of instructed prompts of other tasks, each with the same share of prompts.

    Raises:
        IvlensError: no other task has an instruction and prompts that fit.
    """
    asked = other_prompts(model, task, others, template=template, seed=seed)
    if not asked:
        raise IvlensError(
            "no other task has an instruction and prompts that fit the model; give others=[...] with tasks that have"
        )
    return mean_z(model, tokenize(model, asked))


def ability_prompts(
    task: Task, pairs: Sequence[Pair], pool: Sequence[Pair], *, shots: int, template: Layout, seed: int
) -> dict[str, list[Prompt]]:
    """Prompts of pairs by kind, with demonstrations from a pool.

    None where the task lacks an instruction or a statement, or too few shots would make another kind of them.
    """
    shown = partial(few_shot, pairs, pool, shots=shots, template=template)
    generator = open_stream(seed, Stream.BASELINE_PROMPTS)
    return {
        "zero-shot": zero_shot(pairs, template=template),
        "instructed": instructed(task, pairs, template=template) if task.instructions else [],
        "few-shot": shown(generator=generator) if shots >= 1 else [],
        "shuffled": shown(generator=generator, shuffled=True) if shots >= 2 else [],
        "statement": statements(task, pairs, bos=template.bos),
    }


def measure_grid(model: HookedTransformer, settings: Settings, name: str, task: Task) -> pd.DataFrame:
    """The model's own AIE of every head, of its own mean head outputs: `task`, `layer`, `head`, `aie`."""
    z = effects.task_mean_z(model, task, settings)
    aie = effects.measure_effects(model, task, z, settings, model_digest="").aie.cpu().numpy()
    layers, heads = np.indices(aie.shape).reshape(2, -1)
    return pd.DataFrame({"task": name, "layer": layers, "head": heads, "aie": aie.reshape(-1)})
