"""What do function_vectors' files of mean head outputs and of effects hold, and how are they written?

Source: the published code of Todd et al. 2024, arXiv:2310.15213, which saves them with `torch.save` and reads the last
token, and the last class of tokens, for its vectors.
"""

from __future__ import annotations

from pathlib import Path

from ivlens.errors import IvlensError
from ivlens.shapes import Cie, MeanZ
from ivlens.storage import atomic_files, tensor_files


def read_mean_activations(path: Path) -> tuple[MeanZ, tuple[str, ...]]:
    """function_vectors' `*_mean_head_activations.pt`, [layer, head, token, d_head], at its last token.

    Raises:
        IvlensError: not such a file.
    """
    means = tensor_files.as_floats(tensor_files.read_torch(path), path, "mean head activations")
    if means.dim() != 4 or not means.numel():
        raise IvlensError(f"{path} holds {tuple(means.shape)}, not [layer, head, token, d_head]; give another file")
    others = means.shape[2] - 1
    return means[:, :, -1].contiguous(), (f"means at {others} tokens before the last one",) if others else ()


def read_indirect_effects(path: Path) -> tuple[Cie, tuple[str, ...]]:
    """function_vectors' `*_indirect_effect.pt`: [prompt, layer, head], or by class of token, of which the last one.

    Raises:
        IvlensError: not such a file.
    """
    effects = tensor_files.as_floats(tensor_files.read_torch(path), path, "indirect effects")
    if effects.dim() not in (3, 4) or not effects.numel():
        raise IvlensError(f"{path} holds {tuple(effects.shape)}, not [prompt, layer, head(, class)]; give another file")
    if effects.dim() == 3:
        return effects, ()
    others = effects.shape[3] - 1
    return effects[..., -1].contiguous(), (f"effects at {others} other classes of tokens",) if others else ()


def write_indirect_effects(cie: Cie, path: Path) -> None:
    """Write effects as [prompt, layer, head]."""
    atomic_files.write_whole(path, tensor_files.torch_bytes(cie.contiguous()))
