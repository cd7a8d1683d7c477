"""How far AIE in 16 bits is from float32's is measured with the same weights, which are afterwards as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import random_bridge
from checkpoints import random_hooked
from conftest import WORD_TEMPLATE, random_tokens

import ivlens
from ivlens.analysis.audit_tables import print_audit
from ivlens.datasets.task import Task
from ivlens.errors import ModelError
from ivlens.forward import precision
from ivlens.forward.precision import in_float32
from ivlens.models.origin import is_bridge
from ivlens.patching import rounding, sweep
from ivlens.patching.activations import answer_logits
from ivlens.patching.effects import ranking_prompts
from ivlens.reports.audit_page import audit_page

pytestmark = pytest.mark.numeric

SMALL: dict[str, Any] = {"shots": 2, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}


def widened(narrow: Any, wide: Any) -> Any:
    """A model in float32 with the weights of one in 16 bits."""
    for (name, weight), (own, into) in zip(narrow.named_parameters(), wide.named_parameters(), strict=True):
        assert name == own
        into.data = weight.data.float()
    if is_bridge(narrow):  # A model of transformers that was cast as a whole has rounded frequencies.
        for (_, kept), (_, own) in zip(narrow.named_buffers(), wide.named_buffers(), strict=True):
            own.copy_(kept)
    return wide


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [("llama", random_hooked), ("gpt2", random_hooked), ("llama", random_bridge), ("gemma2", random_bridge)],
)
def test_for_a_while_it_is_the_model_in_float32(name: str, make: Callable[..., Any]) -> None:
    model, tokens = make(name, dtype=torch.bfloat16), random_tokens()
    twin, before = widened(model, make(name, dtype=torch.float32)), state(model)
    with in_float32(model):
        logits = answer_logits(model, tokens)
        _, found = sweep.sweep(model, tokens, torch.zeros(3, model.cfg.n_heads, model.cfg.d_head))
    torch.testing.assert_close(logits, answer_logits(twin, tokens), rtol=0, atol=1e-5)
    _, exact = sweep.sweep(twin, tokens, torch.zeros(3, model.cfg.n_heads, model.cfg.d_head))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    after = state(model)
    assert before.keys() == after.keys() and model.cfg.dtype == torch.bfloat16
    for key, kept in before.items():
        assert kept.dtype == after[key].dtype and torch.equal(kept, after[key]), key


def test_what_does_not_fit_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_hooked("llama", dtype=torch.float16)
    monkeypatch.setattr(precision, "free_memory", lambda device: 1000)
    sentence = r"the weights in float32 take 0\.0 GiB more on cpu, and 0\.0 are free"
    with pytest.raises(ModelError, match=sentence), in_float32(model):
        pass
    assert model.W_O.dtype == torch.float16


@pytest.mark.long
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_an_audit_in_16_bits_says_how_far_it_is_from_float32(
    backend: str, folders: Callable[[str], Path], word_task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = {"model": folders("llama"), "backend": backend}
    model = ivlens.load(**load, dtype="bfloat16")
    found = ivlens.audit(model, word_task, out=tmp_path / "run", top=2, draws=1, other_tasks=0, **SMALL)
    twin, effects = widened(model, ivlens.load(**load)), found.effects
    _, tokens = ranking_prompts(twin, word_task, effects.settings)
    exact = sweep.loop(twin, tokens[:3], effects.mean_z)[1].mean(0)
    off = float((effects.cie[:3].mean(0) - exact).abs().max())
    assert found.rounding is not None
    (line,) = found.rounding.to_dict("records")
    assert (line["dtype"], line["prompts"], line["reason"]) == ("bfloat16", 3, "")
    assert line["largest_aie"] == pytest.approx(float(exact.abs().max()), rel=1e-3)
    assert line["difference"] == pytest.approx(off, rel=1e-2) and off > 0
    assert line["share"] == pytest.approx(line["difference"] / line["largest_aie"])
    print_audit(found)
    percent = f"{line['share']:.1%}"
    assert "Precision: AIE in 16 bits against float32" in (shown := capsys.readouterr().out) and percent in shown
    assert any("Precision" in table.heading for table in audit_page(found).tables)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sources"]["model"]["precision"].endswith(f"of float32's, {percent} of the largest.")


@pytest.mark.slow
def test_where_float32_does_not_fit_the_audit_says_so(
    folders: Callable[[str], Path], word_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ivlens.load(folders("llama"), dtype="float16")
    effects = ivlens.indirect_effects(model, word_task, **SMALL)
    monkeypatch.setattr(precision, "free_memory", lambda device: 1000)
    found = rounding.measure_rounding(model, word_task, effects)
    sentence = "how far that is from float32 was not measured: the weights in float32 take 0.0 GiB more on cpu"
    assert sentence in rounding.rounding_sentence(found)
    assert "not measured" in rounding.rounding_table(found).parts[0][0][2]


@pytest.mark.slow
def test_an_audit_in_float32_has_no_such_row(folders: Callable[[str], Path], word_task: Task) -> None:
    model = ivlens.load(folders("llama"))
    found = ivlens.audit(model, word_task, top=2, draws=1, other_tasks=0, **SMALL)
    assert found.rounding is None and not any("Precision" in table.heading for table in audit_page(found).tables)
