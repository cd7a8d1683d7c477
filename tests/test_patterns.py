"""An expression out of somebody's file matches what Python's engine matches, or is ended."""

from __future__ import annotations

import re
import time

import pytest

from ivlens import patterns
from ivlens.patterns import find_matches

PATHS = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1, 10) for name in "qkvo"] + ["lm_head", "a\n"]


@pytest.mark.parametrize(
    "pattern",
    ["q_proj", "model.layers.1.self_attn.q_proj", r"(.*\.)?(q_proj)$", r".*\.(q|v)_proj", "(?i)LM_.*", "a$", ""],
)
@pytest.mark.parametrize("whole", [False, True])
def test_it_matches_what_python_matches(pattern: str, whole: bool) -> None:
    match = re.compile(pattern).fullmatch if whole else re.compile(pattern).match
    assert find_matches([pattern, "lm_head"], PATHS, whole=whole) == [
        [number for number, path in enumerate(PATHS) if match(path)],
        [PATHS.index("lm_head")],
    ]


@pytest.mark.slow
def test_matching_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 1.0)
    start = time.process_time()
    with pytest.raises(ValueError, match="take more than 1 s, or more memory than they may; name layers in a list"):
        find_matches(["q_proj", "((.|.)*)*[qv]_projX"], PATHS, whole=True)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("*proj", r"'\*proj' is not a regular expression \(nothing to repeat"),
        ("a{99999999999}", "is not a regular expression"),
        ("(" * 5000 + ")" * 5000, "is not a regular expression"),
    ],
)
def test_what_is_no_expression_is_said(pattern: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        find_matches([pattern], ())
    assert len(str(raised.value)) < 400


def test_names_alone_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_PROCESS", None)
    assert find_matches([r"(.*\.)?(model.layers.1.self_attn.q_proj)$"], PATHS) == [[4]]


def test_more_expressions_than_any_model_has_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 10,001 expressions; 10,000 at most are read"):
        find_matches(["q_proj"] * 10_001, PATHS)
