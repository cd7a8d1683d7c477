"""The command line is made of the settings: every field is an option, and what is typed arrives."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import ivlens
from ivlens.analysis.options import AuditSettings, ComparisonSettings
from ivlens.cli import options
from ivlens.cli.app import app, main
from ivlens.cli.loading import Loading, Patching, Prompting
from ivlens.engine.options import Engine
from ivlens.experiments.settings import ExperimentSettings
from ivlens.patching.settings import Settings
from ivlens.shapes import Head

MADE_OF = {"audit": AuditSettings, "compare": ComparisonSettings, "universal": Settings, "explore": Settings}
MADE_OF["experiment"] = ExperimentSettings
TYPED = {
    "audit": "audit MODEL --task antonym --out OUT",
    "compare": "compare MODEL TUNED --task antonym --out OUT",
    "universal": "universal MODEL --out OUT.json",
    "explore": "explore MODEL --task antonym --out OUT.html",
    "experiment": "experiment latents MODEL --out OUT",
}
# Of every option: as it is typed, and as the function gets it.
VALUES: dict[str, tuple[str, Any]] = {
    "shots": ("4", 4),
    "clean_prompts": ("5", 5),
    "prompts": ("6", 6),
    "corruption": ("zero-shot", "zero-shot"),
    "source": ("instruction", "instruction"),
    "effect": ("nll", "nll"),
    "seed": ("7", 7),
    "answered_only": ("", True),
    "template": ("arrow", ivlens.template("arrow")),
    "top": ("2", 2),
    "heads": ("L0H1,L2H3", (Head(0, 1), Head(2, 3))),
    "instruction": ("best", "best"),
    "draws": ("8", 8),
    "other_tasks": ("0", 0),
    "queries": ("9", 9),
    "score": ("rouge-l", "rouge-l"),
    "rank": ("ablation", "ablation"),
    "learned": ("class-letter", "class-letter"),
}


@pytest.mark.parametrize(("command", "settings"), MADE_OF.items())
def test_every_field_of_the_settings_is_explained(
    capsys: pytest.CaptureFixture[str], command: str, settings: type[Settings]
):
    assert main([command, "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for one in fields(settings):
        about = one.metadata
        default = one.default if about["typed"] is None else about["typed"]
        told = default is not None and not isinstance(default, bool)
        words = about["words"] + (f"[default: {default}]" if told else "")
        assert f"--{one.name.replace('_', '-')}" in shown
        assert "".join(words.split()) in shown
        assert "|".join(about["choices"]) in shown


@pytest.mark.parametrize("command", MADE_OF)
def test_another_choice_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str):
    line = TYPED[command].replace("OUT", str(tmp_path / "run")).split()
    assert main([*line, "--corruption", "shuffle"]) == 2
    assert re.search("'--corruption': 'shuffle' .*'shuffled', 'zero-shot'", capsys.readouterr().err)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the public functions are given; they then stop the command."""
    found: dict[str, Any] = {}

    def stop(*first: Any, **given: Any) -> None:
        found.update(given, first=first)
        raise KeyboardInterrupt

    monkeypatch.setattr(ivlens, "load", lambda *_, **given: None)
    monkeypatch.setattr("ivlens.models.hooked.weight_digest", lambda model: "of none")
    for name in ("compare", "universal_heads", "study", "indirect_effects"):
        monkeypatch.setattr(ivlens, name, stop)
    monkeypatch.setattr("ivlens.analysis.run_audit.prepare", stop)
    monkeypatch.setattr("ivlens.experiments.run_experiment.prepare", stop)
    monkeypatch.setattr("ivlens.cli.study._weigh", lambda asked, *_, **given: (asked, 0.0, ""))
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "name"), [(command, one.name) for command, settings in MADE_OF.items() for one in fields(settings)]
)
def test_what_is_typed_arrives(called: dict[str, Any], tmp_path: Path, command: str, name: str):
    typed, value = VALUES[name]
    line = TYPED[command].replace("OUT", str(tmp_path / "run")).split()
    assert main([*line, f"--{name.replace('_', '-')}", *([typed] if typed else [])]) == 130
    assert called[name] == value
    assert not {one.name for one in fields(MADE_OF[command])} & called.keys() - {name, "template", "top"}


def test_every_command_that_loads_a_model_can_be_told_how():
    """Of `prompts` only tokens are printed, and the model of a study is its plan's."""
    commands: Any = typer.main.get_command(app)
    wanted = {name: {one.name for one in fields(Patching)} for name in MADE_OF}
    wanted |= {"ask": {one.name for one in fields(Loading)}, "prompts": {one.name for one in fields(Prompting)}}
    wanted["study"] = {"device", "dtype"}
    has = {name: {one.name for one in command.params} for name, command in commands.commands.items()}
    assert {name: found for name, own in has.items() if (found := own & wanted["audit"])} == wanted
    loading = {path.stem for path in Path(options.__file__).parent.glob("*.py") if "ivlens.load(" in path.read_text()}
    assert loading == {"loading", "study", "tasks"}


@pytest.mark.slow
@pytest.mark.parametrize("command", [*MADE_OF, "ask"])
def test_how_a_model_is_loaded_arrives(called: dict[str, Any], tmp_path: Path, command: str, monkeypatch: Any):
    line = (TYPED | {"ask": "ask MODEL text"})[command].replace("OUT", str(tmp_path / "run")).split()
    typed = {"device": "cuda:1", "dtype": "float64", "backend": "bridge", "device_map": "balanced"}
    with monkeypatch.context() as patch:
        patch.setattr(ivlens, "load", ivlens.study)  # Which stops and says what it was given.
        assert main([*line, *(f"--{name.replace('_', '-')}={value}" for name, value in typed.items())]) == 130
    assert called["first"] == ("MODEL",) and {name: called[name] for name in typed} == typed
    if command != "ask":
        assert main([*line, "--memory", "3GiB"]) == 130 and called["memory"] == 3 * 2**30


@pytest.mark.slow
def test_universal_heads_are_asked_for_with_a_score(called: dict[str, Any], tmp_path: Path):
    line = TYPED["universal"].replace("OUT", str(tmp_path / "run")).split()
    assert main(line) == 130 and called["score"] == "auto"
    assert main([*line, "--score", "f1"]) == 130 and called["score"] == "f1"


def test_a_study_scores_as_is_asked_for(called: dict[str, Any], tmp_path: Path):
    line = ["study", "lab-func", "--out", str(tmp_path / "run")]
    assert main([*line, "--score", "rouge-l"]) == 130
    (plan,) = called["first"]
    assert plan.evaluation.score == plan.record()["evaluation"]["score"] == "rouge-l"
    assert main(line) == 130
    (usual,) = called["first"]
    assert usual.evaluation.score == usual.record()["evaluation"]["score"] == "greedy-match"


def test_a_study_is_of_the_model_that_is_named(called: dict[str, Any], tmp_path: Path):
    line = ["study", "lab-func", "--out", str(tmp_path / "run")]
    assert main([*line, "--model", "models/mine"]) == 130
    (plan,) = called["first"]
    assert plan.model == "models/mine"
    assert main(line) == 130
    assert called["first"] == (plan.with_changes(model="lab"),)


def test_options_of_engines_arrive_and_are_explained(
    called: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    values = {"engine": "ray", "address": "here:1", "workers": 3, "cpus": 2, "gpus": 1, "retries": 0}
    typed = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    assert values.keys() == {one.name for one in fields(Engine)}
    assert main(["study", "lab-func", "--out", str(tmp_path / "run"), *typed]) == 130
    assert {name: called[name] for name in values} == values
    several = ["audit", "MODEL", "OTHER", "--task", "antonym", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(ivlens, "audit_many", ivlens.study)  # Which stops and says what it was given.
    assert main([*several, *typed, "--threads", "4"]) == 130
    assert {name: called[name] for name in values} == values and called["threads"] == 4
    assert called["first"][0] == ["MODEL", "OTHER"] and called["layout"].name == "qa"
    for command in ("study", "audit"):
        assert main([command, "--help"]) == 0
        shown = "".join(capsys.readouterr().out.split())
        assert all("".join(one.metadata["words"].split()) in shown for one in fields(Engine))


@pytest.mark.slow
@pytest.mark.parametrize("command", MADE_OF)
def test_options_of_the_template_arrive(called: dict[str, Any], tmp_path: Path, command: str, monkeypatch: Any):
    line = TYPED[command].replace("OUT", str(tmp_path / "run")).split()
    assert main([*line, "--bos", "no"]) == 130
    assert called["template"] == ivlens.template("qa", bos="no")
    monkeypatch.setattr("ivlens.prompts.chat.template", lambda name, model=None, **given: (name, given))
    typed = ["a=false", "b=False", "c=None", "d=2.5", "e=x=y", 'f=["z"]', "g="]
    assert main([*line, "--template", "chat", *(f"--template-option={one}" for one in typed)]) == 130
    options = {"a": False, "b": False, "c": None, "d": 2.5, "e": "x=y", "f": ["z"], "g": ""}
    assert called["template"] == ("chat", {"options": options, "bos": "auto"})


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--template-option", "enable_thinking=false"], "can be set of a chat template only, not of 'qa'"),
        (["--template", "chat", "--template-option", "thinking"], "template-option is 'thinking'; write NAME=VALUE"),
        (["--template", "chat", "--template-option", "a=1", "--template-option", "a=2"], "'a=2'; write NAME=VALUE"),
        (["--template", "qas"], "there is no template and no file 'qas'; did you mean qa?"),
        (["--bos", "maybe"], "'--bos': 'maybe' is not one of 'auto', 'yes', 'no'"),
    ],
)
def test_options_that_no_template_has_are_refused_before_a_model_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: list[str], sentence: str
):
    assert main([*TYPED["audit"].replace("OUT", str(tmp_path / "run")).split(), *typed]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
