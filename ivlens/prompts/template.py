"""How are a query, its demonstrations and an instruction written down?

Source of the default: Todd et al. 2024, arXiv:2310.15213 (`Q: ...`, `A: ...`, a blank line between), whose code writes
any such layout as `prefixes` and `separators` (`src/utils/prompt_utils.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from ivlens.datasets.task import Pair, exists
from ivlens.errors import IvlensError, PromptError, list_choices
from ivlens.prompts.choices import Bos
from ivlens.storage.json_files import check_object, read_given_json

PLACES = ("{input}", "{output}", "{instruction}")
PREFIXES = {"input": "Q:", "output": "A:", "instructions": ""}
SEPARATORS = {"input": "\n", "output": "\n\n", "instructions": ""}
"""What function_vectors puts in front of and behind its parts unless told otherwise."""


class Span(NamedTuple):
    """Which characters of a prompt's text are of which part."""

    part: Literal["instruction", "separator", "input", "output", "query"]
    """`input` and `output` of a demonstration; `separator` is what the template writes around them."""
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Text up to where the answer begins, and the answer, leading space included.

    >>> prompts.Template().render(pairs[0])
    Prompt(text='Q: big\\nA:', answer=' small', query=Pair(input='big', output='small'))
    """

    text: str
    answer: str
    query: Pair
    bos: Bos = field(default="auto", repr=False)
    spans: tuple[Span, ...] = field(default=(), repr=False, compare=False)
    """The parts of the text in their order; none where they are not known, as of a conversation."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a query, its demonstrations and an instruction are written down.

    `{input}`, `{output}` and `{instruction}` are filled in as they are: braces inside them stay text.

    Raises:
        PromptError: a part without what is to be filled in there.

    >>> ivlens.Template(query="{input} means", demonstration="{input} means {output}.\\n").render(task.pairs[0]).text
    'big means'
    """

    demonstration: str = "Q: {input}\nA: {output}\n\n"
    query: str = "Q: {input}\nA:"
    instruction: str = "{instruction}\n"
    answer: str = " {output}"
    """The answer as the model continues the query, leading space included."""
    bos: Bos = "auto"
    """Whether a prompt begins with the tokenizer's BOS token; `auto`: where the model is used to it."""

    def __post_init__(self) -> None:
        needed = {"demonstration": "input output", "query": "input", "instruction": "instruction", "answer": "output"}
        check_bos(self.bos)
        for part, names in needed.items():
            text = getattr(self, part)
            missing = [f"{{{name}}}" for name in names.split() if f"{{{name}}}" not in text]
            if missing:
                raise PromptError(f"the template's {part} is {text!r}, without {' and '.join(missing)}; add it")

    @classmethod
    def from_function_vectors(
        cls, prefixes: Mapping[str, str] = PREFIXES, separators: Mapping[str, str] = SEPARATORS
    ) -> Template:
        """The layout that function_vectors' code writes with these, to the byte, where it has an instruction or none.

        It puts one space in front of every input and output. Its `<|endoftext|>` in front of a prompt is left to the
        tokenizer here (see `ivlens.load`), and so stands only before models that are used to it.

        Args:
            prefixes: In front of `input`, `output` and `instructions`; those left out are theirs by default.
            separators: Behind them.

        Raises:
            PromptError: an unknown key, or what is to be filled in stands in one of the texts.

        >>> ivlens.Template.from_function_vectors({"input": "X:", "output": "Y:"}).query
        'X: {input}\\nY:'
        """
        before, behind = _whole("prefixes", prefixes, PREFIXES), _whole("separators", separators, SEPARATORS)
        query = f"{before['input']} {{input}}{behind['input']}{before['output']}"
        return cls(
            demonstration=f"{query} {{output}}{behind['output']}",
            query=query,
            instruction=f"{before['instructions']}{{instruction}}{behind['instructions']}",
        )

    def render(self, query: Pair, *, demonstrations: Sequence[Pair] = (), instruction: str | None = None) -> Prompt:
        """Write instruction, demonstrations and query, in this order.

        Args:
            demonstrations: Pairs that are shown with their outputs.
            instruction: A wording; None writes none.

        >>> prompt = ivlens.Template().render(task.pairs[0], instruction="Write the opposite.")
        >>> prompt.text, prompt.answer
        ('Write the opposite.\\nQ: big\\nA:', ' small')
        """
        head = "" if instruction is None else self.instruction.replace("{instruction}", instruction)
        pieces = [("instruction", head)]
        for pair in demonstrations:
            pieces += _pieces(self.demonstration, pair)
        pieces += [("query" if part == "input" else part, text) for part, text in _pieces(self.query, query)]
        return Prompt(
            text="".join(text for _, text in pieces),
            answer=_fill(self.answer, query),
            query=query,
            bos=self.bos,
            spans=tuple(_spans(pieces)),
        )


def check_bos(bos: str) -> None:
    """Raises PromptError where it is none of the choices."""
    if bos not in get_args(Bos):
        raise PromptError(f"bos is {bos!r}; it must be {' or '.join(map(repr, get_args(Bos)))}")


def _fill(text: str, pair: Pair) -> str:
    return "".join(filled for _, filled in _pieces(text, pair))


def _pieces(text: str, pair: Pair) -> list[tuple[str, str]]:
    """What is written, piece by piece, each with its part."""
    # Split first: an input that contains "{output}" must not be filled in again.
    filled = {"{input}": ("input", pair.input), "{output}": ("output", pair.output)}
    return [filled.get(piece, ("separator", piece)) for piece in re.split(r"(\{input\}|\{output\})", text)]


def _spans(pieces: Iterable[tuple[str, str]]) -> Iterator[Span]:
    start = 0
    for part, text in pieces:
        if text:
            yield Span(part, start, start + len(text))  # pyright: ignore[reportArgumentType]
        start += len(text)


def _whole(name: str, given: Mapping[str, str], usual: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(given) - set(usual))
    if unknown:
        raise PromptError(f"unknown key {unknown[0]!r} of {name}; known are {', '.join(usual)}")
    for key, text in given.items():
        place = next((place for place in PLACES if place in text), None)
        if place is not None:
            raise PromptError(f"{name} have {text!r} for {key}; {place} is filled in by ivlens and cannot stand there")
    return {**usual, **given}


DEFAULT = Template()
NAMED = {
    "qa": DEFAULT,
    "function-vectors": Template.from_function_vectors(),
    "arrow": Template(demonstration="{input} -> {output}\n", query="{input} ->"),
    "input-output": Template(demonstration="Input: {input}\nOutput: {output}\n\n", query="Input: {input}\nOutput:"),
    "plain": Template(demonstration="{input} {output}\n\n", query="{input}"),
}
"""`qa` is the default; `function-vectors` the same without a line break behind an instruction; `plain` writes queries
as they are, such as TRACE's."""


class _TemplateFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    demonstration: str = DEFAULT.demonstration
    query: str = DEFAULT.query
    instruction: str = DEFAULT.instruction
    answer: str = DEFAULT.answer


class _FunctionVectorsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prefixes: dict[str, str] = PREFIXES
    separators: dict[str, str] = SEPARATORS


def find_template(name: str | Path) -> Template:
    """A template by name, or from a JSON file: its four parts, or function_vectors' `prefixes` and `separators`.

    Raises:
        PromptError: there is no such name or file, or an unknown key or a part without its place is in the file.
    """
    if str(name) in NAMED:
        return NAMED[str(name)]
    path = Path(name)
    if not exists(path):
        raise PromptError(f"there is no template and no file {str(name)!r}; {list_choices(name, [*NAMED, 'chat'])}")
    try:
        return _read_file(path)
    except IvlensError as error:
        text = str(error)
        raise PromptError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _read_file(path: Path) -> Template:
    content = read_given_json(path, wanted="give the path of a JSON file")
    if not isinstance(content, dict):
        raise PromptError("a template is a JSON object of demonstration, query, instruction and answer; write one")
    theirs = content.keys() & {"prefixes", "separators"}
    form = _FunctionVectorsFile if theirs else _TemplateFile
    unknown = sorted(content.keys() - form.model_fields.keys())
    if unknown:
        raise PromptError(f"unknown key {unknown[0]!r}; known are {', '.join(form.model_fields)}")
    entry = check_object(form, content, str(path))
    if isinstance(entry, _FunctionVectorsFile):
        return Template.from_function_vectors(entry.prefixes, entry.separators)
    return Template(**entry.model_dump())
