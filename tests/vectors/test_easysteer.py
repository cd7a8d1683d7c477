"""A vector in the form of EasySteer steers there as it does here: read, placed and added step by step as it does.

EasySteer is vLLM with hooks, and needs a GPU. What a request with a `source` goes through there is followed here, on
transformers' own model. Source: `vllm/steer_vectors` of ZJU-REAL/EasySteer-vllm-v1 at 6267ca0 (`api.py`,
`algorithms/loading.py`, `discovery.py`, `controllers.py`, `algorithms/base.py`), `easysteer/steer/utils.py` of
ZJU-REAL/EasySteer at 312c6d8.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import rounding
import torch
from checkpoints import build
from conftest import random_tokens
from torch import Tensor
from transformers import AutoModelForCausalLM

import ivlens
from ivlens.errors import IvlensError
from ivlens.vectors import vector_formats
from ivlens.vectors.instruction_vector import InstructionVector

pytestmark = pytest.mark.numeric


def vector_at(layer: int, width: int = 32, **more: Any) -> InstructionVector:
    vector = InstructionVector(
        vector=torch.randn(width, generator=torch.Generator().manual_seed(5)),
        heads=(),
        layer=None,
        mean_z=None,
        settings=None,
        **{**dict.fromkeys(("task_digest", "model_digest"), ""), "task": "antonym", "model": "tiny", **more},
    )
    return vector.at(layer)


def layers_of(source: str) -> dict[int, Tensor]:
    """What the engine loads from a request's `source`: a tensor for each layer, no field of the header asked for."""
    assert source.lower().endswith(".gguf") and "|" not in source, "refused when the request is made"
    found = {}
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.name.startswith("direction."):
            found[int(tensor.name.split(".")[1])] = torch.from_numpy(np.array(tensor.data, copy=True))
    return found


def add_to(model: Any, found: dict[int, Tensor], *, scale: float, position: int) -> list[Any]:
    """Adds to the output of the module whose name has the layer's number first in it, at one token of the prompt."""
    handles = []
    for name, module in model.named_modules():
        if name.split(".")[-1].isdigit():
            number = next(int(part) for part in name.split(".") if part.isdigit())

            def hook(module: Any, args: Any, out: Any, number: int = number) -> Any:
                resid = (out[0] if isinstance(out, tuple) else out).clone()
                if number in found:
                    resid[:, position] += scale * found[number]
                return (resid, *out[1:]) if isinstance(out, tuple) else resid

            handles.append(module.register_forward_hook(hook))
    return handles


@pytest.mark.parametrize(("family", "layer"), [("llama-gqa", 0), ("llama-gqa", 1), ("gpt2", 2)])
def test_easysteer_adds_the_vector_where_and_as_long_as_we_do(family: str, layer: int, tmp_path: Path) -> None:
    folder, tokens = build(family, tmp_path / "tiny"), random_tokens(n=1, vocab=100).prompts
    hooked, theirs = ivlens.load(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    vector = replace(vector_at(layer), scale=0.5)
    vector_formats.write_vector(vector, tmp_path / "a.gguf", form="easysteer")
    with torch.no_grad():
        plain = theirs(tokens).logits[0, -1].log_softmax(-1)
        add_to(theirs, layers_of(str(tmp_path / "a.gguf")), scale=1.0, position=-1)
        there = theirs(tokens).logits[0, -1].log_softmax(-1)
        with ivlens.steered(hooked, vector):
            here = hooked(tokens)[0, -1].log_softmax(-1)
    near = rounding.of_forward(hooked, tokens)
    assert float((there - plain).abs().max()) > 100 * near, "the vector changes nothing: the comparison would be empty"
    torch.testing.assert_close(here, there, rtol=0, atol=near)


def test_easysteers_own_reader_finds_the_header_that_it_asks_for(tmp_path: Path) -> None:
    notices = vector_formats.write_vector(vector_at(0), tmp_path / "a.GGUF", form="easysteer")
    assert notices == (
        "EasySteer adds the vector where its ApplySpec says; prompt_positions=[-1] is where ivlens adds it",
    )
    reader = gguf.GGUFReader(tmp_path / "a.GGUF")

    def text(name: str) -> str:
        field = reader.get_field(name)
        assert field is not None, "import_gguf raises ValueError without it"
        return bytes(field.parts[-1]).decode()

    assert (text("general.architecture"), text("controlvector.model_hint")) == ("controlvector", "tiny")
    (direction,) = layers_of(str(tmp_path / "a.GGUF")).values()
    assert direction.dtype == torch.float32 and torch.equal(direction, vector_at(0).vector)


def test_a_vector_after_block_0_comes_back_from_it(tmp_path: Path) -> None:
    vector_at(0).save(tmp_path / "a.safetensors")
    ivlens.convert(tmp_path / "a.safetensors", tmp_path / "a.gguf", target_form="easysteer")
    found = vector_formats.read_vector(tmp_path / "a.gguf").vector
    assert (found.layer, found.task, found.model) == (0, "antonym", "tiny")
    assert torch.equal(found.vector, vector_at(0).vector)


@pytest.mark.parametrize("name", ["a.pt", "a", "a|b.gguf", ".gguf"])
def test_a_name_that_easysteer_would_refuse_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(IvlensError, match=r"EasySteer would refuse .*: it takes files that end in \.gguf, with no \|"):
        vector_formats.write_vector(vector_at(1), tmp_path / name, form="easysteer")
    assert not (tmp_path / name).exists()


def test_llama_cpp_is_given_no_vector_after_block_0(tmp_path: Path) -> None:
    with pytest.raises(IvlensError, match=r"llama\.cpp has no place .* from 1 on, or the form easysteer, which has"):
        vector_formats.write_vector(vector_at(0), tmp_path / "a.gguf")
