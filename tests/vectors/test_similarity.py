import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from ivlens import plots
from ivlens.errors import FigureError, IvlensError, ShapeMismatch
from ivlens.patching.settings import Settings
from ivlens.shapes import Head
from ivlens.vectors.instruction_vector import InstructionVector
from ivlens.vectors.similarity import overlap, similarity


def vectors(n: int = 4, *, seed: int = 0, width: int = 6, layers: int = 3) -> list[InstructionVector]:
    """Of random directions and of three random heads each."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(n):
        heads = generator.choice(layers * 4, 3, replace=False).tolist()
        made.append(
            InstructionVector(
                vector=torch.as_tensor(generator.normal(size=width)),
                heads=tuple(Head(head // 4, head % 4) for head in heads),
                layer=None,
                mean_z=torch.zeros(layers, 4, 2),
                settings=Settings(),
                task=f"task {number}",
                task_digest="",
                model="m",
                model_digest="",
                versions={},
            )
        )
    return made


def test_similarity_is_the_cosine_written_out():
    made = vectors()
    found = similarity(made)
    assert list(found.index) == list(found.columns) == [vector.task for vector in made]
    for one, other in itertools.product(made, made):
        a, b = one.vector.tolist(), other.vector.tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        assert found.loc[one.task, other.task] == pytest.approx(dot / norms, abs=1e-12)


def test_overlap_counts_the_heads_that_are_in_both():
    made = vectors(6)
    found = overlap(made)
    for one, other in itertools.product(made, made):
        shared = sum(head in other.heads for head in one.heads)
        assert found.loc[one.task, other.task] == pytest.approx(shared / (6 - shared), abs=1e-12)
    assert len(set(found.to_numpy().flat)) == 4, "none, some and all heads are shared"


def test_a_vector_of_nothing_has_no_direction():
    made = vectors(2)
    made[1].vector.zero_()
    found = similarity(made).to_numpy()
    assert found[0, 0] == pytest.approx(1) and np.isnan([found[0, 1], found[1, 0], found[1, 1]]).all()


def test_vectors_that_cannot_be_compared_are_refused():
    (one, *_), (wide,), (high,) = vectors(), vectors(5, width=7)[-1:], vectors(5, layers=4)[-1:]
    with pytest.raises(ShapeMismatch, match="the vectors have widths 6 and 7"):
        similarity([one, wide])
    with pytest.raises(ShapeMismatch, match=r"models with \(3, 4\) and \(4, 4\) heads"):
        overlap([one, high])
    for compare in (similarity, overlap):
        with pytest.raises(IvlensError, match="two vectors are of the task 'task 0'"):
            compare([one, one])
        with pytest.raises(IvlensError, match="there is no vector to compare"):
            compare([])


def square(n: int, value: float = 0.25) -> pd.DataFrame:
    names = [f"task {number}" for number in range(n)]
    return pd.DataFrame(np.full((n, n), value), index=names, columns=names)


@pytest.mark.parametrize("width", ["column", "page"])
def test_few_tasks_have_their_numbers_in_the_cells_and_many_do_not(width):
    few, many = (plots.similarity_heatmap(square(n, -0.0625), width=width) for n in (4, 30))
    assert set(few.data[1].text) == {"−0.06"} and len(few.data[1].text) == 16
    assert len(many.data) == 1


def test_numbers_stand_out_from_their_cells():
    frame = square(2)
    frame.iloc[0, 1], frame.iloc[1, 0] = 0.9, math.nan
    numbers = plots.overlap_heatmap(frame).data[1]
    assert list(numbers.text) == ["0.25", "0.90", "0.25"], "none where nothing was measured"
    assert list(numbers.textfont.color) == ["#000000", "#FFFFFF", "#000000"]


def test_hover_names_both_tasks():
    frame = square(2)
    frame.iloc[1, 0] = math.nan
    cells = plots.similarity_heatmap(frame).data[0]
    assert (
        cells.customdata[0][1] == "task 0, task 1: 0.250" and cells.customdata[1][0] == "task 1, task 0: not measured"
    )


def test_cosines_have_a_white_zero_in_the_middle_and_overlaps_at_the_end():
    cosine, shared = plots.similarity_heatmap(square(3)).data[0], plots.overlap_heatmap(square(3)).data[0]
    assert (cosine.zmin, cosine.zmax) == (-1, 1) and cosine.colorscale[4] == (0.5, "#FFFFFF")
    assert (shared.zmin, shared.zmax) == (0, 1) and shared.colorscale[0] == (0.0, "#FFFFFF")


@pytest.mark.slow
@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("n", [1, 2, 12, 38, 100])
def test_squares_of_every_size_fit_on_a_page(n, width):
    figure = plots.overlap_heatmap(square(n), width=width)
    assert figure.layout.width == plots.WIDTHS[width] and 90 < figure.layout.height < 9 * 96
    beside = figure.layout.margin.l + figure.layout.margin.r
    assert (plots.WIDTHS[width] - beside) / len(figure.layout.xaxis.ticktext) >= 10, "names stand apart"


def test_what_is_no_square_of_likeness_is_refused():
    with pytest.raises(FigureError, match="2 rows and 3 columns"):
        plots.overlap_heatmap(square(3).iloc[:2])
    with pytest.raises(FigureError, match="the same tasks down and across"):
        plots.overlap_heatmap(square(2).rename(columns={"task 0": "other"}))
    with pytest.raises(FigureError, match=r"a value is -0\.5; it must lie between 0 and 1"):
        plots.overlap_heatmap(square(2, -0.5))
    with pytest.raises(FigureError, match="a value is inf"):
        plots.similarity_heatmap(square(2, math.inf))
