"""Other rankings than the AIE's are what they say they are, and are tried on queries that ranked nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rounding
import torch
from bridges import random_bridge
from checkpoints import KINDS, random_hooked
from conftest import WORD_TEMPLATE, random_tokens

import ivlens
from ivlens.analysis.audit_tables import print_audit
from ivlens.attribution import site_sweep
from ivlens.attribution.head_scores import ablation_sweep, gradient_sweep
from ivlens.attribution.site import read_values
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError
from ivlens.patching.interventions import Change, run_changes
from ivlens.patching.sweep import sweep
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOKENS = random_tokens(n=3, width=9, vocab=100)
SHORT: dict[str, Any] = {"shots": 4, "clean_prompts": 8, "prompts": 6}


def random_z(model: Any) -> torch.Tensor:
    shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_differences(model: Any, z: torch.Tensor, effect: Any, step: float) -> torch.Tensor:
    """How far the answer moves when a head goes a small step towards `z`, over the step; taken on both sides."""
    last = torch.zeros_like(TOKENS.mask)
    last[:, -1] = True
    own = read_values(model, TOKENS, last, "heads")
    sides = [
        site_sweep.sweep(model, TOKENS, last, own + sign * step * (z[:, None] - own), "heads", effect=effect)[1]
        for sign in (1, -1)
    ]
    return (sides[0] - sides[1]) / (2 * step)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("effect", ["prob", "nll"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope_of_patching(kind: str, effect: Any) -> None:
    model = random_hooked(kind)
    z = random_z(model)
    baseline, found = gradient_sweep(model, TOKENS, z, effect=effect)
    slow = by_differences(model, z, effect, 1e-5)
    assert float(slow.abs().max()) > 1e-3
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-6 * max(1.0, float(slow.abs().max())))
    exact = rounding.of_forward(model, TOKENS.prompts)
    torch.testing.assert_close(baseline, sweep(model, TOKENS, z, effect=effect)[0], rtol=0, atol=exact)
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("name", ["neox", pytest.param("gpt-bigcode", marks=pytest.mark.slow)])
def test_the_gradient_of_a_bridge_is_the_slope_of_patching(name: str) -> None:
    bridge: Any = random_bridge(name, torch.float64)
    z = random_z(bridge)
    slow = by_differences(bridge, z, "nll", 1e-4)
    torch.testing.assert_close(gradient_sweep(bridge, TOKENS, z, effect="nll")[1], slow, rtol=0, atol=1e-4)


@pytest.mark.numeric
def test_the_loss_without_a_head_is_that_of_ablating_it() -> None:
    model = random_hooked("llama")
    z, heads = random_z(model), [Head(0, 2), Head(2, 3)]
    baseline, lost = ablation_sweep(model, TOKENS, z)
    slow = run_changes(model, TOKENS.first(), [Change(ablated=(head,)) for head in heads], layer=0, z=z).probability
    exact = rounding.of_forward(model, TOKENS.prompts)
    torch.testing.assert_close(baseline, slow[:, 0], rtol=0, atol=exact)
    for column, head in enumerate(heads, start=1):
        torch.testing.assert_close(lost[:, head.layer, head.head], slow[:, 0] - slow[:, column], rtol=0, atol=exact)


@pytest.mark.slow
def test_scores_by_aie_are_the_indirect_effects(lab: HookedTransformer) -> None:
    found = ivlens.head_scores(lab, "antonym", by="aie", **SHORT)
    known = ivlens.indirect_effects(lab, "antonym", **SHORT)
    assert torch.equal(found.effects, known.cie) and found.top(48) == known.ranked()


@pytest.mark.slow
def test_rankings_are_tried_on_other_queries(lab: HookedTransformer) -> None:
    found = ivlens.compare_rankings(lab, "antonym", top=4, draws=3, queries=10, **SHORT)
    table: Any = found.table.set_index("ranking")
    assert list(table.index) == ["aie", "gradient", "ablation", "random"]
    assert table.loc["aie", ["spearman", "shared", "steered_gain", "lost_gain"]].tolist() == [1.0, 4, 0.0, 0.0]
    for by in ("aie", "gradient", "ablation"):
        assert found.heads(by) == ivlens.head_scores(lab, "antonym", by=by, **SHORT).top(4)
    vector = ivlens.instruction_vector(lab, "antonym", heads=found.heads("aie"), **SHORT)
    asked = ivlens.task("antonym").split(shots=4).evaluation[:10]
    with ivlens.steered(lab, vector):
        replies = ivlens.ask(lab, ivlens.prompts.zero_shot(asked))
    assert table["steered"]["aie"] == replies.accuracy.mean
    assert (table["queries"] == 10).all() and table["shared"]["random"] == 16 / 48
    own = found.table.filter(["steered", "steered_low", "steered_high", "lost", "lost_low", "lost_high"])
    assert own.notna().all(axis=None)


def test_what_cannot_be_compared_is_refused(lab: HookedTransformer) -> None:
    wrong: Any
    for name, wrong, said in (("top", 49, "1 to 48"), ("draws", 0, "1 or more"), ("queries", 0, "1 or more")):
        with pytest.raises(IvlensError, match=f"{name} is {wrong}; it must be {said}"):
            ivlens.compare_rankings(lab, "antonym", **{name: wrong})


@pytest.mark.slow
def test_an_audit_takes_the_heads_of_another_ranking(
    tiny: HookedTransformer, word_task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}
    asked = {"top": 3, "draws": 1, "other_tasks": 0, "rank": "gradient", **measured}
    found = ivlens.audit(tiny, word_task, out=tmp_path / "run", **asked)
    wanted = ivlens.head_scores(tiny, word_task, by="gradient", **measured)
    assert list(found.vector.heads) == wanted.top(3) and found.ranking is not None
    assert found.ranking[["layer", "head"]].apply(tuple, axis=1).tolist() == wanted.top(12)
    torch.testing.assert_close(
        torch.tensor(found.ranking["score"].to_numpy()), wanted.mean.flatten().sort(descending=True).values
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["rank"] == "gradient"
    print_audit(ivlens.Audit.read(tmp_path / "run"))
    assert "Heads are ranked in another way than by AIE (ranking.parquet" in capsys.readouterr().out
    with pytest.raises(IvlensError, match="rank is 'gradient', but heads are given; leave one of the two out"):
        ivlens.audit(tiny, word_task, heads="L0H1", rank="gradient", **measured)
