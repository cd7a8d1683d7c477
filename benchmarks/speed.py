"""How fast is every measurement, and what does guidance cost a training step, and a stage of a study? `make bench`.

Measurements are held against the matrix products alone (`measurements`), the sweep against one run per head and other
tools (`peers`). Everything is measured in one run on one machine. `python benchmarks/speed.py --device cuda` prints
what concerns a GPU; `cuda:1` is had by `CUDA_VISIBLE_DEVICES`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import measurements
import stages
import torch
import training as adapter_training
from rich.console import Console
from rich.table import Table

import ivlens
from ivlens import prompts
from ivlens.models import lora
from ivlens.shapes import Head
from ivlens.training.guidance import GUIDANCE, Guidance, Guide
from ivlens.training.loop import Examples, Step, Training, finetune
from ivlens.training.methods import Lora

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

REPEATS = 3
STEPS = 24
PROMPTS = 8


def timed(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of a call, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def seconds_of(command: list[str]) -> float:
    """Wall-clock seconds of a whole process; the median of three for quick ones."""
    return timed(lambda: subprocess.run(command, check=True, capture_output=True), repeats=REPEATS)


def print_peers(console: Console) -> None:
    """Other ways to measure the same, at GPT-2-small size, and on the lab model, where the numbers mean something."""
    import peers  # Needs a HookedTransformer.

    shape = measurements.Shape(pos=100)
    model, tokens = measurements.build(shape)["hooked"](), measurements.random_prompts(shape, PROMPTS)
    z = torch.randn(shape.layers, shape.heads, shape.width // shape.heads, generator=torch.Generator().manual_seed(0))
    peers.compare(console, "GPT-2 small, prompts of 100 tokens", peers.in_process(model, tokens, z))
    peers.on_task(console, ivlens.load("lab"), ivlens.task("antonym"), PROMPTS)


def training(model: HookedTransformer, guidance: Guidance | None) -> tuple[lora.Adapter, Iterator[Step]]:
    """Steps of 16 prompts with a LoRA adapter of default size, which is to be attached for each."""
    task = ivlens.task("english-french")
    asked = [
        prompts.tokenize(model, form(task.pairs)) for form in (partial(prompts.instructed, task), prompts.zero_shot)
    ]
    vectors = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    heads = tuple(Head(model.cfg.n_layers // 2, head) for head in range(model.cfg.n_heads))
    teacher = partial(lora.silenced, model)
    guide = guidance and Guide(
        guidance=guidance, vectors=vectors, layer=model.cfg.n_layers // 2, heads=heads, teacher=teacher
    )
    adapter = lora.fresh(model, lora.LoraConfig())
    examples = Examples(prompts=asked[0], bare=asked[1], new=len(task.pairs))
    return adapter, finetune(model, adapter, examples, Training(steps=STEPS), method=Lora(), guide=guide)


def step_seconds(model: HookedTransformer, forms: Mapping[str, Guidance | None]) -> dict[str, list[float]]:
    """Seconds of every step but the first, by form. Forms take turns, so that a slow second slows all of them."""
    trainings = {name: training(model, guidance) for name, guidance in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(STEPS):
        for name, (adapter, taken) in trainings.items():
            with lora.attached(model, adapter):
                start = time.perf_counter()
                next(taken)
                seconds[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def print_steps(console: Console) -> None:
    """A training step under each form of guidance, against the plain one."""
    plain, *guided = step_seconds(ivlens.load("lab"), {"none": None, **GUIDANCE}).items()
    table = Table(title="Milliseconds of a training step on the lab model, 16 prompts")
    for column in ("guidance", "milliseconds", "of a plain step"):
        table.add_column(column, justify="left" if column == "guidance" else "right")
    for name, seconds in (plain, *guided):
        ratio = median(one / other for one, other in zip(seconds, plain[1], strict=True))
        table.add_row(name if name == "none" else f"+{name}", f"{1000 * median(seconds):.1f}", f"{ratio:.2f}")
    console.print(table)


def print_commands(console: Console) -> None:
    """Whole processes, as a user waits for them."""
    python = [sys.executable, "-c"]
    ivlens = [str(Path(sys.executable).parent / "ivlens")]
    table = Table(title="Seconds of a whole process")
    table.add_column("command")
    table.add_column("seconds", justify="right")
    table.add_row("ivlens --help", f"{seconds_of([*ivlens, '--help']):.2f}")
    table.add_row("import ivlens; ivlens.load('lab')", f"{seconds_of([*python, _LOAD]):.1f}")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        audit = [*ivlens, "audit", "lab", "--task", "antonym", "--out", f"{folder}/run"]
        subprocess.run(audit, check=True, capture_output=True)
        table.add_row("ivlens audit lab --task antonym", f"{time.perf_counter() - start:.1f}")
    console.print(table)


_LOAD = "import ivlens; ivlens.load('lab')"


def main() -> None:
    """Print all tables; of a GPU those of measurements, training steps and stages of a study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device, console = parser.parse_args().device, Console(width=120)
    measurements.print_all(console, device)
    adapter_training.print_all(console, device)
    stages.print_usual(console, device)
    if device == "cpu":
        print_commands(console)
        print_steps(console)
        print_peers(console)


if __name__ == "__main__":
    main()
