"""How near is each measurement to the matrix products that it cannot do without, and how does it grow?

On both makers, on random weights of real shapes, since speed does not depend on weights. On a processor seconds are
those of the process on one thread, so that other processes do not count; on a GPU they are those of the clock, and
what is taken beside the weights is shown, too.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from ivlens.checkpoints.architectures import hooked_fields
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.forward.makers import forward_of
from ivlens.models.hooked import has_hooked, lay_out
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z
from ivlens.patching.interventions import Change, run_changes
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB, Head
from ivlens.steering.rows import steer_every_layer

REPEATS = 2
VECTORS, ABLATED = 4, 21
"""Steered at every layer; sets of heads that are ablated."""


class Shape(NamedTuple):
    """A model's and its prompts' size."""

    layers: int = 12
    heads: int = 12
    width: int = 768
    mlp: int = 3072
    vocab: int = 50257
    kv_heads: int | None = None
    """Of a model of Llama's kind; None: of GPT-2's."""
    pos: int = 64
    prompts: int = 4
    read: int = 25
    """Prompts of a mean."""

    @property
    def block(self) -> tuple[int, int]:
        """Weights of a block that whole tokens pass, and those of `W_O` and its MLP alone."""
        grouped = self.width * self.width * (self.kv_heads or self.heads) // self.heads
        behind = self.width * self.width + (2 if self.kv_heads is None else 3) * self.width * self.mlp
        return self.width * self.width + 2 * grouped + behind, behind


SHAPES = {"GPT-2 small": Shape(), "SmolLM2-135M": Shape(30, 9, 576, 1536, 49152, kv_heads=3)}
LARGE = {"7B": Shape(32, 32, 4096, 11008, 32000, kv_heads=32)}
SMALL = Shape(8, 8, 512, 2048, 2000)
# On a GPU what is smaller takes as long as starting its kernels takes.
MIDDLE = Shape(16, 16, 2048, 8192, 2000, prompts=16)


class Cost(NamedTuple):
    """What a measurement cannot do without."""

    whole: int
    """Tokens times blocks that pass a whole block."""
    behind: int
    """Those that pass it from `W_O` on."""
    unembedded: int


def costs(shape: Shape) -> dict[str, Cost]:
    """By measurement. Attention scores are left out: a little more is really needed."""
    s, climbed = shape, shape.layers * (shape.layers - 1) // 2
    read = s.prompts * s.layers * (s.pos - 1)
    above = sum(s.layers - 1 - number % s.layers for number in range(ABLATED))
    return {
        "sweep": Cost(
            read + s.prompts * (s.layers + s.heads * climbed),
            s.prompts * s.heads * s.layers,
            s.prompts * (1 + s.heads * s.layers),
        ),
        "mean_z": Cost(s.read * s.layers * s.pos, -s.read * s.pos, 0),  # Of the last block the heads alone.
        "trials": Cost(read + s.prompts * (s.layers + VECTORS * climbed), 0, s.prompts * (1 + VECTORS * s.layers)),
        "necessity": Cost(read + s.prompts * (s.layers + above), s.prompts * ABLATED, s.prompts * (1 + ABLATED)),
    }


def multiply_adds(shape: Shape, cost: Cost) -> int:
    """Of the products of a measurement."""
    whole, behind = shape.block
    return cost.whole * whole + cost.behind * behind + cost.unembedded * shape.width * shape.vocab


def precision(device: str) -> torch.dtype:
    """In which is measured: a GPU's is that of large models there."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def products_seconds(shape: Shape, cost: Cost, device: str) -> float:
    """Seconds of the products alone: as many rows as are carried on average, times weights of the block's sizes."""
    dtype = precision(device)
    rows = max(1, min(4096, cost.whole // shape.layers))
    block, behind = shape.block

    def multiply(weights: int, tokens: int) -> float:
        left = torch.randn(rows, shape.width, device=device, dtype=dtype)
        right = torch.randn(shape.width, max(1, weights // shape.width), device=device, dtype=dtype)
        out = left @ right
        with clock(device) as seconds:
            torch.mm(left, right, out=out)
        return seconds[0] * tokens / rows

    return (
        multiply(block, cost.whole)
        + multiply(behind, cost.behind)
        + multiply(shape.width * shape.vocab, cost.unembedded)
    )


@contextmanager
def clock(device: str) -> Iterator[list[float]]:
    """Seconds of the `with` block, when it has ended: of this process, or of a GPU."""
    found: list[float] = []
    if device != "cpu":
        torch.cuda.synchronize()
    read = time.process_time if device == "cpu" else time.perf_counter
    start = read()
    yield found
    if device != "cpu":
        torch.cuda.synchronize()
    found.append(read() - start)


def config_of(shape: Shape) -> Any:
    """transformers' configuration of a random model of a shape."""
    fields: dict[str, Any] = {"vocab_size": shape.vocab, "bos_token_id": 0, "eos_token_id": 0}
    if shape.kv_heads is None:
        fields |= {"n_layer": shape.layers, "n_head": shape.heads, "n_embd": shape.width, "n_inner": shape.mlp}
        return GPT2Config(**fields, n_positions=max(256, shape.pos + 2))
    fields |= {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "hidden_size": shape.width}
    return LlamaConfig(**fields, intermediate_size=shape.mlp, num_key_value_heads=shape.kv_heads)


def build(shape: Shape, device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """By maker, what builds a random model."""
    config, dtype = config_of(shape), precision(device)
    name = "GPT2LMHeadModel" if shape.kv_heads is None else "LlamaForCausalLM"

    def hooked() -> Any:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        fields = {**hooked_fields(config, name), "device": device, "dtype": dtype}
        with torch.device(device):
            model = randomise(HookedTransformer(HookedTransformerConfig(**fields)))
        lay_out(model)  # As those that are loaded lie.
        return model

    def bridge() -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        config.architectures = [name]
        with quiet_transformers(), torch.device(device):
            hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
        tokenizer = one_word_tokenizer()
        return TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=tokenizer, dtype=dtype, device=device)

    makers = {"bridge": bridge} | ({"hooked": hooked} if has_hooked() else {})
    return {maker: _quietly(make) for maker, make in makers.items()}


def randomise(model: Any) -> Any:
    """Weights of a usual size, drawn where they lie; biases stay 0."""
    for name, weight in model.named_parameters():
        if ".b_" not in name and "._b_" not in name and not name.endswith(".b"):
            with torch.no_grad():
                weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0, 0.02)
    return model


def one_word_tokenizer() -> Any:
    """Random tokens are measured on; TransformerLens would download a tokenizer where there is none."""
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a", pad_token="a")


def _quietly(make: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make().eval().requires_grad_(False)

    return run


def random_prompts(shape: Shape, n: int, device: str = "cpu") -> Tokens:
    """Prompts without pads, and answers of one token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab, (n, shape.pos + 1), generator=generator).to(device)
    whole = torch.ones_like(ids, dtype=torch.bool)
    return Tokens(prompts=ids[:, :-1], mask=whole[:, :-1], answers=ids[:, -1:], answer_mask=whole[:, -1:])


def measurements(model: Any, shape: Shape, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    tokens, generator = random_prompts(shape, shape.prompts, device), torch.Generator().manual_seed(0)
    z = torch.randn(shape.layers, shape.heads, shape.width // shape.heads, generator=generator).to(device)
    vectors = torch.randn(VECTORS, shape.width, generator=generator).to(device)
    heads = [Head(number % shape.layers, number % shape.heads) for number in range(ABLATED)]
    changes = [Change(ablated=(head,)) for head in heads]
    memory = 2 * GIB if device == "cpu" else 4 * GIB
    return {
        "sweep": lambda: sweep.sweep(model, tokens, z, memory=memory),
        "mean_z": lambda: mean_z(model, random_prompts(shape, shape.read, device)),
        "trials": lambda: steer_every_layer(model, tokens, vectors, memory=memory),
        "necessity": lambda: run_changes(model, tokens, changes, layer=0, z=z),
    }


def seconds_of(run: Callable[[], object], device: str, *, repeats: int = REPEATS) -> float:
    """The fewest seconds of a few runs, after one that is not counted."""
    run()
    found = []
    for _ in range(repeats):
        with clock(device) as seconds:
            run()
        found.append(seconds[0])
    return min(found)


def print_measurements(console: Console, shapes: Mapping[str, Shape], device: str = "cpu") -> None:
    """Every measurement on both makers, beside its products."""
    what = "CPU seconds on one thread" if device == "cpu" else f"Seconds on {torch.cuda.get_device_name(device)}"
    table = Table(title=what)
    for column in ("shape", "measurement", "products", "bridge", "times", "hooked", "times", "GiB beside the weights"):
        table.add_column(column, justify="left" if column in ("shape", "measurement") else "right")
    for name, shape in shapes.items():
        found = {maker: _measure(make(), shape, device) for maker, make in build(shape, device).items()}
        for kind, cost in costs(shape).items():
            products = products_seconds(shape, cost, device)
            cells = []
            for maker in ("bridge", "hooked"):
                own = found.get(maker, {}).get(kind)
                cells += ["", ""] if own is None else [f"{own[0]:.2f}", f"{own[0] / products:.2f}"]
            n = shape.read if kind == "mean_z" else shape.prompts
            most = max(own[kind][1] for own in found.values())
            table.add_row(
                name, f"{kind}, {n} prompts", f"{products:.2f}", *cells, "" if device == "cpu" else f"{most:.1f}"
            )
        console.print(f"{name}: done", style="dim")
    console.print(table)


def _measure(model: Any, shape: Shape, device: str) -> dict[str, tuple[float, float]]:
    """By measurement, seconds and GiB beside the weights."""
    found = {}
    for kind, run in measurements(model, shape, device).items():
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        held = 0 if device == "cpu" else torch.cuda.memory_allocated()
        with clock(device) as first:
            run()
        # What took long is not run again.
        taken = first[0] if first[0] > 10 else seconds_of(run, device, repeats=1)
        most = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
        found[kind] = taken, (most - held) / 2**30
    return found


def print_growth(console: Console, base: Shape, device: str = "cpu") -> None:
    """How the sweep grows when layers, heads, tokens or prompts are doubled, beside its products; and rows alone."""
    table = Table(title="Doubled: the exponent of the sweep's seconds, beside that of its products")
    for column in ("doubled", "from", "products", *build(base, device)):
        table.add_column(column, justify="left" if column == "doubled" else "right")
    for name in ("layers", "heads", "pos", "prompts"):
        pair = [base, base._replace(**{name: 2 * getattr(base, name)})]
        work = [multiply_adds(shape, costs(shape)["sweep"]) for shape in pair]
        cells = []
        for maker in build(base, device):
            taken = [
                seconds_of(measurements(build(shape, device)[maker](), shape, device)["sweep"], device)
                for shape in pair
            ]
            cells.append(f"{math.log2(taken[1] / taken[0]):.2f}")
        called = "tokens" if name == "pos" else name
        table.add_row(called, str(getattr(base, name)), f"{math.log2(work[1] / work[0]):.2f}", *cells)
    rows = [f"{math.log2(taken[1] / taken[0]):.2f}" for taken in row_seconds(base, device).values()]
    table.add_row("rows through a block", "512", "1.00", *rows)
    console.print(table)


@torch.no_grad()
def row_seconds(shape: Shape, device: str = "cpu", rows: int = 512) -> dict[str, list[float]]:
    """By maker, seconds of so many rows, and of twice as many, through one block."""
    found = {}
    for maker, make in build(shape, device).items():
        reading = forward_of(make()).read(random_prompts(shape, 1, device))
        stacks = [reading.start[:, None].repeat(1, n, 1, 1) for n in (rows, 2 * rows)]
        found[maker] = [seconds_of(lambda r=reading, s=stack: r.carry(0, s), device, repeats=5) for stack in stacks]
    return found


def print_all(console: Console, device: str = "cpu") -> None:
    """Both tables; large shapes on a GPU alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shapes = (
            SHAPES
            if device == "cpu"
            else {name: shape._replace(prompts=25, read=100) for name, shape in {**SHAPES, **LARGE}.items()}
        )
        print_measurements(console, shapes, device)
        print_growth(console, SMALL if device == "cpu" else MIDDLE, device)
    finally:
        torch.set_num_threads(threads)
