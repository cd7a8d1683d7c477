"""What vector do the heads that carry a task write?

The instruction vector (IV) of heads S is `sum over S of mean_z[l, h] @ W_O[l, h]`: what those heads add to the residual
stream at the last prompt token, on average over clean prompts. Source: Jiang et al. 2024, arXiv:2406.12227, after the
function vector of Todd et al. 2024, arXiv:2310.15213; code of the former is not public. `b_O` is never added
(function_vectors, the latter's code, adds it once per head where the model has one). Where attention's output passes
another norm before the residual stream (Gemma 2, OLMo 2), `W_O` is followed by it: see `activations.path_to_residual`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.patching.activations import unembed
from ivlens.patching.settings import Settings
from ivlens.shapes import Head, HeadGrid, MeanZ, Residual
from ivlens.storage import atomic_files, run_folder, tensor_files
from ivlens.tables import html_table, safe
from ivlens.vectors import vector_file
from ivlens.vectors.head_writing import check_place, check_scale, check_width

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class InstructionVector:
    """A direction in the residual stream, and where it came from; `function vector` in function_vectors.

    Vectors of one model are added, subtracted and multiplied, and what their heads write with them.

    >>> vector
    InstructionVector(antonym of lab: norm ..., layer 2, scale ..., 10 heads L3H3 L3H4 ...)
    >>> vector.vector.shape, vector.mean_z.shape
    (torch.Size([128]), torch.Size([6, 8, 16]))
    >>> (0.5 * vector + vector).task
    '0.5 antonym + antonym'
    """

    vector: Residual
    heads: tuple[Head, ...]
    """The heads that write it, the largest AIE first where they were ranked; none where another tool made it."""
    layer: int | None
    """Where to add it: to the residual stream after this block. None: not chosen yet."""
    scale: float = 1.0
    """How much of it to add there: a factor of `vector`, which stays what the heads write."""
    mean_z: MeanZ | None
    """None: not known, as of a vector that another tool made."""
    aie: HeadGrid | None = None
    settings: Settings | None
    """None: not known."""
    task: str
    task_digest: str
    """Empty where it is not known; so is the model's."""
    model: str
    model_digest: str
    versions: dict[str, str] = field(default_factory=run_folder.versions)

    def at(self, layer: int, *, scale: float | None = None) -> InstructionVector:
        """The same vector, to be added after block `layer`, `scale` times (as before unless given).

        Raises:
            IvlensError: the model has no such layer, or the scale is not finite.

        >>> vector.at(4, scale=-1.0).layer
        4
        """
        check_place(layer, self.mean_z)
        scale = self.scale if scale is None else scale
        check_scale(scale)
        return replace(self, layer=layer, scale=scale)

    @property
    def added(self) -> Residual:
        """What is added to the residual stream: `scale` times the vector, `[d_model]`.

        >>> bool((vector.at(2, scale=4.0).added == 4 * vector.vector).all())
        True
        """
        return self.scale * self.vector

    def __add__(self, other: InstructionVector) -> InstructionVector:
        """Both vectors at once, written by the heads of both; layer and scale stay where they are the same.

        Vectors of two scales are added as they are used, `scale` times each; their sum has scale 1. The sum is still
        `mean_z @ W_O` over its heads: `mean_z` is the sum of what each vector's own heads write, and 0 for all others.

        Raises:
            IvlensError: the vectors are of two models or widths, or were built with other settings.
        """
        if not isinstance(other, InstructionVector):
            return NotImplemented
        for name, ours, theirs in (
            ("models", self.model_digest or self.model, other.model_digest or other.model),
            ("widths", len(self.vector), len(other.vector)),
            ("settings", self.settings, other.settings),
        ):
            if ours != theirs:
                raise IvlensError(f"the vectors of {self.task} and {other.task} are of two {name}; build both alike")
        if self.scale != other.scale:
            ours, theirs = (replace(one.scale * one, scale=1.0, task=one.task) for one in (self, other))
            return ours + theirs
        own, others = self._own_z(), other._own_z()
        return replace(
            self,
            vector=self.vector + other.vector,
            heads=tuple(dict.fromkeys(self.heads + other.heads)),
            layer=self.layer if self.layer == other.layer else None,
            mean_z=None if own is None or others is None else own + others,
            aie=None,
            task=f"{self.task} + {other._term}",
            task_digest=hashlib.sha256(f"{self.task_digest} {other.task_digest}".encode()).hexdigest(),
        )

    def __sub__(self, other: InstructionVector) -> InstructionVector:
        """This vector, and the other task taken away; see `__add__`."""
        return replace(self + -1 * other, task=f"{self.task} - {other._term}")

    def __mul__(self, factor: int | float) -> InstructionVector:
        """The vector, and what its heads write, times a number."""
        if not isinstance(factor, int | float):
            return NotImplemented
        mean_z = None if self.mean_z is None else factor * self.mean_z
        return replace(self, vector=factor * self.vector, mean_z=mean_z, task=f"{factor:g} {self._term}")

    __rmul__ = __mul__

    @property
    def _term(self) -> str:
        """The task's name as part of a longer one."""
        return f"({self.task})" if {"+", "-"} & set(self.task.split()) else self.task

    def _own_z(self) -> MeanZ | None:
        """`mean_z` of the heads that write the vector; 0 for all others."""
        if self.mean_z is None:
            return None
        own = torch.zeros_like(self.mean_z)
        for head in self.heads:
            own[head] = self.mean_z[head]
        return own

    def top_tokens(self, model: HookedTransformer, k: int = 10) -> pd.DataFrame:
        """Which tokens does the vector speak for? It is read as if it were the whole final residual stream.

        Only what it adds directly is seen, through the final norm and the unembedding; steering goes through the layers
        behind it, and may do what no token here tells of.

        Returns:
            Columns `token`, `logit` and `probability`, the most probable of `k` tokens first.

        Raises:
            ShapeMismatch: the model has another width.
            IvlensError: the vocabulary has fewer than `k` tokens.

        >>> vector.top_tokens(model, 3)["token"].tolist()
        [' take', ' light', ' death']
        """
        import pandas as pd

        check_width(self.vector, self.model or self.task, model, remedy="give the model that it was built on")
        if not 1 <= k <= model.cfg.d_vocab_out:
            raise IvlensError(f"k is {k}; the vocabulary has {model.cfg.d_vocab_out} tokens, take 1 or more of them")
        with torch.no_grad():
            logits = unembed(model, self.vector.to(model.cfg.device, model.cfg.dtype)[None])[0].float()
        top = logits.topk(k)
        probability = logits.softmax(0)[top.indices]
        return pd.DataFrame(
            {
                "token": [model.to_string([token]) for token in top.indices.tolist()],
                "logit": top.values.tolist(),
                "probability": probability.tolist(),
            }
        )

    def measured(self) -> tuple[MeanZ, Settings]:
        """What the vector was built from, where that is known.

        Returns:
            Mean head outputs before `W_O`, `[layer head d_head]`, and the settings that they were measured with.

        Raises:
            IvlensError: they are not known.

        >>> mean_z, settings = vector.measured()
        >>> mean_z.shape, settings.clean_prompts
        (torch.Size([6, 8, 16]), 100)
        """
        if self.mean_z is None or self.settings is None:
            raise IvlensError(
                f"the vector of {self.task} comes from another tool, without its heads' mean outputs or settings; "
                "build it with ivlens.instruction_vector"
            )
        return self.mean_z, self.settings

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file: tensors `vector`, `mean_z`, `aie`; everything else as metadata.

        >>> from safetensors import safe_open
        >>> with safe_open(vector.save("antonym.safetensors"), "pt") as file:
        ...     sorted(file.keys()), file.metadata()["site"]
        (['aie', 'mean_z', 'vector'], 'resid_post')
        """
        path = Path(path)
        held = {"vector": self.vector, "mean_z": self.mean_z, "aie": self.aie}
        # Copies, since safetensors refuses tensors that share memory.
        known = {name: one.detach().cpu().clone().contiguous() for name, one in held.items() if one is not None}
        atomic_files.write_whole(path, tensor_files.to_bytes(known, self._metadata()))
        return path

    def _metadata(self) -> dict[str, str]:
        scores = None if self.aie is None else [float(self.aie[head]) for head in self.heads]
        record = {
            "format": vector_file.FORMAT,
            "model": self.model,
            "model_digest": self.model_digest,
            "task": self.task,
            "task_digest": self.task_digest,
            "layer": self.layer,
            "scale": self.scale,
            "site": "resid_post",
            "positions": "last prompt token",
            "heads": [str(head) for head in self.heads],
            "heads_aie": scores,
            "settings": None if self.settings is None else asdict(self.settings),
            "versions": self.versions,
        }
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items()}

    @classmethod
    def load(cls, path: str | Path) -> InstructionVector:
        """Read a file that `save` wrote, or that of an audit's run folder. Nothing is unpickled; shapes are compared.

        Raises:
            IvlensError: not a safetensors file, of another format, or with tensors that do not belong together.

        >>> ivlens.InstructionVector.load(vector.save("saved.safetensors")).cosine(vector) > 0.999
        True
        """
        within = Path(path) / "vector.safetensors"
        return cls(**vector_file.read_fields(within if Path(path).is_dir() and within.is_file() else Path(path)))

    def cosine(self, other: InstructionVector) -> float:
        """Cosine of the angle between two vectors, in [-1, 1]; 0 where one of them is 0.

        Raises:
            ShapeMismatch: they are of two widths.

        >>> round(vector.cosine(-2 * vector), 3)
        -1.0
        """
        if self.vector.shape != other.vector.shape:
            raise ShapeMismatch(
                f"the vectors have widths {len(self.vector)} and {len(other.vector)}; compare vectors of one model"
            )
        return float(torch.cosine_similarity(self.vector.double().cpu(), other.vector.double().cpu(), dim=0))

    def __repr__(self) -> str:
        where = "no layer chosen" if self.layer is None else f"layer {self.layer}, scale {self.scale:g}"
        heads = " ".join([self._n_heads, *map(str, self.heads[:10])]) + (" ..." if len(self.heads) > 10 else "")
        return f"InstructionVector({self._name}: norm {float(self.vector.norm()):.3g}, {where}, {heads})"

    def _repr_html_(self) -> str:
        """Its heads with their AIE, the first ten."""
        where = (
            "no layer chosen" if self.layer is None else f"to be added {self.scale:g} times after block {self.layer}"
        )
        more = f", {len(self.heads) - 10} more" if len(self.heads) > 10 else ""
        about = f"norm {float(self.vector.norm()):.3g}, {where}, {self._n_heads}"
        heads, unit = self.heads[:10], self.settings.unit if self.settings else "unit unknown"
        values = ["not measured" if self.aie is None else f"{float(self.aie[head]):+.3f}" for head in heads]
        table = html_table(("head", *heads), [(f"AIE ({unit})", *values)]) if heads else ""
        return f"<p><b>{safe(self._name)}</b>: {about}{more}</p>{table}"

    @property
    def _name(self) -> str:
        return f"{self.task} of {self.model or 'a model not named'}"

    @property
    def _n_heads(self) -> str:
        return f"{len(self.heads)} heads" if self.heads else "heads not known"
