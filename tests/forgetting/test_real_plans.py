"""The plans for real models that need somebody else's files, in small, on the lab model and on files of their form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import benchmark_folders
import pytest
from transformer_lens import HookedTransformer

import ivlens
from ivlens.cli.app import main
from ivlens.errors import TaskWarning
from ivlens.forgetting import plan
from ivlens.forgetting.plan import Plan

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"input": f"{animal}, {number}?\na: {animal}\nb: red", "output": "a", "knowledge": animal}
    for animal in ("dog", "cat", "cow")
    for number in ("one", "two", "three", "four")
]


def in_small(name: str, **changes: object) -> Plan:
    """The plan on the lab model, with two tasks and one step."""
    asked = plan.read_plan(name)
    few = ("queries", "few_shot_queries", "learned_queries", "shots", "probe_prompts", "clean_prompts")
    return asked.with_changes(
        model="lab",
        general=("antonym", "country-capital"),
        guides=("antonym",),
        methods=("lora",),
        seeds=(0,),
        train_prompts=3,
        training=replace(asked.training, steps=1, batch=2),
        evaluation=replace(asked.evaluation, probes=(), top=2, **dict.fromkeys(few, 2)),
        **changes,
    )


@pytest.mark.filterwarnings("ignore::ivlens.errors.TaskWarning")
def test_folders_of_o_lora_are_learned_one_after_the_other(lab: HookedTransformer, tmp_path: Path) -> None:
    for name in ("SC/SST-2", "NLI/CB"):
        benchmark_folders.o_lora(tmp_path / "data" / name)
    asked = in_small("smollm2-long", tasks=("SC/SST-2", "NLI/CB"))
    with pytest.warns(TaskWarning, match="SST-2: kept are the shortest, 3 of 6 train prompts"):
        found = ivlens.study(asked, out=tmp_path / "run", model=lab, tasks_in=tmp_path / "data")
    assert set(found.order.loc[0]) == {"SST-2", "CB"}
    learned = found.evaluations.query("kind == 'sequence' and measure == 'accuracy'")
    assert set(learned["task"]) == {"SST-2", "CB"} and set(learned["n"]) == {2}
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "run" / "run.json").read_text())["settings"])


@pytest.mark.filterwarnings("ignore::ivlens.errors.TaskWarning")
def test_longer_answers_are_scored_by_rouge_l(lab: HookedTransformer, tmp_path: Path) -> None:
    task = {"instructions": ["Give the letter."], "statement": "{input}\nThe answer is", "pairs": QUESTIONS}
    benchmark_folders.write(tmp_path / "commonsense_qa.json", task)
    asked = in_small("smollm2-trace", tasks=("commonsense_qa", "number-sum"))
    assert asked.evaluation.score == "rouge-l"
    found = ivlens.study(asked, out=tmp_path / "run", model=lab, tasks_in=tmp_path)
    assert set(found.order.loc[0]) == {"commonsense_qa", "number-sum"}
    assert found.evaluations.query("kind == 'sequence' and measure == 'accuracy'")["value"].between(0, 1).all()


def test_the_folder_is_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["study", "smollm2-long", "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*line, "--tasks", str(tmp_path)]) == main(line) == 2
    inside, without = capsys.readouterr().err.splitlines()
    assert f"that are neither built in nor in {tmp_path}: SC/SST-2, NLI/RTE" in " ".join(inside.split())
    assert "that are not built in: SC/SST-2, NLI/RTE" in without and "(--tasks DIR, in Python tasks_in)" in without
