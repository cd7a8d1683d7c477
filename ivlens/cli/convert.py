"""`ivlens convert`: vectors and effects in the files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ivlens.cli import options
from ivlens.cli.output import complain
from ivlens.errors import IvlensError, list_choices
from ivlens.tables import plain


def convert(
    source: Annotated[Path, typer.Argument(help="The file to read.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    source_form: Annotated[str | None, typer.Option("--from", metavar="FORM", help="What SOURCE is.")] = None,
    target_form: Annotated[str | None, typer.Option("--to", metavar="FORM", help="What TARGET is to be.")] = None,
    layer: Annotated[
        int | None, options.number("Which layer of SOURCE, or where to add its vector: after block N, from 0.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name; for mean-activations its folder, hub id, or lab.")] = "",
    task: Annotated[str, typer.Option(help="The task's name; the file's unless given.")] = "",
    effects: Annotated[
        Path | None, typer.Option(help="For mean-activations: effects that rank the heads of the vector.")
    ] = None,
    heads: Annotated[str | None, typer.Option(metavar="LIST", help="In place of --effects: L9H6,L3H2")] = None,
    top: Annotated[int, options.number("Heads of the vector.")] = 10,
    blocks: Annotated[
        str, typer.Option(metavar="NAME", help="For lm-eval: what the model calls its list of blocks; h of GPT-2.")
    ] = "layers",
) -> None:
    """Turn a vector or effects into the file of another tool, or its file into one of ivlens.

    Forms are told by the files' names and contents:

    \b
    vector            *.safetensors  ivlens: vector, heads, their means and AIE
    gguf              *.gguf         control vector of llama.cpp and repeng
    easysteer         *.gguf         the same for EasySteer, also after block 0 (--to)
    steering-vector   *.pt           SteeringVector of steering-vectors (--to)
    lm-eval           *.pt           for the model `steered` of lm-evaluation-harness (--to)
    npy               *.npy          one numpy array
    function-vector   *.pt           function_vectors' vector, [1, d_model]
    mean-activations  *_mean_head_activations.pt  of function_vectors
    effects           *.parquet      the effects of a run of ivlens
    indirect-effect   *_indirect_effect.pt        of function_vectors

    What TARGET has no place for is said, line by line. No pickle is executed.
    """
    import ivlens
    from ivlens.shapes import Head
    from ivlens.vectors import vector_formats

    for option, form in (("--from", source_form), ("--to", target_form)):
        if form is not None and form not in vector_formats.FORMS:
            known = list_choices(form, vector_formats.FORMS, lead="it must be one of")
            raise IvlensError(f"{option} is {form!r}; {known}")
    notices = ivlens.convert(
        source,
        target,
        source_form=source_form,  # pyright: ignore[reportArgumentType]
        target_form=target_form,  # pyright: ignore[reportArgumentType]
        layer=layer,
        model=model,
        task=task,
        effects=effects,
        heads=[Head.parse(head) for head in options.split_list(heads)] if heads else (),
        top=top,
        blocks=blocks,
    )
    for notice in notices:
        complain(notice)
    print(f"Wrote {plain(str(target))}.")
