"""A fine-tuning's update, part by part: one matrix of one layer, a layer, a matrix of all layers, all but some heads.

A LoRA adapter is taken apart as it is; of a tuned checkpoint the difference of every matrix is taken, as an adapter of
full rank. What becomes of the answers with each part is drawn in one figure.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import FigureError, IvlensError, ModelError, ModelWarning
from ivlens.experiments.findings import CHOSEN, NONE, RANDOM
from ivlens.models.hooked import model_name
from ivlens.models.lora import Adapter, Factors
from ivlens.models.weights import TARGETS, as_matrix, locate, weight_name
from ivlens.plots.layout import Rows, arrange, decimal_step, finish, place_rows
from ivlens.plots.marks import Kind, Point, axis_range, dots, read_points
from ivlens.plots.style import GREEN, LOOKS, Look, Width, break_text, hollow, is_narrow, safe, text_width
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ALONE, BUT = "one part alone", "all but one part"
BASE, TUNED, AFTER = "base model", "tuned model", "after"
_MATRICES = {
    "W_Q": "queries W_Q",
    "W_K": "keys W_K",
    "W_V": "values W_V",
    "W_O": "outputs W_O",
    "W_gate": "gate W_gate",
    "W_in": "MLP in W_in",
    "W_out": "MLP out W_out",
}
_ALL_MATRICES, _ALL_LAYERS = "all matrices", "all layers"
_LEVELS = {BASE: ("before fine-tuning", LOOKS["before"]), TUNED: ("after fine-tuning", LOOKS["after"])}
_KINDS = {
    "this part alone": LOOKS["chosen"],
    "all but this part": Look(GREEN, "triangle-up"),
    "random part of equal rank and norm, alone": LOOKS["random"],
    "all but random heads' part": hollow(LOOKS["random"]),
}
_OWN, _OTHERS, _RANDOM, _RANDOM_HEADS = _KINDS
# The whole update alone is the tuned model, and all but it the base model.
_KIND_OF = {
    (ALONE, CHOSEN): _OWN,
    (ALONE, AFTER): _OWN,
    (BUT, CHOSEN): _OTHERS,
    (BUT, NONE): _OTHERS,
    (ALONE, RANDOM): _RANDOM,
    (BUT, RANDOM): _RANDOM_HEADS,
}
_TALLEST, _BETWEEN = 640, 44
"""Pixels of all rows, so that the figure stands on a page of nine inches, and between panels below each other."""


def draw_parts(lines: pd.DataFrame, units: Mapping[str, str], *, title: str, width: Width) -> go.Figure:
    """Layers down, a panel for each matrix: what becomes of the answers with a part alone, and with all but it.

    Args:
        lines: Of the parts `..., one part alone` and `..., all but one part`.
        units: Of these two; they have the same.
    """
    points, (unit,) = _by_matrix(lines), set(units.values())
    if not points:
        raise FigureError("the table has no part of an update; there is nothing to draw")
    levels = {at: values.iloc[0] for at in _LEVELS if len(values := lines.loc[lines["at"] == at, "value"])}
    every = [point for own in points.values() for point in own]
    across = min(len(points), 4 if is_narrow(width) else 8)
    below = math.ceil(len(points) / across)
    rows = place_rows([point.at for point in every], (_TALLEST - (below - 1) * (_BETWEEN + 18)) / below)
    left = round(max(map(text_width, rows.names.values()))) + 28
    height = max(60, round((rows.foot + 0.5) * rows.high))
    panels = arrange(list(points), width=width, height=height, across=across, gap=(12, _BETWEEN), left=left)
    words, told = break_text(unit, panels.size[0]), set[str]()
    for place, (matrix, own) in zip(panels.places, points.items(), strict=True):
        for trace in [*_draw_levels(levels, rows), *_draw_kinds(matrix, own, rows)]:
            named = str(trace.name)
            panels.figure.add_trace(trace.update(showlegend=named not in told), row=place[0], col=place[1])
            told.add(named)
        if panels.is_lowest(place):
            panels.figure.update_xaxes(title_text="<br>".join(words), row=place[0], col=place[1])
    low, high = axis_range(every, zero=True)
    figure = panels.figure.update_xaxes(range=[low, high], tick0=0, dtick=decimal_step(low, high, panels.size[0]))
    figure.update_yaxes(range=[rows.foot, -0.5], tickvals=list(rows.names), ticktext=list(rows.names.values()))
    figure.update_yaxes(showticklabels=False, ticks="").update_yaxes(showticklabels=True, title_text="layer", col=1)
    return finish(panels, title, below=14 * (len(words) - 1))


def _by_matrix(lines: pd.DataFrame) -> dict[str, list[Point]]:
    """What is drawn in the panel of each matrix, by layer."""
    way = lines["part"].str.rpartition(", ")[2]
    kinds = [_KIND_OF.get(one) for one in zip(way, lines["kind"], strict=True)]
    layers, matrices = zip(*map(_find_place, lines["at"]), strict=True)
    frame: Any = lines.assign(kind=kinds, layer=layers, matrix=matrices).dropna(subset="kind")
    order = [one for one in (*_MATRICES.values(), _ALL_MATRICES) if one in set(frame["matrix"])]
    return {one: read_points(frame[frame["matrix"] == one], at="layer", value="value", heads="kind") for one in order}


def _find_place(name: str) -> tuple[int | str, str]:
    """Row and panel of a part, by its name."""
    if name in (BASE, TUNED):
        return _ALL_LAYERS, _ALL_MATRICES
    found = re.fullmatch(r"(?:L([0-9]+)|all) (W_\w+)|layer ([0-9]+)", name)
    if found is None or found[2] not in (None, *_MATRICES):  # Such as `10 heads`.
        return name, _ALL_MATRICES
    layer = found[1] or found[3]
    return int(layer) if layer else _ALL_LAYERS, _MATRICES[found[2]] if found[2] else _ALL_MATRICES


def _draw_levels(levels: Mapping[str, float], rows: Rows) -> Iterator[go.Scatter]:
    for at, value in levels.items():
        name, look = _LEVELS[at]
        ends = {"x": [value, value], "y": [-0.5, rows.foot]}
        stroke = {"color": look.colour, "width": 1}
        yield go.Scatter(**ends, mode="lines", line=stroke, name=name, legendgroup=name, hoverinfo="name")


def _draw_kinds(matrix: str, points: Sequence[Point], rows: Rows) -> Iterator[go.Scatter]:
    """Kinds of a row stand a little apart."""
    for number, (name, look) in enumerate(_KINDS.items()):
        own = [point for point in points if point.heads == name]
        if own:
            y = [rows.at[point.at] + 0.75 * ((number + 0.5) / len(_KINDS) - 0.5) for point in own]
            texts = [
                f"{'layer ' * isinstance(point.at, int)}{safe(point.at)}, {matrix}, {name}: {point}" for point in own
            ]
            yield dots(Kind(name, own, look), y, texts, size=min(6.0, 0.4 * rows.high + 1))


def find_update(base: HookedTransformer, tuned: HookedTransformer | Adapter) -> Adapter:
    """What fine-tuning did to the weights: an adapter as it is, or the difference of two checkpoints."""
    return tuned if isinstance(tuned, Adapter) else update_between(base, tuned)


def update_between(base: HookedTransformer, tuned: HookedTransformer) -> Adapter:
    """The difference of two checkpoints' matrices in attention and MLPs, as an adapter.

    Raises:
        ModelError: no such matrix differs.
    """
    factors, eyes = {}, dict[int, Tensor]()
    for name in _matrices(base):
        before, after = (as_matrix(getattr(*locate(model, name)), *locate(model, name)) for model in (base, tuned))
        difference = (
            after.detach().to(base.cfg.device, torch.promote_types(torch.float32, after.dtype)) - before.detach()
        )
        if bool(difference.any()):
            eye = eyes.setdefault(len(difference), torch.eye(len(difference)).to(difference))
            factors[name] = Factors(A=eye, B=difference.T.contiguous())
    if not factors:
        raise ModelError(
            f"no matrix of attention or MLP differs between {model_name(base)} and {model_name(tuned)}; give the model "
            "as it is after fine-tuning"
        )
    _say_left_out(base, tuned, factors)
    return Adapter(factors=factors, scale=1.0)


def _matrices(model: HookedTransformer) -> Iterator[str]:
    for layer in range(model.cfg.n_layers):
        for target in TARGETS:
            name = weight_name(layer, target)
            try:
                locate(model, name)
            except IvlensError:  # Models without a gate, or without MLPs.
                continue
            yield name


def _say_left_out(base: HookedTransformer, tuned: HookedTransformer, factors: Mapping[str, object]) -> None:
    """Warn where other weights differ, too: they are no part that is told apart."""
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    known = {id(getattr(*locate(base, name))) for name in factors}
    others = [
        name
        for name, own in ours.items()
        if id(own) not in known and not torch.equal(own.cpu(), theirs[name].to(own.dtype).cpu())
    ]
    if others:
        warnings.warn(
            f"{len(others)} other weights of {model_name(tuned)} differ, too, such as {others[0]}; parts are of the "
            "matrices in attention and MLPs alone, and all of them together are not the whole update",
            ModelWarning,
            stacklevel=3,
        )


def name_parts(adapter: Adapter) -> dict[str, tuple[str, ...]]:
    """The weights of each part, by its name: every matrix of every layer, then layers, then matrices of all layers.

    Layers and matrices that are a single weight, or the whole update, are left out.

    >>> from ivlens import lora
    >>> list(name_parts(lora.fresh(model, lora.LoraConfig(layers=(0, 3)))))
    ['L0 W_Q', 'L0 W_V', 'L3 W_Q', 'L3 W_V', 'layer 0', 'layer 3', 'all W_Q', 'all W_V']
    """
    places = {name: (int(name.split(".")[1]), name.rsplit(".", 1)[1]) for name in adapter.factors}
    single = {f"L{layer} {matrix}": (name,) for name, (layer, matrix) in places.items()}
    groups: dict[str, tuple[str, ...]] = {}
    for layer in dict.fromkeys(layer for layer, _ in places.values()):
        groups[f"layer {layer}"] = tuple(name for name, place in places.items() if place[0] == layer)
    for matrix in dict.fromkeys(matrix for _, matrix in places.values()):
        groups[f"all {matrix}"] = tuple(name for name, place in places.items() if place[1] == matrix)
    return single | {name: own for name, own in groups.items() if 1 < len(own) < len(places)}


def only(adapter: Adapter, names: Sequence[str]) -> Adapter:
    """The update of some weights alone."""
    return Adapter(factors={name: adapter.factors[name] for name in names}, scale=adapter.scale)


def all_but(adapter: Adapter, names: Sequence[str]) -> Adapter:
    """The update of all other weights."""
    return only(adapter, [name for name in adapter.factors if name not in names])


def without_heads(model: HookedTransformer, adapter: Adapter, heads: Sequence[Head]) -> Adapter:
    """The update without what it does to some heads: to their queries, keys, values and outputs.

    Keys and values that a head shares with others are taken from all of them.
    """
    factors = {}
    for name, (a, b) in adapter.factors.items():
        layer, matrix = int(name.split(".")[1]), name.rsplit(".", 1)[1]
        own = [head.head for head in heads if head.layer == layer]
        if matrix in ("W_K", "W_V"):
            shared = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
            own = [head // shared for head in own]
        if not own or matrix not in ("W_Q", "W_K", "W_V", "W_O"):
            factors[name] = Factors(a, b)
            continue
        width = model.cfg.d_head
        gone = torch.cat([torch.arange(head * width, (head + 1) * width) for head in sorted(set(own))])
        a, b = (a.detach().clone(), b.detach().clone())
        if matrix == "W_O":  # Its inputs are what heads put out.
            a[:, gone.to(a.device)] = 0
        else:
            b[gone.to(b.device)] = 0
        factors[name] = Factors(a, b)
    return Adapter(factors=factors, scale=adapter.scale)


def random_like(adapter: Adapter, *, seed: int, draw: int) -> Adapter:
    """Updates drawn at random, each of the rank and the Frobenius norm of the one in whose place it stands."""
    generator, factors = open_stream(seed, Stream.RANDOM_UPDATES, draw), {}
    for name, own in adapter.factors.items():
        a, b = (
            torch.from_numpy(generator.standard_normal(tuple(part.shape))).to(part.device, part.dtype) for part in own
        )
        drawn = update_norm(Factors(a, b))
        factors[name] = Factors(a, b * (update_norm(own) / drawn if drawn else 0.0))
    return Adapter(factors=factors, scale=adapter.scale)


def update_norm(factors: Factors) -> float:
    """Frobenius norm of `B A`, which is not made for it."""
    a, b = (part.detach().double() for part in factors)
    squares: Float[Tensor, "rank rank"] = (a @ a.T) * (b.T @ b)
    return float(squares.sum().clamp(min=0).sqrt())
