"""What does a step of training an adapter cost, beside PEFT's and the matrix products alone? A part of `make bench`.

One shape of random weights, one batch, one optimiser: the steps of all take turns, so that a slow second slows each of
them. PEFT's peer is transformers' own model, asked for the logits of the answer alone, as ours is.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig

from ivlens.models import lora
from ivlens.prompts.tokens import Tokens
from ivlens.training.guidance import GUIDANCE, Guide
from ivlens.training.loop import Examples, Training, finetune
from ivlens.training.methods import Lora


class Shape(NamedTuple):
    """A model of Llama's architecture and its batches."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    d_mlp: int
    vocab: int
    prompts: int
    pos: int

    @property
    def d_head(self) -> int:
        return self.width // self.heads


SMOLLM2 = Shape(layers=30, heads=9, kv_heads=3, width=576, d_mlp=1536, vocab=49152, prompts=8, pos=14)
LLAMA_7B = Shape(layers=32, heads=32, kv_heads=32, width=4096, d_mlp=11008, vocab=32000, prompts=16, pos=9)


class Measured(NamedTuple):
    """Of one step: seconds of the CPU, or of a GPU's clock, and bytes at the peak, over those at rest (GPU only)."""

    seconds: list[float]
    peak: int


def build_hooked(shape: Shape, *, device: str, dtype: torch.dtype) -> HookedTransformer:
    """A HookedTransformer of random weights."""
    config = HookedTransformerConfig(
        n_layers=shape.layers,
        n_heads=shape.heads,
        n_key_value_heads=None if shape.kv_heads == shape.heads else shape.kv_heads,
        d_model=shape.width,
        d_head=shape.d_head,
        d_mlp=shape.d_mlp,
        d_vocab=shape.vocab,
        n_ctx=256,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=shape.d_head,
        rotary_adjacent_pairs=False,
        gated_mlp=True,
        final_rms=True,
        original_architecture="LlamaForCausalLM",
        device=device,
        dtype=dtype,
        init_weights=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*HookedTransformer.*", DeprecationWarning)
        model = HookedTransformer(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if ".b_" not in name and "._b_" not in name:
            weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0, 0.02)
    return model


def build_transformers(shape: Shape, *, device: str, dtype: torch.dtype) -> Any:
    """The same of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        hidden_size=shape.width,
        intermediate_size=shape.d_mlp,
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


def build_bridge(shape: Shape, *, device: str, dtype: torch.dtype) -> Any:
    """A TransformerBridge of it."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    one_word = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words = PreTrainedTokenizerFast(tokenizer_object=one_word, pad_token="a")
    model = build_transformers(shape, device=device, dtype=dtype)
    model.config.architectures = [type(model).__name__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = TransformerBridge.boot_transformers(
            "random", hf_model=model, tokenizer=words, dtype=dtype, device=device
        )
    return bridge.eval().requires_grad_(False)


def random_examples(shape: Shape, *, device: str) -> Examples:
    """One batch: prompts without pads, answers of one token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab, (shape.prompts, shape.pos + 1), generator=generator).to(device)
    tokens = Tokens(
        prompts=ids[:, :-1],
        mask=torch.ones_like(ids[:, :-1], dtype=torch.bool),
        answers=ids[:, -1:],
        answer_mask=torch.ones_like(ids[:, -1:], dtype=torch.bool),
    )
    return Examples(prompts=tokens, bare=tokens, new=shape.prompts)


def our_steps(model: HookedTransformer, shape: Shape, form: str | None, stack: ExitStack) -> Iterator[object]:
    """Steps of `finetune`, plain or guided, with an adapter of default size."""
    adapter = lora.fresh(model, lora.LoraConfig())
    device = str(model.cfg.device)
    vectors = torch.randn(1, shape.width, generator=torch.Generator().manual_seed(0)).to(device)
    guide = None
    if form is not None:
        guide = Guide(
            guidance=GUIDANCE[form], vectors=vectors, layer=shape.layers // 2, teacher=lambda: lora.silenced(model)
        )
    stack.enter_context(lora.attached(model, adapter))
    training = Training(steps=10**6, batch=shape.prompts)
    return finetune(model, adapter, random_examples(shape, device=device), training, method=Lora(), guide=guide)


def peft_steps(model: Any, shape: Shape, *, device: str) -> Iterator[object]:
    """The same steps as one writes them with PEFT."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=True).eval()
    factors = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=3e-3, weight_decay=0.0)
    tokens = random_examples(shape, device=device).prompts
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
    tokens, kv_width = shape.prompts * shape.pos, shape.kv_heads * shape.d_head
    d, mlp = shape.width, shape.d_mlp
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
    """Of all cores together on a CPU, whoever else uses the machine; of the clock on a GPU."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(trainings: dict[str, Iterator[object]], *, device: str, repeats: int) -> dict[str, Measured]:
    """Take turns; the first two steps of each do not count."""
    found: dict[str, list[float]] = {name: [] for name in trainings}
    peaks = dict.fromkeys(trainings, 0)
    for _ in range(repeats + 2):
        for name, steps in trainings.items():
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
                at_rest = torch.cuda.memory_allocated()
            found[name].append(seconds(lambda steps=steps: next(steps), device))
            if device != "cpu":
                peaks[name] = torch.cuda.max_memory_allocated() - at_rest
    return {name: Measured(taken[2:], peaks[name]) for name, taken in found.items()}
