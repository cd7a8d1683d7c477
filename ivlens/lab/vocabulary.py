"""Which pieces does the lab model read and write?

The vocabulary is written down, not learned: every word of the tasks is one piece with its leading space, the parts of
the template are one piece each, and single characters and bytes spell everything else. Text is cut in front of
spaces only, so a prompt and its answer are tokenised as if each stood alone.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ivlens.datasets.task import Task

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = [PAD, BOS, EOS, UNKNOWN]
PAD_ID, BOS_ID, EOS_ID, UNKNOWN_ID = range(len(SPECIAL))
TEMPLATE = ["Q:", "\nQ:", "\n\nQ:", "\nA:", "\n\n", "\n"]
CHARACTERS = string.printable + "àâäáåæçèéêëìíîïñòóôöœøùúûüÿßÀÂÄÁÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖŒØÙÚÛÜ¡¿«»–—’“”…€"
CONTEXT = 256
"""Tokens that the model can read."""

# The segmentation with the highest sum wins: a word beats its spelling, a spelling beats bytes.
WORD_SCORE, CHARACTER_SCORE, BYTE_SCORE = -1.0, -10.0, -1000.0


def vocabulary(tasks: Iterable[Task]) -> list[tuple[str, float]]:
    """All pieces with their scores; the place in the list is the id."""
    pieces = dict.fromkeys(SPECIAL, 0.0)
    pieces.update({f"<0x{byte:02X}>": BYTE_SCORE for byte in range(256)})
    pieces.update(dict.fromkeys(CHARACTERS, CHARACTER_SCORE))
    pieces.update(dict.fromkeys(TEMPLATE, WORD_SCORE))
    pieces.update(dict.fromkeys(_words(tasks), WORD_SCORE))
    return list(pieces.items())


def _words(tasks: Iterable[Task]) -> list[str]:
    """Words with the space before them; without it where they open a line."""
    found: set[str] = set()
    for task in tasks:
        for text in filter(None, [*task.instructions, task.statement]):
            first, *rest = _split(text.replace("{input}", ""))
            found.update([first, *(f" {word}" for word in rest)])
        for text in (side for pair in task.pairs for side in pair):
            found.update(f" {word}" for word in _split(text))
    return sorted(found)


def _split(text: str) -> list[str]:
    return re.findall(r"[^\s,.?]+", text)


def tokenizer(tasks: Iterable[Task]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the tasks' words and can spell any other text.

    It cuts in front of spaces with `Split` where Metaspace would be customary: Metaspace writes a space and a
    literal "▁" alike, and text with the latter could not be read back.
    """
    inner = Tokenizer(models.Unigram(vocabulary(tasks), unk_id=UNKNOWN_ID, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(" "), behavior="merged_with_next")
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
