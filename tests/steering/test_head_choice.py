"""Heads that are named are those that write the vector, and controls are held against them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import WORD_TEMPLATE
from safetensors.torch import save_file
from transformer_lens import HookedTransformer

import ivlens
from ivlens.analysis.audit import Audit
from ivlens.datasets.task import Pair, Task, TaskWarning, task
from ivlens.errors import IvlensError, RunError
from ivlens.models import lora
from ivlens.models.lora import LoraConfig
from ivlens.patching.settings import Settings
from ivlens.shapes import Head
from ivlens.steering import controls, head_choice
from ivlens.steering.head_choice import parse_heads
from ivlens.steering.universal_heads import Considered, Universal, universal_heads
from ivlens.vectors.head_writing import write_vector

pytestmark = pytest.mark.numeric

SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 4, "prompts": 3, "draws": 2, "template": WORD_TEMPLATE}
GIVEN = [Head(0, 1), Head(2, 3), Head(1, 0)]

SETTINGS = Settings(shots=3, clean_prompts=6, prompts=4, seed=1)
GUIDES = ("antonym", "english-french", "singular-plural")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads") / "run"


@pytest.fixture(scope="module")
def found(tiny: HookedTransformer, word_task: Task, folder: Path) -> Audit:
    return ivlens.audit(tiny, word_task, heads=GIVEN, other_tasks=0, out=folder, **SMALL)


@pytest.mark.slow
def test_given_heads_write_the_vector_in_their_order(found: Audit, tiny: HookedTransformer) -> None:
    assert found.vector.heads == tuple(GIVEN)
    torch.testing.assert_close(found.vector.vector, write_vector(tiny, found.effects.mean_z, GIVEN))
    assert sorted(found.heads["n_heads"].unique()) == [1, 2, 3]
    assert set(found.steering["n_heads"]) == {3}


@pytest.mark.slow
def test_given_heads_are_recorded_and_others_refused(
    found: Audit, tiny: HookedTransformer, word_task: Task, folder: Path
) -> None:
    assert json.loads((folder / "run.json").read_text())["settings"]["heads"] == ["L0H1", "L2H3", "L1H0"]
    again = ivlens.audit(tiny, word_task, heads="L0H1, L2H3,L1H0", other_tasks=0, out=folder, **SMALL)
    pd.testing.assert_frame_equal(again.measures, found.measures)
    with pytest.raises(RunError, match=r"heads is not set here but .*L0H1.* in that run"):
        ivlens.audit(tiny, word_task, top=3, other_tasks=0, out=folder, **SMALL)


@pytest.mark.slow
def test_the_heads_of_largest_aie_given_by_name_are_the_same_audit(
    found: Audit, tiny: HookedTransformer, word_task: Task
) -> None:
    usual = ivlens.audit(tiny, word_task, top=3, other_tasks=0, **SMALL)
    same = ivlens.audit(tiny, word_task, heads=found.effects.top(3), other_tasks=0, **SMALL)
    # Low-AIE controls leave given heads out, and so may be others.
    steering = (one.steering.query("heads != 'low-AIE'").reset_index(drop=True) for one in (usual, same))
    pd.testing.assert_frame_equal(*steering)
    assert usual.vector.heads == same.vector.heads


@pytest.mark.slow
def test_controls_share_no_head_with_those_that_were_given(found: Audit) -> None:
    lowest = found.effects.bottom(3)
    for chosen in (GIVEN, lowest):
        random = controls.random_heads(found.effects, 3, draws=5, chosen=chosen)
        low = controls.low_aie_heads(found.effects, 3, draws=5, chosen=chosen)
        assert len(random) == len(low) == 5
        assert not set(chosen) & {head for drawn in [*random, *low] for head in drawn}
    assert controls.random_heads(found.effects, 3, draws=2, chosen=found.effects.top(3)) == controls.random_heads(
        found.effects, 3, draws=2
    )


def test_a_file_of_heads_is_what_universal_or_a_vector_or_anybody_wrote(
    found: Audit, tiny: HookedTransformer, tmp_path: Path
) -> None:
    assert head_choice.choose_heads(found.vector.save(tmp_path / "vector.safetensors"), tiny) == tuple(GIVEN)
    universal = Universal(
        aie=torch.zeros(3, 4), heads=tuple(GIVEN), layer=1, tasks=("t",), vectors=torch.zeros(1, 8), settings=SETTINGS
    )
    for name in ("heads.safetensors", "heads.json"):
        universal.save(tmp_path / name)
        assert head_choice.choose_heads(str(tmp_path / name), tiny) == tuple(GIVEN)
    for content in (["L0H1", "L2H3", "L1H0"], [[0, 1], [2, 3], "L1H0"], {"heads": ["L0H1", [2, 3], "L1H0"]}):
        (tmp_path / "mine.json").write_text(json.dumps(content))
        assert head_choice.choose_heads(tmp_path / "mine.json", tiny) == tuple(GIVEN)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("L9H6", "there is no head L9H6: the model has 3 layers of 4 heads"),
        ("L0H4", "there is no head L0H4"),
        ("L0H1,L0H1", "head L0H1 is named twice; name each once"),
        ("L0H1,heads", "'heads' is not a head; write it as L9H6"),
        ("heads.json", "there is no file 'heads.json'; give the path of one, heads such as L9H6,L3H2, or universal"),
        ("", "heads is empty; give at least one, such as L9H6"),
    ],
)
def test_what_is_no_head_of_the_model_is_refused(tiny: HookedTransformer, text: str, sentence: str) -> None:
    with pytest.raises(IvlensError, match=sentence):
        head_choice.choose_heads(text, tiny)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("{}", "has no list of heads; give what `ivlens universal` wrote"),
        ("[]", "heads is empty"),
        ("[[0]]", "lists '.0.', no head"),
        ("[[0, 1.5]]", "no head; write"),
        ("[true]", "lists 'True', no head"),
        ('["L0"]', "'L0' is not a head"),
        ("[[-1, 0]]", "there is no head L-1H0"),
    ],
)
def test_a_bad_file_of_heads_is_refused(tiny: HookedTransformer, tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(IvlensError, match=sentence):
        head_choice.choose_heads(tmp_path / "mine.json", tiny)


def test_a_tensor_file_without_heads_is_refused(tiny: HookedTransformer, tmp_path: Path) -> None:
    for metadata in (None, {"record": "[" * 100_000}, {"record": "{"}):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(IvlensError, match=r"has no list of heads|has no readable list of heads"):
            head_choice.choose_heads(tmp_path / "x.safetensors", tiny)


@pytest.mark.slow
def test_universal_heads_are_those_of_the_other_tasks_and_are_kept(
    lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivlens.steering.head_choice.tasks", lambda: [*GUIDES, "synonym"])
    small = {"shots": 3, "clean_prompts": 6, "prompts": 4, "seed": 1, "top": 4, "draws": 1, "other_tasks": 0}
    own = Task(name="mine", pairs=task("antonym").pairs[:30], instructions=task("antonym").instructions)
    own = Task(name="antonym", pairs=own.pairs)
    ask: dict[str, Any] = {**small, "heads": "universal", "out": tmp_path / "run"}
    found = ivlens.audit(lab, own, **ask)
    others = [task(name) for name in (*GUIDES[1:], "synonym")]
    assert found.vector.heads == universal_heads(lab, others, SETTINGS, top=4).heads
    assert found.universal is not None and list(found.universal["task"]) == [one.name for one in others]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["heads"] == "universal"
    (tmp_path / "run" / "measures.parquet").unlink()
    record = json.loads((tmp_path / "run" / "run.json").read_text()) | {"status": "running", "finished": None}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("ivlens.steering.head_choice.universal_heads", None)
    again = ivlens.audit(lab, own, **ask)
    pd.testing.assert_frame_equal(again.measures, found.measures)
    assert again.vector.heads == found.vector.heads


@pytest.mark.slow
def test_a_comparison_takes_the_same_heads_on_both_sides(tiny: HookedTransformer, word_task: Task) -> None:
    adapter = lora.fresh(tiny, LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B.fill_(0.3)
    found = ivlens.compare(tiny, adapter, word_task, heads=GIVEN, queries=4, **SMALL)
    assert found.base_vector.heads == found.tuned_vector.heads == tuple(GIVEN)


@pytest.mark.slow
def test_public_universal_heads_say_why_a_task_is_left_out(lab: HookedTransformer, tmp_path: Path) -> None:
    constant = Task(name="constant", pairs=tuple(Pair(pair.input, "one") for pair in task("antonym").pairs))
    with pytest.warns(TaskWarning, match="left out of the universal heads: .*12 pairs"):
        found = ivlens.universal_heads(
            lab, ["antonym", constant, Task(name="small", pairs=task("antonym").pairs[:12])], SETTINGS, top=2
        )
    entered, constant_, small = found.considered
    assert (entered.task, entered.entered, entered.digest) == ("antonym", True, task("antonym").digest)
    assert entered.accuracy is not None and entered.accuracy > entered.majority
    assert entered.reason == (
        f"accuracy {entered.accuracy:.2f}, above the most frequent answer's share {entered.majority:.2f}"
    )
    assert (constant_.entered, constant_.majority) == (False, 1.0) and "not above" in constant_.reason
    assert (small.entered, small.accuracy) == (False, None) and "has 12 pairs" in small.reason
    assert found.tasks == ("antonym",) and found.model == "lab"
    found.save(tmp_path / "heads.json")
    content = json.loads((tmp_path / "heads.json").read_text())
    assert [Considered(**one) for one in content["considered"]] == list(found.considered)
    assert content["heads"] == [str(head) for head in found.heads] and len(content["heads_aie"]) == 2


def test_heads_may_be_named_in_a_list() -> None:
    assert parse_heads(["L9H6", Head(3, 2)]) == (Head(9, 6), Head(3, 2))
    with pytest.raises(IvlensError, match="head L3H2 is named twice; name each once"):
        parse_heads(["L3H2", Head(3, 2)])


@pytest.mark.slow
def test_a_long_list_of_heads_is_read_in_a_moment(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([[i, i] for i in range(100_000)]))
    started = time.process_time()
    assert len(parse_heads(tmp_path / "a.json") or ()) == 100_000
    assert time.process_time() - started < 10
