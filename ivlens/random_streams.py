"""Which random numbers decide what? Every draw of ivlens comes from a stream that has a name here.

From one seed, streams of two values are independent: drawing more prompts changes no control. Names of one value draw
the same numbers, which is no harm where their draws never meet, as with those below. A new name takes a new value.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What is drawn. A value decides numbers that were published: it stays as it is."""

    SPLIT_PAIRS = 0
    """Which pairs of a task give means, rank heads, choose places and are reported; which are trained on."""
    RESAMPLES = 0
    """Samples of the bootstrap."""
    BENCHMARK_VALIDATION = 0
    """Which training examples of a benchmark are kept back to validate on."""
    LAB_DOCUMENTS = 0
    LAB_QUERIES = 0
    """Which queries of a lab task are asked."""
    CLEAN_PROMPTS = 1
    """Demonstrations of the prompts that give mean head outputs."""
    BENCHMARK_LIMIT = 1
    """Which examples of a benchmark stay where it has more than are wanted."""
    LAB_DEMONSTRATIONS = 1
    CORRUPTED_PROMPTS = 2
    """Demonstrations of the prompts that heads are patched on, and how their outputs are permuted."""
    RANDOM_HEADS = 3
    LOW_AIE_HEADS = 4
    OTHER_TASKS = 5
    """Whose vectors are controls."""
    BASELINE_PROMPTS = 6
    """Demonstrations of the prompts on which the unsteered model is reported."""
    TRAINING_ORDER = 7
    """Order of the training examples, epoch by epoch."""
    REPLAYED = 8
    """Which examples of before are trained on again, step by step."""
    REPLAY_MEMORY = 9
    """Which examples are kept for replay, stage by stage."""
    ABILITY_PROMPTS = 10
    """Demonstrations of the prompts that tell which tasks a model can do."""
    ABLATION_PROMPTS = 10
    """Pairs of other tasks whose prompts give the means in the place of ablated heads."""
    GENERAL_PROMPTS = 11
    """Queries and demonstrations of general tasks in a study."""
    GAUSSIANS = 12
    """Directions that no head wrote."""
    TASK_ORDER = 13
    """In which order the tasks of a study are learned."""
    GUIDE_DEMONSTRATIONS = 14
    """Demonstrations of the prompts that a guidance's vector is taken from."""
    ANSWERED_PROMPTS = 15
    """Demonstrations of the prompts that tell which queries a model answers right."""
    SIGNS = 16
    """Which samples change their sign, to see what means are without an effect."""
    TRAINED_VECTOR = 17
    """Where the training of a vector begins."""
    WRONG_LABELS = 18
    """Which pairs get another one's output, and whose."""
    RANDOM_UPDATES = 29
    """Updates of weights that no training made."""


def open_stream(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    """A stream, from its start.

    Stream 0 is that of the seed alone, which NumPy fills up with zeros.

    Args:
        seed: 0 or more.
        numbers: Which of several of its kind, such as the epoch.
    """
    return np.random.default_rng([seed, stream, *numbers])
