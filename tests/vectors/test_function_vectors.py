"""Files of the function-vectors benchmark, which this project did not write, are read and audited as they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import build, write_byte_tokenizer
from transformer_lens import HookedTransformer

import ivlens
from ivlens.datasets.task import Pair, Task, TaskWarning, task
from ivlens.errors import PromptError
from ivlens.patching.effects import ranking_prompts
from ivlens.patching.settings import Settings

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "function_vectors"
FILES = sorted(FOLDER.glob("*.json"))
SMALL: dict[str, Any] = {"shots": 2, "clean_prompts": 3, "prompts": 3, "top": 2, "draws": 1, "other_tasks": 1}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*are given several outputs:ivlens.errors.TaskWarning"),
    pytest.mark.filterwarnings("ignore:.*whose first token begins other answers:ivlens.errors.TaskWarning"),
]
SPELLED = pytest.mark.filterwarnings("ignore:.*letter by letter:ivlens.errors.TaskWarning")
needs_files = pytest.mark.skipif(not FILES, reason=f"the benchmark's files are not in {FOLDER}")


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> HookedTransformer:
    """A random GPT-2-shaped model of 3 layers that reads any text, byte for byte."""
    sizes = {"vocab_size": 257, "n_positions": 1024, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    folder = build("gpt2", tmp_path_factory.mktemp("models") / "bytes", **sizes)
    write_byte_tokenizer(folder)
    return ivlens.load(folder)


@needs_files
@SPELLED
@pytest.mark.long
@pytest.mark.parametrize("path", FILES or [FOLDER], ids=lambda path: path.stem)
def test_every_file_is_read_and_audited(bytewise: HookedTransformer, path: Path) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    whole = task(path)
    assert whole.name == path.stem
    assert {(pair.input, output) for pair in whole.pairs for output in pair.outputs} == {
        (entry["input"].strip(), entry["output"].strip()) for entry in raw
    }
    # All prompts of hundreds of pairs would take minutes.
    some = dataclasses.replace(whole, pairs=whole.pairs[:16])
    found = ivlens.audit(bytewise, some, **SMALL)
    assert found.vector.task == path.stem and len(found.vector.heads) == 2
    few = found.measures.set_index("measure").loc["few-shot"]
    assert few["prompts"] == len(some.split(shots=2).evaluation) and 0 <= few["probability"] <= 1


@pytest.mark.slow
@needs_files
def test_words_that_a_model_cannot_read_are_told(tiny: HookedTransformer) -> None:
    found = task(FOLDER / "antonym.json")
    with pytest.raises(
        PromptError, match=r"has no tokens for any answer of task 'antonym' \(.* more\); give a task in"
    ):
        ivlens.indirect_effects(tiny, found, shots=2, prompts=5, clean_prompts=3)


def test_words_that_a_model_only_spells_are_warned_of(lab: HookedTransformer) -> None:
    known = task("antonym")
    backwards = tuple(Pair(pair.input, f"{pair.output[::-1]}zzz") for pair in known.pairs)
    settings = Settings(shots=2, prompts=8)
    with pytest.warns(TaskWarning, match=r"of lab spells most answers of task 'antonym' letter by letter \('\w+zzz'"):
        ranking_prompts(lab, dataclasses.replace(known, pairs=backwards), settings)
    ranking_prompts(lab, known, settings)


def test_some_words_that_a_model_cannot_read_are_warned_of(tiny: HookedTransformer, word_task: Task) -> None:
    pairs = [Pair(pair.input, "zebra") if i % 3 == 0 else pair for i, pair in enumerate(word_task.pairs)]
    mixed = dataclasses.replace(word_task, pairs=tuple(pairs))
    settings = Settings(shots=2, prompts=8)
    asked = mixed.split(shots=2).rank[:8]
    lost = sum(pair.output == "zebra" for pair in asked)
    assert 0 < lost < 8
    with pytest.warns(TaskWarning, match=rf"no tokens for {lost} of 8 answers of task 'words' \('zebra'\): on these"):
        ranking_prompts(tiny, mixed, settings)
