"""Contents of an explorer of any size, without a model: random numbers with the form of measured ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ivlens.datasets.task import Pair
from ivlens.explorer.attention import Attention, compact, to_hundredths
from ivlens.explorer.contents import Bounded, Contents, Kind, ModelHeads, ShownPrompt, SteeredReplies, Steering, Writing
from ivlens.explorer.replies import kept_layers, strengths
from ivlens.prompts.template import Prompt
from ivlens.shapes import Head


def made_up_contents(
    *, layers: int = 3, heads: int = 4, tokens: int = 12, prompts: int = 5, shown: int = 2, models: int = 1
) -> Contents:
    """`shown` prompts of both kinds; of two models the second was fine-tuned from the first."""
    generator = torch.Generator().manual_seed(0)
    corrupted = tuple(_prompt(f"c{i}", f"o{i}") for i in range(prompts))
    clean = tuple(_prompt(f"d{i}", f"p{i}") for i in range(prompts + 1))
    kinds: list[tuple[Kind, tuple[Prompt, ...]]] = [("corrupted", corrupted), ("clean", clean)]
    texts = tuple("\nA:" if i % 5 == 4 else f" t{i}" for i in range(tokens))
    visible = tuple(
        ShownPrompt(kind=kind, number=i, prompt=own[i], tokens=texts) for kind, own in kinds for i in range(shown)
    )
    return Contents(
        task="made up",
        task_digest="t",
        unit="probability",
        models=tuple(
            _model(f"model {i}", (layers, heads), tokens, prompts, len(visible), generator) for i in range(models)
        ),
        change=_bounded((layers, heads), generator) if models == 2 else None,
        marked=(Head(0, 0), Head(layers - 1, heads - 1)),
        corrupted=corrupted,
        clean=clean,
        shown=visible,
        steering=Steering(
            prompts=clean[:2],
            layer=layers // 3,
            scale=2.0,
            replies=("cat", "dog"),
            probability=torch.tensor([0.25, 0.5]),
        ),
    )


def made_up_replies(contents: Contents) -> SteeredReplies:
    """The reply says where it is from."""
    own = contents.steering
    layers, scales = kept_layers(len(contents.models[0].aie.mean), own.layer), strengths(own.scale)
    prompts = range(len(own.prompts))
    return SteeredReplies(
        layers=layers,
        scales=scales,
        replies=tuple(
            tuple(tuple(f"reply {i} at {layer}, {scale:g}" for i in prompts) for scale in scales) for layer in layers
        ),
        probability=torch.rand(len(layers), len(scales), len(prompts), generator=torch.Generator().manual_seed(1)),
    )


def made_up_attention(layers: int, heads: int, tokens: int, generator: torch.Generator) -> Attention:
    """Some heads look at one token, others at all."""
    scores = torch.randn(layers, heads, tokens, tokens, generator=generator)
    sharpness = torch.rand(layers, heads, 1, 1, generator=generator) * 6
    scores = (scores * sharpness).masked_fill(~torch.ones(tokens, tokens, dtype=torch.bool).tril(), -torch.inf)
    return compact([to_hundredths(layer.softmax(-1)) for layer in scores])


def _prompt(query: str, answer: str) -> Prompt:
    return Prompt(text=f"Q: {query}\nA:", answer=f" {answer}", query=Pair(query, answer))


def _bounded(shape: tuple[int, ...], generator: torch.Generator) -> Bounded:
    mean = 0.3 * torch.randn(shape, generator=generator) ** 3
    return Bounded(mean, mean - 0.1, mean + 0.1)


def _model(
    name: str, grid: tuple[int, int], tokens: int, prompts: int, shown: int, generator: torch.Generator
) -> ModelHeads:
    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    ids = torch.arange(8).expand(*grid, 8)
    return ModelHeads(
        name=name,
        digest=name,
        aie=_bounded(grid, generator),
        cie=random(prompts, *grid) - 0.5,
        unpatched=random(prompts),
        lost=_bounded(grid, generator),
        lost_by_prompt=random(prompts + 1, *grid) - 0.5,
        whole=random(prompts + 1),
        writing=Writing(
            top=ids,
            top_logits=10 * random(*grid, 8).sort(descending=True).values,
            bottom=ids + 8,
            bottom_logits=-10 * random(*grid, 8).sort(descending=True).values,
            texts={i: f" word{i}" for i in range(16)},
        ),
        attention=(made_up_attention(*grid, tokens, generator),) * shown,
    )
