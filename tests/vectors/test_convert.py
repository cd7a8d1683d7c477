"""Vectors and effects go out to other tools and come back the same; what a form cannot hold is said."""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import rounding
import torch
from checkpoints import build
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import ivlens
from ivlens.analysis import probes
from ivlens.cli.app import main
from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.patching.head_effects import HeadEffects, table_of
from ivlens.patching.settings import Settings
from ivlens.reports import gallery
from ivlens.shapes import Head
from ivlens.storage import gguf_files, parquet
from ivlens.vectors import function_vectors, lm_eval, vector_formats
from ivlens.vectors import gguf as control_vectors
from ivlens.vectors.convert import read_effects
from ivlens.vectors.gguf import ControlVector
from ivlens.vectors.instruction_vector import InstructionVector
from ivlens.vectors.similarity import overlap, similarity
from ivlens.vectors.vector_formats import Facts, Form

pytestmark = pytest.mark.numeric

OTHERS = tuple(form for form in vector_formats.VECTORS if form != "vector")
NAMES = {
    "gguf": "a.gguf",
    "easysteer": "e.gguf",
    "steering-vector": "s.pt",
    "lm-eval": "l.pt",
    "npy": "a.npy",
    "function-vector": "f.pt",
}
GENERATOR = torch.Generator().manual_seed(3)
# Numbers that rounding through text or another type would change.
NUMBERS = torch.cat([torch.tensor([-0.0, 1e-45, 3.4e38, 1 / 3]), torch.randn(28, generator=GENERATOR)])


@pytest.fixture
def vector() -> InstructionVector:
    """Of a model of 3 layers, 4 heads and width 32, with everything that a vector can have."""
    return InstructionVector(
        vector=NUMBERS.clone(),
        heads=(Head(2, 1), Head(0, 3)),
        layer=2,
        mean_z=torch.randn(3, 4, 8, generator=GENERATOR),
        aie=torch.randn(3, 4, generator=GENERATOR),
        settings=Settings(),
        task="antonym",
        task_digest="77",
        model="tiny",
        model_digest="ab",
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda family: build(family, tmp_path_factory.mktemp(family) / "tiny")


def same(one: Tensor, other: Tensor) -> bool:
    """To the bit, the sign of zero included."""
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("form", OTHERS)
def test_a_vector_comes_back_to_the_bit_from_every_form(form: Form, vector: InstructionVector, tmp_path: Path) -> None:
    ours, there, back = tmp_path / "ours.safetensors", tmp_path / NAMES[form], tmp_path / "back.safetensors"
    vector.save(ours)
    ivlens.convert(ours, there, target_form=form)
    lacking = {"model": "tiny", "task": "antonym", "layer": 2}
    ivlens.convert(there, back, **lacking)
    found = InstructionVector.load(back)
    assert same(found.vector, NUMBERS)
    assert (found.layer, found.model, found.task) == (2, "tiny", "antonym")
    again = tmp_path / f"again-{NAMES[form]}"
    ivlens.convert(back, again, target_form=form)
    assert same(vector_formats.read_vector(again, facts=Facts(layer=2)).vector.vector, NUMBERS)


def test_our_own_form_keeps_everything(vector: InstructionVector, tmp_path: Path) -> None:
    vector.save(tmp_path / "a.safetensors")
    assert ivlens.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == ()
    found = InstructionVector.load(tmp_path / "b.safetensors")
    for name, value in vars(vector).items():
        again = getattr(found, name)
        assert same(again, value) if isinstance(value, Tensor) else again == value, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", OTHERS)
def test_vectors_of_other_types_keep_their_values_or_say_that_they_were_rounded(
    form: Form, dtype: torch.dtype, vector: InstructionVector, tmp_path: Path
) -> None:
    held = replace(vector, vector=torch.randn(32, dtype=torch.float64).to(dtype))
    notices = vector_formats.write_vector(held, tmp_path / NAMES[form], form=form)
    found = vector_formats.read_vector(tmp_path / NAMES[form]).vector.vector
    rounded = any("was rounded" in notice for notice in notices)
    assert rounded == (not torch.equal(found.double(), held.vector.double()))
    assert rounded == (form in ("gguf", "easysteer") and dtype == torch.float64)


def test_what_a_form_has_no_place_for_is_said_fact_by_fact(vector: InstructionVector, tmp_path: Path) -> None:
    said = {form: vector_formats.write_vector(vector, tmp_path / NAMES[form], form=form) for form in OTHERS}
    everything = [
        *("the layer (2)", "the model's name (tiny)", "the task's name (antonym)", "its 2 heads"),
        *("the heads' mean outputs", "the AIE of every head", "settings and digests"),
    ]
    assert said["npy"] == tuple(f"npy files have no place for {fact}" for fact in everything)
    assert said["function-vector"] == tuple(f"function-vector files have no place for {fact}" for fact in everything)
    every_token = "tools that read it add the vector at every token; ivlens adds it at the last prompt token"
    assert said["gguf"] == (*(f"gguf files have no place for {fact}" for fact in everything[3:]), every_token)
    for form in ("steering-vector", "lm-eval"):
        assert said[form] == (*(f"{form} files have no place for {fact}" for fact in everything[1:]), every_token)


@pytest.mark.parametrize("form", OTHERS)
def test_other_tools_get_the_vector_as_long_as_it_is_added(
    form: Form, vector: InstructionVector, tmp_path: Path
) -> None:
    scaled = replace(vector, scale=0.5)
    notices = vector_formats.write_vector(scaled, tmp_path / NAMES[form], form=form)
    multiplied = f"the scale 0.5 is multiplied into the numbers: {form} files have no place for it"
    assert (notices[0] == multiplied) == (form != "lm-eval")
    found = vector_formats.read_vector(tmp_path / NAMES[form], form=form).vector
    assert same(found.vector, 0.5 * NUMBERS) and found.scale == 1.0
    assert same(torch.as_tensor(vector_formats.steering_arguments(scaled)["layer_activations"][2]), 0.5 * NUMBERS)


def test_our_own_files_keep_the_scale_and_the_numbers(vector: InstructionVector, tmp_path: Path) -> None:
    scaled = replace(vector, scale=0.5)
    found = InstructionVector.load(scaled.save(tmp_path / "a.safetensors"))
    assert found.scale == 0.5 and same(found.vector, NUMBERS)
    ivlens.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", layer=1)
    assert (InstructionVector.load(tmp_path / "b.safetensors").scale) == 0.5
    assert "the scale (0.5)" in " ".join(vector_formats.write_mean_activations(scaled, tmp_path / "m.pt"))


@pytest.mark.parametrize("written", ["1e999", "null", '"2"', "true"])
def test_a_scale_that_is_no_number_is_refused(written: str, vector: InstructionVector, tmp_path: Path) -> None:
    path = vector.save(tmp_path / "a.safetensors")
    metadata = vector._metadata()
    save_file({"vector": NUMBERS, "mean_z": vector.mean_z}, path, metadata={**metadata, "scale": written})
    with pytest.raises(IvlensError, match=r"which is no finite number|is no complete vector file"):
        InstructionVector.load(path)
    del metadata["scale"]
    save_file({"vector": NUMBERS, "mean_z": vector.mean_z}, path, metadata=metadata)
    assert InstructionVector.load(path).scale == 1.0, "a file of before scales were chosen"


def test_what_was_not_there_is_not_said_to_be_lost(vector: InstructionVector, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NUMBERS.numpy())
    notices = ivlens.convert(tmp_path / "a.npy", tmp_path / "a.pt")
    assert notices == ("function-vector files have no place for the task's name (a)",)


def test_a_form_that_needs_a_fact_asks_for_it_and_writes_nothing(vector: InstructionVector, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NUMBERS.numpy())
    for target, form, facts, sentence in (
        ("b.gguf", None, {"layer": 1}, "gguf files name their model, which a does not; say which model"),
        ("b.gguf", None, {"model": "llama"}, "gguf files name the layer to steer, which a does not; choose a layer"),
        ("b.pt", "steering-vector", {}, "steering-vector files name the layer to steer"),
        ("b.safetensors", None, {"layer": 1}, "vector files name their model"),
        ("b.gguf", None, {"layer": 0, "model": "llama"}, "llama.cpp has no place for a vector after block 0"),
        ("b.npy", None, {"layer": -1}, "there is no layer -1: layers are counted from 0"),
        ("b.xyz", None, {}, "the form of .* cannot be told by its name"),
        ("b.parquet", None, {}, "holds npy and .* would hold effects; effects become effects"),
    ):
        with pytest.raises(IvlensError, match=sentence):
            ivlens.convert(tmp_path / "a.npy", tmp_path / target, target_form=form, **facts)
        assert not (tmp_path / target).exists()


def test_the_gguf_package_reads_what_we_write_as_repeng_would_have_written_it(
    vector: InstructionVector, tmp_path: Path
) -> None:
    vector_formats.write_vector(vector, tmp_path / "ours.gguf")
    found = gguf.GGUFReader(tmp_path / "ours.gguf")
    assert {key: field.contents() for key, field in found.fields.items() if not key.startswith("GGUF.")} == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "tiny",
        "general.name": "antonym",
        "controlvector.layer_count": 1,
    }
    (tensor,) = found.tensors
    assert (tensor.name, tensor.tensor_type, tuple(tensor.shape)) == ("direction.2", 0, (32,))
    assert same(torch.tensor(np.array(tensor.data)), NUMBERS)


def exported(path: Path, directions: dict[int, Tensor], **fields: str) -> Path:
    """As repeng's `export_gguf` writes it."""
    writer = gguf.GGUFWriter(path, "controlvector")
    for key, value in {"controlvector.model_hint": "mistral", **fields}.items():
        writer.add_string(key, value)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_of_a_control_vector_for_many_layers_one_is_chosen(tmp_path: Path) -> None:
    directions = {layer: torch.randn(24, generator=GENERATOR) for layer in (3, 1, 2)}
    path = exported(tmp_path / "happy.gguf", directions)
    with pytest.raises(IvlensError, match=r"holds vectors for layers 1, 2, 3; ivlens keeps one: choose a layer"):
        ivlens.convert(path, tmp_path / "a.npy")
    with pytest.raises(IvlensError, match=r"no vector for layer 0; choose one of 1, 2, 3"):
        ivlens.convert(path, tmp_path / "a.npy", layer=0)
    notices = ivlens.convert(path, tmp_path / "a.safetensors", layer=2)
    assert notices == ("left out: vectors of 2 other layers",)
    found = InstructionVector.load(tmp_path / "a.safetensors")
    assert same(found.vector, directions[2])
    assert (found.layer, found.model, found.task, found.heads) == (2, "mistral", "happy", ())


def test_a_control_vector_of_many_layers_is_read_and_written_to_the_bit(tmp_path: Path) -> None:
    directions = {layer: torch.randn(24, generator=GENERATOR) for layer in range(1, 32)}
    control_vectors.write_control_vector(tmp_path / "ours.gguf", ControlVector(directions, "llama", ""))
    theirs = exported(tmp_path / "theirs.gguf", directions, **{"general.name": "ünïcode"})
    for path in (tmp_path / "ours.gguf", theirs):
        found = control_vectors.read_control_vector(path)
        assert found.directions.keys() == directions.keys()
        assert all(same(found.directions[layer], directions[layer]) for layer in directions)
    assert found.name == "ünïcode"


def test_without_the_gguf_package_a_sentence_says_how_to_have_it(
    vector: InstructionVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(tmp_path / "theirs.gguf", {1: NUMBERS})
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    sentence = r"the package gguf is not installed; run: pip install 'ivlens\[gguf\]'"
    with pytest.raises(IvlensError, match=sentence):
        vector_formats.read_vector(path)
    with pytest.raises(IvlensError, match=sentence):
        vector_formats.write_vector(vector, tmp_path / "ours.gguf")
    assert not (tmp_path / "ours.gguf").exists()


@dataclass
class SteeringVector:
    """The fields of the class of that name in the package steering-vectors."""

    layer_activations: dict[int, Tensor]
    layer_type: str = "decoder_block"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles name the class as the package does."""
    module = types.ModuleType("steering_vectors.steering_vector")
    module.SteeringVector = SteeringVector
    monkeypatch.setattr(SteeringVector, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_pickled_steering_vector_is_read_without_its_package(package: None, tmp_path: Path) -> None:
    torch.save(SteeringVector({4: NUMBERS}), tmp_path / "s.pt")
    del sys.modules["steering_vectors.steering_vector"]
    found = vector_formats.read_vector(tmp_path / "s.pt").vector
    assert same(found.vector, NUMBERS) and found.layer == 4


def test_a_steering_vector_in_python_needs_no_file(vector: InstructionVector) -> None:
    made = SteeringVector(**vector_formats.steering_arguments(vector))
    assert made.layer_activations.keys() == {2} and same(made.layer_activations[2], NUMBERS)
    found = vector_formats.of_steering_vector(made, facts=Facts(model="tiny"))
    assert same(found.vector.vector, NUMBERS) and found.vector.layer == 2
    with pytest.raises(IvlensError, match=r"steers 'self_attn'; ivlens adds vectors after whole blocks"):
        vector_formats.of_steering_vector(SteeringVector({1: NUMBERS}, "self_attn"), facts=Facts())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gguf", "steering-vector"])
def test_a_layer_means_in_other_tools_what_it_means_here(
    form: Form, vector: InstructionVector, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both tools add to what the decoder block of that number puts out; on one token, the last is every token."""
    vector_formats.write_vector(replace(vector, layer=1, vector=torch.randn(32)), tmp_path / NAMES[form], form=form)
    if form == "gguf":
        ((layer, direction),) = control_vectors.read_control_vector(tmp_path / NAMES[form]).directions.items()
    else:
        content = torch.load(tmp_path / NAMES[form], weights_only=True)
        ((layer, direction),) = content["layer_activations"].items()
    folder, token = checkpoint("llama"), torch.tensor([[17]])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = ivlens.load(folder)
    with torch.no_grad(), ivlens.steered(model, vector_formats.read_vector(tmp_path / NAMES[form]).vector):
        ours = model(token).log_softmax(-1)

    def add(block: object, inputs: object, output: Tensor) -> Tensor:
        return output + direction

    with torch.no_grad():
        plain = theirs(token).logits.log_softmax(-1)
        theirs.model.layers[layer].register_forward_hook(add)
        steered = theirs(token).logits.log_softmax(-1)
    assert (ours - steered).abs().max() < rounding.of_forward(model, token) < 0.1 < (plain - steered).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "blocks"), [("llama", "layers"), ("gpt2", "h")])
def test_the_steered_model_of_lm_eval_adds_it_at_every_token(
    family: str, blocks: str, vector: InstructionVector, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """As `lm_eval/models/hf_steered.py` reads the file and uses it."""
    folder, tokens = checkpoint(family), torch.tensor([[17, 3, 9, 4]])
    made = replace(vector, layer=1, vector=torch.randn(32), scale=3.0)
    made.save(tmp_path / "ours.safetensors")
    ivlens.convert(tmp_path / "ours.safetensors", tmp_path / "l.pt", target_form="lm-eval", blocks=blocks)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ((name, steering),) = torch.load(tmp_path / "l.pt", weights_only=True).items()
    assert steering["action"] == "add" and steering["bias"] is None and steering["head_index"] is None

    def add(block: object, inputs: object, output: Any) -> Any:
        added = steering["steering_coefficient"] * steering["steering_vector"]
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    with torch.no_grad():
        theirs.base_model.get_submodule(name).register_forward_hook(add)
        wanted = theirs(tokens).logits.log_softmax(-1)
        model, found = ivlens.load(folder), vector_formats.read_vector(tmp_path / "l.pt").vector
        with ivlens.steered(model, found, position=0, every_token=True):
            ours = model(tokens).log_softmax(-1)
    assert (ours - wanted).abs().max() < rounding.of_forward(model, tokens)


@pytest.mark.parametrize(
    "changed",
    [{"action": "clamp"}, {"bias": torch.zeros(32)}, {"head_index": 0}, {"steering_coefficient": "3"}, {"": "norm"}],
)
def test_what_ivlens_does_not_do_in_a_file_of_lm_eval_is_refused(
    changed: dict[str, Any], vector: InstructionVector, tmp_path: Path
) -> None:
    content = lm_eval.steering_config(vector.vector, layer=2, scale=1.0)
    name = changed.pop("", "layers.2")
    torch.save({name: {**content["layers.2"], **changed}}, tmp_path / "l.pt")
    with pytest.raises(IvlensError, match=r"does something else at .* than add a vector to a block's output"):
        vector_formats.read_vector(tmp_path / "l.pt", facts=Facts(layer=2))


def test_a_list_of_blocks_is_named_as_modules_are() -> None:
    with pytest.raises(IvlensError, match=r"blocks is '\.\./h'; give what the model calls its list of blocks"):
        lm_eval.steering_config(NUMBERS, layer=2, scale=1.0, blocks="../h")


def test_a_vector_without_heads_steers_but_cannot_patch_them(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NUMBERS.numpy())
    model = ivlens.load(checkpoint("llama"))
    foreign = vector_formats.read_vector(tmp_path / "a.npy", facts=Facts(layer=1)).vector
    with pytest.raises(IvlensError, match=r"comes without its heads' mean outputs; take site='resid_post'"):
        ivlens.steered(model, foreign, site="distributed").__enter__()


DIRECTION = torch.arange(32.0)


def foreign(path: Path) -> InstructionVector:
    """A vector of which another tool says nothing but its numbers."""
    np.save(path, DIRECTION.numpy())
    return vector_formats.read_vector(path, facts=Facts(layer=1)).vector


def test_a_vector_of_another_tool_is_shown_added_up_and_compared_so_far_as_it_is_known(tmp_path: Path) -> None:
    one, other = foreign(tmp_path / "a.npy"), foreign(tmp_path / "b.npy")
    assert repr(one).endswith("layer 1, scale 1, heads not known)") and "a of a model not named" in repr(one)
    shown = one._repr_html_()
    assert "heads not known" in shown and "<table>" not in shown
    assert similarity([one, other]).to_numpy() == pytest.approx(1)
    assert same((one + other).vector, 2 * DIRECTION) and (one + other).mean_z is None
    with pytest.raises(IvlensError, match="the vector of a comes without the heads that write it; build it with"):
        overlap([one, other])
    with pytest.raises(IvlensError, match="are of two widths; build both alike"):
        one + replace(other, vector=DIRECTION[:4])
    with pytest.raises(IvlensError, match="are of two models; build both alike"):
        one + replace(other, model="tiny")


def test_what_needs_measured_heads_refuses_a_vector_of_another_tool_in_a_sentence(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "numbers" / "foreign").mkdir(parents=True)
    vector = foreign(tmp_path / "a.npy")
    vector.save(tmp_path / "numbers" / "foreign" / "a.safetensors")
    needed = "the vector of a comes from another tool, without its heads' mean outputs or settings; build it with"
    with pytest.raises(IvlensError, match=needed):
        gallery.draw(tmp_path)
    with pytest.raises(IvlensError, match=needed):
        probes.random_sets(vector, draws=1)
    model = ivlens.load(checkpoint("llama"))
    assert len(vector.top_tokens(model, k=3)) == 3
    with pytest.raises(ShapeMismatch, match="the vector of a has width 4, but"):
        replace(vector, vector=DIRECTION[:4]).top_tokens(model)


def test_heads_of_a_vector_are_compared_also_where_its_settings_are_not_known(vector: InstructionVector) -> None:
    other = replace(vector, task="other", heads=(Head(2, 1),), settings=None)
    assert overlap([vector, other]).to_numpy() == pytest.approx(np.array([[1, 0.5], [0.5, 1]]))


def function_vectors_sum(folder: Path, mean_z: Tensor, heads: list[Head]) -> Tensor:
    """Their `compute_function_vector`: every head through the whole output projection, bias included."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    n_heads, d_head = mean_z.shape[1], mean_z.shape[-1]
    total = torch.zeros(1, 1, n_heads * d_head)
    for layer, head in heads:
        block = model.transformer.h[layer].attn.c_proj if "gpt2" in model.config.model_type else None
        project = block or model.model.layers[layer].self_attn.o_proj
        x = torch.zeros(n_heads * d_head)
        x[head * d_head : (head + 1) * d_head] = mean_z[layer, head, -1]
        total += project(x.reshape(1, 1, -1)).detach()
    return total.reshape(-1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mean_activations_and_effects_of_function_vectors_become_their_vector(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint(family)
    mean_z, effects = (torch.randn(*shape, generator=GENERATOR) for shape in [(3, 4, 6, 8), (5, 3, 4, 10)])
    torch.save(mean_z, tmp_path / "antonym_mean_head_activations.pt")
    torch.save(effects, tmp_path / "antonym_indirect_effect.pt")
    notices = ivlens.convert(
        tmp_path / "antonym_mean_head_activations.pt",
        tmp_path / "a.safetensors",
        effects=tmp_path / "antonym_indirect_effect.pt",
        model=str(folder),
        top=3,
    )
    found = InstructionVector.load(tmp_path / "a.safetensors")
    aie = effects[..., -1].mean(0)
    assert [float(aie[head]) for head in found.heads] == aie.flatten().topk(3).values.tolist()
    theirs = function_vectors_sum(folder, mean_z, list(found.heads))
    model = ivlens.load(folder)
    bias = sum(model.blocks[head.layer].attn.b_O for head in found.heads)
    near = rounding.bound(3 * 32, size=float(theirs.abs().max()))
    torch.testing.assert_close(found.vector, theirs - bias, rtol=0, atol=near)
    assert any("b_O, which function_vectors adds" in notice for notice in notices) == (family == "gpt2")
    assert notices[:2] == (
        "left out: means at 5 tokens before the last one",
        "left out: effects at 9 other classes of tokens",
    )
    assert (found.task, found.layer, found.model) == ("antonym", None, "tiny")
    assert found.mean_z is not None and same(found.mean_z, mean_z[:, :, -1].contiguous())
    with ivlens.steered(model, found, site="distributed"):
        assert model(torch.tensor([[3, 4]])).isfinite().all()


def test_mean_activations_go_out_with_one_token_and_come_back(vector: InstructionVector, tmp_path: Path) -> None:
    vector.save(tmp_path / "a.safetensors")
    path = tmp_path / "antonym_mean_head_activations.pt"
    notices = ivlens.convert(tmp_path / "a.safetensors", path)
    assert notices[0] == "mean-activations files have no place for the vector itself" and len(notices) == 7
    assert torch.load(path, weights_only=True).shape == (3, 4, 1, 8)
    assert vector.mean_z is not None and same(function_vectors.read_mean_activations(path)[0], vector.mean_z)
    with pytest.raises(IvlensError, match=r"needs the model .* and either their effects or the heads themselves"):
        ivlens.convert(path, tmp_path / "b.safetensors", model="lab")


def test_effects_go_to_function_vectors_and_come_back_to_the_bit(tmp_path: Path) -> None:
    cie = torch.randn(5, 3, 4, generator=GENERATOR)
    table = table_of(cie, torch.tensor([0, 1, 0, 1, 2]), torch.rand(5))
    (tmp_path / "effects.parquet").write_bytes(parquet.to_bytes(table.sample(frac=1, random_state=0)))
    there = tmp_path / "antonym_indirect_effect.pt"
    assert ivlens.convert(tmp_path / "effects.parquet", there) == (
        "indirect-effect files have no place for queries and unpatched probabilities",
    )
    assert same(torch.load(there, weights_only=True), cie)
    notices = ivlens.convert(there, tmp_path / "back.parquet")
    assert notices == ("queries and unpatched probabilities are not known: every prompt counts as a query",)
    others = {"mean_z": torch.zeros(3, 4, 8), "settings": Settings(), "task": "", "task_digest": ""}
    back = HeadEffects.from_frame(read_effects(tmp_path / "back.parquet")[0], **others, model="", model_digest="")
    assert same(back.cie, cie) and bool(back.baseline.isnan().all())
    with pytest.raises(IvlensError, match="are both of the form effects; copy the file"):
        ivlens.convert(tmp_path / "back.parquet", tmp_path / "again.parquet")


def test_heads_are_ranked_by_the_mean_over_queries_and_not_over_prompts(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """L0H0 leads among prompts, L0H1 among queries: four of five prompts ask the same one."""
    cie = torch.zeros(5, 3, 4)
    cie[:4, 0, 0], cie[4, 0, 1] = 1.0, 2.0
    queries = torch.tensor([0, 0, 0, 0, 1])
    (tmp_path / "e.parquet").write_bytes(parquet.to_bytes(table_of(cie, queries, torch.rand(5)).sample(frac=1)))
    torch.save(torch.randn(3, 4, 1, 8), tmp_path / "a_mean_head_activations.pt")
    ivlens.convert(
        tmp_path / "a_mean_head_activations.pt",
        tmp_path / "a.safetensors",
        effects=tmp_path / "e.parquet",
        model=str(checkpoint("llama")),
        top=1,
    )
    assert InstructionVector.load(tmp_path / "a.safetensors").heads == (Head(0, 1),)


def test_a_tensor_is_told_by_its_shape_and_where_that_is_not_enough_by_name(tmp_path: Path) -> None:
    for shape, form in (((32,), "function-vector"), ((1, 32), "function-vector"), ((1, 1, 32), "function-vector")):
        torch.save(torch.ones(shape), tmp_path / "a.pt")
        assert vector_formats.form_of(tmp_path / "a.pt", is_source=True) == form
        assert vector_formats.read_vector(tmp_path / "a.pt").vector.vector.shape == (32,)
    torch.save(torch.ones(5, 3, 4), tmp_path / "a.pt")
    assert vector_formats.form_of(tmp_path / "a.pt", is_source=True) == "indirect-effect"
    torch.save(torch.ones(5, 3, 4, 8), tmp_path / "a.pt")
    with pytest.raises(IvlensError, match=r"a tensor \(5, 3, 4, 8\), which may be mean activations or effects"):
        vector_formats.form_of(tmp_path / "a.pt", is_source=True)
    torch.save(torch.ones(2, 32), tmp_path / "a.pt")
    with pytest.raises(IvlensError, match=r"holds \(2, 32\), not one vector \[d_model\]"):
        vector_formats.read_vector(tmp_path / "a.pt")


class Touch:
    """A pickle that makes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content", [torch.tensor(1.0), torch.zeros(0), torch.zeros(2, 20), torch.ones(20) > 0], ids=str
)
def test_what_is_no_vector_is_refused(content: Tensor, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    torch.save({"layer_activations": {3: content}}, tmp_path / "steering.pt")
    np.save(tmp_path / "a.npy", content.numpy())
    for name in ("a.pt", "steering.pt", "a.npy"):
        with pytest.raises(IvlensError, match=re.escape(f"{tmp_path / name} ")):
            ivlens.convert(tmp_path / name, tmp_path / "b.safetensors", model="lab", layer=1)


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    torch.save({"layer_activations": {1: NUMBERS}, "more": Touch(tmp_path / "executed")}, tmp_path / "evil.pt")
    with pytest.raises(IvlensError, match=r"a pickle that asks for \w+.mkdir, which ivlens never runs"):
        ivlens.convert(tmp_path / "evil.pt", tmp_path / "a.npy")
    np.save(tmp_path / "evil.npy", np.array([Touch(tmp_path / "executed")]), allow_pickle=True)
    with pytest.raises(IvlensError, match=r"is an array of object"):
        ivlens.convert(tmp_path / "evil.npy", tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_the_command_converts_says_what_is_lost_and_explains_mistakes_in_one_line(
    vector: InstructionVector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        return main(["convert", *arguments]), *capsys.readouterr()

    vector.save(tmp_path / "a.safetensors")
    status, out, err = run(str(tmp_path / "a.safetensors"), str(tmp_path / "a.gguf"))
    assert (status, out) == (0, f"Wrote {tmp_path / 'a.gguf'}.\n")
    assert "ivlens: gguf files have no place for its 2 heads\n" in err and len(err.splitlines()) == 5
    status, out, err = run(str(tmp_path / "a.gguf"), str(tmp_path / "b.npy"), "--to", "numpy")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "--to is 'numpy'; did you mean npy? It must be one of vector, gguf," in err
    for number in ("x", "99999999999999999999"):
        status, _, err = run(str(tmp_path / "a.gguf"), str(tmp_path / "b.npy"), "--layer", number)
        assert status == 2 and len(err.splitlines()) == 1
