"""Wherever a tokenizer cuts, the answer's tokens are those of the joined text, and none of them is the prompt's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from checkpoints import random_hooked
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from ivlens.datasets.task import Pair
from ivlens.errors import IvlensError, PromptError
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize

SPECIAL = ["<bos>", "<unk>"]
CORPUS = ["Q: hot\nA: cold\n\n", "Q: cold hot\nA: hot cold", "A: a: b: A:\n", "Q:a\nA:b c", "the cold the hot"] * 4
TEXTS = st.text(" :\nAQabchotdl", max_size=12)


def byte_level(*, trim: bool) -> Tokenizer:
    """BPE of bytes whose merges know no words: they cross spaces, line breaks and the seam."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tokenizer


def greedy() -> Tokenizer:
    """Letters whose merges depend on what follows: `ab` is one token, `abc` is `a` and `bc`."""
    merges = [("b", "c"), ("a", "b"), (":", "Ġ"), (":Ġ", "d")]
    pieces = [*SPECIAL, *"abcdholtQA:Ġ", "Ċ", *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace() -> Tokenizer:
    """As SentencePiece does it: a space is a sign, and one is put in front of the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIAL))
    return tokenizer


def words() -> Tokenizer:
    """Whole words and signs; white space is cut at and lost, case as well."""
    tokenizer = Tokenizer(models.WordLevel({**{s: i for i, s in enumerate(SPECIAL)}, "a": 2, ":": 3}, "<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(":"), "isolated")]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: byte_level(trim=False),
    "bytes, spans trimmed": lambda: byte_level(trim=True),
    "greedy": greedy,
    "metaspace": metaspace,
    "words": words,
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> HookedTransformer:
    """A random model with one of the tokenizers, which is told to read a BOS token first."""
    model = random_hooked("llama", d_vocab=400)
    model.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[request.param](), bos_token="<bos>", unk_token="<unk>"
    )
    model.cfg.default_prepend_bos = True
    model.cfg.model_name = request.param
    return model


def prompt(text: str, answer: str) -> Prompt:
    return Prompt(text=text, answer=answer, query=Pair("q", answer))


def cut(model: HookedTransformer, text: str, answer: str) -> tuple[list[int], list[int]]:
    found = tokenize(model, [prompt(text, answer)])
    return found.prompts[0].tolist(), found.answers[0].tolist()


def spelled(model: HookedTransformer, ids: list[int]) -> str:
    """What the tokens stand for, letter for letter but for white space."""
    tokenizer: Any = model.tokenizer
    pieces = "".join(tokenizer.convert_ids_to_tokens(ids))
    return re.sub(r"\s", "", pieces.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")).removeprefix("<bos>")


@pytest.mark.slow
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXTS, answer=TEXTS.map(lambda text: f"{text}a"))
def test_prompt_and_answer_are_cut_at_the_seam_of_the_joined_text(
    model: HookedTransformer, text: str, answer: str
) -> None:
    tokenizer: Any = model.tokenizer
    if model.cfg.model_name == "words":  # Glued to the prompt's last word, an answer would be no word of its own.
        answer = f" {answer}"
    joined = tokenizer.encode(text + answer, add_special_tokens=False)
    assume(text.strip() and answer.strip())
    read, said = cut(model, text, answer)
    assert read + said == [tokenizer.bos_token_id, *joined]
    if tokenizer.unk_token_id in joined or model.cfg.model_name == "words":
        return
    ours = re.sub(r"\s", "", text)
    assert ours.startswith(spelled(model, read)), "the prompt's tokens are the prompt's text"
    assert len(spelled(model, read + said[:1])) >= len(ours), "what the prompt spells is not asked for"


def test_words_are_cut_between_words() -> None:
    model = random_hooked("llama", d_vocab=400)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words(), unk_token="<unk>")
    assert cut(model, "A :", " a a") == ([2, 3], [2, 2])
    assert cut(model, "A : ", "A") == ([2, 3], [2])


def test_a_token_that_spans_the_seam_is_the_answers() -> None:
    model = random_hooked("llama", d_vocab=400)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=greedy())
    letters: dict[str, int] = model.tokenizer.get_vocab()
    # Alone, "ab" is one token; followed by "c", it is "a" and the beginning of "bc".
    assert cut(model, "ab", "c") == ([letters["a"]], [letters["bc"]])
    assert cut(model, "dab:", " d") == ([letters["d"], letters["ab"]], [letters[":Ġd"]])
    assert cut(model, "d:", " a") == ([letters["d"]], [letters[":Ġ"], letters["a"]])
    with pytest.raises(PromptError, match="the prompt 'b' has no tokens; the model needs at least one to read"):
        tokenize(model, [prompt("b", "c")])


def test_a_leading_space_belongs_to_the_answers_first_token() -> None:
    model = random_hooked("llama", d_vocab=400)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=metaspace(), unk_token="<unk>")
    tokenizer: Any = model.tokenizer
    for text, answer in (("Q: hot\nA:", " cold"), ("Q: hot\nA: ", "cold")):
        read, said = cut(model, text, answer)
        assert tokenizer.convert_ids_to_tokens(said)[0].startswith("▁c")
        assert tokenizer.convert_ids_to_tokens(read)[-1].endswith(":")


def test_a_prompt_of_megabytes_is_refused_before_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_hooked("llama")
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(trim=False))
    monkeypatch.setattr(model.tokenizer, "encode", pytest.fail)
    with pytest.raises(PromptError, match="a prompt has 1,048,577 characters, and may have 1,048,576; use fewer shots"):
        tokenize(model, [Prompt(text="x" * (2**20 - 1), answer=" y", query=Pair("x", "y"))])


def test_a_tokenizer_that_gives_up_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As the tokenizers' library raises it, which is no Exception."""

    def give_up(*_: object, **__: object) -> None:
        raise PanicException("retry-limit-in-match over")

    model = random_hooked("llama")
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(trim=False))
    monkeypatch.setattr(model.tokenizer, "encode", give_up)
    with pytest.raises(IvlensError, match=r"the model's tokenizer gives up \(retry-limit-in-match over\)"):
        tokenize(model, [Prompt(text="x", answer=" y", query=Pair("x", "y"))])
