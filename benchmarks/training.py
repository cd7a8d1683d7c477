"""What does a step of training an adapter cost, beside PEFT's and the matrix products alone? A part of `make bench`.

One shape of random weights, one batch, one optimiser: the steps of all take turns, so that a slow second slows each of
them. PEFT's peer is transformers' own model, asked for the logits of the answer alone, as ours is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from measurements import LARGE, SHAPES, Shape, build, clock, precision, random_prompts
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from ivlens.models import lora
from ivlens.training.guidance import GUIDANCE, Guide
from ivlens.training.loop import Examples, Training, finetune
from ivlens.training.methods import Lora

SMOLLM2 = SHAPES["SmolLM2-135M"]._replace(prompts=8, pos=14)
MAKERS = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}
LLAMA_7B = LARGE["7B"]._replace(prompts=16, pos=9)


class Measured(NamedTuple):
    """What a step took."""

    seconds: list[float]
    """Of all cores together on a CPU, whoever else uses the machine; of the clock on a GPU."""
    kept: int
    """Bytes that the forward pass keeps for the backward pass, beside the model's own weights."""
    peak: int
    """Bytes at the peak over those at rest, on a GPU; else 0."""


def build_transformers(shape: Shape, *, device: str, dtype: torch.dtype) -> Any:
    """transformers' own model of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocab,
        max_position_embeddings=256,
    )
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(default)


def our_steps(model: HookedTransformer, adapter: lora.Adapter, shape: Shape, form: str | None) -> Iterator[object]:
    """Steps of `finetune`, plain or guided, of an adapter that is attached."""
    device = str(model.cfg.device)
    vectors = torch.randn(1, shape.width, generator=torch.Generator().manual_seed(0)).to(device)
    guide = None
    if form is not None:
        teacher = partial(lora.silenced, model)
        guide = Guide(guidance=GUIDANCE[form], vectors=vectors, layer=shape.layers // 2, teacher=teacher)
    tokens = random_prompts(shape, shape.prompts, device)
    examples = Examples(prompts=tokens, bare=tokens, new=shape.prompts)
    training = Training(steps=10**6, batch=shape.prompts)
    return finetune(model, adapter, examples, training, method=Lora(), guide=guide)


def peft_steps(model: Any, shape: Shape, *, device: str) -> Iterator[object]:
    """The same steps as one writes them with PEFT."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=True).eval()
    factors = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=3e-3, weight_decay=0.0)
    tokens = random_prompts(shape, shape.prompts, device)
    while True:
        logits = adapted(tokens.prompts, attention_mask=tokens.mask.long(), logits_to_keep=1).logits[:, 0]
        loss = nn.functional.cross_entropy(logits, tokens.answers[:, 0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def product_steps(shape: Shape, *, device: str, dtype: torch.dtype) -> Iterator[object]:
    """The products with the model's weights alone, forward and back to their inputs, memory being there already."""
    tokens, kv_width = shape.prompts * shape.pos, (shape.kv_heads or shape.heads) * shape.width // shape.heads
    d, mlp = shape.width, shape.mlp
    block = [(tokens, d, d)] * 2 + [(tokens, d, kv_width)] * 2 + [(tokens, d, mlp)] * 2 + [(tokens, mlp, d)]
    last = (shape.prompts, d, shape.vocab)
    weights: list[Tensor] = [torch.randn(c, b, device=device, dtype=dtype) for _, b, c in block * shape.layers]
    weights.append(torch.randn(last[2], last[1], device=device, dtype=dtype))
    shapes = [*block * shape.layers, last]
    x = {one: torch.randn(one[0], one[1], device=device, dtype=dtype) for one in {*shapes}}
    out = {one: torch.randn(one[0], one[2], device=device, dtype=dtype) for one in {*shapes}}
    while True:
        for one, weight in zip(shapes, weights, strict=True):
            torch.mm(x[one], weight.T, out=out[one])
            torch.mm(out[one], weight, out=x[one])
        for one in x:
            x[one].normal_()
        yield None


def seconds(step: Callable[[], object], device: str) -> float:
    """See `Measured.seconds`."""
    with clock(device) as found:
        step()
    return found[0]


def bytes_kept(step: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """See `Measured.kept`. Memory that several tensors are views of counts once."""
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def measure(
    trainings: Mapping[str, Iterator[object]], models: Mapping[str, nn.Module], *, device: str, repeats: int
) -> dict[str, Measured]:
    """Steps of all take turns; the first two of each do not count."""
    taken: dict[str, list[float]] = {name: [] for name in trainings}
    kept, peaks = dict.fromkeys(trainings, 0), dict.fromkeys(trainings, 0)
    for turn in range(repeats + 2):
        for name, steps in trainings.items():
            step = partial(next, steps)
            if turn == 0:
                kept[name] = bytes_kept(step, models[name].parameters()) if name in models else 0
                taken[name].append(0.0)
                continue
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
                at_rest = torch.cuda.memory_allocated()
                taken[name].append(seconds(step, device))
                peaks[name] = torch.cuda.max_memory_allocated() - at_rest
            else:
                taken[name].append(seconds(step, device))
    return {name: Measured(taken[name][2:], kept[name], peaks[name]) for name in trainings}


def print_trainings(
    console: Console,
    *,
    shape: Shape = SMOLLM2,
    name: str = "SmolLM2's",
    device: str = "cpu",
    repeats: int = 7,
) -> None:
    """A step of each maker, plain and guided, against PEFT's and against the products alone."""
    dtype = precision(device)
    with ExitStack() as stack:
        models = {"PEFT": build_transformers(shape, device=device, dtype=dtype)}
        trainings = {
            "products alone": product_steps(shape, device=device, dtype=dtype),
            "PEFT": peft_steps(models["PEFT"], shape, device=device),
        }
        for maker, make in build(shape, device).items():
            model, maker = make(), MAKERS[maker]
            adapter = lora.fresh(model, lora.LoraConfig())
            stack.enter_context(lora.attached(model, adapter))
            # Speed does not depend on values: plain and guided steps train one adapter in turn.
            for own, form in ((maker, None), (f"{maker} +iv", "iv")):
                models[own], trainings[own] = model, our_steps(model, adapter, shape, form)
        found = measure(trainings, models, device=device, repeats=repeats)
    unit = "CPU seconds" if device == "cpu" else "Seconds"
    title = f"{unit} of a training step, {name} shape, {shape.prompts} prompts of {shape.pos} tokens, {dtype}"
    table = Table(title=title)
    # Memory: the weights, and what the forward pass keeps of a step for the backward pass.
    held = {own: found[own].kept + _bytes_of(model) for own, model in models.items()}
    for column in (
        "step",
        "seconds",
        "of the products",
        "of PEFT's",
        "of plain",
        "MiB kept",
        "with weights, of PEFT's",
    ):
        table.add_column(column, justify="left" if column == "step" else "right")
    if device != "cpu":
        table.add_column("MiB at the peak", justify="right")
    for own, (taken, kept, peak) in found.items():
        of = partial(_ratio, taken)
        table.add_row(
            own,
            f"{median(taken):.3f}",
            of(found["products alone"].seconds),
            of(found["PEFT"].seconds),
            of(found[own.removesuffix(" +iv")].seconds) if own.endswith("+iv") else "",
            f"{kept / 2**20:.0f}" if kept else "",
            f"{held[own] / held['PEFT']:.2f}" if kept else "",
            *([f"{peak / 2**20:.0f}"] if device != "cpu" else []),
        )
    console.print(table)


def _bytes_of(model: nn.Module) -> int:
    """Of its weights, each once, whoever shares them."""
    return sum({weight.untyped_storage().data_ptr(): weight.nbytes for weight in model.parameters()}.values())


def _ratio(one: Sequence[float], other: Sequence[float]) -> str:
    """Median over turns."""
    return f"{median(a / b for a, b in zip(one, other, strict=True)):.2f}"


def print_all(console: Console, device: str = "cpu") -> None:
    """At SmolLM2's size; on a GPU at a 7B model's, in 16 bits."""
    if device == "cpu":
        print_trainings(console)
    else:
        print_trainings(console, shape=LLAMA_7B, name="a 7B", device=device)


if __name__ == "__main__":
    print_all(Console(width=160), "cuda" if torch.cuda.is_available() else "cpu")
