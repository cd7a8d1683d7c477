"""A reply is the one that its prompt gets alone, unpadded and without a cache, by a loop of whole forward passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import KINDS, WORDS, build, random_hooked
from conftest import random_tokens
from small import alone, edited
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.errors import IvlensError
from ivlens.kept_batches import keeping
from ivlens.models import lora
from ivlens.models.adapter import Adapter, Factors, LoraConfig
from ivlens.patching.hooks import add_to_residual, set_head
from ivlens.prompts.tokens import Tokens
from ivlens.replies import generation
from ivlens.replies.endings import Ending
from ivlens.replies.generation import write_replies
from ivlens.shapes import Head
from ivlens.steering.steered_model import steered
from ivlens.vectors.instruction_vector import InstructionVector

pytestmark = pytest.mark.numeric

TOKENS = random_tokens(6, 16, 4, vocab=100, seed=3)  # Prompts of 6 to 16 tokens.
STOPS = {token for token in range(len(WORDS)) if token % 5 == 2}
"""So many that random models write some of them."""
ENDINGS = [Ending(frozenset(STOPS))] * len(TOKENS)
MOST = 10
Edits = dict[str, Callable[[Tensor], Tensor]]


@torch.no_grad()
def by_hand(
    model: Any, edits: Edits | None = None, *, every_token: bool = False, most: int = MOST, tokens: Tokens = TOKENS
) -> list[str]:
    """One prompt after the other, the whole text read again for every token."""
    replies = []
    for row in range(len(tokens)):
        prompt = alone(tokens, row)[0].tolist()
        written: list[int] = []
        columns = slice(len(prompt) - 1, None if every_token else len(prompt))
        with edited(model, columns, edits or {}):
            while len(written) < min(most, model.cfg.n_ctx - len(prompt)):
                token = int(model(torch.tensor([prompt + written]))[0, -1].argmax())
                if token in STOPS:
                    break
                written.append(token)
        replies.append(" ".join(WORDS[token] for token in written).strip())
    return replies


def assert_telling(replies: list[str]) -> None:
    """Replies of different lengths and words: else their being equal shows little."""
    assert len({len(reply.split()) for reply in replies}) > 2 and len(set(replies)) > 3, replies


@pytest.fixture
def readable(tiny: HookedTransformer) -> Callable[[str], HookedTransformer]:
    """Random models of other architectures, with the tiny model's tokenizer."""

    def make(kind: str, **fields: Any) -> HookedTransformer:
        model = random_hooked(kind, **fields)
        model.tokenizer = tiny.tokenizer
        return model

    return make


def vector_of(width: int, dtype: torch.dtype = torch.float64) -> InstructionVector:
    made = torch.randn(width, dtype=dtype, generator=torch.Generator().manual_seed(5))
    nothing = dict.fromkeys(("task", "task_digest", "model", "model_digest"), "")
    return InstructionVector(vector=made, heads=(), layer=1, scale=3.0, mean_z=None, settings=None, **nothing)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_replies_of_a_padded_batch_are_those_of_each_prompt_alone(
    kind: str, readable: Callable[..., HookedTransformer]
) -> None:
    model = readable(kind)
    wanted = by_hand(model)
    assert write_replies(model, TOKENS, ENDINGS, new_tokens=MOST) == wanted
    assert_telling(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "local"])
def test_a_steered_model_replies_as_each_prompt_alone_steered_at_its_own_token(
    kind: str, every_token: bool, readable: Callable[..., HookedTransformer]
) -> None:
    model = readable(kind)
    vector = vector_of(model.cfg.d_model)
    edits: Edits = {"blocks.1.hook_resid_post": lambda resid: resid + vector.added}
    wanted = by_hand(model, edits, every_token=every_token)
    with steered(model, vector, every_token=every_token):
        found = write_replies(model, TOKENS, ENDINGS, new_tokens=MOST)
    change = [add_to_residual(1, vector.added)]
    changed = write_replies(model, TOKENS, ENDINGS, new_tokens=MOST, changes=change, every_token=every_token)
    assert found == wanted and changed == wanted
    assert wanted != by_hand(model) and wanted != by_hand(model, edits, every_token=not every_token)
    assert_telling(wanted)


@pytest.mark.slow
def test_replies_are_kept_by_batches_and_by_all_that_they_depend_on(
    tiny: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    written: list[int] = []
    write = generation._write_batch
    monkeypatch.setattr(generation, "_write_batch", lambda *args: written.append(len(args[1])) or write(*args))
    monkeypatch.setattr(generation, "count_at_once", lambda *_: 1)

    def keep(name: str, compute: Callable[[], Any]) -> Any:
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    vectors = [vector_of(tiny.cfg.d_model).added * scale for scale in (1.0, -1.0)]
    asked: list[dict[str, Any]] = [{}, {"endings": [Ending(frozenset())] * len(TOKENS)}]
    asked += [{"changes": [add_to_residual(1, one)], "known": [one]} for one in vectors]
    write_all = partial(write_replies, tiny, TOKENS, new_tokens=MOST)
    with keeping(keep):
        first = [write_all(**{"endings": ENDINGS, **one}) for one in asked]
        assert written == [4, 2] * len(asked) and len(kept) == len(written)
        assert [write_all(**{"endings": ENDINGS, **one}) for one in asked] == first
        assert len(written) == len(kept), "nothing was written again"
        write_all(endings=ENDINGS, changes=asked[2]["changes"])
        assert len(written) == len(kept) + 2, "changes of which nothing is known are not kept"
    assert len({tuple(replies) for replies in first}) == len(asked)
    assert [write_all(**{"endings": ENDINGS, **one}) for one in asked] == first


@pytest.mark.slow
@pytest.mark.parametrize("every_token", [False, True])
def test_heads_are_ablated_while_a_reply_is_written(tiny: HookedTransformer, every_token: bool) -> None:
    z = torch.randn(3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    heads = [Head(0, 1), Head(2, 3)]

    def ablate(at: Tensor, head: Head) -> Tensor:
        at = at.clone()
        at[:, :, head.head] = z[head]
        return at

    edits: Edits = {
        f"blocks.{head.layer}.attn.hook_z": lambda at, head=head: ablate(at, head)  # type: ignore[misc]
        for head in heads
    }
    changes = [set_head(head, z[head]) for head in heads]
    wanted = by_hand(tiny, edits, every_token=every_token)
    assert write_replies(tiny, TOKENS, ENDINGS, new_tokens=MOST, changes=changes, every_token=every_token) == wanted
    assert wanted != by_hand(tiny)
    assert all(not point.fwd_hooks for point in tiny.hook_dict.values())


@pytest.mark.slow
def test_an_attached_adapter_replies_as_a_merged_one(tiny: HookedTransformer) -> None:
    made = lora.fresh(tiny, LoraConfig(rank=2))
    generator = torch.Generator().manual_seed(2)
    factors = {
        name: Factors(a.double(), torch.randn(b.shape, generator=generator, dtype=torch.float64))
        for name, (a, b) in made.factors.items()
    }
    adapter = Adapter(factors=factors, scale=2.0)
    with lora.merged(tiny, adapter):
        wanted = by_hand(tiny)
    with lora.attached(tiny, adapter):
        assert write_replies(tiny, TOKENS, ENDINGS, new_tokens=MOST) == wanted
    assert wanted != by_hand(tiny)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama", "alibi"])
def test_a_reply_ends_where_the_context_is_full_and_no_sooner_for_its_neighbours(
    kind: str, readable: Callable[..., HookedTransformer]
) -> None:
    model = readable(kind, n_ctx=18)
    never = [Ending(frozenset())] * len(TOKENS)
    found = write_replies(model, TOKENS, never, new_tokens=32)
    assert [len(reply.split()) for reply in found] == [18 - length for length in TOKENS.mask.sum(1).tolist()]
    for reply, (row, ids) in zip(found, ((row, alone(TOKENS, row)[0]) for row in range(len(TOKENS))), strict=True):
        for _ in range(18 - int(TOKENS.mask[row].sum())):
            ids = torch.cat([ids, model(ids[None])[0, -1:].argmax(-1)])
        assert reply == " ".join(WORDS[token] for token in ids[int(TOKENS.mask[row].sum()) :].tolist())


@pytest.mark.parametrize("most", [0, -1])
def test_a_reply_of_no_token_is_refused(tiny: HookedTransformer, most: int) -> None:
    with pytest.raises(IvlensError, match=f"new_tokens is {most}; a reply has at least one"):
        write_replies(tiny, TOKENS, ENDINGS, new_tokens=most)


def bridge_of(folder: Path) -> TransformerBridge:
    with quiet_transformers():
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers("tiny", hf_model=hf, tokenizer=tokenizer, dtype=hf.dtype, device="cpu")


# Gemma 2 has one matrix for both embeddings, and at random writes the prompt's last token again and again.
@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "mistral", "gemma2", "opt"])
def test_a_bridge_replies_as_each_prompt_alone(family: str, tmp_path: Path) -> None:
    apart = {"tie_word_embeddings": False} if family == "gemma2" else {}
    bridge = bridge_of(build(family, tmp_path / "tiny", **apart))
    wanted = by_hand(bridge)
    assert write_replies(bridge, TOKENS, ENDINGS, new_tokens=MOST) == wanted
    assert_telling(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "mistral"])
def test_a_steered_bridge_replies_as_each_prompt_alone(
    family: str, every_token: bool, folders: Callable[[str], Path]
) -> None:
    bridge = bridge_of(folders(family))
    vector = vector_of(bridge.cfg.d_model, torch.float32)
    edits: Edits = {"blocks.1.hook_resid_post": lambda resid: resid + vector.added}
    wanted = by_hand(bridge, edits, every_token=every_token)
    with steered(bridge, vector, every_token=every_token):
        assert write_replies(bridge, TOKENS, ENDINGS, new_tokens=MOST) == wanted
    assert wanted != by_hand(bridge)
