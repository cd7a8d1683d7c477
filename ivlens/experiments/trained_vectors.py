"""Is the sum of heads the best vector, and how many prompts and how right outputs does each kind of vector need?

See `attribution.vector_comparison`, whose comparison this is, with each number of pairs and share of wrong outputs kept
by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ivlens.attribution.trained_vector import EVERY
from ivlens.attribution.vector_comparison import (
    HEAD_SUM,
    OWN_PLACE,
    RANDOM,
    TRAINED,
    compare_vectors,
    count_wrong,
)
from ivlens.experiments.findings import FINDINGS, Found, Line
from ivlens.experiments.settings import STEPS
from ivlens.experiments.work import Question, Work
from ivlens.measures import Interval
from ivlens.patching.pace import Pace
from ivlens.steering.search import NEIGHBOURS, SCALES, count_coarse

COUNTS, WRONG = (5, 10, 20, 50, 100), (0.0, 0.25, 0.5)
"""Pairs that vectors are made of, and shares of them that have another one's output."""
ACCURACY, GAIN, COSINE = "accuracy", "more than the head sum", "cosine to the head sum of all pairs"


def _part(name: str, wrong: float) -> str:
    return f"{name}, {wrong:.0%} of outputs wrong"


def _cells(work: Work) -> list[tuple[int, float]]:
    """Numbers of pairs and shares of wrong outputs; of shares that move as many outputs the first one."""
    most, found = len(work.split.mean), dict[tuple[int, int], tuple[int, float]]()
    for count in dict.fromkeys(min(count, most) for count in COUNTS):
        for wrong in WRONG:
            found.setdefault((count, count_wrong(wrong, count)), (count, wrong))
    return list(found.values())


def _run(work: Work) -> Iterator[Line]:
    for count, wrong in _cells(work):
        yield from work.lines(
            f"{count}-pairs-{wrong:.0%}".replace("%", "-wrong"), partial(_compare, work, count, wrong)
        )


def _compare(work: Work, count: int, wrong: float) -> Iterator[Line]:
    with work.tables.keeping("batches"):
        table = compare_vectors(
            work.model,
            work.task,
            counts=[count],
            wrong=[wrong],
            top=work.asked.top,
            draws=work.asked.draws,
            steps=STEPS,
            queries=work.asked.queries,
            settings=work.settings,
            memory=work.memory,
        )
    for line in table.to_dict("records"):
        for name, column in ((ACCURACY, "accuracy"), (GAIN, "gain")):
            numbers = [line[f"{column}{end}"] for end in ("", "_low", "_high")]
            yield _line(work, _part(name, wrong), count, line, *numbers)
        yield _line(work, _part(COSINE, wrong), count, line, line["cosine"], float("nan"), float("nan"))


def _line(work: Work, part: str, count: int, line: Mapping[Any, Any], *numbers: float) -> Line:
    kind = line["vector"]
    draws = work.asked.draws if kind == RANDOM else 1
    return dict(zip(FINDINGS, (part, f"{count} pairs", kind, *numbers, draws, line["queries"]), strict=True))


def _cost(work: Work, pace: Pace) -> Mapping[str, float]:
    asked, (n_layers, _) = work.asked, work.grid
    validation, queries = len(work.split.validation), len(work.split.evaluation)
    places = count_coarse(n_layers, 1) + NEIGHBOURS + len(_cells(work)) * n_layers * len(SCALES)
    trained = sum(count for count, _ in _cells(work)) + len(_cells(work)) * validation / EVERY
    return {
        "AIE": work.effects_seconds(pace),
        # Forward and back, of a free vector and of one of weighed heads.
        "training": 2 * STEPS * trained * 3 * pace.row,
        "places": places * validation * pace.row,
        "reading": len(_cells(work)) * asked.clean_prompts * pace.reading,
        "steering": len(_cells(work)) * queries * (5 + asked.draws) * pace.row,
    }


def _verdict(found: Found) -> str:
    counts = list(found.values(_part(ACCURACY, 0.0), HEAD_SUM))
    said = []
    for at, wrong in ((counts[-1], WRONG[0]), (counts[0], WRONG[0]), (counts[-1], WRONG[-1])):
        random = found(_part(GAIN, wrong), at, RANDOM)
        above = Interval(-random.mean, -random.high, -random.low)
        trained, own = (found(_part(GAIN, wrong), at, kind).text(2) for kind in (TRAINED, OWN_PLACE))
        said.append(
            f"Of {at} with {f'{wrong:.0%} of outputs wrong' if wrong else 'all outputs right'}, the head sum answers "
            f"{found(_part(ACCURACY, wrong), at, HEAD_SUM).text(2)}, {above.text(2)} more than random directions; a "
            f"trained vector {trained} more than it, the mean difference at a place of its own {own} more."
        )
    return " ".join(said)


TRAINED_QUESTION = Question(
    sentence="Is the sum of heads the best vector, or does a trained one, or the mean difference of the stream, do "
    "more, by number of pairs and share of wrong outputs?",
    run=_run,
    cost=_cost,
    verdict=_verdict,
    figures={"accuracy": {_part(ACCURACY, wrong): "accuracy" for wrong in WRONG}},
)
