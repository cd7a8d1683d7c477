"""A template writes the bytes that it promises; the others' code, done again here, writes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ivlens
from ivlens.datasets.task import Pair
from ivlens.errors import PromptError
from ivlens.prompts.template import NAMED, Template, find_template

PAIRS = [Pair("up", "down"), Pair("big", "small")]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=6)
PARTS = st.fixed_dictionaries({"input": TEXTS, "output": TEXTS, "instructions": TEXTS})


def theirs(
    prefixes: dict[str, str], separators: dict[str, str], shown: list[Pair], query: str, instruction: str
) -> str:
    """What function_vectors feeds a model, from the description of its format: every part between its two texts."""
    sentence = [prefixes["instructions"], instruction, separators["instructions"]]
    for pair in shown:
        for side, text in (("input", pair.input), ("output", pair.output)):
            sentence += [prefixes[side], " ", text, separators[side]]
    return "".join([*sentence, prefixes["input"], " ", query, separators["input"], prefixes["output"]])


@pytest.mark.slow
@given(prefixes=PARTS, separators=PARTS, sides=st.lists(st.tuples(TEXTS, TEXTS), max_size=3), query=TEXTS)
def test_prefixes_and_separators_are_written_as_function_vectors_writes_them(
    prefixes: dict[str, str], separators: dict[str, str], sides: list[tuple[str, str]], query: str
) -> None:
    shown = [Pair(*both) for both in sides]
    template = Template.from_function_vectors(prefixes, separators)
    prompt = template.render(Pair(query, "x"), demonstrations=shown, instruction="Do it.")
    assert prompt.text == theirs(prefixes, separators, shown, query, "Do it.")
    assert prompt.answer == " x"
    bare = template.render(Pair(query, "x"), demonstrations=shown)
    assert bare.text == theirs({**prefixes, "instructions": ""}, {**separators, "instructions": ""}, shown, query, "")


def test_what_is_left_out_is_function_vectors_default() -> None:
    usual: tuple[dict[str, str], dict[str, str]] = (
        {"input": "Q:", "output": "A:", "instructions": ""},
        {"input": "\n", "output": "\n\n", "instructions": ""},
    )
    assert Template.from_function_vectors() == Template.from_function_vectors(*usual) == NAMED["function-vectors"]
    text = find_template("function-vectors").render(Pair("hot", "cold"), demonstrations=PAIRS).text
    assert text == theirs(*usual, PAIRS, "hot", "") == "Q: up\nA: down\n\nQ: big\nA: small\n\nQ: hot\nA:"
    assert Template.from_function_vectors({"output": "B:"}).query == "Q: {input}\nB:"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qa", "Do it.\nQ: up\nA: down\n\nQ: hot\nA:"),
        ("function-vectors", "Do it.Q: up\nA: down\n\nQ: hot\nA:"),
        ("arrow", "Do it.\nup -> down\nhot ->"),
        ("input-output", "Do it.\nInput: up\nOutput: down\n\nInput: hot\nOutput:"),
        ("plain", "Do it.\nup down\n\nhot"),
    ],
)
def test_named_templates_write_what_their_names_say(name: str, text: str) -> None:
    prompt = ivlens.template(name).render(Pair("hot", "cold"), demonstrations=PAIRS[:1], instruction="Do it.")
    assert (prompt.text, prompt.answer) == (text, " cold")


def test_every_named_template_is_tested() -> None:
    assert set(NAMED) == {"qa", "function-vectors", "arrow", "input-output", "plain"}
    assert find_template("qa") == Template()


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "layout.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_template_comes_in_full_from_a_file(tmp_path: Path) -> None:
    own = {
        "demonstration": "{input}={output};",
        "query": "{input}=",
        "instruction": "[{instruction}]",
        "answer": "{output}",
    }
    found = ivlens.template(written(tmp_path, own))
    prompt = found.render(Pair("hot", "cold"), demonstrations=PAIRS, instruction="Do.")
    assert (prompt.text, prompt.answer) == ("[Do.]up=down;big=small;hot=", "cold")
    assert find_template(written(tmp_path, {"query": "{input}?"})) == Template(query="{input}?")
    content = {"prefixes": {"input": "in", "output": "out"}, "separators": {"output": "|"}}
    assert find_template(written(tmp_path, content)) == Template.from_function_vectors(**content)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"layout\.json is not JSON: .* at line 1"),
        ([], "a template is a JSON object of demonstration, query, instruction and answer; write one"),
        ({"question": "{input}"}, "unknown key 'question'; known are demonstration, query, instruction, answer"),
        ({"query": "Q:"}, r"the template's query is 'Q:', without \{input\}; add it"),
        ({"query": 3}, "'query' is a number"),
        ({"prefixes": {}, "query": "{input}"}, "unknown key 'query'; known are prefixes, separators"),
        ({"prefixes": {"inputs": "Q:"}}, "unknown key 'inputs' of prefixes; known are input, output, instructions"),
        ({"separators": {"input": "{output}"}}, r"separators have '\{output\}' for input; \{output\} is filled in by"),
        ({"prefixes": {"input": None}}, "'prefixes' is null"),
    ],
)
def test_a_bad_template_file_is_refused_in_a_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(PromptError, match=sentence) as caught:
        find_template(path)
    assert str(caught.value).startswith(str(path))


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(PromptError, match="no template and no file 'arow'; did you mean arrow"):
        find_template("arow")
    with pytest.raises(PromptError, match="there are qa, function-vectors, arrow, input-output, plain, chat"):
        find_template("/nowhere.json")
    with pytest.raises(PromptError, match="a chat template is the tokenizer's; give the model"):
        ivlens.template("chat")
