"""Random streams are named in one place, and their values stay."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import ivlens
from ivlens.random_streams import Stream, open_stream

PACKAGE = Path(ivlens.__file__).parent
# What has been published with them would change with the values. Names that share one draw what never meets.
VALUES = {
    0: {"SPLIT_PAIRS", "RESAMPLES", "BENCHMARK_VALIDATION", "LAB_DOCUMENTS", "LAB_QUERIES"},
    1: {"CLEAN_PROMPTS", "BENCHMARK_LIMIT", "LAB_DEMONSTRATIONS"},
    2: {"CORRUPTED_PROMPTS"},
    3: {"RANDOM_HEADS"},
    4: {"LOW_AIE_HEADS"},
    5: {"OTHER_TASKS"},
    6: {"BASELINE_PROMPTS"},
    7: {"TRAINING_ORDER"},
    8: {"REPLAYED"},
    9: {"REPLAY_MEMORY"},
    10: {"ABILITY_PROMPTS", "ABLATION_PROMPTS"},
    11: {"GENERAL_PROMPTS"},
    12: {"GAUSSIANS"},
    13: {"TASK_ORDER"},
    14: {"GUIDE_DEMONSTRATIONS"},
    15: {"ANSWERED_PROMPTS"},
    16: {"SIGNS"},
    17: {"TRAINED_VECTOR"},
    18: {"WRONG_LABELS"},
    29: {"RANDOM_UPDATES"},
}


def test_no_name_changes_its_value_and_no_two_share_one_unsaid():
    found = defaultdict(set)
    for name, stream in Stream.__members__.items():
        found[stream.value].add(name)
    assert found == VALUES


def calls_of_generators(source: str) -> list[int]:
    """Lines that make a generator of NumPy."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [node.lineno for node in nodes if ast.unparse(node.func).split(".")[-1] == "default_rng"]


@pytest.mark.parametrize("source", ["np.random.default_rng([seed, 3])", "default_rng(0)", "random.default_rng(s)"])
def test_a_stream_without_a_name_is_found(source: str):
    assert calls_of_generators(source) == [1]


@pytest.mark.slow
def test_every_stream_has_a_name():
    found = {
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "random_streams.py"
        for line in calls_of_generators(path.read_text(encoding="utf-8"))
    }
    assert not found


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("numbers", [(), (4,)])
def test_a_stream_is_that_of_seed_and_value(stream: Stream, numbers: tuple[int, ...]):
    ours, plain = open_stream(7, stream, *numbers), np.random.default_rng([7, stream.value, *numbers])
    assert ours.random(5).tolist() == plain.random(5).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_stream_0_is_that_of_the_seed_alone(seed: int):
    ours = open_stream(seed, Stream.SPLIT_PAIRS)
    assert ours.random(5).tolist() == np.random.default_rng(seed).random(5).tolist()
