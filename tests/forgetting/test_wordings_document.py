"""Every number about unseen instructions in docs/open_questions.md is in the records that figures/numbers keeps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from ivlens.datasets.task import Task
from ivlens.forgetting import metrics
from ivlens.forgetting.method_run import PreparedBase
from ivlens.forgetting.preparation import general_tasks, prepare_base
from ivlens.forgetting.study import Study
from ivlens.measures import greedy_match
from ivlens.patching.activations import differentiable_answer_logits
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.tokens import tokenize
from ivlens.training.guidance import steer_answers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "open_questions.md").read_text(encoding="utf-8")
REFERENCE = "lora+iv-general"
FIRST = tuple(f"{REFERENCE}{end}" for end in ("-none", "-linear", "-steps", "-short", "-random", "-random-heads"))
REWORDED, UNGUIDED = "GP, reworded, guided", "GP, unguided"


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.read(ROOT / "figures" / "numbers" / "lab-wordings")


@pytest.fixture(scope="module")
def lengths() -> Study:
    return Study.read(ROOT / "figures" / "numbers" / "lab-wordings-lengths")


def by_seed(*studies: Study) -> Any:
    """A row a seed, a column a method and measure."""
    found = [metrics.cells(one.evaluations, guided=one.guided, families=one.families) for one in studies]
    every = pd.concat(found, ignore_index=True).drop_duplicates(["method", "seed", "measure"])
    return every.pivot(index="seed", columns=["method", "measure"], values="value")


def told(values: Any, sign: str = "") -> str:
    """As the documents have it: the mean over orders with Student's interval."""
    (row,) = metrics.over_seeds(pd.DataFrame({"of": "all", "value": values}), ["of"]).to_dict("records")
    text = f"{row['value']:{sign}.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return text.replace("-", "−") if sign else text


def method_lines(table: Any, methods: tuple[str, ...]) -> Iterator[str]:
    for method in methods:
        cells = [told(table[method, measure]) for measure in ("learned", *metrics.BY_WORDING)]
        yield f"| `{method}` | {' | '.join(cells)} |"


def differences(table: Any) -> Iterator[str]:
    """What the text says beside the table."""
    for other in (*FIRST, "replay-general"):
        yield told(table[REFERENCE, REWORDED] - table[other, REWORDED], "+")
    for schedule in ("", "-linear", "-steps"):
        long, short = (table[f"{REFERENCE}{schedule}-{length}", REWORDED] for length in ("long", "short"))
        yield told(long - short, "+")
    for method in ("replay-general", REFERENCE, f"{REFERENCE}-none", f"{REFERENCE}-linear-short"):
        yield told(table[method, REWORDED] - table[method, "GP, guided"], "+")
    for method in ("replay-general", REFERENCE):
        yield told(table[method, UNGUIDED] - table[method, "GP, guided"], "+")


def test_the_table_and_the_differences_of_the_document_are_those_of_the_records(study: Study, lengths: Study) -> None:
    table, methods = by_seed(study, lengths), (*study.plan.methods, *lengths.plan.methods[1:])
    lines = [*method_lines(table, methods), *differences(table)]
    assert [line for line in lines if line not in TEXT] == []


def test_none_of_the_twelve_differences_that_the_plan_names_is_clear(study: Study) -> None:
    lines: Any = study.evaluations
    own = lines[lines["method"].isin([REFERENCE, *FIRST])]
    about: dict[str, Any] = {"guided": study.guided, "families": study.families}
    found = metrics.comparisons(own, REFERENCE, measures=(REWORDED, UNGUIDED), **about)
    assert len(found) == 12
    assert f"smallest adjusted p {found['adjusted'].min():.2f}" in TEXT and found["adjusted"].min() > 0.05


@pytest.mark.long
def test_random_heads_vectors_do_not_carry_the_tasks(study: Study, lab: HookedTransformer) -> None:
    general, shares = general_tasks(study.plan), []
    for seed in study.plan.seeds:
        base = prepare_base(study.plan, seed, lab, general, study.folder)
        guides = [task for task in general if task.name in base.universal.tasks]
        vectors = (base.random_vectors, torch.zeros_like(base.random_vectors), base.universal.vectors)
        shares.append([sum(map(partial(bare_share, lab, base, seed), guides, own)) / len(guides) for own in vectors])
    random, without, chosen = ([f"{share:.2f}" for share in one] for one in zip(*shares, strict=True))
    assert f"right {', '.join(random)} of the time, without a vector {', '.join(without)}" in TEXT
    assert f"chosen heads' {', '.join(chosen)}" in TEXT


def bare_share(lab: HookedTransformer, base: PreparedBase, seed: int, task: Task, vector: Tensor) -> float:
    """Of twelve bare queries, on which nothing was chosen, how many are right with a vector at the chosen place?"""
    tokens, universal = tokenize(lab, zero_shot(task.split(seed=seed).evaluation[:12])), base.universal
    vectors = (universal.scale * vector).expand(len(tokens), -1)
    with steer_answers(lab, tokens, vectors, universal.layer):
        logits = differentiable_answer_logits(lab, tokens)
    return float(greedy_match(logits, tokens.answers, tokens.answer_mask).double().mean())


def test_both_runs_asked_the_same_of_the_same_training(study: Study, lengths: Study) -> None:
    one, other = (found.evaluations.query("method == 'lora'").reset_index(drop=True) for found in (study, lengths))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
