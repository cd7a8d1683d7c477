"""How fast, and how right, are other ways to measure what every head does? On the same tokens, in one run.

`make bench` holds the exact sweep against one run per head (of HookedTransformer, in a loop of ours and in the helper
of TransformerLens) and against attribution patching, the first-order estimate of one forward and one backward pass.
`python benchmarks/peers.py MODEL --task FILE` does so on a model of your own, and with
`--function-vectors DIR --baukit DIR` also with the code of github.com/ericwtodd/function_vectors, which needs
github.com/davidbau/baukit.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformer_lens import HookedTransformer, patching
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

import ivlens
from ivlens.patching import activations
from ivlens.patching import sweep as head_sweep
from ivlens.prompts import few_shot, tokenize
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import MeanZ

PROMPTS = 8
SHOTS = 10

CIE = Float[Tensor, "prompt layer head"]


class Peer(NamedTuple):
    """What a way of measuring gives, and what it costs."""

    name: str
    seconds: float
    """A prompt."""
    cie: CIE


def attribution(model: HookedTransformer, tokens: Tokens, z: MeanZ) -> CIE:
    """First-order estimate: gradient of P(answer) by every head's output, times how far the mean is from it."""
    change = torch.zeros(len(tokens), *z.shape, requires_grad=True)
    own: list[Tensor] = []

    def add(layer: int) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: object) -> Tensor:
            own.append(value[:, -1].detach())
            return torch.cat([value[:, :-1], value[:, -1:] + change[:, layer, None]], dim=1)

        return hook

    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", add(layer)) for layer in range(model.cfg.n_layers)]
    with torch.enable_grad():
        logits = model.run_with_hooks(tokens.prompts, attention_mask=tokens.mask.long(), fwd_hooks=hooks)[:, -1]
        right = logits.float().softmax(-1).gather(1, tokens.answers[:, :1])
        (gradient,) = torch.autograd.grad(right.sum(), change)
    return (gradient * (z - torch.stack(own, dim=1))).sum(-1)


def generic_patch(model: HookedTransformer, tokens: Tokens, z: MeanZ) -> CIE:
    """TransformerLens' helper: one run of the whole batch per head, its metric the answer's probability."""
    heads = pd.DataFrame(
        [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)],
        columns=["layer", "head"],
    )
    found: list[Tensor] = []

    def metric(logits: Tensor) -> Tensor:
        found.append(_right(logits[:, -1], tokens))
        return found[-1].mean()

    def put(value: Any, index: Sequence[int], means: Any) -> Any:
        value[:, -1, index[1]] = means[index[1]]
        return value

    # The helper looks no further than for the tensor of a name.
    cache: Any = {f"blocks.{layer}.attn.hook_z": z[layer] for layer in range(model.cfg.n_layers)}
    patching.generic_activation_patch(model, tokens.prompts, cache, metric, put, "z", index_df=heads)
    plain = _right(model(tokens.prompts)[:, -1], tokens)
    return (torch.stack(found, dim=1) - plain[:, None]).unflatten(1, z.shape[:2])


def _right(logits: Float[Tensor, "prompt vocab"], tokens: Tokens) -> Float[Tensor, " prompt"]:
    return logits.softmax(-1).gather(1, tokens.answers[:, :1])[:, 0]


def measure(name: str, n: int, run: Callable[[], CIE]) -> Peer:
    """Run once uncounted where it is quick, then take the time of one run of `n` prompts."""
    start = time.perf_counter()
    found = run()
    first = time.perf_counter() - start
    if first < _QUICK:
        start = time.perf_counter()
        found = run()
        first = time.perf_counter() - start
    return Peer(name, first / n, found.detach())


_QUICK = 20.0
"""Seconds from which on a first run is not repeated."""


def _unpadded(one: Tokens) -> Tokens:
    keep = one.mask[0]
    return Tokens(
        prompts=one.prompts[:, keep], mask=one.mask[:, keep], answers=one.answers, answer_mask=one.answer_mask
    )


def in_process(model: HookedTransformer, tokens: Tokens, z: MeanZ) -> list[Peer]:
    """Everything that runs on the same HookedTransformer; one run per head on the first prompt alone."""
    n, first = len(tokens), _unpadded(tokens[:1])
    return [
        measure(f"ivlens, batches of {n}", n, lambda: _sweep(model, tokens, z)),
        measure("ivlens, one prompt", 1, lambda: _sweep(model, first, z)),
        measure("one run per head, one prompt", 1, lambda: head_sweep.loop(model, first, z)[1]),
        measure("generic_activation_patch of TransformerLens, one prompt", 1, lambda: generic_patch(model, first, z)),
        measure(f"attribution patching, batches of {n}", n, lambda: attribution(model, tokens, z)),
        measure("attribution patching, one prompt", 1, lambda: attribution(model, first, z)),
    ]


def _sweep(model: HookedTransformer, tokens: Tokens, z: MeanZ) -> CIE:
    return head_sweep.sweep(model, tokens, z)[1]


def function_vectors(
    model: HookedTransformer, code: Path, baukit: Path, checkpoint: str, task: ivlens.Task, z: MeanZ, n: int
) -> list[Peer]:
    """The published code, prompt by prompt, on prompts that it writes; and ivlens on the same token ids.

    Its one call that measures effects is used as it is; means are ours, the same for every class of token.
    """
    theirs = _import_published(code, baukit)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    described = _describe(network.config)
    written = _write_prompts(theirs, task, n)
    labels = theirs.get_dummy_token_labels(SHOTS, tokenizer=tokenizer, model_config=described)
    means = z[:, :, None].expand(-1, -1, 1 + max(int(label[0]) for label in labels), -1)
    patch = partial(
        theirs.activation_replacement_per_class_intervention,
        avg_activations=means,
        dummy_labels=labels,
        model=network,
        model_config=described,
        tokenizer=tokenizer,
    )
    ours = [_same_ids(theirs, tokenizer, one) for one in written]
    with torch.no_grad():
        return [
            measure("function_vectors' own code", n, lambda: torch.stack([patch(one)[..., 0] for one in written])),
            measure("ivlens on its ids", n, lambda: torch.cat([_sweep(model, one, z) for one in ours])),
        ]


def _import_published(code: Path, baukit: Path) -> ModuleType:
    """Of what its modules import, the effects need one file of baukit; the rest may be missing."""
    spec = importlib.util.spec_from_file_location("baukit", baukit / "baukit" / "nethook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["baukit"] = module
    spec.loader.exec_module(module)
    missing = {name for name in ("bitsandbytes", "sklearn") if importlib.util.find_spec(name) is None}
    for name in ("bitsandbytes", "sklearn", "sklearn.model_selection"):
        if name.partition(".")[0] in missing:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].train_test_split = None  # pyright: ignore[reportAttributeAccessIssue]
    sys.path.insert(0, str(code / "src"))
    return importlib.import_module("compute_indirect_effect")


def _describe(config: PretrainedConfig) -> dict[str, object]:
    """What its `load_gpt_model_and_tokenizer` says of a Llama."""
    return {
        "n_heads": config.num_attention_heads,
        "n_layers": config.num_hidden_layers,
        "resid_dim": config.hidden_size,
        "name_or_path": "llama",
        "attn_hook_names": [f"model.layers.{layer}.self_attn.o_proj" for layer in range(config.num_hidden_layers)],
        "prepend_bos": False,
    }


def _write_prompts(theirs: ModuleType, task: ivlens.Task, n: int) -> list[dict[str, object]]:
    """Shuffled prompts in its own words."""
    parts = task.split(shots=SHOTS)
    shown = {
        "input": [pair.input for pair in parts.mean[:SHOTS]],
        "output": [pair.output for pair in parts.mean[:SHOTS]],
    }
    np.random.seed(0)  # Its code draws from NumPy's global generator.
    return [
        theirs.word_pairs_to_prompt_data(
            shown, query_target_pair={"input": pair.input, "output": pair.output}, shuffle_labels=True
        )
        for pair in parts.rank[:n]
    ]


def _same_ids(theirs: ModuleType, tokenizer: Any, written: dict[str, Any]) -> Tokens:
    text = theirs.create_prompt(written)
    ids = torch.tensor([tokenizer(text).input_ids])
    answer = theirs.get_answer_id(text, written["query_target"]["output"], tokenizer)[:1]
    return Tokens(
        prompts=ids,
        mask=torch.ones_like(ids, dtype=torch.bool),
        answers=torch.tensor([answer]),
        answer_mask=torch.ones(1, 1, dtype=torch.bool),
    )


def compare(console: Console, title: str, peers: Sequence[Peer]) -> None:
    """A table against the first of them, which is exact, on as many prompts as each was run on."""
    table = Table(title=title)
    for column in ("what", "seconds a prompt", "times ivlens", "AIE of the top head", "largest difference"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for peer in peers:
        aie, exact = peer.cie.mean(0), peers[0].cie[: len(peer.cie)].mean(0)
        top = divmod(int(exact.argmax()), exact.shape[1])
        table.add_row(
            peer.name,
            f"{peer.seconds:.3f}",
            f"{peer.seconds / peers[0].seconds:.2f}",
            f"{float(aie[top]):+.4f} for {float(exact[top]):+.4f}",
            f"{float((aie - exact).abs().max()):.1e}",
        )
    console.print(table)


def on_task(console: Console, model: HookedTransformer, task: ivlens.Task, n: int) -> MeanZ:
    """Everything on shuffled prompts of a task; the mean outputs that were patched in."""
    parts, draw = task.split(shots=SHOTS), np.random.default_rng(0)
    clean = few_shot(parts.mean, parts.mean, shots=SHOTS, generator=draw)
    z = activations.mean_z(model, tokenize(model, clean))
    asked = few_shot(parts.rank[:n], parts.mean, shots=SHOTS, generator=draw, shuffled=True)
    tokens = tokenize(model, asked)
    compare(
        console, f"{task.name}, {n} prompts of about {tokens.prompts.shape[1]} tokens", in_process(model, tokens, z)
    )
    return z


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold the sweep against other ways to measure effects of heads.")
    parser.add_argument("model", nargs="?", default="lab")
    parser.add_argument("--task", default="antonym")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--function-vectors", type=Path, metavar="DIR", help="its repository")
    parser.add_argument("--baukit", type=Path, metavar="DIR", help="the repository of baukit")
    given = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")  # The helper of TransformerLens has a bar for every prompt.
    console, model, task = Console(width=120), ivlens.load(given.model), ivlens.task(given.task)
    z = on_task(console, model, task, given.prompts)
    if given.function_vectors:
        n = min(2, given.prompts)
        found = function_vectors(model, given.function_vectors, given.baukit, given.model, task, z, n)
        compare(console, f"{task.name}, {n} prompts in the words of function_vectors", found[::-1])


if __name__ == "__main__":
    main()
