"""The house stands: few and small rooms, imports that point down, public names; importing costs nothing."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import ivlens

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ivlens"


class Room(NamedTuple):
    """A folder of the package."""

    name: str
    may_import: tuple[str, ...] = ()
    """Rooms above it in the table. All may import the ground: the modules of the package's own folder."""
    fewest: int = 4
    most: int = 12


# From the ground up. What lies further down knows nothing of what lies above.
ROOMS = (
    Room("storage"),
    Room("datasets", ("storage",)),
    Room("plots", ("storage",)),
    Room("checkpoints", ("storage",)),
    Room("models", ("storage", "checkpoints")),
    Room("prompts", ("storage", "datasets")),
    Room("forward", ("checkpoints", "models", "prompts")),
    Room("patching", ("datasets", "plots", "models", "prompts", "forward")),
    Room("engine", ("storage", "patching")),
    Room("replies", ("models", "prompts", "forward", "patching")),
    Room("vectors", ("storage", "datasets", "models", "prompts", "forward", "patching")),
    Room("steering", ("storage", "datasets", "models", "prompts", "forward", "patching", "replies", "vectors")),
    Room(
        "attribution",
        ("datasets", "plots", "models", "prompts", "forward", "patching", "vectors", "steering"),
    ),
    Room(
        "analysis",
        (
            "storage",
            "datasets",
            "plots",
            "models",
            "prompts",
            "forward",
            "patching",
            "replies",
            "vectors",
            "steering",
            "attribution",
        ),
    ),
    Room(
        "explorer",
        (
            "storage",
            "datasets",
            "plots",
            "models",
            "prompts",
            "forward",
            "patching",
            "replies",
            "vectors",
            "steering",
            "analysis",
        ),
    ),
    Room(
        "experiments",
        (
            "storage",
            "datasets",
            "plots",
            "models",
            "prompts",
            "patching",
            "vectors",
            "steering",
            "attribution",
            "analysis",
        ),
    ),
    Room("training", ("storage", "datasets", "models", "prompts", "forward", "patching")),
    Room(
        "forgetting",
        (
            "storage",
            "datasets",
            "plots",
            "models",
            "prompts",
            "patching",
            "replies",
            "vectors",
            "steering",
            "analysis",
            "training",
            "engine",
        ),
    ),
    Room(
        "matrix",
        (
            "storage",
            "datasets",
            "plots",
            "models",
            "prompts",
            "patching",
            "engine",
            "steering",
            "analysis",
            "forgetting",
        ),
    ),
    Room("reports", ("storage", "plots", "vectors", "analysis", "experiments", "explorer", "forgetting", "matrix")),
    Room("lab", ("storage", "datasets", "models", "prompts", "patching", "vectors", "steering")),
    # `ivlens`: commands call the public functions.
    Room(
        "cli",
        (
            "storage",
            "datasets",
            "plots",
            "checkpoints",
            "models",
            "prompts",
            "patching",
            "engine",
            "replies",
            "vectors",
            "steering",
            "analysis",
            "explorer",
            "experiments",
            "forgetting",
            "matrix",
            "reports",
            "ivlens",
        ),
    ),
)
MOST_ON_THE_GROUND = 10
MOST_LINES = 300
# Where the shipped model and its tasks lie is asked for below the room that makes them: two files that import nothing.
GROUND = {"lab", "lab.sequences"}
NO_NOUN = re.compile(r"util|helper|common|misc|registry|base_?class")
# What the command line and the scripts print; the library returns.
PRINTING = re.compile(r"cli\..+|(.+[._])?tables|lab\..+")


def module_name(path: Path, package: Path = PACKAGE) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "ivlens"


def modules_of(package: Path) -> dict[str, Path]:
    return {module_name(path, package): path for path in sorted(package.rglob("*.py"))}


MODULES = modules_of(PACKAGE)


def imported(source: str, modules: Mapping[str, Path] = MODULES) -> Iterator[tuple[int, str]]:
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
                yield node.lineno, _owner(name, modules)


def _owner(name: str, modules: Mapping[str, Path]) -> str:
    parts = name.split(".")[1:]
    known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in known if name in modules), "ivlens")


def room_of(module: str, modules: Mapping[str, Path]) -> str:
    """The room of a module, `ground`, or `ivlens` itself."""
    first = module.split(".")[0]
    if module in GROUND or (module == first and modules[module].name != "__init__.py"):
        return "ground"
    return first


def faults(package: Path, rooms: tuple[Room, ...] = ROOMS) -> Iterator[str]:
    """Everything in which a package is not the house that the table describes."""
    modules, table = modules_of(package), {room.name: room for room in rooms}
    folders = {path.name for path in package.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    yield from (f"the table has a room {name}, which is not there" for name in table.keys() - folders)
    yield from (f"{name} is a room that the table lacks" for name in folders - table.keys())
    yield from _faults_of_sizes(package, modules, table)
    for number, room in enumerate(rooms):
        above = set(room.may_import) - {other.name for other in rooms[:number]} - {"ivlens"}
        yield from (f"{room.name} may not import {name}, which is not above it in the table" for name in above)
    for module, path in modules.items():
        room = room_of(module, modules)
        if module == "ivlens" or room not in (*table, "ground"):
            continue
        allowed = {room, "ground", *(table[room].may_import if room in table else ())}
        for line, other in imported(path.read_text(encoding="utf-8"), modules):
            if room_of(other, modules) not in allowed:
                yield f"{path.relative_to(package)}:{line} imports {other} up, into {room}"
    yield from _cycles(modules)


def _faults_of_sizes(package: Path, modules: Mapping[str, Path], table: Mapping[str, Room]) -> Iterator[str]:
    ground = len(list(package.glob("*.py")))
    if ground > MOST_ON_THE_GROUND:
        yield f"{ground} modules lie on the ground; {MOST_ON_THE_GROUND} are enough"
    for name, room in table.items():
        size = sum(path.stem not in ("__init__", "__main__") for path in (package / name).rglob("*.py"))
        if size and not room.fewest <= size <= room.most:
            yield f"{name} has {size} modules, not {room.fewest} to {room.most}"
    for module, path in modules.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield f"{module} has {lines} lines"
        if NO_NOUN.search(module):
            yield f"{module} is called by no noun of the field"


def _cycles(modules: Mapping[str, Path]) -> Iterator[str]:
    graph = {
        module: {other for _, other in imported(path.read_text(encoding="utf-8"), modules)} - {module, "ivlens"}
        for module, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"imports go in a circle: {' '.join(error.args[1])}"


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_package_is_the_house_of_the_table():
    assert not list(faults(PACKAGE))


def test_every_room_says_first_what_it_is_for_and_has_no_function_of_its_name():
    for room in ROOMS:
        lines = (PACKAGE / room.name / "__init__.py").read_text(encoding="utf-8").splitlines()
        assert re.match(r'""".+[.:]("""|$)', lines[0]), room.name
        assert not inspect.isfunction(getattr(ivlens, room.name, None)), room.name


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """Two rooms of four modules, one above the other."""
    package = tmp_path / "ivlens"
    for room, source in (("cellar", ""), ("attic", "from ivlens.cellar.one import anything\n")):
        (package / room).mkdir(parents=True)
        for name in ("__init__", "one", "two", "three", "four"):
            (package / room / f"{name}.py").write_text(source if name == "one" else "")
    for name in ("__init__", "errors"):
        (package / f"{name}.py").write_text("")
    return package


SMALL_HOUSE = (Room("cellar"), Room("attic", ("cellar",)))


def test_a_house_as_in_its_table_has_no_faults(small_house: Path):
    assert not list(faults(small_house, SMALL_HOUSE))


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("porch/one.py", "", "porch is a room that the table lacks"),
        ("cellar/two.py", "from ivlens.attic.one import x", "cellar/two.py:1 imports attic.one up, into cellar"),
        ("cellar/two.py", "def f():\n    from ivlens import Task", "cellar/two.py:2 imports ivlens up, into cellar"),
        ("errors.py", "import ivlens.cellar.one", "errors.py:1 imports cellar.one up, into ground"),
        ("cellar/one.py", "from ivlens.cellar import one, two", None),
        ("cellar/two.py", "x = 1\n" * 301, "cellar.two has 301 lines"),
        ("cellar/tensor_utils.py", "", "cellar.tensor_utils is called by no noun of the field"),
    ],
)
def test_a_fault_of_one_file_is_found(small_house: Path, name: str, source: str, fault: str | None):
    path = small_house / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert list(faults(small_house, SMALL_HOUSE)) == ([fault] if fault else [])


def test_a_circle_inside_a_room_is_found(small_house: Path):
    (small_house / "cellar" / "one.py").write_text("from ivlens.cellar import two")
    (small_house / "cellar" / "two.py").write_text("from ivlens.cellar.one import x")
    (fault,) = faults(small_house, SMALL_HOUSE)
    assert re.fullmatch(r"imports go in a circle: cellar\.(one|two) cellar\.(one|two) cellar\.(one|two)", fault)


def test_a_ghost_room_and_one_that_may_look_up_are_found(small_house: Path):
    found = list(faults(small_house, (*SMALL_HOUSE, Room("tower"))))
    assert found == ["the table has a room tower, which is not there"]
    found = list(faults(small_house, (Room("cellar", ("attic",)), Room("attic", ("cellar",)))))
    assert found == ["cellar may not import attic, which is not above it in the table"]


def test_rooms_too_small_and_too_large_and_a_crowd_on_the_ground_are_found(small_house: Path):
    (small_house / "attic" / "four.py").unlink()
    for number in range(9):
        (small_house / "cellar" / f"more{number}.py").write_text("")
        (small_house / f"more{number}.py").write_text("")
    assert list(faults(small_house, SMALL_HOUSE)) == [
        "11 modules lie on the ground; 10 are enough",
        "cellar has 13 modules, not 4 to 12",
        "attic has 3 modules, not 4 to 12",
    ]


def test_imports_are_found_wherever_they_stand():
    source = """
    from typing import TYPE_CHECKING
    import ivlens, ivlens.datasets.task
    from ivlens import errors, Task
    if TYPE_CHECKING:
        from ivlens.lab import MODEL
    def later():
        from ivlens.lab.train import main
        from . import relative
    """
    found = ["ivlens", "datasets.task", "errors", "ivlens", "lab", "lab.train", "ivlens"]
    assert sorted(name for _, name in imported(textwrap.dedent(source))) == sorted(found)


@pytest.mark.parametrize("name", ivlens.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    public = getattr(ivlens, name)
    written = inspect.getdoc(public) or ""
    assert written and not written.startswith(f"{name}("), "a docstring that somebody wrote"
    assert name in dir(ivlens)


@pytest.mark.command
def test_public_functions_stay_functions_in_whatever_order_modules_are_imported():
    code = """
    import itertools, sys, types
    for order in itertools.permutations(["ivlens", "ivlens.analysis.audit", "ivlens.datasets.task"]):
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


@pytest.mark.command
@pytest.mark.parametrize("module", ["ivlens", "ivlens.cli"])
def test_importing_costs_nothing(module):
    code = f"""
    import sys, {module}
    print(*{{name.split(".")[0] for name in sys.modules}})
    """
    loaded = set(python(code).split())
    assert "ivlens" in loaded
    assert not loaded & {"torch", "transformer_lens", "transformers", "pandas", "plotly", "scipy"}


@pytest.mark.slow
def test_only_commands_print():
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for module, path in MODULES.items()
        if not PRINTING.fullmatch(module)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


@pytest.mark.command
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
