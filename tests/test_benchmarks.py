"""What the benchmark holds the sweep against computes what its name says."""

from __future__ import annotations

import importlib.util
import json
import re
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens import HookedTransformer, HookedTransformerConfig

from ivlens.forward.makers import forward_of
from ivlens.patching import activations, sweep
from ivlens.prompts.tokens import Tokens

FOLDER = Path(__file__).parents[1] / "benchmarks"


def read(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return read("peers")


@pytest.fixture(scope="module")
def measurements() -> ModuleType:
    return read("measurements")


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=2, n_heads=3, d_model=24, d_head=8, d_mlp=32, n_ctx=16, d_vocab=30, act_fn="gelu", seed=0,
        normalization_type="LN", device="cpu", dtype=torch.float64,
    )  # fmt: skip
    return HookedTransformer(config).eval().requires_grad_(False)


def tokens() -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return Tokens(
        prompts=torch.randint(30, (3, 7), generator=generator),
        mask=torch.ones(3, 7, dtype=torch.bool),
        answers=torch.randint(30, (3, 1), generator=generator),
        answer_mask=torch.ones(3, 1, dtype=torch.bool),
    )


@pytest.mark.slow
def test_the_helper_of_transformerlens_gives_what_the_sweep_gives(peers: ModuleType, model: HookedTransformer):
    asked, z = tokens(), torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for i in range(3):
        exact = sweep.sweep(model, asked[i : i + 1], z)[1]
        assert torch.allclose(peers.generic_patch(model, asked[i : i + 1], z), exact, atol=1e-6)


def test_attribution_is_the_slope_of_the_exact_effect_at_the_unpatched_output(
    peers: ModuleType, model: HookedTransformer
):
    """A mean that is nearer by h to a prompt's own output moves the answer by h times the estimate, to first order."""
    asked = tokens()
    own = activations.last_z(model, asked)
    z = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    estimate, h = peers.attribution(model, asked, z), 1e-5
    for i in range(3):
        nearer = own[i] + h * (z - own[i])
        slope = sweep.sweep(model, asked[i : i + 1], nearer)[1] / h
        assert torch.allclose(estimate[i], slope[0], rtol=1e-3, atol=1e-7)


TINY = {"layers": 3, "heads": 4, "width": 64, "mlp": 96, "vocab": 50, "pos": 9, "prompts": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("maker", ["hooked", "bridge"])
def test_products_are_those_that_are_done(measurements: ModuleType, maker: str, kv_heads: int | None):
    """Beside attention, no fewer; more where a maker computes again what it could have kept."""
    shape = measurements.Shape(**TINY, kv_heads=kv_heads)
    model = measurements.build(shape)[maker]()
    runs = measurements.measurements(model, shape)
    runs["sweep"]()  # What is tried once of a bridge.
    for kind, cost in measurements.costs(shape).items():
        with FlopCounterMode(display=False) as counted:
            runs[kind]()
        needed = 2 * measurements.multiply_adds(shape, cost)
        assert needed <= counted.get_total_flops() < 1.6 * needed, kind


@pytest.mark.slow
def test_the_tables_of_measurements(measurements: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measurements, "SHAPES", {"tiny": measurements.Shape(**TINY)})
    monkeypatch.setattr(measurements, "SMALL", measurements.Shape(**TINY))
    console = Console(width=140, record=True, file=StringIO())
    measurements.print_measurements(console, measurements.SHAPES)
    measurements.print_growth(console, measurements.SMALL)
    shown = console.export_text()
    for line in ("sweep, 2 prompts", "mean_z, 25 prompts", "trials, 2 prompts", "necessity, 2 prompts"):
        assert re.search(rf"tiny +│ {line} +│ +[0-9.]+ │ +[0-9.]+ │ +[0-9.]+ │ +[0-9.]+ │ +[0-9.]+", shown), shown
    for line in ("layers +│ +3", "heads +│ +4", "tokens +│ +9", "prompts +│ +2", "rows through a block +│ +512"):
        assert re.search(rf"{line} │ +[0-9.]+ │ +-?[0-9.]+ │ +-?[0-9.]+", shown), shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_table_of_trainings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    training = read("training")
    console = Console(width=140, record=True, file=StringIO())
    training.print_trainings(console, shape=training.Shape(**TINY, kv_heads=2), name="a tiny", repeats=1)
    shown = console.export_text()
    for maker in (
        "PEFT",
        "HookedTransformer",
        r"HookedTransformer \+iv",
        "TransformerBridge",
        r"TransformerBridge \+iv",
    ):
        assert re.search(rf"{maker} +│ +[0-9.]+ │ +[0-9.]+ │ +[0-9.]+ │ +[0-9.]* │ +[0-9]+", shown), shown


@pytest.mark.slow
@pytest.mark.numeric
def test_scores_of_rows_do_not_grow_with_the_square_of_rows(measurements: ModuleType):
    shape = measurements.Shape(**TINY)
    for make in measurements.build(shape).values():
        forward = forward_of(make())
        with torch.no_grad():
            reading = forward.read(measurements.random_prompts(shape, 1))
            done = []
            for rows in (512, 1024):
                with FlopCounterMode(display=False) as counted:
                    reading.carry(0, reading.start[:, None].repeat(1, rows, 1, 1))
                done.append(counted.get_total_flops())
        assert done[1] == 2 * done[0]


def test_letter_and_option_of_questions_are_two_tasks_that_share_no_question(tmp_path: Path) -> None:
    entries = [{"input": f"Which {i}?\na: red {i}\nb: blue {i}", "output": "ab"[i % 2]} for i in range(21)]
    entries += [{"input": "Without options?", "output": "a"}, {"input": f"Long? {'x' * 200}\na: red", "output": "a"}]
    (tmp_path / "commonsense_qa.json").write_text(json.dumps(entries))
    letters, options = read("real_tasks").question_tasks(tmp_path / "commonsense_qa.json")
    assert letters["pairs"][1] == {"input": "Which 2?\na: red 2\nb: blue 2", "output": "a", "knowledge": "red 2"}
    assert options["pairs"][0] == {"input": "Which 1?\na: red 1\nb: blue 1", "output": "blue 1"}
    asked = [{pair["input"] for pair in one["pairs"]} for one in (letters, options)]
    assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == 21
