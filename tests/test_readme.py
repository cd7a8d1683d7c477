"""What the README shows is what happens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_python_block_prints_what_the_readme_says() -> None:
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL).groups()
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == printed


def test_the_lab_models_abilities_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "ivlens" / "lab" / "record.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (.+?) \| (at \w+ [\d.]+) \| ([\d.]+) \|", README, re.MULTILINE)
    assert {name: (wanted, float(got)) for name, wanted, got in rows} == {
        name: (target["wanted"], round(target["got"], 3)) for name, target in record["targets"].items()
    }


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.MULTILINE)
    assert {"demo", "test", "bench", "lab"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
