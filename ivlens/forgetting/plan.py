"""What is to be studied: model, tasks in their order, methods, seeds and settings, as a TOML file says it.

Unknown keys are refused. Everything that a file leaves out has a default, which is recorded with the run.

Types are checked by pydantic. Unknown keys are found before it, by hand: it refuses them without naming those that
there are. What is nonsense the dataclasses say themselves, which are other rooms' and used without a file, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from ivlens.datasets.task import exists, tasks
from ivlens.errors import IvlensError, StudyError, list_choices
from ivlens.forgetting.evaluation import Evaluation as Evaluation
from ivlens.lab import FAMILIES
from ivlens.lab.sequences import FILES
from ivlens.models.lora import LoraConfig
from ivlens.random_streams import Stream, open_stream
from ivlens.storage.atomic_files import LARGEST_TEXT, refuse_unusual
from ivlens.storage.json_files import as_type, parse_toml
from ivlens.storage.user_cache import expand_user
from ivlens.training.guidance import GUIDANCE, Guidance
from ivlens.training.methods import METHODS
from ivlens.training.settings import Training

BUILT_IN = Path(__file__).parents[1] / "lab" / "studies"
Order = Literal["seed", "given"]
HeldOut = Literal["family", "task"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study: each of `methods` with each of `seeds` learns `tasks` one after the other.

    Raises:
        StudyError: an empty list, a name twice, a number below its least, or a method or guidance that there is not.

    >>> ivlens.Plan(name="mine", tasks=("class-letter", "continent-letter"), methods=("ewc+iv",)).seeds
    (0, 1, 2)
    """

    name: str
    tasks: tuple[str, ...]
    """Built-in names, sequence tasks of the lab, or paths: what is learned, one after the other."""
    model: str = "lab"
    general: tuple[str, ...] = ()
    """Tasks that are never trained on; none named: all built-in ones."""
    guides: tuple[str, ...] = ()
    """General tasks whose prompts rank the universal heads and give the general vectors; none named: every other
    family of `general`, so that guidance is judged on tasks, too, that it has seen nothing like."""
    held_out: HeldOut = "family"
    """Where no guides are named: every other family, or every other task, as in studies of before."""
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """General tasks that are alike, by the names that tables give them, beside or in place of `ivlens.lab.FAMILIES`;
    one that is in none is a family of its own."""
    methods: tuple[str, ...] = ("lora", "lora+iv", "lora+kl")
    """A method, `+` and a guidance, if any."""
    reference: str | None = None
    """That one of `methods` whose differences from all the others are told, corrected for their number; None, or one
    that is not run: guided methods are compared with the plain one of their kind, and with plain distillation."""
    order: Order = "seed"
    """Does every seed draw the order of `tasks`, or are they learned as they are given?"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each orders the tasks, parts their pairs, draws the adapters, orders the batches and draws what is asked."""
    train_prompts: int | None = None
    """At most so many training prompts a stage; None: all."""
    shortest: bool = False
    """Of more than `train_prompts` and `evaluation.learned_queries`, are the shortest prompts taken?"""
    tasks_in: str | None = None
    """Folder of the tasks that are not built in; no part of the record, which has their digests."""
    tasks_from: str = ""
    """Where these are from, for whoever lacks them."""
    threads: int = 1
    """Threads of a cell on the CPU. Part of the record, since sums depend on it in their last bits."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    guidance: Mapping[str, Guidance] = field(default_factory=dict)
    """Forms of guidance beside, or in place of, those of `training.guidance.GUIDANCE`; kept are those that differ."""
    settings: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    """Of the methods, by their names, such as `ewc.weight`."""

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "seeds"):
            if not getattr(self, name):
                raise StudyError(f"the study's list of {name} is empty; name at least one")
        for name in ("tasks", "general", "guides", "methods", "seeds"):
            _refuse_repeated(name, getattr(self, name))
        _refuse_repeated("evaluation.probes", self.evaluation.probes)
        if min(self.seeds) < 0:
            raise StudyError(f"a seed of the study is {min(self.seeds)}; seeds are 0 or more")
        if self.threads < 1:
            raise StudyError(f"threads is {self.threads}; it must be 1 or more")
        if self.train_prompts is not None and self.train_prompts < 2:
            raise StudyError(f"train_prompts is {self.train_prompts}; it must be 2 or more, or be left out")
        for name in self.guidance:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # It is part of a folder's name.
                raise StudyError(f"a guidance is called {name!r}; use letters, digits, '-', '_' and '.'")
        others = {name: form for name, form in self.guidance.items() if GUIDANCE.get(name) != form}
        object.__setattr__(self, "guidance", others)
        self._check_choices()
        for method in (*self.methods, *([] if self.reference is None else [self.reference])):
            self.parts(method)
        for method in self.settings:
            self.method(method)

    def _check_choices(self) -> None:
        for name, choices in {"order": get_args(Order), "held_out": get_args(HeldOut)}.items():
            if getattr(self, name) not in choices:
                raise StudyError(f"{name} is {getattr(self, name)!r}; choose of {', '.join(choices)}")
        _refuse_repeated("families", [task for tasks in self.families.values() for task in tasks])

    def ordered(self, seed: int) -> tuple[str, ...]:
        """`tasks` in the order in which a seed learns them.

        >>> many = plan.with_changes(tasks=("class-letter", "kind-form", "kind-language"))
        >>> many.ordered(0) == many.ordered(0), sorted(many.ordered(1)) == sorted(many.tasks)
        (True, True)
        """
        if self.order == "given":
            return self.tasks
        return tuple(self.tasks[i] for i in open_stream(seed, Stream.TASK_ORDER).permutation(len(self.tasks)))

    def family(self, task: str) -> str:
        """The family of a general task, the lab's unless `families` says another; its own name where it has none.

        >>> plan.family("english-german"), plan.family("my-task")
        ('translation', 'my-task')
        """
        found = {one: name for known in (FAMILIES, self.families) for name, own in known.items() for one in own}
        return found.get(task, task)

    def locate(self, name: str) -> str:
        """What a task is read by: its name where it is built in, else its path in `tasks_in` if there is one.

        >>> plan.with_changes(tasks_in="CL_Benchmark").locate("antonym")
        'antonym'
        """
        if self.tasks_in is None or name in {*tasks(), *FILES}:
            return name
        inside = expand_user(self.tasks_in)
        return next((str(path) for path in (inside / name, inside / f"{name}.json") if exists(path)), name)

    def parts(self, cell: str) -> tuple[str, Guidance | None]:
        """What a name such as `ewc+iv` stands for.

        Returns:
            Method and guidance; None where there is no guidance.

        Raises:
            StudyError: one of them does not exist; those that do are named.

        >>> name, guidance = plan.parts("ewc+iv")
        >>> name, guidance.kl, plan.parts("lora")
        ('ewc', 0.05, ('lora', None))
        """
        name, plus, guidance = cell.partition("+")
        known = {**GUIDANCE, **self.guidance}
        if name not in METHODS:
            raise StudyError(f"there is no method {name!r} (of {cell!r}); {list_choices(name, METHODS)}")
        if plus and guidance not in known:
            raise StudyError(f"there is no guidance {guidance!r} (of {cell!r}); {list_choices(guidance, known)}")
        return name, known[guidance] if plus else None

    def method(self, name: str) -> Any:
        """A new method with this study's settings for it.

        Raises:
            StudyError: there is no such method, or no such setting of it.

        >>> plan.with_changes(settings={"replay": {"share": 0.5}}).method("replay")
        Replay(share=0.5, memory=20)
        """
        if name not in METHODS:
            raise StudyError(f"there is no method {name!r} (of settings); {list_choices(name, METHODS)}")
        given, kind = self.settings.get(name, {}), METHODS[name]
        _refuse_unknown(kind, given, f"settings.{name}.")
        types = get_type_hints(kind)
        return kind(**{key: as_type(types[key], value, f"settings.{name}.{key}") for key, value in given.items()})

    def with_changes(self, **changes: Any) -> Plan:
        """The same plan but for what is not None.

        >>> plan.with_changes(seeds=(3, 4), threads=None).seeds
        (3, 4)
        """
        return replace(self, **{key: value for key, value in changes.items() if value is not None})

    def record(self) -> dict[str, Any]:
        """Everything but the model's name, as plain values; every form of guidance that is used in full.

        >>> plan.with_changes(methods=("lora+kl",)).record()["guidance"]["kl"]["vector"]
        'zero'
        """
        recorded = asdict(self) | {"evaluation": self.evaluation.record()}
        used = {name.partition("+")[2]: self.parts(name)[1] for name in self.methods}
        recorded["guidance"] |= {name: asdict(form) for name, form in used.items() if form is not None}
        for key in ("model", "tasks_in", "tasks_from", *(() if self.shortest else ("shortest",))):
            del recorded[key]
        return recorded


def read_plan(name: str | Path) -> Plan:
    """A built-in study by name, or a TOML file by path. Paths in a file are relative to its folder.

    Raises:
        StudyError: there is none, it is no TOML, or a key or value cannot be used.
    """
    built_in = BUILT_IN / f"{name}.toml"
    path = built_in if str(name) in studies() else Path(name)
    try:
        refuse_unusual(path, LARGEST_TEXT)
        content = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = list_choices(name, studies(), lead="built-in are")
        raise StudyError(f"there is no built-in study and no file {str(name)!r} ({error.strerror}); {known}") from error
    except ValueError as error:
        raise StudyError(f"{path} is no TOML file ({error}); mend that place") from error
    try:
        plan = _plan({"name": path.stem, **content})
    except (IvlensError, ValueError) as error:  # Thousands of digits, which TOML takes where they are hexadecimal.
        raise StudyError(f"{path}: {error}") from error
    place = partial(_beside, path, built_in={"lab", *tasks(), *FILES})
    beside = {key: tuple(map(place, getattr(plan, key))) for key in ("tasks", "general", "guides")}
    probes = tuple(map(place, plan.evaluation.probes))
    beside |= {"tasks_in": plan.tasks_in and place(plan.tasks_in)}
    return replace(plan, **beside, evaluation=replace(plan.evaluation, probes=probes), model=place(plan.model))


def from_record(record: Mapping[str, Any]) -> Plan:
    """What `Plan.record` made, with the model's name."""
    # Runs of before scales were chosen have none: their vectors are as long as the heads wrote them. Nor did those of
    # before seeds drew the order of tasks and what is asked, and tasks were held out one by one.
    evaluation = record.get("evaluation")
    if isinstance(evaluation, Mapping):
        record = {**record, "evaluation": {"scale": 1.0, "drawn": "once", **evaluation}}
    return _plan({"order": "given", "held_out": "task", **record})


def studies() -> list[str]:
    """Names of the built-in studies."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def _beside(path: Path, name: str, built_in: Collection[str]) -> str:
    """A path in a file is meant from the file's folder; what is built in, and a hub id, is no path."""
    if path.parent == BUILT_IN or name in built_in:
        return name
    found = path.parent / expand_user(name)
    with suppress(OSError, ValueError):  # A name too long for the file system, or with a null in it, is no path.
        # Nothing of that name in another folder, from which the command happens to be run, may take its place.
        return str(found) if found.exists() or Path(name).exists() else name
    return name


def _plan(content: Mapping[str, Any]) -> Plan:
    _refuse_unknown(Plan, content, "")
    given = dict(content)
    for key, kind in {"lora": LoraConfig, "training": Training, "evaluation": Evaluation}.items():
        if key in given:
            _refuse_unknown(kind, _table(given[key], key), f"{key}.")
    if "guidance" in given:
        forms = _table(given["guidance"], "guidance")
        given["guidance"] = {name: _guidance(name, form) for name, form in forms.items()}
    return as_type(Plan, given, "")


def _guidance(name: str, form: Any) -> dict[str, Any]:
    """A form of a known name changes that form; any other starts from `iv`."""
    _refuse_unknown(Guidance, _table(form, f"guidance.{name}"), f"guidance.{name}.")
    return {**asdict(GUIDANCE.get(name, Guidance())), **form}


def _refuse_unknown(kind: type, given: Mapping[str, Any], place: str) -> None:
    known = [one.name for one in fields(kind) if one.init and not one.name.startswith("_")]
    for key in given:
        if key not in known:
            raise StudyError(f"unknown key {place}{key}; known are {', '.join(known) or 'none'}")


def _refuse_repeated(name: str, values: Sequence[object]) -> None:
    repeated = sorted(str(value) for value, times in Counter(values).items() if times > 1)
    if repeated:
        raise StudyError(f"the study's list of {name} names {', '.join(repeated)} more than once; name each one once")


def _table(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise StudyError(f"{where} is {content!r}; it must be a table of keys and values, [{where}]")
    return content
