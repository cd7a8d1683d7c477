"""Which model it is: a digest that is not computed twice, and never of other weights; memory while loading."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import build

import ivlens
from ivlens.models import origin
from ivlens.models.origin import weight_digest


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if small weights were large; where digests are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(origin, "LARGE", 0)
    monkeypatch.setattr(origin, "_HASHED_WHOLE", 256)
    return tmp_path / "cache" / "ivlens" / "digests"


def refuse(model: object) -> str:
    raise AssertionError("it is computed again")


@pytest.mark.slow
def test_a_digest_is_computed_once_for_all_processes(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build("llama", tmp_path / "tiny")
    model = ivlens.load(folder)
    digest = weight_digest(model)
    assert digest == origin._digest(model)
    monkeypatch.setattr(origin, "_digest", refuse)
    assert [path.read_text() for path in cached.iterdir()] == [digest]
    assert weight_digest(model) == weight_digest(ivlens.load(folder)) == digest


@pytest.mark.slow
@pytest.mark.parametrize("change", ["one weight", "two rows", "two columns", "a norm"])
def test_a_changed_weight_has_a_digest_of_its_own_however_it_was_changed(
    change: str, cached: Path, tmp_path: Path
) -> None:
    model = ivlens.load(build("llama", tmp_path / "tiny"))
    digest, weight = weight_digest(model), model.blocks[1].mlp.W_in.data
    if change == "one weight":
        weight[3, 5] += 1e-3
    elif change == "two rows":
        weight[[0, 1]] = weight[[1, 0]]
    elif change == "two columns":
        weight[:, [0, 9]] = weight[:, [9, 0]]
    else:
        model.blocks[0].ln1.w.data[2] += 1e-6
    assert weight_digest(model) != digest and weight_digest(model) == origin._digest(model)


def test_a_file_that_was_written_again_is_digested_again(cached: Path, tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "tiny")
    weight_digest(ivlens.load(folder))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    weight_digest(ivlens.load(folder))
    assert len(list(cached.iterdir())) == 2


def test_what_was_kept_wrongly_is_not_believed(cached: Path, tmp_path: Path) -> None:
    model = ivlens.load(build("llama", tmp_path / "tiny"))
    digest = weight_digest(model)
    for path in cached.iterdir():
        path.write_text("nonsense")
    assert weight_digest(model) == digest
    for path in cached.iterdir():
        path.unlink()
    cached.rmdir()
    cached.write_text("a file where the folder should be")
    assert weight_digest(model) == digest


@pytest.mark.long
@pytest.mark.command
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_the_weights_once_and_little_more(dtype: str, tmp_path: Path) -> None:
    """They are 160 MiB in 16 bits; the largest module, the embeddings, is 16 MiB of them."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 8192}
    folder = build("llama", tmp_path / "tiny", **sizes, num_attention_heads=16, dtype="bfloat16")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    code = f"""
    import re, warnings; warnings.simplefilter("ignore")
    from pathlib import Path
    import ivlens
    def peak():
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    ivlens.load("lab")  # Loads libraries.
    before = peak()
    model = ivlens.load({str(folder)!r}, dtype={dtype!r})
    print(peak() - before, sum(weight.nbytes for weight in model.parameters()) / 2**20)
    """
    command = [sys.executable, "-c", re.sub(r"\n    ", "\n", code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rise, weights = map(float, done.stdout.split())
    assert rise < weights + 130, (rise, weights)
