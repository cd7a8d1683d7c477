"""How can a prompt show a task, and how can the task be taken out of it?

These stand alone, so that what is made of them, such as options of the command line, costs nothing to import.
"""

from __future__ import annotations

from typing import Literal

Source = Literal["demonstrations", "instruction"]
"""Where clean prompts show the task."""
Corruption = Literal["shuffled", "zero-shot"]
"""Outputs of the demonstrations permuted, or the query alone."""
Score = Literal["greedy-match", "exact", "first-word", "contains", "f1", "rouge-l"]
"""Would greedy decoding write exactly the answer's tokens, or how right is the reply that is written?"""
GREEDY_MATCH: Score = "greedy-match"
ScoreChoice = Literal["auto", "greedy-match", "exact", "first-word", "contains", "f1", "rouge-l"]
"""A score, or the one that fits the template: `contains` in conversations, as chat models answer in sentences."""
SCORE_WORDS = (
    "What an accuracy is of: greedy match of the answer's tokens, or the reply that is written, scored. auto: contains "
    "with a chat template, else greedy-match."
)
Bos = Literal["auto", "yes", "no"]
"""Whether prompts begin with the tokenizer's BOS token; `auto`: where the model is used to it."""
