"""How fast is the sweep, and what does guidance cost a training step? `make bench`.

The sweep is held against one run per head and against the matrix products alone. Everything is measured in one run on
one machine; the sweep on random weights, since speed does not depend on them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import peers
import torch
import training as adapter_training
from rich.console import Console
from rich.table import Table
from transformer_lens import HookedTransformer, HookedTransformerConfig

import ivlens
from ivlens import prompts
from ivlens.models import lora
from ivlens.patching import sweep as head_sweep
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head, MeanZ
from ivlens.training.guidance import GUIDANCE, Guidance, Guide
from ivlens.training.loop import Examples, Step, Training, finetune
from ivlens.training.methods import Lora

REPEATS = 3
STEPS = 60
PROMPTS = 8


class Size(NamedTuple):
    """A model's and its prompts' size."""

    layers: int = 12
    heads: int = 12
    width: int = 768
    pos: int = 100
    vocab: int = 50257


class Timing(NamedTuple):
    """Seconds a prompt."""

    size: Size
    sweep: float
    loop: float
    floor: float


def build(size: Size) -> HookedTransformer:
    """A random model of GPT-2's architecture."""
    config = HookedTransformerConfig(
        n_layers=size.layers,
        n_heads=size.heads,
        d_model=size.width,
        d_head=size.width // size.heads,
        d_mlp=4 * size.width,
        n_ctx=max(256, size.pos + 1),
        d_vocab=size.vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        seed=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*HookedTransformer.*", DeprecationWarning)
        return HookedTransformer(config).eval().requires_grad_(False)


def random_prompts(size: Size, n: int) -> tuple[Tokens, MeanZ]:
    """Prompts without pads, answers of one token, and mean outputs."""
    generator = torch.Generator().manual_seed(0)
    tokens = Tokens(
        prompts=torch.randint(size.vocab, (n, size.pos), generator=generator),
        mask=torch.ones(n, size.pos, dtype=torch.bool),
        answers=torch.randint(size.vocab, (n, 1), generator=generator),
        answer_mask=torch.ones(n, 1, dtype=torch.bool),
    )
    return tokens, torch.randn(size.layers, size.heads, size.width // size.heads, generator=generator)


def products(size: Size, n: int) -> Iterator[tuple[int, int, int]]:
    """Every product of a matrix [a, b] with a weight [b, c] that the sweep of n prompts cannot do without.

    Attention scores are left out: the floor is a little lower than what is really needed.
    """
    d, mlp = size.width, 4 * size.width
    for layer in range(size.layers):
        # Rows that pass the whole block: the prompt's tokens, and the rows that branched off below. Rows that branch
        # off here pass from `W_O` on.
        whole, branching = n * (size.pos + 1 + layer * size.heads), n * size.heads
        yield from [(whole, d, d)] * 3
        yield from [(whole + branching, d, d), (whole + branching, d, mlp), (whole + branching, mlp, d)]
    yield n * (1 + size.layers * size.heads), d, size.vocab


def floor(size: Size, n: int) -> float:
    """Seconds a prompt of the matrix products alone, their memory being there already."""
    shapes = list(products(size, n))
    most = {name: max(a * b for a, b in pairs) for name, pairs in _operands(shapes).items()}
    left, right, out = (torch.randn(most[name]) for name in ("left", "right", "out"))

    def multiply() -> None:
        for a, b, c in shapes:
            torch.mm(left[: a * b].view(a, b), right[: b * c].view(b, c), out=out[: a * c].view(a, c))

    return timed(multiply) / n


def _operands(shapes: list[tuple[int, int, int]]) -> dict[str, list[tuple[int, int]]]:
    return {
        "left": [(a, b) for a, b, _ in shapes],
        "right": [(b, c) for _, b, c in shapes],
        "out": [(a, c) for a, _, c in shapes],
    }


def timed(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of a call, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def measure(size: Size, *, whole_loop: bool = False) -> Timing:
    """Time sweep, loop and floor. Without `whole_loop`, a few of its equal runs are timed and scaled up."""
    model = build(size)
    tokens, z = random_prompts(size, PROMPTS)
    one = tokens[:1]
    if whole_loop:
        start = time.perf_counter()
        head_sweep.loop(model, one, z)
        loop = time.perf_counter() - start
    else:
        runs = 1 + size.layers * size.heads
        loop = runs * timed(lambda: model(one.prompts, attention_mask=one.mask.long()))
    sweep = timed(lambda: head_sweep.sweep(model, tokens, z)) / PROMPTS
    return Timing(size, sweep, loop, floor(size, PROMPTS))


def seconds_of(command: list[str]) -> float:
    """Wall-clock seconds of a whole process; the median of three for quick ones."""
    return timed(lambda: subprocess.run(command, check=True, capture_output=True), repeats=REPEATS)


def print_sweep(console: Console) -> None:
    """The sweep against loop and floor, and how its cost grows."""
    usual = Size()
    sizes = {
        "GPT-2 small": usual,
        "half the layers": usual._replace(layers=6),
        "twice the layers": usual._replace(layers=24),
        "half the heads": usual._replace(heads=6),
        "twice the heads": usual._replace(heads=24),
        "half the tokens": usual._replace(pos=50),
        "twice the tokens": usual._replace(pos=200),
    }
    table = Table(title=f"Seconds a prompt, {torch.get_num_threads()} threads, batches of {PROMPTS} prompts")
    for column in ("model", "layers", "heads", "tokens", "sweep", "loop", "loop / sweep", "floor", "sweep / floor"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, size in sizes.items():
        found = measure(size, whole_loop=size == usual)
        table.add_row(
            name,
            *map(str, (size.layers, size.heads, size.pos)),
            f"{found.sweep:.3f}",
            f"{found.loop:.1f}",
            f"{found.loop / found.sweep:.0f}",
            f"{found.floor:.3f}",
            f"{found.sweep / found.floor:.2f}",
        )
        console.print(f"{name}: done", style="dim")
    console.print(table)


def print_peers(console: Console) -> None:
    """Other ways to measure the same, at GPT-2-small size, and on the lab model, where the numbers mean something."""
    tokens, z = random_prompts(Size(), PROMPTS)
    model = build(Size())
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
    """Print all tables."""
    console = Console()
    print_commands(console)
    print_steps(console)
    adapter_training.print_trainings(console)
    print_sweep(console)
    print_peers(console)


if __name__ == "__main__":
    main()
