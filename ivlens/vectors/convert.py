"""How do vectors and effects come in from other tools, and go out to them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ivlens.errors import IvlensError, as_ivlens_error
from ivlens.measures import group_means
from ivlens.models import loader
from ivlens.models.hooked import model_name, weight_digest
from ivlens.patching.head_effects import EFFECTS, cie_of, of_prompts, rank_heads, table_of
from ivlens.shapes import Head
from ivlens.storage import atomic_files, parquet
from ivlens.storage.table_schema import check_table
from ivlens.vectors import function_vectors, lm_eval, vector_formats
from ivlens.vectors.head_writing import write_vector
from ivlens.vectors.instruction_vector import InstructionVector
from ivlens.vectors.vector_formats import Facts, Form, Found

if TYPE_CHECKING:
    import pandas as pd

_EFFECTS = ("effects", "indirect-effect")


@as_ivlens_error()
def convert(
    source: str | Path,
    target: str | Path,
    *,
    source_form: Form | None = None,
    target_form: Form | None = None,
    layer: int | None = None,
    model: str = "",
    task: str = "",
    effects: str | Path | None = None,
    heads: Sequence[Head] = (),
    top: int = 10,
    blocks: str = lm_eval.BLOCKS,
) -> tuple[str, ...]:
    """Turn one file into another; numbers stay as they are, to the bit, where both hold float32.

    Args:
        source, target: Files; their names tell their forms, and `target` is replaced if it exists.
        source_form, target_form: One of `vector_formats.FORMS`, where the files' names do not tell.
        layer: Which of the source's layers, or where to add the vector.
        model: The model's name; for mean activations the model itself (folder, hub id or `lab`), whose output weights
            are needed to build the vector.
        task: The task's name; the source's, or the file's name, unless given.
        effects: For mean activations: the effects that rank the heads.
        heads: In place of `effects`: the heads that write the vector.
        top: How many heads of largest AIE write it.
        blocks: For lm-eval: what transformers' model calls its list of blocks, such as `layers` or, of GPT-2, `h`.

    Returns:
        What was left out, one sentence each.

    Raises:
        IvlensError: a file is damaged, of another form, or lacks what is not given; nothing is written then.

    >>> path = vector.at(2, scale=4.0).save("ours.safetensors")
    >>> ivlens.convert(path, "theirs.gguf")[0]
    'the scale 4 is multiplied into the numbers: gguf files have no place for it'
    >>> left_out = ivlens.convert("theirs.gguf", "back.safetensors", model="lab", task="antonym")
    >>> ivlens.InstructionVector.load("back.safetensors").vector.shape
    torch.Size([128])
    """
    source, target = Path(source), Path(target)
    wanted = target_form or vector_formats.form_of(target, is_source=False)
    given = source_form or vector_formats.form_of(source, is_source=True)
    if (given in _EFFECTS) != (wanted in _EFFECTS):
        raise IvlensError(
            f"{source} holds {given} and {target} would hold {wanted}; effects become effects (effects, "
            "indirect-effect), and vectors vectors"
        )
    if given in _EFFECTS:
        return _convert_effects(source, given, target, wanted)
    facts = Facts(layer=layer, model=model, task=task)
    if given == "mean-activations":
        found = _built(source, facts, effects, heads, top)
    else:
        found = vector_formats.read_vector(source, form=given, facts=facts)
    if wanted == "mean-activations":
        notices = vector_formats.write_mean_activations(found.vector, target)
    else:
        notices = vector_formats.write_vector(found.vector, target, form=wanted, blocks=blocks)
    return (*_left_out(found.left_out), *notices)


def _left_out(facts: Sequence[str]) -> Iterator[str]:
    return (f"left out: {fact}" for fact in facts)


def _built(source: Path, facts: Facts, effects: str | Path | None, heads: Sequence[Head], top: int) -> Found:
    """The vector that heads with these mean outputs write, without `b_O`."""
    if not facts.model or not (effects or heads):
        raise IvlensError(
            f"{source} holds mean head outputs; the vector that heads write needs the model (folder, hub id or lab) "
            "and either their effects or the heads themselves"
        )
    mean_z, left_out = function_vectors.read_mean_activations(source)
    aie = None
    if effects is not None:
        table, more = read_effects(effects)
        cie = cie_of(table)
        if cie.shape[1:] != mean_z.shape[:2]:
            raise IvlensError(f"{effects} is of heads {tuple(cie.shape[1:])}, {source} of {tuple(mean_z.shape[:2])}")
        aie = group_means(cie, of_prompts(table, "query")).mean(0)
        left_out = (*left_out, *more)
        heads = heads or _top(aie, top)
    hooked = loader.load(facts.model)
    if any(bool(block.attn.b_O.any()) for block in hooked.blocks):
        left_out = (*left_out, "the output bias b_O, which function_vectors adds once for every head")
    vector = InstructionVector(
        vector=write_vector(hooked, mean_z, heads),
        heads=tuple(heads),
        layer=None,
        mean_z=mean_z,
        aie=aie,
        settings=None,
        task=facts.task or source.name.removesuffix("_mean_head_activations.pt"),
        task_digest="",
        model=model_name(hooked),
        model_digest=weight_digest(hooked),
    )
    return Found(vector if facts.layer is None else vector.at(facts.layer), left_out)


def _top(aie: torch.Tensor, top: int) -> tuple[Head, ...]:
    if not 1 <= top <= aie.numel():
        raise IvlensError(f"top is {top}, but there are {aie.numel()} heads; take 1 to {aie.numel()}")
    return tuple(rank_heads(aie)[:top])


def read_effects(path: str | Path, *, form: Form | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Effects out of a run's table or function_vectors' file, as a table, and what of the file was left out.

    Of a file of function_vectors every prompt counts as a query of its own, and unpatched probabilities are NaN.

    Raises:
        IvlensError: it is damaged, or has not one number for every prompt and head.
    """
    path = Path(path)
    if (form or vector_formats.form_of(path, is_source=True)) == "effects":
        remedy = "give a run's effects.parquet"
        table = parquet.read_table(path, columns=EFFECTS, remedy=remedy)
        check_table("audit", "effects", table, path, remedy)
        return table, ()
    cie, left_out = function_vectors.read_indirect_effects(path)
    return table_of(cie, torch.arange(len(cie)), torch.full((len(cie),), torch.nan)), left_out


def _convert_effects(source: Path, given: Form, target: Path, wanted: Form) -> tuple[str, ...]:
    if given == wanted:
        raise IvlensError(f"{source} and {target} are both of the form {given}; copy the file")
    table, left_out = read_effects(source, form=given)
    cie = cie_of(table)
    if wanted == "effects":
        atomic_files.write_whole(target, parquet.to_bytes(table))
        unknown = "queries and unpatched probabilities are not known: every prompt counts as a query"
        return (*_left_out(left_out), unknown)
    function_vectors.write_indirect_effects(cie, target)
    return ("indirect-effect files have no place for queries and unpatched probabilities",)
