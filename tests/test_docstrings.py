"""Every public name says what its type cannot, and its example prints what it says.

The examples go on from those of `ivlens.__doc__` and of the room that a name is in, as cells of one notebook do.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest

import ivlens
from ivlens.errors import PromptError, TaskError

ROOMS = {"plots": ivlens.plots, "prompts": ivlens.prompts, "training": ivlens.training, "lora": ivlens.lora}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
# What every example may take for granted, or what is said once for all functions of a room.
KNOWN = {"self", "cls", "model", "task", "seed", "path", "title", "width", "pairs", "template", "generator"}


class Public(NamedTuple):
    """A name that users call, and where its docstring stands."""

    name: str
    """As it is called: `Task.split`."""
    room: str
    """Of `ROOMS`, or empty."""
    object: Any

    def __str__(self) -> str:
        return ".".join(filter(None, ["ivlens", self.room, self.name]))


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class has of its own."""
    for name, member in vars(kind).items():
        if not name.startswith("_") and isinstance(member, FunctionType | classmethod | property):
            yield name, member if isinstance(member, property) else getattr(kind, name)


def public(name: str, thing: Any, room: str = "") -> Iterator[Public]:
    yield Public(name, room, thing)
    if inspect.isclass(thing):
        yield from (Public(f"{name}.{part}", room, member) for part, member in members(thing))


def everything() -> Iterator[Public]:
    """What `ivlens` exports, and what its public rooms define or hand on."""
    own = {name: getattr(ivlens, name) for name in ivlens.__all__}
    for name, thing in own.items():
        yield from public(name, thing)
    for room, module in ROOMS.items():
        for name in dir(module):  # Rooms may import what they hand on when it is asked for.
            thing = getattr(module, name)
            if name.startswith("_") or not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            # `lora` is a module: what it imports for its own use is not handed on.
            home = ("ivlens.models.lora", "ivlens.models.adapter") if room == "lora" else "ivlens."
            if thing.__module__.startswith(home) and thing not in own.values():
                yield from public(name, thing, room)


EVERYTHING = list(everything())


def examples_of(thing: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")


def faults(one: Public) -> Iterator[str]:
    """What a docstring lacks."""
    text, examples = inspect.getdoc(one.object) or "", examples_of(one.object)
    if not examples:
        yield "no example"
    elif not any(example.want for example in examples):
        yield "an example that prints nothing"
    elif not re.search(rf"\b{one.name.rsplit('.', 1)[-1]}\b", "".join(x.source + x.want for x in examples)):
        yield "an example of something else"
    unsaid = raised(one.object) - set(re.findall(r"\w+", section(text, "Raises")))
    if unsaid:
        yield f"no word of {', '.join(sorted(unsaid))} under Raises"
    if inspect.isroutine(one.object):
        yield from faults_of_parameters(one.object, text)


def faults_of_parameters(function: Callable[..., Any], text: str) -> Iterator[str]:
    parameters = set(inspect.signature(function).parameters)
    listed = set(re.findall(r"^([\w, ]+):", section(text, "Args"), re.MULTILINE))
    names = {name.strip() for line in listed for name in line.split(",")}
    if ghosts := names - parameters:
        yield f"no parameter {', '.join(sorted(ghosts))}, which stands under Args"
    unsaid = parameters - KNOWN - names - set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", text))))
    # Of one parameter, whatever is to be said of it is said of the function.
    if len(unsaid) > 1 and "For the other arguments see" not in text:
        yield f"no word of {', '.join(sorted(unsaid))}, neither under Args nor in the text"
    returned = str(inspect.signature(function).return_annotation)
    if returned.startswith("tuple[") and "..." not in returned and not section(text, "Returns"):
        yield "several things are returned, and no Returns"


def section(text: str, name: str) -> str:
    """The indented lines below a heading, unindented."""
    found = re.search(rf"^( *){name}:\n((?:\1    .*\n?|\n)+)", text, re.MULTILINE)
    return textwrap.dedent(found[2]) if found else ""


def raised(thing: Any) -> set[str]:
    """Names of the errors that a function raises itself; of a class, at birth."""
    if inspect.isclass(thing):
        thing = vars(thing).get("__post_init__")
    thing = thing.fget if isinstance(thing, property) else thing
    if thing is None or inspect.ismodule(thing):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    names = [call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]
    return set(names)


def run(thing: Any, name: str, names: dict[str, Any]) -> str:
    """Run the examples in a namespace, which keeps what they define; what went wrong."""
    case = doctest.DocTest(examples_of(thing), {}, name, None, 0, inspect.getdoc(thing))
    case.globs = names  # Its own are a copy.
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(case, out=report.append, clear_globs=False)
    return "".join(report)


class Notebook(NamedTuple):
    """Where examples work, and what they know."""

    folder: Path
    names: dict[str, dict[str, Any]]
    """By room: what is defined when an example of it begins."""


@pytest.fixture(scope="session")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Notebook:
    """What the examples of `ivlens.__doc__` and of the rooms leave behind."""
    folder, found = tmp_path_factory.mktemp("examples"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found[""] = {"__name__": "__main__"}
        wrong = run(ivlens, "ivlens", found[""])
        assert not wrong
        for room, module in ROOMS.items():
            found[room] = dict(found[""])
            run(module, room, found[room])  # What goes wrong here fails the room's own case.
    return Notebook(folder, found)


@pytest.mark.slow
@pytest.mark.parametrize("one", EVERYTHING, ids=str)
def test_a_public_name_says_what_its_type_cannot_and_shows_it(one: Public):
    found = list(faults(one))
    assert not found


@pytest.mark.long
@pytest.mark.parametrize("one", EVERYTHING, ids=str)
def test_an_example_prints_what_it_says(one: Public, notebook: Notebook, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(notebook.folder)
    wrong = run(one.object, str(one), dict(notebook.names[one.room]))
    assert not wrong


def test_no_example_is_pasted():
    texts = ["".join(example.source for example in examples_of(one.object)) for one in EVERYTHING]
    assert len(set(texts)) == len(texts)


def test_nothing_public_is_left_out():
    names = {str(one) for one in EVERYTHING}
    assert {"ivlens.load", "ivlens.Task.split", "ivlens.HeadEffects.aie", "ivlens.plots", "ivlens.Settings"} <= names
    assert {"ivlens.plots.head_heatmap", "ivlens.prompts.few_shot", "ivlens.prompts.Tokens.first"} <= names
    assert {"ivlens.training.finetune", "ivlens.lora.merged", "ivlens.lora.Adapter.parameters"} <= names
    assert not {"ivlens.lora.locate", "ivlens.lora.Tensor", "ivlens.plots.Figure"} & names, "no surface of ours"


def half(number: int) -> float:
    """Half of it.

    Raises:
        TaskError: it is odd.
    """
    if number % 2:
        raise TaskError("odd")
    return number / 2


@pytest.mark.parametrize(
    ("example", "found"),
    [
        ("", ["no example"]),
        (">>> number = half(2)", ["an example that prints nothing"]),
        (">>> 2 / 2\n1.0", ["an example of something else"]),
        (">>> half(2)\n1.0", []),
    ],
)
def test_a_docstring_without_an_example_is_found(example: str, found: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(half, "__doc__", f"{inspect.getdoc(half)}\n\n{example}\n")
    assert list(faults(Public("half", "", half))) == found


def test_an_example_that_prints_something_else_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(half, "__doc__", ">>> half(2)\n3.0\n")
    assert "Expected:\n    3.0\nGot:\n    1.0\n" in run(half, "half", {"half": half})


def test_errors_arguments_and_results_that_go_unsaid_are_found():
    def parts(number: int, size: int, *, fill: str = "") -> tuple[int, int]:
        """Parts.

        Args:
            amount: Of which.

        >>> parts(5, 2)
        (2, 1)
        """
        if not size:
            raise PromptError(fill)
        return divmod(number, size)

    assert list(faults(Public("parts", "", parts))) == [
        "no word of PromptError under Raises",
        "no parameter amount, which stands under Args",
        "no word of fill, number, size, neither under Args nor in the text",
        "several things are returned, and no Returns",
    ]


def test_a_module_is_no_function():
    assert isinstance(ivlens.plots, ModuleType) and not raised(ivlens.plots)
