"""What vector do the heads that carry a task write?

The instruction vector (IV) of heads S is `sum over S of mean_z[l, h] @ W_O[l, h]`: what those heads add to the residual
stream at the last prompt token, on average over clean prompts. Source: Jiang et al. 2024, arXiv:2406.12227, after the
function vector of Todd et al. 2024, arXiv:2310.15213. `b_O` is never added (their code adds it once per head where the
model has one). Where attention's output passes another norm before the residual stream (Gemma 2, OLMo 2), `W_O` is
followed by it: see `activations.path_to_residual`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ivlens import files, models, runs
from ivlens.activations import path_to_residual
from ivlens.effects import Settings
from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.shapes import Head, HeadGrid, MeanZ, Residual

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FORMAT = "ivlens.vector/1"


@dataclass(frozen=True, kw_only=True)
class InstructionVector:
    """A direction in the residual stream, and where it came from."""

    vector: Residual
    heads: tuple[Head, ...]
    """The heads that write it, the largest AIE first where they were ranked."""
    layer: int | None
    """Where to add it: to the residual stream after this block. None: not chosen yet."""
    mean_z: MeanZ
    aie: HeadGrid | None = None
    settings: Settings
    task: str
    task_digest: str
    model: str
    model_digest: str
    versions: dict[str, str] = field(default_factory=runs.versions)

    def at(self, layer: int) -> InstructionVector:
        """The same vector, to be added after block `layer`.

        Raises:
            IvlensError: the model has no such layer.
        """
        check_layer(layer, len(self.mean_z))
        return replace(self, layer=layer)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file: tensors `vector`, `mean_z`, `aie`; everything else as metadata."""
        path = Path(path)
        tensors = {"vector": self.vector, "mean_z": self.mean_z}
        if self.aie is not None:
            tensors["aie"] = self.aie
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        files.write_whole(path, save(tensors, metadata=self._metadata()))
        return path

    def _metadata(self) -> dict[str, str]:
        scores = None if self.aie is None else [float(self.aie[head]) for head in self.heads]
        record = {
            "format": FORMAT,
            "model": self.model,
            "model_digest": self.model_digest,
            "task": self.task,
            "task_digest": self.task_digest,
            "layer": self.layer,
            "site": "resid_post",
            "positions": "last prompt token",
            "heads": [str(head) for head in self.heads],
            "heads_aie": scores,
            "settings": asdict(self.settings),
            "versions": self.versions,
        }
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items()}

    @classmethod
    def load(cls, path: str | Path) -> InstructionVector:
        """Read a file that `save` wrote. Nothing is unpickled; shapes are compared before use.

        Raises:
            IvlensError: not a safetensors file, of another format, or with tensors that do not belong together.
        """
        tensors, metadata = read_safetensors(Path(path))
        if metadata.get("format") != FORMAT:
            raise IvlensError(
                f"{path} is of format {metadata.get('format')!r}, not {FORMAT!r}; give a file that "
                "InstructionVector.save wrote"
            )
        try:
            loaded = cls(
                vector=tensors["vector"],
                heads=tuple(Head.parse(head) for head in json.loads(metadata["heads"])),
                layer=json.loads(metadata["layer"]),
                mean_z=tensors["mean_z"],
                aie=tensors.get("aie"),
                settings=Settings.from_record(json.loads(metadata["settings"])),
                **{key: metadata[key] for key in ("task", "task_digest", "model", "model_digest")},
                versions=json.loads(metadata["versions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IvlensError(f"{path} is no complete vector file ({error}); save the vector again") from error
        loaded._check(path)
        return loaded

    def _check(self, path: str | Path) -> None:
        if self.vector.dim() != 1 or self.mean_z.dim() != 3:
            raise ShapeMismatch(
                f"{path} holds a vector of shape {tuple(self.vector.shape)} and mean_z {tuple(self.mean_z.shape)}; "
                "needed are [d_model] and [layer, head, d_head]"
            )
        grid = tuple(self.mean_z.shape[:2])
        if self.aie is not None and tuple(self.aie.shape) != grid:
            raise ShapeMismatch(f"{path} holds an AIE grid of {tuple(self.aie.shape)} for heads {grid}; save it again")
        if not bool(self.vector.isfinite().all()):
            raise IvlensError(f"{path} holds a vector with NaN or infinity in it; compute it again")
        for head in self.heads:
            check_head(head, grid)
        if self.layer is not None:
            check_layer(self.layer, grid[0])

    def cosine(self, other: InstructionVector) -> float:
        """Cosine of the angle between two vectors, in [-1, 1]."""
        if self.vector.shape != other.vector.shape:
            raise ShapeMismatch(
                f"the vectors have widths {len(self.vector)} and {len(other.vector)}; compare vectors of one model"
            )
        return float(torch.cosine_similarity(self.vector.double().cpu(), other.vector.double().cpu(), dim=0))

    def __repr__(self) -> str:
        where = "no layer chosen" if self.layer is None else f"layer {self.layer}"
        heads = " ".join(map(str, self.heads[:10])) + (" ..." if len(self.heads) > 10 else "")
        return (
            f"InstructionVector({self.task} of {self.model}: norm {float(self.vector.norm()):.3g}, {where}, "
            f"{len(self.heads)} heads {heads})"
        )


def write_vector(model: HookedTransformer, mean_z: MeanZ, heads: Sequence[Head]) -> Residual:
    """Sum over heads of what each adds to the residual stream, `b_O` left out; in float32 at least."""
    grid = (model.cfg.n_layers, model.cfg.n_heads)
    if tuple(mean_z.shape) != (*grid, model.cfg.d_head):
        raise ShapeMismatch(
            f"mean_z is {tuple(mean_z.shape)} but {models.model_name(model)} has heads {(*grid, model.cfg.d_head)} as "
            "(layer, head, d_head); recompute it with mean_z(model, clean)"
        )
    total = torch.zeros(model.cfg.d_model, dtype=mean_z.dtype, device=mean_z.device)
    for head in heads:
        check_head(head, grid)
        total += mean_z[head] @ path_to_residual(model, head, mean_z)
    return total


def check_head(head: Head, grid: tuple[int, ...]) -> None:
    """Raises IvlensError when a grid of layers by heads has no such head."""
    if not (0 <= head.layer < grid[0] and 0 <= head.head < grid[1]):
        raise IvlensError(f"there is no head {head}: the model has {grid[0]} layers of {grid[1]} heads, from 0")


def check_layer(layer: int, n_layers: int) -> None:
    """Raises IvlensError when there is no such layer."""
    if not 0 <= layer < n_layers:
        raise IvlensError(f"there is no layer {layer}: the model has {n_layers} layers, counted from 0")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file; raises IvlensError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise IvlensError(f"{path} is no readable safetensors file ({error}); give one that ivlens saved") from error
