"""Which heads carry instructions in general, and what do they write on each task?

Universal heads are ranked by their AIE averaged over the tasks that the model can do; their vector for a task is what
they write on its clean prompts. Source: Todd et al. 2024, arXiv:2310.15213, who rank heads over several tasks, too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.datasets.task import Task, TaskWarning, task
from ivlens.datasets.task import tasks as built_in
from ivlens.errors import IvlensError, PromptError, ShapeMismatch, TaskError
from ivlens.models import hooked, loader
from ivlens.patching.effects import find_queries, measure_effects, task_mean_z
from ivlens.patching.head_effects import rank_heads
from ivlens.patching.settings import Options, Settings, gather_options, parse_bytes
from ivlens.progress import track
from ivlens.prompts.builders import clean, zero_shot
from ivlens.prompts.chat import find_score
from ivlens.prompts.choices import GREEDY_MATCH, Score, ScoreChoice
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.replies.inquiry import measure_prompts
from ivlens.shapes import GIB, Head, HeadGrid
from ivlens.steering.search import Place, Tried, attempts, search
from ivlens.steering.verdict import most_frequent_share
from ivlens.storage import atomic_files, tensor_files
from ivlens.vectors.head_writing import check_head, check_layer, check_scale, write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FORMAT = "ivlens.universal/1"


class Considered(NamedTuple):
    """A task, and whether heads were ranked on it."""

    task: str
    digest: str
    accuracy: float | None
    """On clean prompts of its ranking part; None where it could not be asked."""
    majority: float
    """Share of the most frequent answer among all of its pairs."""
    entered: bool
    reason: str


CONSIDERED = pydantic.TypeAdapter(list[Considered], config={"strict": True})


@dataclass(frozen=True, kw_only=True)
class Universal:
    """Heads that carry the tasks of a list, and their vectors.

    >>> shared = ivlens.Universal.load("runs/short/universal-0.safetensors")  # A study keeps its own.
    >>> shared.aie.shape, shared.vectors.shape, shared.tasks
    (torch.Size([6, 8]), torch.Size([1, 128]), ('antonym',))
    """

    aie: HeadGrid
    """Mean over `tasks`, in the unit of the settings' effect."""
    heads: tuple[Head, ...]
    layer: int
    """Where the vectors, added `scale` times to zero-shot prompts of validation pairs, are right most often."""
    scale: float = 1.0
    """How much of them to add there."""
    tasks: tuple[str, ...]
    """Those that the model can do, on which heads were ranked."""
    vectors: Float[Tensor, "task d_model"]
    """What `heads` write on each of `tasks`."""
    settings: Settings
    considered: tuple[Considered, ...] = ()
    """Every task that was tried, and why it entered or not."""
    model: str = ""

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, or, where the name ends in `.json`, the same record without tensors.

        >>> import json
        >>> from pathlib import Path
        >>> shared = ivlens.Universal.load("runs/short/universal-0.safetensors")
        >>> shared.save("heads.json")
        >>> json.loads(Path("heads.json").read_text())["tasks"]
        ['antonym']
        """
        path, held = Path(path), {"aie": self.aie.cpu().contiguous(), "vectors": self.vectors.cpu().contiguous()}
        if path.suffix.lower() == ".json":
            aie = {"heads_aie": [float(self.aie[head]) for head in self.heads]}
            content = json.dumps({**self._record(), **aie}, indent=2, ensure_ascii=False) + "\n"
            atomic_files.write_whole(path, content.encode())
        else:
            metadata = {"format": FORMAT, "record": json.dumps(self._record())}
            atomic_files.write_whole(path, tensor_files.to_bytes(held, metadata))

    def _record(self) -> dict[str, Any]:
        return {
            "heads": [str(head) for head in self.heads],
            "layer": self.layer,
            "scale": self.scale,
            "tasks": list(self.tasks),
            "settings": asdict(self.settings),
            "considered": [one._asdict() for one in self.considered],
            "model": self.model,
        }

    def __repr__(self) -> str:
        heads = " ".join(map(str, self.heads[:10])) + (" ..." if len(self.heads) > 10 else "")
        return f"Universal({self.model}: {heads}, ranked on {len(self.tasks)} of {len(self.considered)} tasks)"

    @classmethod
    def load(cls, path: str | Path) -> Universal:
        """Read what `save` wrote.

        Raises:
            IvlensError: not such a file.

        >>> ivlens.Universal.load("runs/short/universal-0.safetensors").heads[0]
        L3H3
        """
        path = Path(path)
        found, metadata = tensor_files.read_tensors(path, remedy="delete it and run again")
        if metadata.get("format") != FORMAT:
            raise IvlensError(
                f"{path} is of format {metadata.get('format')!r}, not {FORMAT!r}; delete it and run again"
            )
        try:
            record = atomic_files.parse_record(metadata["record"])
            loaded = cls(
                aie=tensor_files.as_floats(found["aie"], path, "an AIE grid"),
                vectors=tensor_files.as_floats(found["vectors"], path, "vectors"),
                heads=tuple(Head.parse(head) for head in record["heads"]),
                layer=record["layer"],
                scale=record.get("scale", 1.0),
                tasks=tuple(map(str, record["tasks"])),
                settings=Settings.from_record(record["settings"]),
                # Files of before have none of these, nor a scale.
                considered=tuple(CONSIDERED.validate_python(record.get("considered", []))),
                model=str(record.get("model", "")),
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
        if type(self.scale) not in (int, float):
            raise IvlensError(f"{path} has scale {self.scale!r}, which is no number; delete it and run again")
        check_scale(self.scale)


def universal_heads(
    model: HookedTransformer | str | Path,
    tasks: Sequence[Task | str | Path] | Task | str | Path | None = None,
    settings: Settings | None = None,
    *,
    top: int = 10,
    scale: float | None = None,
    score: ScoreChoice = "auto",
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> Universal:
    """Rank heads over tasks, and choose layer and scale for all of their vectors.

    >>> two, few = ["antonym", "country-capital"], ivlens.Settings(prompts=6)
    >>> shared = ivlens.universal_heads(model, two, settings=few, top=3)
    >>> shared.heads[0], shared.vectors.shape  # [task d_model]
    (L3H3, torch.Size([2, 128]))

    A task enters if the model is right on its clean prompts more often than the most frequent answer would be.

    Args:
        model: Also by what `ivlens.load` takes: a name, a path.
        tasks: Tasks, names or paths, or one of them; all built-in ones unless given.
        settings: How effects are measured, all options at once.
        options: Fields of `Settings`, such as `shots=5`.
        top: How many heads.
        scale: Of the vectors; by default chosen with the layer (see `steering.search`).
        score: Of which the accuracy is that decides whether a task enters: `greedy-match`, or of the replies that are
            written; `auto`: `contains` with a chat template, else greedy match.

    Raises:
        IvlensError: the model can do none of the tasks, or has fewer heads.
    """
    settings, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    listed = [tasks] if isinstance(tasks, Task | str | Path) else built_in() if tasks is None else tasks
    found, model = [task(one) for one in listed], loader.as_model(model)
    tasks = [_fitting(model, one, settings) for one in found]
    total = model.cfg.n_layers * model.cfg.n_heads
    if not 1 <= top <= total:
        raise IvlensError(f"top is {top}, but the model has {total} heads; take 1 to {total}")
    considered, done, grids, outputs = [], [], [], []
    for one in track(tasks, "universal heads", total=len(tasks)):
        considered.append(_consider(model, one, settings, find_score(score, settings.template)))
        if not considered[-1].entered:
            continue
        try:
            queries = find_queries(model, one, settings)
        except TaskError as error:  # Too few right answers, where `answered_only` asks for them.
            considered[-1] = considered[-1]._replace(entered=False, reason=str(error))
            continue
        z = task_mean_z(model, one, settings, queries=queries)
        grids.append(measure_effects(model, one, z, settings, memory=memory, model_digest="", queries=queries).aie)
        outputs.append(z)
        done.append(one)
    if not done:
        raise IvlensError(
            f"the model can do none of the {len(tasks)} general tasks better than by their most frequent answer; "
            "name tasks that it can do"
        )
    aie = torch.stack(grids).mean(0)
    heads = tuple(rank_heads(aie)[:top])
    vectors = torch.stack([write_vector(model, z, heads) for z in outputs])
    place = _best_place(model, done, vectors, settings, scale=scale, memory=memory)
    return Universal(
        aie=aie,
        heads=heads,
        layer=place.layer,
        scale=place.scale,
        tasks=tuple(one.name for one in done),
        vectors=vectors,
        settings=settings,
        considered=tuple(considered),
        model=hooked.model_name(model),
    )


def _fitting(model: HookedTransformer, task: Task, settings: Settings) -> Task:
    with suppress(PromptError):  # Which `_consider` says, of a prompt.
        return leave_out_long(model, task, shots=settings.shots, template=settings.template)
    return task


def _consider(model: HookedTransformer, task: Task, settings: Settings, score: Score) -> Considered:
    """Is the model right on clean prompts more often than the most frequent answer would be?"""
    majority = most_frequent_share(pair.output for pair in task.pairs)
    tried = partial(Considered, task=task.name, digest=task.digest, majority=majority)
    try:
        split = task.split(shots=settings.shots, seed=settings.seed)
        prompts = clean(
            task,
            split.rank,
            split.mean,
            source=settings.source,
            shots=settings.shots,
            generator=open_stream(settings.seed, Stream.ABILITY_PROMPTS),
            template=settings.template,
        )
        right = float(measure_prompts(model, prompts, score)[0].mean())
    except (TaskError, PromptError) as error:
        warnings.warn(f"left out of the universal heads: {error}", TaskWarning, stacklevel=3)
        return tried(accuracy=None, entered=False, reason=str(error))
    above = "above" if right > majority else "not above"
    measure = "accuracy" if score == GREEDY_MATCH else f"accuracy ({score})"
    reason = f"{measure} {right:.2f}, {above} the most frequent answer's share {majority:.2f}"
    return tried(accuracy=right, entered=right > majority, reason=reason)


def _best_place(
    model: HookedTransformer,
    tasks: Sequence[Task],
    vectors: Tensor,
    settings: Settings,
    *,
    scale: float | None,
    memory: int,
) -> Place:
    """Where a task's vector makes most zero-shot prompts right, on average over tasks."""
    splits = [one.split(shots=settings.shots, seed=settings.seed) for one in tasks]
    asked = [tokenize(model, zero_shot(split.validation, template=settings.template)) for split in splits]
    each = [attempts(model, tokens, vector[None], memory=memory) for tokens, vector in zip(asked, vectors, strict=True)]

    def attempt(places: Sequence[tuple[int, Place]]) -> list[Tried]:
        found = torch.tensor([one(places) for one in each], dtype=torch.float64)
        return [Tried(*values) for values in found.mean(0).tolist()]

    return search(attempt, vectors=1, n_layers=model.cfg.n_layers, scale=scale).best()
