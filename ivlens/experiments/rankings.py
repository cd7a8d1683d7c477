"""Do other rankings find other heads than the AIE, at what cost, and do those steer better or hurt more?

See `attribution.rankings`, whose comparison this is, with each ranking kept by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pandas as pd

from ivlens.attribution.head_scores import RANKINGS, score_heads
from ivlens.attribution.rankings import HeadSets, rank_correlation, try_heads
from ivlens.experiments.findings import CHOSEN, RANDOM, Found, Line, beyond, difference, number, share
from ivlens.experiments.work import Question, Work
from ivlens.patching.pace import Pace
from ivlens.patching.settings import Ranking
from ivlens.shapes import Head
from ivlens.steering.necessity import OTHER_PROMPTS
from ivlens.steering.search import NEIGHBOURS, count_coarse

STEERED, PROBABLE, LOST = "accuracy with the vector", "P(answer) with the vector", "P(answer) lost without the heads"
OVER_RANDOM, OVER_AIE = "more than random heads", "more than the AIE's heads"
SHARED, CORRELATION, SECONDS = "heads shared with the AIE's", "rank correlation with the AIE", "seconds"
RANDOM_HEADS = "random heads"


def _run(work: Work) -> Iterator[Line]:
    ranked = {by: _score(work, by) for by in RANKINGS}
    top = work.asked.top
    sets: HeadSets = {by: [_heads(table)[:top]] for by, table in ranked.items()}
    sets[RANDOM] = [*work.random_heads(sets["aie"][0])]
    with work.tables.keeping("batches"):
        tried = try_heads(work.model, work.task, sets, work.settings, queries=work.asked.queries, memory=work.memory)
    for part, found in zip((STEERED, PROBABLE, LOST), tried, strict=True):
        make = difference if part == LOST else share
        for by in RANKINGS:
            yield make(part, by, CHOSEN, found[by])
            yield beyond(f"{part}, {OVER_RANDOM}", by, found[by][:, 0], found[RANDOM])
            if by != "aie":
                yield difference(f"{part}, {OVER_AIE}", by, CHOSEN, found[by] - found["aie"])
        yield make(part, RANDOM_HEADS, RANDOM, found[RANDOM])
    aie = ranked["aie"]
    for by, table in ranked.items():
        yield number(SHARED, by, CHOSEN, float(len(set(sets[by][0]) & set(sets["aie"][0]))))
        yield number(CORRELATION, by, CHOSEN, _correlation(aie, table))
        yield number(SECONDS, by, CHOSEN, float(table["seconds"].iloc[0]))
    yield number(SHARED, RANDOM_HEADS, RANDOM, top * top / len(aie))


def _score(work: Work, by: Ranking) -> pd.DataFrame:
    """All heads by one ranking, the first one first, with the seconds that it took."""

    def compute() -> pd.DataFrame:
        started = time.perf_counter()
        found = score_heads(work.model, work.task, by, work.settings, memory=work.memory)
        seconds = time.perf_counter() - started
        means = found.mean
        lines = [(*head, float(means[head]), seconds) for head in found.top(means.numel())]  # pyright: ignore
        return pd.DataFrame(lines, columns=["layer", "head", "score", "seconds"])

    return work.tables.part(f"ranked-{by}", compute)


def _heads(table: pd.DataFrame) -> list[Head]:
    return [Head(int(layer), int(head)) for layer, head in zip(table["layer"], table["head"], strict=True)]


def _correlation(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Spearman's, of the scores of all heads."""
    scores = [table.set_index(["layer", "head"])["score"].sort_index() for table in (one, other)]
    return rank_correlation(*scores)


def _cost(work: Work, pace: Pace) -> Mapping[str, float]:
    asked, queries = work.asked, len(work.split.evaluation)
    sweep = work.effects_seconds(pace)
    vectors, places = len(RANKINGS) + asked.draws, count_coarse(work.grid[0], 1) + NEIGHBOURS
    return {
        "AIE": sweep,
        "gradient": (asked.clean_prompts + 3 * asked.prompts) * pace.reading,
        "ablation": sweep + OTHER_PROMPTS * pace.reading,
        "steering": vectors * (places * len(work.split.validation) + queries) * pace.row,
        "ablating sets": (queries + OTHER_PROMPTS) * pace.reading + 2 * vectors * queries * pace.row,
    }


def _verdict(found: Found) -> str:
    said = [
        f"With the vector of the AIE's heads {found(STEERED, 'aie').text(2)} of bare queries are answered, with random "
        f"heads' {found(STEERED, RANDOM_HEADS, RANDOM).text(2)}; its P(answer) is higher by "
        f"{found(f'{PROBABLE}, {OVER_RANDOM}', 'aie').text(2)}, and {found(f'{LOST}, {OVER_RANDOM}', 'aie').text(2)} "
        "more is lost without the heads."
    ]
    shared, top = found.values(SHARED), found.values(SHARED)["aie"]
    for by in ("gradient", "ablation"):
        steered, lost = (found(f"{part}, {OVER_AIE}", by).text(2) for part in (PROBABLE, LOST))
        said.append(
            f"By {by}, {shared[by]:.0f} of {top:.0f} heads are the AIE's: P(answer) with their vector is higher by "
            f"{steered} than with the AIE's, and {lost} more is lost without them."
        )
    return " ".join(said)


RANKINGS_QUESTION = Question(
    sentence="Do rankings by gradient or by ablation find other heads than the AIE, and do those steer or hurt more?",
    run=_run,
    cost=_cost,
    verdict=_verdict,
    figures={"heads": {STEERED: "accuracy of bare queries", PROBABLE: "of bare queries", LOST: "of clean prompts"}},
)
