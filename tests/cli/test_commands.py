"""Whatever is typed or handed over ends in numbers, or in one line that says what to do."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import rounding
import torch
from choreographer.browsers.chromium import Chromium
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.cli import main
from ivlens.cli.options import parse_bytes
from ivlens.datasets.task import task, tasks
from ivlens.errors import IvlensError
from ivlens.lab.vocabulary import CONTEXT, tokenizer
from ivlens.models import hooked, loader, lora
from ivlens.models.lora import LoraConfig
from ivlens.models.peft import read_adapter, write_adapter
from ivlens.steering import trial_plan
from ivlens.storage.atomic_files import Lock
from ivlens.tables import plain

pytestmark = pytest.mark.slow

SMALL = ["--shots", "2", "--clean-prompts", "4", "--prompts", "3", "--top", "3"]
FIGURES = ["aie", "heads", "measures", "necessity", "places", "steering"]
TABLES = ["effects", "places", "steering", "heads", "measures", "layer_draws", "necessity"]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line of a mistake."""
        assert self.status == 2, (self.out, self.err)
        assert self.err.startswith("ivlens: ") and self.err.count("\n") == 1 and self.err.endswith("\n")
        assert self.out == ""
        return self.err.removeprefix("ivlens: ").rstrip("\n")


Ivlens = Callable[..., Outcome]


@pytest.fixture
def ivlens(capsys: pytest.CaptureFixture[str]) -> Ivlens:
    def run(*arguments: object) -> Outcome:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture(autouse=True, scope="module")
def no_chrome() -> Iterator[None]:
    """Images take seconds; pages are enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chromium, "find_browser", lambda **_: None)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 3 layers and 4 heads that reads the lab's words."""
    folder = tmp_path_factory.mktemp("models") / "random"
    words = tokenizer([task(name) for name in tasks()])
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=CONTEXT, **sizes))
        model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """An adapter over it."""
    import ivlens

    model = ivlens.load(checkpoint)
    random = lora.fresh(model, LoraConfig(rank=2))
    for factors in random.factors.values():
        factors.B.fill_(0.5)
    write_adapter(random, tmp_path / "tuned", model)
    return tmp_path / "tuned"


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("runs") / "antonym"
    assert main(["audit", str(checkpoint), "--task", "antonym", "--out", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def unfinish(folder: Path, *, keep: tuple[str, ...] = (), **changes: Any) -> None:
    record = json.loads((folder / "run.json").read_text()) | {"status": "running", "finished": None} | changes
    for path in folder.glob("*.*"):
        if path.stem not in keep:
            path.unlink()
    (folder / "run.json").write_text(json.dumps(record))


def assert_same_numbers(one: Path, other: Path, *, near: float = 0.0) -> None:
    for name in TABLES:
        frames = [pd.read_parquet(folder / f"{name}.parquet") for folder in (one, other)]
        pd.testing.assert_frame_equal(*frames, check_exact=not near, rtol=0, atol=near)
    assert load_file(one / "vector.safetensors").keys() == {"vector", "mean_z", "aie"}
    for key, tensor in load_file(one / "vector.safetensors").items():
        torch.testing.assert_close(tensor, load_file(other / "vector.safetensors")[key], rtol=0, atol=near)


def written(folder: Path, content: object, name: str = "mine.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pairs(n: int, output: str = "w{}") -> list[dict[str, str]]:
    return [{"input": f"q{i}", "output": output.format(i)} for i in range(n)]


def shell(*arguments: object, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, after some lines of Python."""
    # A shell's background jobs ignore Ctrl-C, and so would what they start: listen to it again.
    listen = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"import sys\n{listen}\n{code}\nfrom ivlens.cli import main\nsys.exit(main())"
    line = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# Help


@pytest.mark.command
def test_help_comes_quickly_and_without_torch() -> None:
    started = time.perf_counter()
    code = "import atexit; atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules))"
    out, err = shell("--help", code=code).communicate(timeout=60)
    assert time.perf_counter() - started < 5
    assert "audit" in out and "figures" in out and "tasks" in out and err == ""
    assert out.splitlines()[-1] == "False False"


def test_no_arguments_print_the_help(ivlens: Ivlens) -> None:
    bare = ivlens()
    assert bare == ivlens("--help") and bare.status == 0 and "Usage: ivlens" in bare.out


def test_the_version_is_that_of_the_package(ivlens: Ivlens) -> None:
    assert ivlens("--version") == (0, f"ivlens {metadata.version('ivlens')}\n", "")


COMMANDS = [
    *("audit", "compare", "universal", "study", "experiment", "show", "figures", "report", "explore", "ask", "convert"),
    *("tasks", "prompts"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(ivlens: Ivlens, command: str) -> None:
    found = ivlens(command, "-h")
    assert found.status == 0 and f"Usage: ivlens {command}" in found.out
    assert ivlens(command, "--help") == found


def test_the_list_of_commands_is_whole_and_cuts_no_sentence(ivlens: Ivlens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = ivlens("-h").out.partition("Commands:\n")[2]
    summaries = re.split(r"\n(?=  \w)", listed.strip("\n"))
    assert [summary.split()[0] for summary in summaries] == COMMANDS
    assert all(summary.endswith(".") and "..." not in summary for summary in summaries)
    assert max(map(len, listed.splitlines())) <= 80


@pytest.mark.long
@pytest.mark.command
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("ivlens uni", "universal"),
        ("ivlens audit la", "lab"),
        ("ivlens audit lab --task anto", "antonym"),
        ("ivlens study lab-func-m", "lab-func-methods"),
        ("ivlens audit lab --corruption z", "zero-shot"),
    ],
)
def test_the_shell_completes_commands_models_tasks_studies_and_choices(
    line: str, completed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_IVLENS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    out, err = shell(code="sys.argv = ['ivlens']").communicate(timeout=60)
    assert (out.split(), err) == ([completed], "")


# What was typed


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("audit", "Missing argument 'MODEL...'; see ivlens audit --help"),
        ("audit lab", "Missing option '--task'; see ivlens audit --help"),
        ("explore lab", "there is no task; give --task, or the folder of an audit in place of the model"),
        ("explore lab --task antonym --out heads.pdf", "written to heads.pdf; give a name that ends in .html"),
        ("audit lab --task", "Option '--task' requires an argument; see ivlens"),
        ("audit lab --task antonym --shots ten", "'--shots': 'ten' is not a whole number; see ivlens audit --help"),
        ("audit lab --task antonym --top 2.5", "'--top': '2.5' is not a whole number"),
        ("audit lab --task antonym --corruption noise", "'noise' is not one of 'shuffled', 'zero-shot'"),
        ("audit lab --task antonym --source x", "'x' is not one of 'demonstrations', 'instruction'"),
        ("audit lab --task antonym --effect x", "'x' is not one of 'prob', 'nll'"),
        ("audit lab --task antonym --rank lrp", "'lrp' is not one of 'aie', 'gradient', 'ablation'"),
        ("audit lab --task antonym --layers 3", "No such option: --layers"),
        ("audit lab --task antonym --template arow", "no template and no file 'arow'; did you mean arrow?"),
        ("audit lab --task antonym --template chat", "the tokenizer of lab has no chat template; choose another"),
        ("audit lab --task antonym --heads L9", "there is no file 'L9'; give the path of one, heads such as L9H6"),
        ("audit lab --task antonym --heads L3H1,L3H1", "head L3H1 is named twice"),
        ("audit lab --task antonym --heads L9H6", "there is no head L9H6: the model has 6 layers of 8 heads, from 0"),
        ("audit lab --task antonym --instruction worst", "instruction is 'worst'; it must be all, best or the number"),
        ("audit lab --task antonym --instruction 99", "instruction is 99, but task 'antonym' has"),
        ("audit lab --task antonym --columns a", "columns is 'a'; write the input's and the output's, such as"),
        ("universal lab", "Missing option '--out'; see ivlens universal --help"),
        ("universal lab --out heads.txt", "out is 'heads.txt'; give a name that ends in .json or .safetensors"),
        ("universal lab --out h.json --tasks antonym,nothing", "no built-in task and no file 'nothing'"),
        ("audits lab", "No such command 'audits'; did you mean 'audit'?; see ivlens --help"),
        ("audit lab --task antonym --shot 3", "No such option: --shot; did you mean --shots?; see ivlens audit --help"),
        ("audit lab --task antonym --effect probe", "not one of 'prob', 'nll'; did you mean prob?; see ivlens audit"),
        ("audit lab --task antonym --heads univeral", "or universal; did you mean universal?"),
        ("audit lab --task antonym --dtype flot32", "did you mean float32? Give auto, float32"),
        ("study lab-fnc --out x", "did you mean lab-func? Built-in are lab-factorial, lab-func, "),
        ("study lab-func --methods loar --out x", "no method 'loar' (of 'loar'); did you mean lora? There are lora, "),
        ("convert a.npy b.gguf --to gguv", "--to is 'gguv'; did you mean gguf? It must be one of vector, gguf"),
        ("prompts --task antonym --answered-only", "asks the model which queries it answers; give --model"),
        ("prompts --task antonmy", "no built-in task and no file 'antonmy'; did you mean antonym"),
        ("ask lab", "there is no prompt; give one, such as"),
        ("ask lab x --layer 2", "say how a vector is added; give --vector, too"),
        ("ask lab x --answer a --answer b", "there are 2 answers to 1 prompts; give one for each, or none"),
        ("ask lab x --vector nowhere.safetensors", "nowhere.safetensors is no readable safetensors file"),
        ("ask lab x --score exact", "1 of 1 prompts have no answer to score; give --answer, or --score none"),
        ("show nowhere", "nowhere is not a run of ivlens: it has no run.json"),
        ("universal lab extra --out heads.json", "unexpected extra argument"),
        ("figures", "Missing argument 'run'; see ivlens figures --help"),
        ("audit lab --task antonym --memory 0", "memory is '0'; write a size above 0 such as 2GiB, 500MB or 1048576"),
        ("audit lab --task antonym --memory abc", "memory is 'abc'; write a size"),
        ("audit lab --task antonym --memory=-1GB", "memory is '-1GB'; write a size"),
        ("audit lab --task antonym --memory 0.1B", "memory is '0.1B'; write a size"),
        ("audit lab --task antonym --shots -1", "shots is -1; it must be 0 or more"),
        ("audit lab --task antonym --prompts 0", "prompts is 0; it must be 1 or more"),
        ("audit lab --task antonym --seed -1", "seed is -1; it must be 0 or more"),
        ("audit lab --task antonym --shots 71", "80 pairs, but 71 shots need at least 81"),
        ("audit lab --task antonmy", "no built-in task and no file 'antonmy'; did you mean antonym"),
        ("audit lab --task nothing-like-it.json", "`ivlens tasks` lists the built-in ones"),
        (f"audit lab --task {'x' * 300}", "there is no built-in task and no file"),
        ("audit lab --task antonym --device gpu", "'gpu' is not a device; give auto, cpu, cuda, cuda:1 or mps"),
        ("audit lab --task antonym --device cuda:99", "this machine has no device 'cuda:99'; use cpu, or auto"),
        ("audit lab --task antonym --dtype int8", "'int8' is not a dtype ivlens computes in; give auto, float32"),
        ("audit ./nowhere --task antonym", "there is no folder './nowhere'; give a Hugging Face folder"),
        ("tasks nothing.json", "no built-in task and no file 'nothing.json'"),
    ],
)
def test_a_slip_of_the_keyboard_is_one_line(ivlens: Ivlens, line: str, sentence: str) -> None:
    assert sentence in ivlens(*line.split()).complaint()


def test_sizes_are_read_as_people_write_them() -> None:
    for text, size in {"2GiB": 2**31, "500 MB": 5 * 10**8, "1048576": 2**20, "1.5kib": 1536}.items():
        assert parse_bytes(text) == size
    assert parse_bytes("9" * 30) == int("9" * 30)
    for text in ("", "9" * 31):
        with pytest.raises(IvlensError, match=f"memory is '{text}'"):
            parse_bytes(text)


# Task files


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[{", "is not JSON: .* at line 1, column"),
        ("", "is not JSON"),
        ([], "'pairs' is empty; fill it in"),
        ("7", "no JSON object|is 7"),
        ([{"input": "hot"}], "has 'input', which do not tell input and output; known are"),
        ([{"input": "hot", "output": ""}], "json, entry 1: 'output' is empty; fill it in"),
        (
            {"pairs": pairs(30), "prompt": "x"},
            "unknown key 'prompt'; known are name, instructions, statement and pairs",
        ),
        (pairs(9), "has 9 pairs, but"),
    ],
)
def test_a_broken_task_file_is_one_line(ivlens: Ivlens, tmp_path: Path, content: object, sentence: str) -> None:
    path = written(tmp_path, content)
    assert re.search(sentence, ivlens("audit", "lab", "--task", path).complaint())
    assert re.search(sentence, ivlens("tasks", path).complaint())


def test_too_few_pairs_for_the_shots_are_told_before_the_model_is_read(ivlens: Ivlens, tmp_path: Path) -> None:
    found = ivlens("audit", "./nowhere", "--task", written(tmp_path, pairs(12)), "--shots", 3).complaint()
    assert "'mine' has 12 pairs, but 3 shots need at least 13" in found and "add pairs or use fewer shots" in found


def test_a_good_task_file_is_shown(ivlens: Ivlens, tmp_path: Path) -> None:
    found = ivlens("tasks", written(tmp_path, {"name": "mine", "statement": "So {input} is", "pairs": pairs(30)}))
    assert (found.status, found.err) == (0, "")
    assert "30: enough for up to 20 shots" in found.out and "q0 → w0" in found.out
    assert "So {input} is" in found.out and re.search(r"instruction +none", found.out)


def test_the_built_in_tasks_are_listed_and_shown(ivlens: Ivlens) -> None:
    listed = ivlens("tasks")
    assert [line.split()[0] for line in listed.out.splitlines()[2:]] == tasks()
    assert "opposite of the word" in ivlens("tasks", "antonym").out


def test_a_slip_among_hundreds_of_pairs_is_a_warning(ivlens: Ivlens, tmp_path: Path) -> None:
    found = ivlens("tasks", written(tmp_path, [*pairs(300), {"input": "q1", "output": "other"}]))
    assert (
        found.status == 0
        and found.err.startswith("ivlens: warning: ")
        and "1 of 300 inputs are given several outputs, such as 'q1'" in found.err
    )


HOSTILE = "[red]x[/red]\x1b[31m\nnext\u202eline\x9b2J <b>"


@pytest.mark.long
def test_names_from_files_are_only_text(ivlens: Ivlens, tmp_path: Path, checkpoint: Path) -> None:
    lines = [{"input": f"[bold]{i}", "output": "\x1b]0;x\x07 w"} for i in range(14)]
    path = written(tmp_path, {"name": HOSTILE, "instructions": ["[blink]\x1b[0m"], "pairs": lines})
    shown = ivlens("tasks", path)
    audited = ivlens("audit", checkpoint, "--task", path, "--out", tmp_path / "run", *SMALL)
    failed = ivlens("audit", checkpoint, "--task", path, "--shots", 9)
    for found in (shown, audited, failed):
        assert not set("\x1b\x9b\x07\u202e") & set(found.out + found.err)
    assert shown.status == audited.status == 0
    assert "[bold]0" in shown.out and "[blink]" in shown.out
    assert audited.out.startswith("[red]x[/red]\\x1b[31m\\nnext\\u202eline\\x9b2J <b> on random\n")
    assert "has 14 pairs" in failed.complaint()


def test_text_is_made_printable_and_nothing_else() -> None:
    assert plain("naïve → [x] 日本") == "naïve → [x] 日本"
    assert plain("a\tb\r\n\x00\udc80") == "a\\tb\\r\\n\\x00\\udc80"


def test_a_table_is_shown_by_its_columns(ivlens: Ivlens, tmp_path: Path) -> None:
    lines = ["id,country,capital", *(f"{i},c{i},p{i}" for i in range(12))]
    path = written(tmp_path, "\n".join(lines), "mine.csv")
    assert "Name two others as columns, such as --columns country,capital" in ivlens("tasks", path).complaint()
    found = ivlens("tasks", path, "--columns", "country, capital")
    assert found.status == 0 and "c0 → p0" in found.out and "12: enough for up to 2 shots" in found.out


# Models


def test_an_unknown_name_without_the_net_is_one_line(ivlens: Ivlens, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    started = time.perf_counter()
    found = ivlens("audit", "nobody/no-such-model", "--task", "antonym").complaint()
    assert "no folder 'nobody/no-such-model' here and it cannot be had" in found and "go online" in found
    assert ivlens("audit", "smolm2", "--task", "antonym").complaint().endswith("go online; did you mean smollm2?")
    assert time.perf_counter() - started < 10


def test_a_folder_without_a_model_is_one_line(ivlens: Ivlens, tmp_path: Path) -> None:
    found = ivlens("audit", tmp_path, "--task", "antonym").complaint()
    assert f"config.json is missing from {tmp_path}" in found


def test_nan_in_the_weights_names_the_layer(ivlens: Ivlens, checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    found = ivlens("audit", broken, "--task", "antonym").complaint()
    assert "model.layers.1.mlp.up_proj.weight" in found and "1 NaN or infinite" in found


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            "--shots 69",
            r"for prompts with 69 demonstrations: the context of .* is 256 tokens.*use \d+ shots or fewer",
        ),
        ("--top 13", "top is 13, but the model has 12 heads; take fewer"),
        ("--memory 1KB", "memory is 1,000 bytes, but one prompt of .* needs .*; give more, or use fewer shots"),
        ("--shots 1", "outputs of 1 demonstrations cannot be permuted; take 2 shots or more, or zero-shot"),
        ("--shots 0 --corruption zero-shot", "need 1 shot or more; shots is 0"),
    ],
)
def test_what_the_model_cannot_hold_is_one_line(
    ivlens: Ivlens, checkpoint: Path, tmp_path: Path, options: str, sentence: str
) -> None:
    line = ["audit", checkpoint, "--task", "antonym", "--out", tmp_path / "run", "--clean-prompts", 2, "--prompts", 2]
    assert re.search(sentence, ivlens(*line, *options.split()).complaint())


@pytest.mark.slow
def test_answers_that_begin_alike_are_warned_of_and_the_run_goes_on(
    ivlens: Ivlens, checkpoint: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, pairs(14, output="zq{}"))
    found = ivlens("audit", checkpoint, "--task", path, "--out", tmp_path / "run", *SMALL)
    assert found.status == 0 and "Zero-shot accuracy" in found.out
    warning = next(line for line in found.err.splitlines() if "first token" in line)
    assert warning.startswith("ivlens: warning: 14 of 14 pairs of task 'mine' (100%) have an answer whose first token")
    assert "(such as 'zq0', 'zq1', 'zq10' and 11 more)" in warning and "effect='nll'" in warning


@pytest.mark.long
def test_an_adapter_is_audited_in_a_folder_of_its_own(
    ivlens: Ivlens, checkpoint: Path, adapter: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = ivlens("audit", checkpoint, "--adapter", adapter, "--task", "antonym", *SMALL)
    assert found.status == 0
    base, tuned = (
        json.loads((folder / "run.json").read_text())["sources"]["model"]
        for folder in (finished, tmp_path / "runs" / "random-tuned-antonym")
    )
    assert base["name"] == tuned["name"] and base["digest"] != tuned["digest"]


@pytest.mark.long
def test_several_adapters_are_audited_as_merged_one_after_the_other(
    ivlens: Ivlens, checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    twice_over = ["--adapter", adapter] * 2
    assert ivlens("audit", checkpoint, *twice_over, "--task", "antonym", *SMALL, "--out", tmp_path / "run").status == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    twice = loader.load_without_adapters(checkpoint)
    for _ in range(2):
        lora.merge(twice, read_adapter(adapter, twice))
    assert record["sources"]["model"]["digest"] == hooked.weight_digest(twice)


def test_what_is_no_adapter_of_the_model_is_one_line(
    ivlens: Ivlens, checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    line = ["audit", checkpoint, "--task", "antonym", "--out", tmp_path / "run", "--adapter"]
    assert "there is no adapter_config.json in" in ivlens(*line, tmp_path).complaint()
    line[1] = "lab"
    assert re.search(r"has A \(2, 32\) and B .*, but lab at rank 2 needs", ivlens(*line, adapter).complaint())


def test_a_device_without_memory_left_is_one_line(ivlens: Ivlens, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")

    monkeypatch.setattr("ivlens.models.loader.load_without_adapters", full)
    found = ivlens("audit", "lab", "--task", "antonym").complaint()
    assert found == "the device ran out of memory; give a smaller --memory, or --device cpu"


# Run folders


def audit_again(ivlens: Ivlens, checkpoint: Path, folder: Path, *more: object) -> Outcome:
    return ivlens("audit", checkpoint, "--task", "antonym", "--out", folder, *SMALL, *more)


def test_a_complete_run_is_printed_again_and_nothing_is_touched(
    ivlens: Ivlens, checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audit_again(ivlens, checkpoint, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    monkeypatch.setattr("ivlens.patching.branches.run_branches", None)
    second = audit_again(ivlens, checkpoint, copy)
    assert second == first and second.status == 0 and second.err == ""
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    (copy / "figures" / "aie.html").unlink()
    third = audit_again(ivlens, checkpoint, copy)
    assert third.out == first.out and (copy / "figures" / "aie.html").is_file()


def test_a_run_is_shown_again_as_the_command_printed_it(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    printed = audit_again(ivlens, checkpoint, copy).out
    assert ivlens("show", copy) == (0, printed[: printed.rindex("In ")], "")
    unfinish(copy)
    assert "is unfinished" in ivlens("show", copy).complaint()


def test_the_printed_audit_is_plain_fits_eighty_columns_and_says_the_numbers(
    ivlens: Ivlens, checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    found = audit_again(ivlens, checkpoint, copy)
    lines = found.out.splitlines()
    assert max(map(len, lines[:-1])) <= 80 and "\x1b" not in found.out
    measures = pd.read_parquet(copy / "measures.parquet").set_index("measure")
    names = ["zero-shot", "with the instruction", "2 shots", "2 shots, shuffled", "plain statement"]
    names += ["most frequent answer"]
    kinds = ("chosen heads", "random heads", "low-AIE heads", "Gaussian", "other tasks")
    names += [f"zero-shot + {kind}" for kind in kinds] + [f"{kind}, scale 1" for kind in kinds]
    for name, row in zip(names, measures.to_dict("records"), strict=True):
        (line,) = [line for line in lines if line.startswith(f"{name}  ")]
        assert f" {row['accuracy']:.2f}   [{row['accuracy_low']:.2f}, {row['accuracy_high']:.2f}]" in line
        measured = not math.isnan(row["probability"])
        assert (f" {row['probability']:.3f}  [{row['probability_low']:.3f}, " if measured else " not measured") in line
    effects = pd.read_parquet(copy / "effects.parquet")
    aie = effects.groupby(["layer", "head"])["cie"].mean().sort_values(ascending=False)
    heads = [line.split()[0] for line in lines if re.match(r"L\d+H\d+ ", line)]
    # In the table of AIE, and in those of what is lost without them.
    assert heads == 3 * [f"L{layer}H{head}" for layer, head in aie.index[:3]]
    assert [line.split()[0] for line in lines if re.match(r"\d+ +\d\.\d\d ", line)] == ["1", "2", "3", "5", "10"]


def test_another_configuration_is_refused_with_its_differences(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    found = audit_again(ivlens, checkpoint, copy, "--seed", 1, "--top", 2).complaint()
    assert "holds another run" in found and "choose another --out" in found
    assert "seed is 1 here but 0 in that run" in found and "top is 2 here but 3 in that run" in found


def test_another_task_is_refused_by_name(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    found = ivlens("audit", checkpoint, "--task", "synonym", "--out", copy, *SMALL).complaint()
    assert re.search(r"the task is synonym \(digest \w+\) here but antonym \(digest \w+\) in that run", found)


def test_a_run_of_another_kind_is_refused(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text()) | {"command": "sweep"}
    (copy / "run.json").write_text(json.dumps(record))
    assert 'command is "audit" here but "sweep"' in audit_again(ivlens, checkpoint, copy).complaint()
    assert "is of `ivlens sweep`, not of an audit" in ivlens("figures", copy).complaint()


def test_a_folder_of_something_else_is_left_alone(ivlens: Ivlens, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    found = audit_again(ivlens, checkpoint, tmp_path).complaint()
    assert "holds other files (thesis.tex, ...) and no run.json; choose an empty or new folder" in found
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unfinished_run_of_another_version_is_refused(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    versions = json.loads((copy / "run.json").read_text())["versions"]
    unfinish(copy, keep=("run", "effects"), versions=versions | {"ivlens": "0.0.1"})
    found = audit_again(ivlens, checkpoint, copy).complaint()
    assert 'here but "0.0.1" in that run' in found and "ivlens is" in found


def test_a_run_of_another_format_is_refused(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text()) | {"schema_version": 99}
    (copy / "run.json").write_text(json.dumps(record))
    sentence = "was written by another version of ivlens"
    assert sentence in audit_again(ivlens, checkpoint, copy).complaint()
    assert sentence in ivlens("figures", copy).complaint()


def test_a_torn_record_is_refused(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    (copy / "run.json").write_text((copy / "run.json").read_text()[:50])
    assert "run.json cannot be read" in audit_again(ivlens, checkpoint, copy).complaint()


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut", "empty", "another's", "away"])
def test_a_damaged_or_missing_file_is_refused_by_readers_and_made_again_by_the_command(
    ivlens: Ivlens, checkpoint: Path, copy: Path, finished: Path, damage: str
) -> None:
    path = copy / ("vector.safetensors" if damage == "empty" else "measures.parquet")
    content = path.read_bytes()
    if damage == "away":
        path.unlink()
    else:
        other = (copy / "heads.parquet").read_bytes()
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "another's": other}[damage])
    for command in ("figures", "report"):
        sentence = "is missing" if damage == "away" else "cannot be read: it "
        assert f"{path.name} {sentence}" in ivlens(command, copy).complaint()
    assert audit_again(ivlens, checkpoint, copy).status == 0
    assert_same_numbers(copy, finished)
    assert ivlens("figures", copy, "--format", "html").status == 0


def test_out_under_a_file_is_one_line(ivlens: Ivlens, checkpoint: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "x")
    assert "is a file, not a folder" in audit_again(ivlens, checkpoint, path).complaint()
    assert "choose another --out" in audit_again(ivlens, checkpoint, path / "run").complaint()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_out_is_one_line(ivlens: Ivlens, checkpoint: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot write" in audit_again(ivlens, checkpoint, tmp_path / "run").complaint()
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files")
def test_a_read_only_file_system_is_one_line(ivlens: Ivlens, checkpoint: Path) -> None:
    found = audit_again(ivlens, checkpoint, Path("/proc/ivlens-run")).complaint()
    assert "cannot write /proc/ivlens-run" in found and "choose another --out" in found


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    ivlens: Ivlens, checkpoint: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flush = tmp_path / "run", os.fsync

    def full(descriptor: int) -> None:
        if (folder / "effects.parquet").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found = audit_again(ivlens, checkpoint, folder).complaint()
    assert "No space left on device" in found and "run the same command again" in found
    left = sorted(path.name for path in folder.iterdir() if path.name not in (".ivlens-lock", "parts"))
    assert left == ["effects.parquet", "run.json"]
    assert audit_again(ivlens, checkpoint, folder).status == 0
    assert_same_numbers(folder, finished)


def test_two_at_once_in_one_folder_are_refused(ivlens: Ivlens, checkpoint: Path, copy: Path) -> None:
    unfinish(copy, keep=("run", "effects"))
    lock = Lock.take(copy)
    try:
        assert "another process is at work" in audit_again(ivlens, checkpoint, copy).complaint()
    finally:
        lock.release()


# Stopped in the middle


SLOW = """
import time
from ivlens.steering import trials
trials.run_trials = lambda *a, **k: time.sleep(120)
"""


def stopped(checkpoint: Path, folder: Path, wanted: signal.Signals) -> Outcome:
    """Stop an audit that has written its effects and is about to steer."""
    process = shell("audit", checkpoint, "--task", "antonym", "--out", folder, *SMALL, code=SLOW)
    try:
        started = time.monotonic()
        while not (folder / "effects.parquet").exists():
            assert process.poll() is None and time.monotonic() - started < 100, process.communicate()
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(wanted)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


@pytest.mark.long
@pytest.mark.command
@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.parametrize("wanted", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_audit_goes_on_to_the_numbers_of_an_uninterrupted_one(
    ivlens: Ivlens, checkpoint: Path, finished: Path, tmp_path: Path, wanted: signal.Signals
) -> None:
    folder = tmp_path / "run"
    found = stopped(checkpoint, folder, wanted)
    if wanted is signal.SIGINT:
        assert found.status == 130 and found.out == ""
        # Nor was there a bar: nobody is watching.
        assert found.err.strip() == "ivlens: stopped; the same command goes on from what it has written"
    else:
        assert found.status == -signal.SIGKILL
    assert "unfinished" in ivlens("figures", folder).complaint()
    written_before = (folder / "effects.parquet").stat().st_mtime_ns
    assert audit_again(ivlens, checkpoint, folder).status == 0
    assert (folder / "effects.parquet").stat().st_mtime_ns == written_before
    # Two processes: the effects are of one, the rest is of another.
    near = rounding.bound(rounding.chain(loader.load_without_adapters(checkpoint).cfg, CONTEXT))
    assert_same_numbers(folder, finished, near=near)


# Lets the work of every batch be small, so that a kill falls between two of them.
SMALL_BATCHES = """
from ivlens.forward import memory
memory.WORK = 10**6
"""


@pytest.mark.long
@pytest.mark.command
@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_kills_at_any_moment_change_no_number(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("audit", checkpoint, "--task", "antonym", "--draws", "2", "--other-tasks", "1", *SMALL)
    whole = shell(*arguments, "--out", tmp_path / "whole", code=SMALL_BATCHES)
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    moments, kept = np.random.default_rng(0), 0
    for _ in range(4):
        process = shell(*arguments, "--out", tmp_path / "killed", code=SMALL_BATCHES)
        started = time.monotonic()
        while not (tmp_path / "killed" / "run.json").exists():
            assert process.poll() is None and time.monotonic() - started < 100, process.communicate()
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 3))
        process.kill()
        process.communicate(timeout=60)
        if json.loads((tmp_path / "killed" / "run.json").read_text())["status"] == "complete":
            break
        now = len(list((tmp_path / "killed" / "parts").rglob("*.safetensors")))
        assert now >= kept, "what was kept stays"
        kept = now
    last = shell(*arguments, "--out", tmp_path / "killed", code=SMALL_BATCHES)
    _, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert_same_numbers(tmp_path / "killed", tmp_path / "whole")


# Before it starts


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(ivlens: Ivlens, checkpoint: Path, tmp_path: Path) -> None:
    found = ivlens("audit", checkpoint, "--task", "antonym", "--out", tmp_path / "run", "--dry-run", *SMALL)
    assert found.status == 0 and not (tmp_path / "run").exists()
    heads = "AIE: 3 prompts x 12 heads, under 1 s"
    assert heads in found.out and "; --only heads stops behind the AIE" in found.out
    assert re.search(r"trials: \d+ vectors x 3 layers x 20 prompts", found.out)


def test_long_work_is_announced_and_short_work_is_not(
    ivlens: Ivlens, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("audit", checkpoint, "--task", "antonym", "--only", "heads", "--out", tmp_path / "run", *SMALL)
    monkeypatch.setattr(trial_plan, "FLOOR", 0)
    found = ivlens(*arguments)
    assert found.err.startswith("ivlens: abilities: ") and "To keep trials near 3 times" in found.err
    assert "the same command without --only goes on" in found.out
    assert (tmp_path / "run" / "figures" / "aie.html").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "heads"
    monkeypatch.undo()
    assert "AIE:" not in ivlens(*arguments[:4], "--out", tmp_path / "other", "--only", "heads", *SMALL).err


@pytest.mark.command
def test_a_fault_of_ours_keeps_its_traceback(checkpoint: Path, tmp_path: Path) -> None:
    process = shell(
        "tasks",
        code="from ivlens.cli import tasks\ntasks.print_tasks = lambda tasks: 1 / 0",
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" in err and "ZeroDivisionError" in err


# Heads, templates, wordings


@pytest.mark.slow
def test_universal_heads_are_printed_written_and_taken(ivlens: Ivlens, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    line = ["universal", "lab", "--tasks", "antonym,first-letter", "--out", path, *SMALL]
    found = ivlens(*line)
    assert found.status == 0 and found.out.startswith("2 of 2 tasks entered on lab:\n")
    assert re.search(r"antonym +\d\.\d\d +0\.\d\d +entered", found.out)
    content = json.loads(path.read_text())
    heads = [row.split()[0] for row in found.out.splitlines() if re.match(r"L\d+H\d+ ", row)]
    assert heads == content["heads"] and len(heads) == 3
    assert found.out.endswith(f"In {path}; give it to --heads.\n")
    assert ivlens("show", path).out == found.out[: found.out.rindex("In ")]
    audited = ivlens("audit", "lab", "--task", "synonym", "--heads", path, "--out", tmp_path / "run", *SMALL)
    assert audited.status == 0
    assert [row.split()[0] for row in audited.out.splitlines() if re.match(r"L\d+H\d+ ", row)][:3] == heads
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["heads"] == heads and record["settings"]["top"] == 3


@pytest.mark.slow
def test_template_and_wording_are_recorded_and_said(ivlens: Ivlens, checkpoint: Path, tmp_path: Path) -> None:
    layout = written(tmp_path, {"prefixes": {"input": "W:"}}, "layout.json")
    line = ["audit", checkpoint, "--task", "antonym", "--out", tmp_path / "run", *SMALL]
    found = ivlens(*line, "--template", layout, "--instruction", "best", "--source", "instruction")
    assert found.status == 0
    assert re.search(
        r"\nInstruction: .+\nThe best of \d on \d+ validation pairs, of which it has 0\.\d\d right", found.out
    )
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["template"]["query"] == "W: {input}\nA:" and settings["instruction"] == "best"
    assert len(pd.read_parquet(tmp_path / "run" / "instructions.parquet")) > 1
    assert "instruction is not set here" in ivlens(*line, "--template", layout, "--source", "instruction").complaint()


CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.long
def test_the_checkpoints_own_chat_template_is_taken_by_name(ivlens: Ivlens, checkpoint: Path, tmp_path: Path) -> None:
    talking, line = tmp_path / "talking", ["--task", "antonym", "--out", tmp_path / "run", "--template", "chat", *SMALL]
    shutil.copytree(checkpoint, talking)
    assert "the tokenizer of talking has no chat template" in ivlens("audit", talking, *line).complaint()
    (talking / "chat_template.jinja").write_text(CHAT)
    assert ivlens("audit", talking, *line).status == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["template"]["jinja"] == CHAT
    shown = json.loads((tmp_path / "run" / "prompts.json").read_text())
    assert all(one["text"].endswith("assistant: ") for one in shown.values())
    for jinja, reason in (
        ("{% if %}", "Expected an expression"),
        ("{{ x.y.z }}", "'x' is undefined"),
        ("hi", "leaves out"),
    ):
        (talking / "chat_template.jinja").write_text(jinja)
        line[3] = tmp_path / "other"
        assert reason in ivlens("audit", talking, *line).complaint()


# Figures


def test_figures_are_drawn_again_from_the_numbers(ivlens: Ivlens, copy: Path) -> None:
    shutil.rmtree(copy / "figures")
    found = ivlens("figures", copy, "--format", "html")
    assert (found.status, found.err) == (0, "")
    assert found.out == f"In {copy / 'figures'}: aie, measures, steering, places, heads, necessity as html.\n"
    assert {path.name for path in (copy / "figures").iterdir()} == {*pages(FIGURES), "plotly.min.js"}
    assert all(len(path.read_bytes()) < 10**6 for path in (copy / "figures").glob("*.html"))
    for options, least in (["--single-file"], 4 * 10**6), (["--width", "single"], 0):
        assert ivlens("figures", copy, "--format", "html", *options).status == 0
        assert (copy / "figures" / "aie.html").stat().st_size > least
    assert '"width":312' in (copy / "figures" / "aie.html").read_text()


def test_images_without_a_browser_are_a_notice(ivlens: Ivlens, copy: Path) -> None:
    found = ivlens("figures", copy, "--format", "png, svg")
    assert found.status == 0 and found.err.count("\n") == 1 and "12 of 12 images (png, svg) are missing" in found.err


@pytest.mark.parametrize("format", ["gif", "", "png,", "png;svg"])
def test_an_unknown_format_is_one_line(ivlens: Ivlens, copy: Path, format: str) -> None:
    found = ivlens("figures", copy, "--format", format).complaint()
    assert re.search("is not a format of figures; .*[Uu]se any of html, png, svg, pdf", found)


def test_figures_of_what_is_no_run_are_one_line(ivlens: Ivlens, tmp_path: Path) -> None:
    assert "is not a run of ivlens: it has no run.json" in ivlens("figures", tmp_path).complaint()
    assert "is not a run of ivlens" in ivlens("figures", tmp_path / "nowhere").complaint()


# Python, without the type checks of the test suite


@pytest.mark.command
def test_wrong_arguments_of_the_python_surface_are_sentences(checkpoint: Path) -> None:
    script = """
import sys
import ivlens
model, task = ivlens.load(sys.argv[1]), ivlens.task("antonym")
for name, value in (("corruption", "x"), ("source", "x"), ("effect", "x"), ("seed", -1), ("top", 99), ("shots", -1)):
    for call in (ivlens.audit, ivlens.indirect_effects):
        try:
            call(model, task, **{name: value})
        except ivlens.IvlensError as error:
            print(error)
        except TypeError as error:
            print("TypeError", error)
"""
    done = subprocess.run([sys.executable, "-c", script, checkpoint], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:8] == [
        *["corruption is 'x'; it must be 'shuffled' or 'zero-shot'"] * 2,
        *["source is 'x'; it must be 'demonstrations' or 'instruction'"] * 2,
        *["effect is 'x'; it must be 'prob' or 'nll'"] * 2,
        *["seed is -1; it must be 0 or more"] * 2,
    ]
    assert lines[8] == "top is 99, but the model has 12 heads; take fewer"
    assert lines[9].startswith("there is no option 'top'; there are shots, clean_prompts,")
    assert len(lines) == 12 and all("shots is -1; it must be 0 or more" in line for line in lines[10:])


# Comparisons

COMPARED = ["abilities", "aie", "dependence", "heads"]


def pages(names: list[str]) -> list[str]:
    return [f"{name}.html" for name in names]


def compare(ivlens: Ivlens, checkpoint: Path, tuned: object, *more: object) -> Outcome:
    return ivlens("compare", checkpoint, tuned, "--task", "antonym", "--queries", 4, *SMALL, *more)


@pytest.mark.slow
def test_an_adapter_is_compared_with_its_base_printed_and_drawn(
    ivlens: Ivlens, checkpoint: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    found = compare(ivlens, checkpoint, adapter)
    assert found.status == 0
    folder = tmp_path / "runs" / "compare-random-tuned-antonym"
    lines = found.out.splitlines()
    assert lines[0] == "antonym, random → random + tuned" and max(map(len, lines[:-1])) <= 80
    rows = pd.read_parquet(folder / "measures.parquet").query("measure == 'shift' and vector == 'base'")
    chosen = rows.query("heads == 'chosen'").set_index("model").to_dict("index")
    (line,) = [line for line in lines if line.startswith("shift (nats)")]
    assert f"{chosen['base']['value']:.3f}" in line and f"{chosen['difference']['value']:+.3f}" in line
    assert f"[{chosen['difference']['low']:+.3f}, {chosen['difference']['high']:+.3f}]" in line
    assert any(line.startswith("top heads shared (Jaccard)") for line in lines)
    assert sorted(path.name for path in (folder / "figures").glob("*.html")) == pages(COMPARED)
    shutil.rmtree(folder / "figures")
    redrawn = ivlens("figures", folder, "--format", "html")
    assert redrawn.status == 0 and sorted(path.name for path in (folder / "figures").glob("*.html")) == pages(COMPARED)
    monkeypatch.setattr("ivlens.patching.branches.run_branches", None)
    assert compare(ivlens, checkpoint, adapter).out == found.out, "a complete run is printed again"


def test_what_cannot_be_compared_is_one_line(ivlens: Ivlens, checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert "have the same weights" in compare(ivlens, checkpoint, checkpoint, *out).complaint()
    found = compare(ivlens, checkpoint, "lab", *out).complaint()
    assert re.search(r"^lab has n_layers 6 instead of 3, .* of random; give a model that was fine-tuned from", found)
    assert "has A (2, 32)" in ivlens("compare", "lab", adapter, "--task", "antonym", *out).complaint()
    assert "there is no folder './nowhere'" in compare(ivlens, checkpoint, "./nowhere", *out).complaint()
    assert "queries is 0; it must be 1 or more" in compare(ivlens, checkpoint, adapter, "--queries", 0).complaint()
    assert not (tmp_path / "run").exists()
