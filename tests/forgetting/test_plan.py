"""A plan says everything that a study needs, and nothing in it is guessed at or passed over."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmark_folders
import pytest
from bounds import bounded

import ivlens
from ivlens.errors import IvlensError, StudyError, TaskWarning
from ivlens.forgetting import plan
from ivlens.forgetting.plan import Evaluation, Plan
from ivlens.forgetting.preparation import general_tasks, guiding_tasks, sequence
from ivlens.lab import FAMILIES
from ivlens.lab.sequences import FILES
from ivlens.models.lora import LoraConfig
from ivlens.training import benchmark_stages
from ivlens.training.guidance import GUIDANCE, Guidance
from ivlens.training.loop import Training
from ivlens.training.methods import METHODS

LEAST: dict[str, Any] = {"name": "x", "tasks": ["class-letter"]}


def again(asked: Plan) -> Plan:
    """Through a record, as JSON has it."""
    return plan.from_record({**json.loads(json.dumps(asked.record())), "model": asked.model})


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("stpes", "name, tasks, model, general"),
        ("training.stpes", "steps, batch, rate"),
        ("lora.rnak", "rank, alpha, targets"),
        ("evaluation.quieres", "queries, few_shot_queries"),
        ("guidance.iv.lambda", "vector, layer, scale, student, schedule, kl"),
        ("guidance.mine.lambda", "vector, layer, scale, student, schedule, kl"),
        ("settings.ewc.lambda", "weight, samples"),
        ("settings.ewc._seen", "weight, samples"),
        ("settings.lora.weight", "none"),
    ],
)
def test_an_unknown_key_is_refused_by_name_and_known_ones_are_named(key: str, known: str) -> None:
    content: Any = 3
    for part in reversed(key.split(".")):
        content = {part: content}
    with pytest.raises(StudyError) as found:
        plan.from_record(LEAST | content)
    assert str(found.value).startswith(f"unknown key {key}; known are {known}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"training": {"steps": "3"}}, "training.steps is '3'; it should be a valid integer"),
        ({"training": {"steps": True}}, "training.steps is True; it should be a valid integer"),
        ({"training": {"batch": 2.5}}, "training.batch is 2.5; it should be a valid integer"),
        ({"training": {"schedule": "zigzag"}}, "training.schedule is 'zigzag'; it should be 'cosine', 'linear' or"),
        ({"lora": {"targets": ["W_X"]}}, "lora.targets.0 is 'W_X'"),
        ({"seeds": 3}, "seeds is 3; it should be a list"),
        ({"tasks": "class-letter"}, "tasks is 'class-letter'; it should be a list"),
        ({"training": 3}, "training is 3; it must be a table of keys and values, [training]"),
        ({"guidance": {"iv": 3}}, "guidance.iv is 3; it must be a table"),
        ({"guidance": {"iv": {"vector": "north"}}}, "guidance.iv.vector is 'north'; it should be 'task', 'zero'"),
        ({"settings": {"ewc": {"samples": 2.5}}}, "settings.ewc.samples is 2.5; it should be a valid integer"),
        ({"settings": {"ewc": 3}}, "settings.ewc is 3; it should be a table"),
        ({"order": "random"}, "order is 'random'; it should be 'seed' or 'given'"),
        ({"held_out": "pair"}, "held_out is 'pair'; it should be 'family' or 'task'"),
        ({"evaluation": {"drawn": "twice"}}, "evaluation.drawn is 'twice'; it should be 'seed' or 'once'"),
        ({"families": {"mine": "a"}}, "families.mine is 'a'; it should be a list"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_turned_into_a_fitting_one(
    content: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StudyError) as found:
        plan.from_record(LEAST | content)
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"tasks": ["a", "b", "a"]}, "list of tasks names a more than once"),
        ({"methods": ["lora", "lora"]}, "list of methods names lora more than once"),
        ({"seeds": [1, 0, 1]}, "list of seeds names 1 more than once"),
        ({"general": ["antonym", "antonym"]}, "list of general names antonym more than once"),
        ({"evaluation": {"probes": ["a", "a"]}}, "list of evaluation.probes names a more than once"),
        ({"tasks": []}, "list of tasks is empty"),
        ({"methods": []}, "list of methods is empty"),
        ({"seeds": []}, "list of seeds is empty"),
        ({"seeds": [-1]}, "a seed of the study is -1"),
        ({"threads": 0}, "threads is 0; it must be 1 or more"),
        ({"train_prompts": 1}, "train_prompts is 1; it must be 2 or more"),
        ({"training": {"rate": -1}}, "rate is -1"),
        ({"evaluation": {"queries": 1}}, "queries is 1; it must be 2 or more"),
        ({"settings": {"sgd": {}}}, "there is no method 'sgd' (of settings)"),
        ({"settings": {"ewc": {"weight": -1}}}, "ewc: weight is -1"),
        ({"guidance": {"../up": {}}}, "a guidance is called '../up'"),
        ({"reference": "sgd"}, "there is no method 'sgd' (of 'sgd')"),
        ({"families": {"one": ["a", "b"], "two": ["a"]}}, "list of families names a more than once"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(IvlensError) as found:
        plan.from_record(LEAST | content)
    assert sentence in str(found.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(StudyError, match=r"^tasks is missing; add it$"):
        plan.from_record({"name": "x"})


def test_an_unknown_method_or_guidance_is_refused_and_known_ones_are_named() -> None:
    with pytest.raises(StudyError) as found:
        plan.from_record(LEAST | {"methods": ["sgd+iv"]})
    assert str(found.value) == f"there is no method 'sgd' (of 'sgd+iv'); there are {', '.join(METHODS)}"
    for name, lead in (("lora+vi", "did you mean iv? There are"), ("lora+", "there are")):
        with pytest.raises(StudyError) as found:
            plan.from_record(LEAST | {"methods": [name], "guidance": {"mine": {}}})
        known = ", ".join([*GUIDANCE, "mine"])
        assert str(found.value) == f"there is no guidance {name[5:]!r} (of {name!r}); {lead} {known}"


def test_a_file_that_is_not_there_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError,
        match=r"no built-in study and no file 'lab-fun' .*; did you mean lab-func[?] Built-in are lab-factorial, ",
    ):
        plan.read_plan("lab-fun")
    path = tmp_path / "mine.toml"
    for content in (b"tasks = [", b"\xff\xfe", b"a" + b".a" * 50_000 + b" = 1", b"x = " + b"{x = " * 5000):
        path.write_bytes(content)
        with bounded(5.0), pytest.raises(StudyError, match=r"mine\.toml is no TOML file .*; mend that place"):
            plan.read_plan(path)
    path.write_text(f"tasks = ['antonym']\nseeds = [0x{'f' * 5000}]")
    with pytest.raises(StudyError, match=r"mine\.toml: Exceeds the limit .* for integer string conversion"):
        plan.read_plan(path)
    path.write_text("tasks = ['antonym']\nstpes = 3")
    with pytest.raises(StudyError, match=r"mine\.toml: unknown key stpes"):
        plan.read_plan(path)
    with pytest.raises(StudyError, match="no file"):
        plan.read_plan(tmp_path)


@pytest.mark.slow
def test_a_plan_of_very_many_parts_is_read_in_time_by_its_length(tmp_path: Path) -> None:
    many = {
        "families": "[families]\n" + "".join(f"f{i} = ['a{i}']\n" for i in range(50_000)),
        "guidance": "".join(f"[guidance.g{i}]\nkl = 0.1\n" for i in range(2_000)),
        "general": "general = [" + ",".join(f"'t{i}'" for i in range(50_000)) + "]",
        "methods": "methods = [" + ",".join(f"'lora+{i}'" for i in range(50_000)) + "]",
    }
    for name, text in many.items():
        (tmp_path / f"{name}.toml").write_text(f"tasks = ['antonym']\n{text}")
        with bounded(10.0), suppress(StudyError):
            plan.read_plan(tmp_path / f"{name}.toml")


def test_a_file_is_named_after_itself_and_what_it_leaves_out_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("tasks = ['class-letter']")
    found = plan.read_plan(path)
    assert found == Plan(name="mine", tasks=("class-letter",))
    assert found.training == Training() and found.lora == LoraConfig() and found.evaluation == Evaluation()


def test_paths_are_meant_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
        (place / "new.json").write_text("[]")
    (elsewhere / "only-here.json").write_text("[]")
    (folder / "lab").mkdir()
    (folder / "antonym").mkdir()
    (folder / "kept").mkdir()
    (folder / "mine.toml").write_text(
        "tasks = ['class-letter', 'new.json', 'only-here.json']\ngeneral = ['antonym', 'kept']\nguides = ['kept']\n"
        "[evaluation]\nprobes = ['kept']"
    )
    monkeypatch.chdir(elsewhere)
    found = plan.read_plan(folder / "mine.toml")
    assert found.tasks == ("class-letter", str(folder / "new.json"), str(folder / "only-here.json"))
    kept = str(folder / "kept")
    assert found.general == ("antonym", kept) and found.guides == (kept,) and found.evaluation.probes == (kept,)
    assert found.model == "lab"
    assert plan.read_plan("../study/mine.toml").tasks[1] == "../study/new.json"


def test_a_model_beside_the_file_is_found_and_a_hub_id_stays(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    path = tmp_path / "mine.toml"
    for given, meant in (("tuned", str(tmp_path / "tuned")), ("meta-llama/Llama-2-7b-hf",) * 2):
        path.write_text(f"model = '{given}'\ntasks = ['class-letter']")
        assert plan.read_plan(path).model == meant


def test_a_record_makes_the_plan_again_guidance_included() -> None:
    asked = Plan(
        name="x",
        tasks=("class-letter", "kind-form"),
        model="m",
        general=("antonym",),
        guides=("antonym",),
        held_out="task",
        families={"mine": ("antonym",)},
        methods=("lora", "lora+iv", "ewc+mine", "lora+kl"),
        reference="lora+iv",
        order="given",
        seeds=(3, 1),
        train_prompts=7,
        lora=LoraConfig(rank=2, targets=("W_O",), layers=(0, 2)),
        training=Training(steps=3, rate=1e-4),
        evaluation=Evaluation(probes=("antonym",), queries=3, drawn="once"),
        guidance={"iv": Guidance(kl=1.0), "mine": Guidance(vector="random", heads=2.0), "unused": Guidance(kl=3.0)},
        settings={"ewc": {"weight": 2, "samples": 5}, "lwf": {"weight": 0.5}},
    )
    assert again(asked) == asked
    assert asked.record()["guidance"]["kl"] == plan.asdict(GUIDANCE["kl"])
    assert asked.record()["guidance"]["iv"]["kl"] == 1.0 and "iv-steer" not in asked.record()["guidance"]
    assert "model" not in asked.record()


def test_a_record_of_before_scales_were_chosen_is_of_scale_1() -> None:
    record = Plan(**{**LEAST, "tasks": ("class-letter",)}).record()
    assert record["evaluation"].pop("scale") is None
    assert plan.from_record(record).evaluation.scale == 1.0
    with pytest.raises(IvlensError, match=r"evaluation: scale is -1\.0; it must be above 0"):
        Evaluation(scale=-1.0)


def test_a_record_of_before_seeds_drew_everything_is_of_one_order_and_one_draw() -> None:
    record = Plan(name="x", tasks=("a", "b", "c")).record()
    assert again(plan.from_record(record)).order == "seed" and plan.from_record(record).evaluation.drawn == "seed"
    for key in ("order", "held_out", "families", "reference"):
        del record[key]
    del record["evaluation"]["drawn"]
    old = plan.from_record(record)
    assert (old.order, old.held_out, old.evaluation.drawn, old.reference) == ("given", "task", "once", None)
    assert old.ordered(3) == old.tasks and old.evaluation.of(3) == old.evaluation


def test_what_runs_of_before_could_not_be_asked_for_is_recorded_only_where_it_was() -> None:
    later = {"able_only": True, "demonstrations": "task", "learned_queries": 3, "kept_back": 1}
    usual = Plan(**{**LEAST, "tasks": ("class-letter",)})
    assert not later.keys() & usual.record()["evaluation"].keys()
    asked = replace(usual, evaluation=replace(usual.evaluation, **later))
    assert later.items() <= asked.record()["evaluation"].items()
    assert again(asked) == asked and again(usual) == usual


def test_every_seed_draws_an_order_of_its_own_which_stays() -> None:
    asked = Plan(name="x", tasks=tuple("abcde"))
    orders = [asked.ordered(seed) for seed in range(30)]
    assert orders == [asked.ordered(seed) for seed in range(30)] and len(set(orders)) > 20
    assert all(sorted(order) == sorted(asked.tasks) for order in orders)
    assert {order[0] for order in orders} == set(asked.tasks), "every task comes first at some time"
    assert [asked.evaluation.of(seed).seed for seed in (0, 1, 7)] == [0, 1, 7]
    assert asked.with_changes(order="given").ordered(0) == asked.tasks


def test_every_built_in_task_is_in_one_family() -> None:
    listed = [task for tasks in FAMILIES.values() for task in tasks]
    assert sorted(listed) == ivlens.tasks(), "none twice, none left out, none that there is not"


@pytest.mark.slow
def test_general_tasks_guide_or_are_held_out_by_whole_families() -> None:
    asked = Plan(name="x", tasks=("class-letter",))
    general = general_tasks(asked)
    guides = {task.name for task in guiding_tasks(asked, general)}
    for tasks in FAMILIES.values():
        assert len({task in guides for task in tasks}) == 1, tasks
    assert 0.3 < len(guides) / len(general) < 0.7
    one_by_one = guiding_tasks(asked.with_changes(held_out="task"), general)
    assert [task.name for task in one_by_one] == ivlens.tasks()[::2]


@pytest.mark.slow
def test_a_plan_may_say_which_of_its_tasks_are_alike() -> None:
    asked = Plan(
        name="x",
        tasks=("class-letter",),
        general=("antonym", "uppercase", "english-french", "synonym"),
        families={"words": ("antonym", "uppercase")},
    )
    assert [asked.family(task) for task in asked.general] == ["words", "words", "translation", "meaning"]
    assert [task.name for task in guiding_tasks(asked, general_tasks(asked))] == ["antonym", "uppercase", "synonym"]
    assert asked.family("of-my-own") == "of-my-own"
    with pytest.raises(StudyError, match=r"families\.words names uppercase, which is not among the general tasks"):
        general_tasks(asked.with_changes(general=("antonym", "synonym")))


def test_a_form_that_repeats_the_built_in_one_changes_nothing() -> None:
    plain = Plan(name="x", tasks=("a",), methods=("lora+kl",))
    repeated = Plan(name="x", tasks=("a",), methods=("lora+kl",), guidance={"kl": GUIDANCE["kl"]})
    assert repeated == plain and repeated.record() == plain.record() and again(plain) == plain


def test_a_table_changes_a_known_form_and_starts_any_other_from_iv() -> None:
    content = {"guidance": {"kl": {"kl": 0.5}, "mine": {"kl": 0.5}}, "methods": ["lora+kl", "lora+mine"]}
    found = plan.from_record(LEAST | content)
    assert found.parts("lora+kl") == ("lora", Guidance(vector="zero", kl=0.5))
    assert found.parts("lora+mine") == ("lora", Guidance(vector="task", kl=0.5))
    assert found.parts("lora") == ("lora", None)


def test_changes_replace_what_is_given_only() -> None:
    asked = Plan(name="x", tasks=("a",))
    assert asked.with_changes(seeds=None, model=None) == asked
    assert asked.with_changes(seeds=(4,)) == Plan(name="x", tasks=("a",), seeds=(4,))
    with pytest.raises(StudyError, match="no method 'sgd'"):
        asked.with_changes(methods=("sgd",))


def test_methods_get_their_settings() -> None:
    asked = Plan(name="x", tasks=("a",), settings={"ewc": {"weight": 2}})
    assert asked.method("ewc").weight == 2 and asked.method("ewc").samples == METHODS["ewc"]().samples  # pyright: ignore
    assert asked.method("ewc") is not asked.method("ewc"), "a method holds what it has seen of its own cell"


@pytest.mark.long
@pytest.mark.parametrize("name", plan.studies())
def test_the_built_in_studies_can_be_read_and_their_tasks_exist(name: str) -> None:
    asked = plan.read_plan(name)
    assert asked.name == name and name.startswith(f"{asked.model}-")
    assert again(asked) == replace(asked, tasks_from="")
    built_in = [task for task in asked.tasks if task in FILES]
    for seed in asked.seeds:
        assert [benchmark_stages.stage(task, seed=seed).name for task in built_in] == built_in
    if len(built_in) < len(asked.tasks):
        with pytest.raises(StudyError, match=re.escape(asked.tasks_from)):
            general_tasks(asked)
        built_in = tuple(task for task in asked.general if task in ivlens.tasks())
        assert len(built_in) > len(asked.general) / 2
        asked = asked.with_changes(tasks=("kind-direction",), general=built_in)
    general = [task.name for task in general_tasks(asked)]
    assert not set(general) & set(asked.tasks) and set(asked.evaluation.probes) <= set(general)
    without_probes = ("-weights", "-methods", "-variants", "-factorial", "-wordings", "-lengths")
    assert asked.evaluation.probes or name.endswith(without_probes)
    # The variants are held against forms of lab-func-weights.
    assert asked.methods[0] == "lora" or name == "lab-func-variants"


def test_tasks_that_are_not_built_in_are_read_from_the_folder_that_is_given(tmp_path: Path) -> None:
    benchmark_folders.o_lora(tmp_path / "SC" / "mine")
    pairs = [{"input": f"a{number}", "output": "b"} for number in range(20)]
    benchmark_folders.write(tmp_path / "other.json", {"instructions": ["Say b."], "pairs": pairs})
    tasks = ("SC/mine", "class-letter", "other")
    asked = Plan(name="x", tasks=tasks, general=("antonym",), order="given", tasks_in=str(tmp_path))
    assert [one.name for one in sequence(asked, 0, general_tasks(asked))] == ["mine", "class-letter", "other"]
    (tmp_path / "antonym.json").write_text("this is no task")
    assert general_tasks(asked)[0] == ivlens.task("antonym"), "built-in names stay what they are"
    assert asked.record() == replace(asked, tasks_in="elsewhere").record(), "digests of tasks are recorded, not places"
    assert "shortest" not in asked.record() and replace(asked, shortest=True).record()["shortest"]


def test_all_missing_tasks_of_a_folder_are_named_at_once(tmp_path: Path) -> None:
    asked = Plan(name="x", tasks=("SC/mine", "class-letter"), general=("other",), tasks_from="a web page")
    with pytest.raises(
        StudyError, match=r"^study x needs 2 tasks that are not built in: SC/mine, other \(a web page\)"
    ):
        general_tasks(asked)
    with pytest.raises(StudyError, match=rf"neither built in nor in {re.escape(str(tmp_path))}: SC/mine, other"):
        general_tasks(replace(asked, tasks_in=str(tmp_path)))
    with pytest.raises(IvlensError, match="other"):  # What is given by its path is told as before.
        general_tasks(replace(asked, tasks_from=""))


def test_the_shortest_prompts_are_learned_and_asked_where_a_plan_says_so(tmp_path: Path) -> None:
    texts = ["word " * n for n in (9, 2, 7, 1, 5, 3, 8, 4, 6)]
    parts = {
        part: [{"label": "good", "sentence": f"{part} {one}"} for one in texts] for part in ("train", "test", "dev")
    }
    folder = benchmark_folders.o_lora(tmp_path / "mine", **parts)
    asked = Plan(name="x", tasks=(str(folder),), general=("antonym",), shortest=True, train_prompts=3)
    asked = replace(asked, evaluation=Evaluation(learned_queries=2))
    with pytest.warns(
        TaskWarning, match=r"mine: kept are the shortest, 3 of 9 train prompts \(up to \d+ characters\) and"
    ):
        (found,) = sequence(asked, 0, general_tasks(asked))
    lengths = [[one.query.input.count("word") for one in prompts] for prompts in (found.train, found.bare, found.test)]
    assert lengths == [[1, 2, 3], [1, 2, 3], [1, 2]] and len(found.validation) == 9
    (every,) = sequence(replace(asked, train_prompts=None, evaluation=Evaluation()), 0, general_tasks(asked))
    assert len(every.train) == len(every.test) == 9


def test_the_three_sequences_are_built_in() -> None:
    assert {"lab-func", "lab-long", "lab-trace"} <= set(plan.studies())
