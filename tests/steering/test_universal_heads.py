"""Universal heads are those of the tasks that the model can do, and nothing of the others is in them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import rounding
import run_folders
import torch
from safetensors.torch import save_file
from transformer_lens import HookedTransformer

from ivlens.cli.app import main
from ivlens.datasets.task import Pair, Task, TaskWarning, task
from ivlens.errors import IvlensError
from ivlens.patching.effects import measure_effects, task_mean_z
from ivlens.patching.settings import Settings
from ivlens.shapes import Head
from ivlens.steering.universal_heads import FORMAT, Considered, Universal, universal_heads
from ivlens.vectors.head_writing import write_vector

pytestmark = pytest.mark.numeric

SETTINGS = Settings(shots=3, clean_prompts=6, prompts=4, seed=1)
GUIDES = ("antonym", "english-french", "singular-plural")


@pytest.fixture(scope="module")
def impossible() -> Task:
    """Of words that the model knows, but of pairs that it cannot guess: each asks for the word of another pair."""
    pairs = task("antonym").pairs
    outputs = [pair.output for pair in pairs]
    moved = tuple(Pair(pair.input, output) for pair, output in zip(pairs, outputs[7:] + outputs[:7], strict=True))
    return Task(name="impossible", pairs=moved, instructions=("Write any word.",))


@pytest.fixture(scope="module")
def found(lab: HookedTransformer, impossible: Task) -> Universal:
    return universal_heads(lab, [task(GUIDES[0]), impossible, *map(task, GUIDES[1:])], SETTINGS, top=4)


@pytest.mark.slow
def test_heads_are_ranked_by_the_mean_over_the_tasks_that_the_model_can_do(
    found: Universal, lab: HookedTransformer
) -> None:
    assert found.tasks == GUIDES
    grids = []
    for name in GUIDES:
        z = task_mean_z(lab, task(name), SETTINGS)
        grids.append(measure_effects(lab, task(name), z, SETTINGS, model_digest="").aie)
    mean = sum(grids) / len(grids)
    torch.testing.assert_close(found.aie, mean)
    n_heads = lab.cfg.n_heads
    by_aie = sorted(range(mean.numel()), key=lambda i: -float(mean.flatten()[i]))
    assert found.heads == tuple(Head(i // n_heads, i % n_heads) for i in by_aie[:4])
    assert 0 <= found.layer < lab.cfg.n_layers


@pytest.mark.slow
def test_vectors_are_what_these_heads_write_on_each_task(found: Universal, lab: HookedTransformer) -> None:
    assert found.vectors.shape == (3, lab.cfg.d_model)
    for name, vector in zip(GUIDES, found.vectors, strict=True):
        wanted = write_vector(lab, task_mean_z(lab, task(name), SETTINGS), found.heads)
        near = rounding.bound(4 * lab.cfg.d_head, size=float(wanted.abs().max()))
        torch.testing.assert_close(vector, wanted, rtol=0, atol=near)


@pytest.mark.slow
def test_a_task_that_the_model_can_only_guess_is_left_out(lab: HookedTransformer, impossible: Task) -> None:
    constant = Task(name="constant", pairs=tuple(Pair(pair.input, "one") for pair in impossible.pairs))
    mixed = universal_heads(lab, [task("antonym"), impossible, constant], SETTINGS, top=4)
    alone = universal_heads(lab, [task("antonym")], SETTINGS, top=4)
    assert mixed.tasks == alone.tasks == ("antonym",)
    assert torch.equal(mixed.aie, alone.aie) and mixed.heads == alone.heads and mixed.layer == alone.layer


@pytest.mark.slow
def test_a_task_too_small_for_its_split_is_left_out_aloud(lab: HookedTransformer) -> None:
    small = Task(name="small", pairs=task("antonym").pairs[:12])
    with pytest.warns(TaskWarning, match="left out of the universal heads: task 'small' has 12 pairs"):
        found = universal_heads(lab, [small, task("antonym")], SETTINGS, top=4)
    assert found.tasks == ("antonym",)


def test_a_model_that_can_do_nothing_is_refused(lab: HookedTransformer, impossible: Task) -> None:
    with pytest.raises(IvlensError, match="can do none of the 1 general tasks better than by their most frequent"):
        universal_heads(lab, [impossible], SETTINGS, top=4)


@pytest.mark.parametrize("top", [0, 10_000])
def test_more_heads_than_there_are_are_refused(lab: HookedTransformer, top: int) -> None:
    with pytest.raises(IvlensError, match=rf"top is {top}, but the model has \d+ heads"):
        universal_heads(lab, [task("antonym")], SETTINGS, top=top)


@pytest.mark.slow
def test_what_is_saved_is_loaded(found: Universal, tmp_path: Path) -> None:
    path = tmp_path / "universal.safetensors"
    found.save(path)
    again = Universal.load(path)
    for field in dataclasses.fields(Universal):
        one, other = getattr(found, field.name), getattr(again, field.name)
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, field.name
    assert [type(head) for head in again.heads] == [Head] * 4 and isinstance(again.settings, Settings)


def test_a_foreign_or_damaged_file_is_refused(found: Universal, tmp_path: Path) -> None:
    path = tmp_path / "universal.safetensors"
    for metadata in (None, {"format": "ivlens.vector/1"}):
        save_file({"aie": torch.zeros(2, 2)}, path, metadata=metadata)
        with pytest.raises(IvlensError, match=r"is of format .*, not 'ivlens.universal/1'; delete it and run again"):
            Universal.load(path)
    found.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IvlensError, match="is no readable safetensors file"):
        Universal.load(path)


CONSIDERED = Considered("antonym", "7", 0.5, 0.25, True, "above")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"accuracy": "x"}, "considered"),
        ({"majority": None}, "considered"),
        ({"entered": 10**30}, "considered"),
        ({"task": 5}, "considered"),
        ({"tasks": ["\ud800", "b"]}, "record"),
        ({"model": "\ud800"}, "record"),
        ({"layer": float("inf")}, "record"),
    ],
)
def test_what_cannot_stand_in_a_record_is_refused_by_whoever_reads_it(
    change: dict[str, Any], where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dataclasses.replace(run_folders.universal(), considered=(CONSIDERED,))
    record = found._record()
    (record["considered"][0] if where == "considered" else record).update(change)
    tensors = {"aie": found.aie, "vectors": found.vectors}
    save_file(tensors, tmp_path / "u.safetensors", metadata={"format": FORMAT, "record": json.dumps(record)})
    with pytest.raises(IvlensError):
        Universal.load(tmp_path / "u.safetensors")
    found.save(tmp_path / "u.json")
    written = json.loads((tmp_path / "u.json").read_text())
    (written["considered"][0] if where == "considered" else written).update(change)
    (tmp_path / "u.json").write_text(json.dumps(written))
    assert main(["show", str(tmp_path / "u.safetensors")]) == 2
    status = main(["show", str(tmp_path / "u.json")])
    assert status == (0 if "\\ud800" in json.dumps(change) else 2)  # It is printed as an escape, and nothing else is.
    capsys.readouterr()
