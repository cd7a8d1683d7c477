"""Models and tasks that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from checkpoints import build

import ivlens
from ivlens.checkpoints import known_models
from ivlens.datasets.task import Pair, Task
from ivlens.prompts.template import Template
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

WORD_TEMPLATE = Template(
    demonstration="Q : {input} A : {output} \n ",
    query="Q : {input} A :",
    instruction="{instruction} \n ",
)
"""A template in the words that the tiny random models' tokenizer knows."""


NEEDS_SMOLLM2 = "05_your_own_model.ipynb"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A notebook whose model was not fetched is skipped, with the reason."""
    if known_models.find("smollm2") is None:
        skip = pytest.mark.skip(reason=f"smollm2 is not there; {known_models.how_to_fetch('smollm2')}")
        for item in items:
            if item.path.name == NEEDS_SMOLLM2:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def lab() -> HookedTransformer:
    return ivlens.load("lab")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> HookedTransformer:
    """A random Llama-shaped model of 3 layers and 4 heads in float64, with a tokenizer of 109 words."""
    return ivlens.load(build("llama", tmp_path_factory.mktemp("tiny") / "model"), dtype="float64")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, built when it is first asked for; not to be written to."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = build(family, tmp_path_factory.mktemp(family) / "tiny")
        return made[family]

    return folder


@pytest.fixture(scope="session")
def word_task() -> Task:
    """w0 → w50, w1 → w51, ...: no structure that a random model could know."""
    return Task(
        name="words",
        pairs=tuple(Pair(f"w{i}", f"w{i + 50}") for i in range(40)),
        instructions=("w100 w101", "w102"),
        statement="w103 {input} w104",
    )


def random_tokens(
    n: int = 5, width: int = 14, answer: int = 3, *, vocab: int = 120, seed: int = 0, device: str = "cpu"
) -> Tokens:
    """Prompts of different lengths (padded with id 0 on the left) and answers of 1 to `answer` tokens."""
    generator = np.random.default_rng(seed)
    mask = torch.zeros(n, width, dtype=torch.bool)
    answer_mask = torch.zeros(n, answer, dtype=torch.bool)
    for i in range(n):
        mask[i, 2 * i :] = True
        answer_mask[i, : 1 + i % answer] = True
    ids = torch.as_tensor(generator.integers(3, vocab, (n, width)))
    answers = torch.as_tensor(generator.integers(3, vocab, (n, answer)))
    tokens = Tokens(prompts=ids * mask, mask=mask, answers=answers * answer_mask, answer_mask=answer_mask)
    return Tokens(**{name: getattr(tokens, name).to(device) for name in ("prompts", "mask", "answers", "answer_mask")})
