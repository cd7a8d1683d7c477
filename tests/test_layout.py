"""The house stands: imports point down, importing costs nothing, the public names are there."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import ivlens

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ivlens"

# A module imports only from floors below its own. The first row is the ground; the package itself, of which the
# public names are asked, is under the command line.
FLOORS = (
    {"blocks", "errors", "lab", "lab.sequences", "markup", "measures", "notebook", "progress", "typed"},
    {"files", "sandbox"},
    {"arrow_streams", "json_files", "options", "tensors"},
    {"benchmark_files", "csv_files", "snapshots"},
    {"hub_tables"},
    {"task_files"},
    {"architectures", "points", "shapes", "style", "tasks"},
    {
        *("bridges", "checkpoint", "control_vectors", "figures", "frames", "function_vectors", "lab.sequences.facts"),
        *("lab.vocabulary", "panels", "records", "templates", "traces"),
    },
    {"chat", "prompt_end"},
    {"prompts"},
    {
        "activations",
        "head_plots",
        "lab.curriculum",
        "lab.sequences.functions",
        "lab.sequences.labels",
        "lab.sequences.lists",
        "method_plots",
        "models",
        "runs",
        "stage_plots",
        "stages",
        "steering_plots",
        "task_heatmaps",
    },
    {
        "answers",
        "benchmarks",
        "guidance",
        "lab.abilities",
        "lab.batches",
        "lab.sequences.__main__",
        "place_plots",
        "replies",
        "stage_heatmaps",
        "tails",
        "weights",
    },
    {"lora", "reruns"},
    {"comparison_plots", "interventions", "lab.roles", "layouts", "methods", "patching"},
    {"adapter_config", "effects", "finetune", "plots"},
    {"adapters", "drift", "plan", "vectors"},
    {"controls", "examination", "forgetting", "formats", "likeness", "steering_rows"},
    {"convert", "lab.evaluate", "probes", "steering_search", "study_figures"},
    {"steering", "trials", "universal"},
    {"dependence", "heads", "lab.train", "tables"},
    {"wordings"},
    {"audit", "cell", "comparison_tables", "study_tables"},
    {"comparison", "materials"},
    {"compare", "crew"},
    {"study"},
    {"pages"},
    {"report"},
    {"ivlens"},
    {"bench", "cli", "gallery"},
)
# What the command line and the scripts print; the library returns.
PRINTING = re.compile(r"cli|(.+_)?tables|bench|lab\..+")
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "ivlens"


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and module of every import of ours: in functions, for types only, of a module out of its package."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names = [f"{origin}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] in ("ivlens", ""):
                yield node.lineno, _owner(name)


def _owner(name: str) -> str:
    parts = name.split(".")[1:]
    known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in known if name in MODULES), "ivlens")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_are_found_wherever_they_stand():
    source = """
    from typing import TYPE_CHECKING
    import ivlens, ivlens.tasks
    from ivlens import errors, Task
    if TYPE_CHECKING:
        from ivlens.lab import MODEL
    def later():
        from ivlens.lab.train import main
        from . import relative
    """
    found = ["ivlens", "tasks", "errors", "ivlens", "lab", "lab.train", "ivlens"]
    assert sorted(name for _, name in imported(textwrap.dedent(source))) == sorted(found)


def test_every_module_has_a_floor():
    assert not set(MODULES) - set(FLOOR), "give the new module a floor in FLOORS"
    assert len(FLOOR) == sum(map(len, FLOORS)), "a module is on two floors"


def test_imports_point_down():
    upward = {
        (module, other): f"{path.relative_to(ROOT)}:{line} imports {other}, of floor {FLOOR[other]}, to {FLOOR[module]}"
        for module, path in MODULES.items()
        if module in FLOOR and module != "ivlens"
        for line, other in imported(path.read_text(encoding="utf-8"))
        if FLOOR.get(other, -1) >= FLOOR[module]
    }
    assert not upward, "\n".join(upward.values())


@pytest.mark.parametrize("name", ivlens.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    public = getattr(ivlens, name)
    written = inspect.getdoc(public) or ""
    assert written and not written.startswith(f"{name}("), "a docstring that somebody wrote"
    assert name in dir(ivlens)


def test_functions_named_like_their_module_stay_functions_in_whatever_order_they_are_imported():
    code = """
    import itertools, sys, types
    for order in itertools.permutations(["ivlens", "ivlens.audit", "ivlens.tasks"]):
        for name in [name for name in sys.modules if name.split(".")[0] == "ivlens"]:
            del sys.modules[name]
        for name in order:
            __import__(name)
        import ivlens
        from ivlens import audit, compare, tasks
        for function in (ivlens.audit, ivlens.compare, ivlens.tasks, audit, compare, tasks):
            assert isinstance(function, types.FunctionType), (order, function)
        print(" ".join(order))
    """
    assert len(python(code).splitlines()) == 6


@pytest.mark.parametrize("module", ["ivlens", "ivlens.cli"])
def test_importing_costs_nothing(module):
    code = f"""
    import sys, {module}
    print(*{{name.split(".")[0] for name in sys.modules}})
    """
    loaded = set(python(code).split())
    assert "ivlens" in loaded
    assert not loaded & {"torch", "transformer_lens", "transformers", "pandas", "plotly", "scipy"}


def test_only_commands_print():
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for module, path in MODULES.items()
        if not PRINTING.fullmatch(module)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_nothing_is_called_utils():
    assert not [name for name in MODULES if "util" in name or "helper" in name]


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a clone: which files are ours is unknown"
)
def test_no_file_names_a_place_on_somebodys_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    places = re.compile(rb"(?<![\w/.$}-])/(work|root|home|Users|tmp)/")
    naming = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" in content[:8192]:  # Weights, images.
            continue
        found = {match[1] for match in places.finditer(content)} - ({b"tmp"} if name.startswith("tests/") else set())
        if found:
            naming.append(f"{name}: {found}")
    assert not naming
