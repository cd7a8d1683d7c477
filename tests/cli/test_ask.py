"""`ivlens ask` writes what the model writes, before and after; `ivlens prompts` shows what an audit asks."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

import ivlens
from ivlens.analysis import probes
from ivlens.cli import main
from ivlens.lab import MODEL
from ivlens.models import lora
from ivlens.models.lora import LoraConfig
from ivlens.models.peft import write_adapter
from ivlens.patching.effects import example_prompts
from ivlens.patching.settings import Settings
from ivlens.prompts.tokens import tokenize
from ivlens.replies.endings import find_endings
from ivlens.replies.generation import write_replies

RUN = Path(__file__).parents[2] / "figures" / "numbers" / "lab-antonym"


def table(out: str) -> list[list[str]]:
    """The cells of the lines below the first rule."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("─"))
    return [line.split() for line in lines[start + 1 :] if "─" not in line]


@pytest.mark.slow
def test_replies_stand_side_by_side_and_are_those_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["ask", "lab", "big", "hot", "--template", "qa", "--vector", str(RUN), "--scale", "1", "--layer", "1"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert out.startswith("The vector (antonym) is added at layer 1, 1 times.\n")
    model = ivlens.load("lab")
    asked = [ivlens.Template().render(ivlens.task("antonym").pairs[0]._replace(input=text)) for text in ("big", "hot")]
    bare = ivlens.ask(model, asked).reply
    with ivlens.steered(model, RUN / "vector.safetensors", scale=1.0, layer=1):
        steered = ivlens.ask(model, asked).reply
    assert bare != steered
    assert table(out) == [["big", bare[0], steered[0]], ["hot", bare[1], steered[1]]]


@pytest.mark.slow
def test_a_line_break_that_is_none_and_a_reply_of_nothing_are_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivlens.replies.generation.write_replies", lambda *_, **__: ["cold", ""])
    assert main(["ask", "lab", r"Q: hot\nA:", "Q: $\\nabla$"]) == 0
    said = capsys.readouterr()
    assert table(said.out)[-1][-1] == "(nothing)"
    assert "a line break is typed in bash and zsh as $'Q: hot\\nA:'" in said.err
    assert main(["ask", "lab", "Q: hot\nA:", "Q: $\\nabla$"]) == 0
    assert "line break" not in capsys.readouterr().err


@pytest.mark.slow
def test_answers_are_scored_and_need_not_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("big\tsmall\n\nhot\tcold\n")
    line = ["ask", "lab", "--file", str(tmp_path / "asked.txt"), "--template", "qa", "--vector", str(RUN)]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert out.endswith("lab: greedy-match 0.00 [0.00, 0.66]\n+ vector: greedy-match 1.00 [0.34, 1.00]\n")
    rows = table(out)[:2]
    assert [row[0] for row in rows] == ["big", "hot"] and [row[3] for row in rows] == ["small", "cold"]
    assert all(float(row[4]) > 0.5 > float(row[2]) for row in rows), "P(answer) with the vector and without"
    assert main([*line, "--score", "none"]) == 0
    assert "P(answer)" not in capsys.readouterr().out


@pytest.mark.slow
def test_prompts_come_from_standard_input_and_an_adapter_is_a_column(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ivlens.load("lab")
    adapter = lora.fresh(model, LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B.fill_(0.05)
    write_adapter(adapter, tmp_path / "tuned", model)
    monkeypatch.setattr("sys.stdin", io.StringIO("The capital of France is\n"))
    assert main(["ask", "lab", "-", "--adapter", str(tmp_path / "tuned")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["prompt", "lab", "+", "tuned"]
    assert table(out)[0][:6] == ["The", "capital", "of", "France", "is", "Paris"]


@pytest.mark.slow
def test_a_prompt_without_an_answer_is_read_as_it_is() -> None:
    model = ivlens.load("lab")
    whole = ivlens.prompts.Prompt(
        text="The capital of France is", answer=" Paris", query=ivlens.task("antonym").pairs[0]
    )
    bare = ivlens.prompts.Prompt(text=whole.text, answer="", query=whole.query)
    tokens, usual = tokenize(model, [bare], answered=False), tokenize(model, [whole])
    assert torch.equal(tokens.prompts, usual.prompts) and tokens.answers.shape == (1, 0)
    assert write_replies(model, tokens, find_endings(model, [bare])) == list(ivlens.ask(model, [whole]).reply)
    with pytest.raises(ivlens.IvlensError, match="has no token of its own"):
        tokenize(model, [bare])


@pytest.mark.slow
def test_the_prompts_that_are_shown_are_those_of_an_audit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "--task", "antonym", "--shots", "3", "--seed", "1", "--model", "lab"]) == 0
    out = capsys.readouterr().out
    model, task, settings = ivlens.load("lab"), ivlens.task("antonym"), Settings(shots=3, seed=1)
    for one in example_prompts(model, task, settings).values():
        assert "\n".join(f"  {line}" for line in one["text"].split("\n")) in out
    split = task.split(shots=3, seed=1)
    others = probes.ability_prompts(task, split.evaluation, split.mean, shots=3, template=settings.template, seed=1)
    for kind in ("instructed", "zero-shot", "statement"):
        first = others[kind][0]
        count = int(tokenize(model, [first]).mask.sum())
        shown = "\n".join(f"  {line}" for line in first.text.split("\n"))
        assert f"{shown}\n\n  answer: {first.answer!r}\n  {count} tokens " in out
    assert "'·" in out and "'<s>'" in out


@pytest.mark.slow
def test_what_a_task_of_pairs_lacks_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"input": f"q{i}", "output": f"w{i}"} for i in range(30)]))
    assert main(["prompts", "--task", str(path)]) == 0
    out = capsys.readouterr().out
    assert 'no written instruction; add "instructions"' in out and 'no statement; add "statement"' in out


def test_an_answer_of_several_lines_is_shown_as_python_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"input": f"w{i}", "output": f"one\nis {i}"} for i in range(20)]
    (tmp_path / "lines.json").write_text(json.dumps(pairs))
    assert main(["prompts", "--task", str(tmp_path / "lines.json"), "--shots", "2"]) == 0
    assert r"answer: ' one\nis " in capsys.readouterr().out


@pytest.mark.slow
def test_heads_of_a_run_are_explored_with_the_model_and_the_task_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(MODEL, tmp_path / "mine")
    pairs = ivlens.task("antonym").pairs[:20]
    (tmp_path / "pairs.csv").write_text("big,small\n" + "".join(f"{one.input},{one.output}\n" for one in pairs))
    monkeypatch.chdir(tmp_path)
    small = {"shots": 2, "prompts": 2, "clean-prompts": 3, "queries": 2, "draws": 1, "other-tasks": 0, "out": "run"}
    asked = [f"--{name}={value}" for name, value in small.items()]
    named = ["--task=pairs.csv", "--columns", "big,small", "--dtype", "float64"]
    assert main(["audit", "--backend", "bridge", "mine", *named, *asked]) == 0
    assert main(["explore", "run"]) == 0 and (tmp_path / "run" / "explorer.html").is_file()
    monkeypatch.chdir(Path.home())
    assert main(["explore", str(tmp_path / "run")]) == 2
    assert "not where its command had it; give it by --task" in capsys.readouterr().err
    at_its_place = ["--task", str(tmp_path / "pairs.csv")]
    assert main(["explore", str(tmp_path / "run"), *at_its_place]) == 2
    assert "give the model of" in capsys.readouterr().err
