"""Whatever is given in place of something else is answered with what to give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import random_hooked
from conftest import WORD_TEMPLATE
from transformers import LlamaConfig, LlamaForCausalLM

import ivlens
from ivlens.datasets.task import Task
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FRAME = pd.DataFrame({"word": ["hot", "up"], "opposite": ["cold", "down"]})
PAIRS = [("hot", "cold"), ("up", "down")]
FEW: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}
PLACE: dict[str, Any] = {**FEW, "layer": 1, "scale": 1.0}
LAB = Path(ivlens.__file__).parent / "lab" / "model"
Call = Callable[["HookedTransformer", Task], object]


def hugging_face() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))


def steer(model: Any, vector: Any, **options: Any) -> None:
    with ivlens.steered(model, vector, **options):
        pass


def vector_of_another_model(model: HookedTransformer, words: Task) -> ivlens.InstructionVector:
    vector = ivlens.instruction_vector(model, words, heads="L0H1", **PLACE)
    other = random_hooked("llama", n_layers=2, d_model=20, d_head=6, d_mlp=28, d_vocab=40)
    steer(other, vector)
    return vector


WRONG: dict[str, tuple[Call, str]] = {
    # A model
    "audits of a model in memory": (
        lambda model, words: ivlens.audit_many([model], "antonym", out="audits"),
        "a model is a HookedTransformer; give names or paths: workers load their own",
    ),
    "no model": (lambda m, t: ivlens.load(None), "a NoneType is not a model; give 'lab', a folder, a hub id"),
    "a number for a model": (lambda m, t: ivlens.audit(7, t), "a int is not a model; give 'lab', a folder"),
    "a task for a model": (lambda m, t: ivlens.indirect_effects(t, t), "a Task is not a model; the model comes first"),
    "a model of transformers": (
        lambda m, t: ivlens.audit(hugging_face(), t),
        "a LlamaForCausalLM is not a model; a model of transformers is loaded from the folder of its save_pretrained",
    ),
    "a user that there is not": (
        lambda m, t: ivlens.load("~nobody/x"),
        "there is no folder '~nobody/x'; give a Hugging",
    ),
    "a folder that is not there": (
        lambda m, t: ivlens.compare("./nowhere", "lab", t),
        "there is no folder './nowhere'; give a Hugging Face folder, a hub id, or 'lab'",
    ),
    "a file for a model": (
        lambda m, t: ivlens.load(__file__),
        "is a file; give a GGUF file, or the folder that has config.json",
    ),
    "a frame for a tuned model": (
        lambda m, t: ivlens.compare(m, FRAME, t, **FEW),
        "a DataFrame is not a model; give 'lab', a folder, a hub id",
    ),
    "a word for a device": (lambda m, t: ivlens.load("lab", device="gpu"), "'gpu' is not a device; give auto, cpu, cu"),
    "a dtype of torch": (
        lambda m, t: ivlens.load("lab", dtype=torch.float32),
        "torch.float32 is not a dtype ivlens computes in; did you mean float32? Give auto, float32",
    ),
    # What to explore
    "texts to explore": (
        lambda m, t: ivlens.explore(m, ["hot is", "up is"], ivlens.indirect_effects(m, t, **FEW)),
        "a str is no prompt; give what ivlens.prompts.zero_shot(pairs) returns, or a task",
    ),
    "a number to explore": (lambda m, t: ivlens.explore(m, 7), "a int is no task; give a name out of ivlens.tasks()"),
    "a frame for effects": (
        lambda m, t: ivlens.explore(m, t, FRAME),
        "a DataFrame is no effects; give what ivlens.indirect_effects returns",
    ),
    # A task
    "no task": (lambda m, t: ivlens.audit(m, None), "None is no task; give a name out of ivlens.tasks(), the path of"),
    "model and task the wrong way round": (
        lambda m, t: ivlens.audit("antonym", "lab"),
        "'lab' is a model, no task; the model comes first, then the task",
    ),
    "a model for a task": (lambda m, t: ivlens.audit(t, m), "a HookedTransformer is a model, no task; the model comes"),
    "a model's folder for a task": (
        lambda m, t: ivlens.task(LAB),
        "is the folder of a model, no task; the model comes",
    ),
    "a frame for a task": (
        lambda m, t: ivlens.indirect_effects(m, FRAME),
        "a DataFrame is no task yet; give ivlens.Task.from_frame(frame, input=..., output=...)",
    ),
    "pairs for a task": (
        lambda m, t: ivlens.instruction_vector(m, PAIRS),
        "a list is no task yet; give ivlens.Task.from_pairs(pairs, name=...) of its pairs",
    ),
    "the class for a task": (lambda m, t: ivlens.audit(m, Task), "the class Task is no task; give a name out of"),
    "a name that is nearly one": (
        lambda m, t: ivlens.audit(m, "antonymn"),
        "there is no built-in task and no file 'antonymn'; did you mean antonym",
    ),
    "a file that is not there": (
        lambda m, t: ivlens.universal_heads(m, ["antonym", "./nowhere.json"]),
        "no built-in task and no file './nowhere.json'; `ivlens tasks` lists",
    ),
    # Pairs
    "plain tuples in a task": (
        lambda m, t: Task(name="x", pairs=tuple(PAIRS)),
        "task 'x' has ('hot', 'cold') for a pair; give ivlens.Task.from_pairs(pairs, name=...)",
    ),
    "one text for instructions": (
        lambda m, t: Task(name="x", pairs=t.pairs, instructions="Do it."),
        "the instructions of task 'x' are one text; give a list of wordings",
    ),
    "words for pairs": (lambda m, t: Task.from_pairs(["hot", "up"], name="x"), "pair 1 is 'hot'; give an input and an"),
    "a text for pairs": (lambda m, t: Task.from_pairs("hot", name="x"), "the pairs of task 'x' are a str; give a list"),
    "no pairs": (lambda m, t: Task.from_pairs([], name="x"), "task 'x' has no pairs; give a list such as [('hot', 'co"),
    "a column that is nearly one": (
        lambda m, t: Task.from_frame(FRAME, input="words", output="opposite"),
        "the table has no column 'words'; did you mean word?",
    ),
    "a list for a table": (
        lambda m, t: Task.from_frame(PAIRS, input="word", output="opposite"),
        "a list is no table; give a pandas DataFrame, or ivlens.Task.from_pairs(pairs, name=...)",
    ),
    # Options
    "an option that is nearly one": (
        lambda m, t: ivlens.indirect_effects(m, t, shot=5),
        "there is no option 'shot'; did you mean shots?",
    ),
    "negative shots": (lambda m, t: ivlens.audit(m, t, shots=-1), "shots is -1; it must be 0 or more"),
    "half a shot": (lambda m, t: ivlens.audit(m, t, shots=2.5), "shots is 2.5; it must be a whole number"),
    "a corruption that there is not": (
        lambda m, t: ivlens.indirect_effects(m, t, corruption="shuffle"),
        "corruption is 'shuffle'; it must be 'shuffled' or 'zero-shot'",
    ),
    "a template by name": (
        lambda m, t: ivlens.indirect_effects(m, t, template="arrow"),
        "template is 'arrow', no template; give ivlens.template('arrow', model)",
    ),
    "a template that is nearly one": (lambda m, t: ivlens.template("arow"), "did you mean arrow?"),
    "memory that is no size": (
        lambda m, t: ivlens.indirect_effects(m, t, memory="lots"),
        "memory is 'lots'; write a size above 0 such as 2GiB, 500MB or 1048576",
    ),
    "no memory": (lambda m, t: ivlens.audit(m, t, memory=0), "memory is 0; write a size above 0"),
    # Heads and layers
    "a number for heads": (
        lambda m, t: ivlens.instruction_vector(m, t, heads=5, **PLACE),
        "heads is 5; give heads such",
    ),
    "numbers for heads": (
        lambda m, t: ivlens.instruction_vector(m, t, heads=[0, 1], **PLACE),
        "0 is not a head; write it as L9H6, or (9, 6)",
    ),
    "heads that the model lacks": (
        lambda m, t: ivlens.instruction_vector(m, t, heads="L9H6", **PLACE),
        "there is no head L9H6: the model has 3 layers of 4 heads",
    ),
    "a head that is nearly one": (
        lambda m, t: ivlens.audit(m, t, heads="L0H1,H3", **FEW),
        "'H3' is not a head; write it as L9H6 (layer 9, head 6, counted from 0)",
    ),
    "universal heads of one vector": (
        lambda m, t: ivlens.instruction_vector(m, t, heads="universal", **PLACE),
        "heads is 'universal', which audits take; give the heads of ivlens.universal_heads(model)",
    ),
    "a layer that the model lacks": (
        lambda m, t: ivlens.instruction_vector(m, t, heads="L0H1", **{**PLACE, "layer": 3}),
        "there is no layer 3: the model has 3 layers, counted from 0",
    ),
    "no layer": (
        lambda m, t: ivlens.instruction_vector(m, t, heads="L0H1", **{**PLACE, "layer": "last"}),
        "layer is 'last'; it must be a whole number",
    ),
    "a layer that is a truth": (
        lambda m, t: ivlens.instruction_vector(m, t, heads="L0H1", **{**PLACE, "layer": True}),
        "layer is True; it must be a whole number",
    ),
    "more heads than there are": (lambda m, t: ivlens.universal_heads(m, t, top=13), "top is 13, but the model has 12"),
    # Vectors
    "a tensor for a vector": (
        lambda m, t: steer(m, torch.zeros(32)),
        "a Tensor is no vector; give what ivlens.instruction_vector returns, or the path of its file",
    ),
    "a vector's file that is not there": (lambda m, t: steer(m, "./vector.safetensors"), "vector.safetensors"),
    "a text for a position": (
        lambda m, words: steer(m, ivlens.instruction_vector(m, words, heads="L0H1", **PLACE), position="-1"),
        "position is '-1'; give the number of a token, such as -1, or several",
    ),
    "a vector of another model": (
        vector_of_another_model,
        "the vector of .* has width 32, but .* has d_model 20; build",
    ),
    # Prompts
    "a pair in the place of a prompt": (
        lambda m, t: ivlens.ask(m, [("hot", "cold")]),  # pyright: ignore
        "a prompt is of type tuple; give a text, or prompts such as ivlens.prompts.zero_shot(pairs)",
    ),
    "nothing in the place of prompts": (
        lambda m, t: ivlens.ask(m, None),  # pyright: ignore
        "a prompt is of type NoneType; give a text, or",
    ),
    "no text in the place of a prompt": (lambda m, t: ivlens.ask(m, " "), "a prompt is empty; give a text, such as"),
    "an accuracy of texts": (
        lambda m, t: ivlens.ask(m, "w1 w2").accuracy,
        "1 of 1 prompts have no answer to score; give prompts that have, such",
    ),
    # Runs and studies
    "a study that is nearly one": (
        lambda m, t: ivlens.study("lab-fun", out="run"),
        "no file 'lab-fun' .* did you mean lab-func? Built-in are lab-factorial, lab-func",
    ),
    "a report of no folder": (lambda m, t: ivlens.report("./nowhere"), "nowhere"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_told_what_to_give(
    tiny: HookedTransformer, word_task: Task, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    call, sentence = WRONG[name]
    # Under pytest alone, annotations are checked at every call.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ivlens.IvlensError) as caught:
        call(tiny, word_task)
    said = str(caught.value)
    parts = sentence.split(" .* ")
    assert all(part in said for part in parts), said
    assert "\n" not in said


@pytest.mark.slow
def test_heads_are_taken_however_they_are_written(
    tiny: HookedTransformer, word_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wanted = ivlens.instruction_vector(tiny, word_task, heads=[Head(0, 1), Head(2, 3)], **PLACE)
    (tmp_path / "heads.json").write_text('["L0H1", [2, 3]]')
    written: list[Any] = ["L0H1,L2H3", ["L0H1", "L2H3"], [(0, 1), (2, 3)], np.array([[0, 1], [2, 3]])]
    for heads in [*written, tmp_path / "heads.json"]:
        found = ivlens.instruction_vector(tiny, word_task, heads=heads, **PLACE)
        assert found.heads == wanted.heads and found.vector.equal(wanted.vector)
        assert all(type(number) is int for head in found.heads for number in head)
    one = ivlens.instruction_vector(tiny, word_task, heads=Head(0, 1), **{**PLACE, "layer": np.int64(1)})
    assert one.heads == (Head(0, 1),) and type(one.layer) is int


@pytest.mark.slow
def test_names_paths_and_sizes_give_what_objects_and_bytes_give(
    tiny: HookedTransformer, word_task: Task, folders: Callable[[str], Path], tmp_path: Path
):
    folder = folders("llama")
    wanted = ivlens.indirect_effects(ivlens.load(folder), word_task, **FEW)
    found = ivlens.indirect_effects(folder, word_task, memory="1GiB", **FEW)
    assert found.cie.equal(wanted.cie)
    vector = ivlens.instruction_vector(str(folder), word_task, heads="L0H1", memory="1 GB", **PLACE)
    vector.save(tmp_path / "vector.safetensors")
    with ivlens.steered(folder, tmp_path / "vector.safetensors") as model:
        assert model.cfg.n_layers == 3
    with ivlens.steered(tiny, vector) as model:
        assert model is tiny
    assert ivlens.task(word_task) is word_task


def test_only_public_names_are_shown():
    assert dir(ivlens) == sorted([*ivlens.__all__, "__version__"])
    assert ivlens.__version__.count(".") == 2
