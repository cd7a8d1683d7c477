"""A tokenizer out of somebody's checkpoint is read within bounds, or refused in a sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_tokenizer

from ivlens.checkpoints.tokenizer import read_tokenizer
from ivlens.checkpoints.tokenizer_bounds import check_tokenizer
from ivlens.errors import LONGEST, ModelError
from ivlens.lab import MODEL

ENDLESS = "((.|.)*)*[qv]_projX"


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*parts: dict[str, Any], of: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", of: list(parts)}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Lowercase"} if depth == 0 else sequence(nested(depth - 1))


def beside(ids: int) -> dict[str, Any]:
    known = {"<bos>": {"id": "<bos>", "ids": [1] * ids, "tokens": ["<bos>"] * ids}}
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>"}}], "special_tokens": known}


DOUBLE = replace({"String": "w"}, "ww")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "doubled": ({"normalizer": sequence(*[DOUBLE] * 30)}, r"the normalizer in .* makes 1e\+09 n \+ 0 of n characters"),
    "doubled within": ({"normalizer": sequence(sequence(*[DOUBLE] * 5), sequence(*[DOUBLE] * 5))}, "makes 1024 n"),
    "between signs, again and again": (
        {"normalizer": sequence(*[replace({"String": ""}, "x" * 500)] * 200, DOUBLE)},
        r"makes 1e\+09 n \+ 1e\+09",
    ),
    "for every sign": ({"normalizer": replace({"Regex": "."}, "x" * 10**6)}, "may make 256 n"),
    "between signs": ({"normalizer": replace({"String": ""}, "x" * 500)}, "makes 501 n"),
    "in front": ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, r"makes 1 n \+ 1e\+06"),
    "bytes of bytes": ({"normalizer": sequence(*[{"type": "ByteLevel"}] * 20)}, "the normalizer"),
    "decoded": ({"decoder": sequence(*[DOUBLE] * 30, of="decoders")}, "the decoder"),
    "tokens beside": ({"post_processor": beside(10**6)}, "the post_processor"),
    "endless splitting": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ENDLESS}, "behavior": "Removed", "invert": False}},
        "fails on some lines of text .*PanicException",
    ),
    "endless replacing": ({"normalizer": replace({"Regex": ENDLESS}, "x")}, "fails on some lines of text"),
    "no expression": ({"normalizer": replace({"Regex": "(*"}, "x")}, "fails on some lines of text"),
    "packed": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "fails on some lines of text"),
    "packed and lying": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
        "comes to no end",
    ),
    "nested": ({"normalizer": nested(200)}, "is nested more than 50 deep"),
    "unexplained": (
        {"post_processor": {**beside(1), "special_tokens": {}}},
        "names '<bos>', which it does not explain",
    ),
    "at random": ({"model": {"type": "BPE", "dropout": 0.5}}, r"splits words at random \(dropout = 0.5\)"),
    "long words": ({"model": {"type": "WordPiece", "max_input_chars_per_word": 10**18}}, "reads words of 1,000,000,"),
}


def check(folder: Path, changed: dict[str, Any]) -> None:
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    content = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps(content))
    check_tokenizer(path, content)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_multiplies_or_does_not_end_is_refused(name: str, tmp_path: Path) -> None:
    changed, sentence = REFUSED[name]
    with pytest.raises(ModelError, match=sentence) as raised:
        check(tmp_path, changed)
    assert len(str(raised.value)) <= LONGEST


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
TAKEN: dict[str, dict[str, Any]] = {
    "none": {},
    "Llama 2": {"normalizer": sequence({"type": "Prepend", "prepend": "\u2581"}, replace({"String": " "}, "\u2581"))},
    "CLIP": {"normalizer": sequence({"type": "NFC"}, replace({"Regex": r"\s+"}, " "), {"type": "Lowercase"})},
    "Llama 3": {
        "pre_tokenizer": sequence(
            {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            of="pretokenizers",
        )
    },
    "folded again and again": {"normalizer": sequence(*[{"type": "NFKD"}] * 40)},
}


@pytest.mark.parametrize("name", TAKEN)
def test_usual_tokenizers_are_taken(name: str, tmp_path: Path) -> None:
    check(tmp_path, TAKEN[name])


def test_the_lab_is_not_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would cost every command a tenth of a second."""
    monkeypatch.setattr("ivlens.checkpoints.tokenizer_bounds._PROCESS", None)
    check_tokenizer(MODEL / "tokenizer.json", json.loads((MODEL / "tokenizer.json").read_text()))


VALUES = (None, True, 0, -1, 10**30, 1.5, "x", "", "\ud800", "x" * 10**5, [], [1], [None], {}, {"a": 1}, {"0": "x"})
FIELDS = (
    *("model_max_length", "chat_template", "padding_side", "truncation_side", "bos_token", "eos_token", "pad_token"),
    *("unk_token", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "add_bos_token"),
    *("clean_up_tokenization_spaces", "model_input_names", "split_special_tokens", "tokenizer_class", "auto_map"),
    *("add_prefix_space", "backend", "legacy", "name_or_path", "vocab_file", "tokenizer_file", "special_tokens"),
)


def set_field(folder: Path, field: str, value: object) -> None:
    write_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))


@pytest.mark.slow
def test_a_field_of_any_type_and_size_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    for field, value in random.Random(0).sample([(field, value) for field in FIELDS for value in VALUES], 40):
        set_field(tmp_path, field, value)
        try:
            tokenizer = read_tokenizer(tmp_path)
        except ModelError as error:
            assert len(str(error)) <= LONGEST
        else:
            assert tokenizer.decode(tokenizer.encode("w1 w2", add_special_tokens=False))


def test_a_length_that_is_no_number_is_refused(tmp_path: Path) -> None:
    set_field(tmp_path, "model_max_length", "x")
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be read: TypeError"):
        read_tokenizer(tmp_path)
