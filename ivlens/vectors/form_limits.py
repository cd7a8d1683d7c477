"""What of a vector does another tool's file have no place for, and what is done otherwise with what it holds?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ivlens.vectors.instruction_vector import InstructionVector

HELD: dict[str, set[str]] = {
    "gguf": {"layer", "model", "task"},
    "easysteer": {"layer", "model", "task"},
    "steering-vector": {"layer"},
    "lm-eval": {"layer"},
    "npy": set(),
    "function-vector": set(),
}
"""By the forms of `vector_formats`: what of a vector each holds beside its numbers."""


def facts_of(vector: InstructionVector) -> Iterator[tuple[str, str]]:
    """What is known of a vector, as it is said, and what `HELD` calls it."""
    known = {
        f"the layer ({vector.layer})": ("layer", vector.layer is not None),
        f"the model's name ({vector.model})": ("model", vector.model),
        f"the task's name ({vector.task})": ("task", vector.task),
        f"its {len(vector.heads)} heads": ("heads", vector.heads),
        "the heads' mean outputs": ("mean_z", vector.mean_z is not None),
        "the AIE of every head": ("aie", vector.aie is not None),
        "settings and digests": ("settings", vector.settings is not None),
    }
    return ((said, name) for said, (name, is_known) in known.items() if is_known)


def notices(vector: InstructionVector, form: str) -> Iterator[str]:
    """What is lost or done otherwise, one sentence each."""
    if vector.scale != 1.0 and form != "lm-eval":
        yield f"the scale {vector.scale:g} is multiplied into the numbers: {form} files have no place for it"
    yield from (f"{form} files have no place for {said}" for said, name in facts_of(vector) if name not in HELD[form])
    if form in ("gguf", "easysteer") and vector.vector.dtype == torch.float64:
        yield "gguf control vectors are float32: the vector was rounded"
    if form in ("gguf", "steering-vector", "lm-eval"):
        yield "tools that read it add the vector at every token; ivlens adds it at the last prompt token"
    if form == "easysteer":
        yield "EasySteer adds the vector where its ApplySpec says; prompt_positions=[-1] is where ivlens adds it"
