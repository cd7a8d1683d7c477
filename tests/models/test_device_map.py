"""A model whose layers lie on several devices gives the numbers that it gives on one, to the bit.

The devices are stand-ins (see `stand_ins`), which refuse operands of different ones as real devices do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORD_TEMPLATE
from stand_ins import KIND, stand_ins

import ivlens
from ivlens.checkpoints.placement import read_device_map
from ivlens.datasets.task import Task
from ivlens.errors import ModelError
from ivlens.prompts import zero_shot

Folders = Callable[[str], Path]
SMALL: dict[str, Any] = {"shots": 2, "clean_prompts": 6, "prompts": 3, "template": WORD_TEMPLATE}
# Norm and unembedding lie where no layer does.
MAP = {
    "model.embed_tokens": f"{KIND}:0",
    "model.rotary_emb": f"{KIND}:0",
    "model.layers.0": f"{KIND}:0",
    "model.layers.1": f"{KIND}:1",
    "model.layers.2": f"{KIND}:2",
    "model.norm": f"{KIND}:3",
    "lm_head": f"{KIND}:4",
}


def measured(model: Any, task: Task, effect: str) -> dict[str, torch.Tensor]:
    audit = ivlens.audit(model, task, top=2, draws=1, other_tasks=0, effect=effect, **SMALL)
    with ivlens.steered(model, audit.vector):
        replies = ivlens.ask(model, zero_shot(task.pairs[:3], template=WORD_TEMPLATE))
    numbers = {"steered": replies.first, "cie": audit.effects.cie, "vector": audit.vector.vector}
    assert audit.necessity is not None
    for name, table in (("places", audit.places), ("measures", audit.measures), ("necessity", audit.necessity)):
        numbers[name] = torch.tensor(table.select_dtypes("number").to_numpy(float))
    return {name: one.cpu() for name, one in numbers.items()}


@pytest.mark.long
@pytest.mark.parametrize(("family", "effect"), [("llama", "prob"), ("gemma2", "nll")])
def test_an_audit_over_several_devices_is_that_on_one(
    family: str, effect: str, folders: Folders, word_task: Task
) -> None:
    plain = measured(ivlens.load(folders(family), backend="bridge"), word_task, effect)
    with stand_ins():
        # Gemma's unembedding is its embedding.
        device_map = MAP if family == "llama" else MAP | {"lm_head": MAP["model.embed_tokens"]}
        model = ivlens.load(folders(family), device_map=device_map)
        where = [next(block.parameters()).device.index for block in model.blocks]
        found = measured(model, word_task, effect)
    assert where == [0, 1, 2] and model.cfg.device == f"{KIND}:0"
    for name, numbers in plain.items():
        torch.testing.assert_close(
            found[name], numbers, rtol=0, atol=1e-6, equal_nan=True, msg=lambda said, name=name: f"{name}: {said}"
        )


def test_stand_ins_refuse_what_real_devices_refuse() -> None:
    with stand_ins():
        here, there = torch.ones(2, device=f"{KIND}:0"), torch.ones(2, device=f"{KIND}:1")
        for other in (there, torch.ones(2)):
            with pytest.raises(RuntimeError, match="expected all tensors on the same device"):
                here + other
        assert (here + there.to(here.device)).cpu().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("device_map", "sentence"),
    [
        ("spread", r"device_map is 'spread'; give auto, balanced, balanced_low_0, sequential, or a device by name"),
        ({}, "device_map is {}; give auto"),
        ({"model": True}, "device_map is {'model': True}; give auto"),
        ({"model": 0, "lm_head": "cpu"}, "puts a part of the model on the disk, on meta or on the CPU beside other"),
        ({"": "disk"}, "puts a part of the model on the disk"),
    ],
)
def test_maps_that_lead_nowhere_are_refused(device_map: Any, sentence: str, folders: Folders) -> None:
    with pytest.raises(ModelError, match=sentence):
        ivlens.load(folders("llama"), device_map=device_map)


def test_what_a_map_does_not_go_with_is_said(folders: Folders) -> None:
    for option in ({"backend": "hooked"}, {"device": "cpu"}):
        with pytest.raises(ModelError, match="device_map places the parts of a TransformerBridge; leave device out"):
            ivlens.load(folders("llama"), device_map="auto", **option)
    with pytest.raises(ModelError, match="is taken as it is, where it is; leave device_map out"):
        ivlens.load(ivlens.load(folders("llama")), device_map="auto")
    with pytest.raises(ModelError, match=r"cannot be placed by this device_map: .*lm_head"):
        ivlens.load(folders("llama"), device_map={"model": "cpu"})


def test_a_map_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    assert read_device_map("balanced") == "balanced"
    assert read_device_map(tmp_path / "map.json") == MAP == read_device_map(MAP)
