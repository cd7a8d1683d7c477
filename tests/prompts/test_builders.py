"""Prompts say what their kind promises, and their tokens are those of the joined text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import WORD_TEMPLATE, random_tokens
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens import HookedTransformer

from ivlens import prompts
from ivlens.datasets.task import Pair, Task
from ivlens.errors import PromptError, TaskError
from ivlens.patching.activations import answer_logits
from ivlens.prompts.template import Prompt, Template
from ivlens.prompts.tokens import tokenize

PAIRS = [Pair("hot", "cold"), Pair("up", "down"), Pair("big", "small"), Pair("old", "new")]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_default_template_is_that_of_function_vectors() -> None:
    prompt = Template().render(PAIRS[0], demonstrations=PAIRS[1:3], instruction="Write the opposite.")
    assert prompt.text == "Write the opposite.\nQ: up\nA: down\n\nQ: big\nA: small\n\nQ: hot\nA:"
    assert prompt.answer == " cold"


def test_braces_in_a_pair_stay_text() -> None:
    pair = Pair("{output} {input}", "{input}")
    assert Template().render(pair).text == "Q: {output} {input}\nA:"
    assert Template().render(PAIRS[0], demonstrations=[pair]).text.startswith("Q: {output} {input}\nA: {input}\n\n")


def test_a_template_without_a_place_for_the_query_is_refused() -> None:
    with pytest.raises(PromptError, match=r"the template's query is 'Q:', without \{input\}; add it"):
        Template(query="Q:")


def test_demonstrations_never_show_the_query() -> None:
    for prompt in prompts.few_shot(PAIRS, PAIRS, shots=3, generator=rng()):
        assert prompt.text.count(f"Q: {prompt.query.input}\n") == 1
        assert prompt.text.count("Q:") == 4


def test_too_few_demonstrations_are_refused() -> None:
    with pytest.raises(PromptError, match="4 shots need 4 pairs beside the query, but there are 3"):
        prompts.few_shot(PAIRS, PAIRS, shots=4, generator=rng())


@given(outputs=st.lists(st.sampled_from("abcd"), min_size=2, max_size=12), seed=st.integers(0, 10**6))
def test_shuffling_moves_every_output_that_can_be_moved(outputs: list[str], seed: int) -> None:
    pairs = [Pair(str(i), output) for i, output in enumerate(outputs)]
    shuffled = prompts.shuffle_outputs(pairs, rng(seed))
    assert Counter(pair.output for pair in shuffled) == Counter(outputs)
    assert [pair.input for pair in shuffled] == [pair.input for pair in pairs]
    kept = sum(a.output == b.output for a, b in zip(pairs, shuffled, strict=True))
    most = max(Counter(outputs).values())
    assert kept == max(0, 2 * most - len(outputs))


def test_shuffles_differ_from_draw_to_draw() -> None:
    pairs = [Pair(str(i), str(i)) for i in range(6)]
    assert len({tuple(prompts.shuffle_outputs(pairs, rng(seed))) for seed in range(20)}) > 10


def test_shuffling_one_demonstration_is_refused() -> None:
    with pytest.raises(PromptError, match="1 demonstrations cannot be permuted; take 2 shots or more, or zero-shot"):
        prompts.corrupted(PAIRS, PAIRS, shots=1, generator=rng())


def test_zero_shot_prompts_hold_the_query_alone() -> None:
    assert [prompt.text for prompt in prompts.zero_shot(PAIRS[:2])] == ["Q: hot\nA:", "Q: up\nA:"]


def test_wordings_of_an_instruction_are_used_in_turn() -> None:
    task = Task(name="t", pairs=tuple(PAIRS), instructions=("One.", "Two."))
    texts = [prompt.text for prompt in prompts.instructed(task, PAIRS[:3])]
    assert texts == ["One.\nQ: hot\nA:", "Two.\nQ: up\nA:", "One.\nQ: big\nA:"]
    with pytest.raises(TaskError, match="'t' has no written instruction; add 'instructions' to it"):
        prompts.instructed(Task(name="t", pairs=tuple(PAIRS)), PAIRS)


def test_a_statement_ends_where_the_output_begins() -> None:
    task = Task(name="t", pairs=tuple(PAIRS), statement="The opposite of {input} is ")
    assert prompts.statements(task, PAIRS[:1])[0] == Prompt(
        text="The opposite of hot is", answer=" cold", query=PAIRS[0]
    )
    assert prompts.statements(Task(name="t", pairs=tuple(PAIRS)), PAIRS) == []


def test_a_statement_asks_for_what_the_pair_has_for_it() -> None:
    pair = Pair("a: Rome b: Paris", "b", ("B",), "Paris")
    task = Task(name="t", pairs=(pair,), instructions=("Give the letter.",), statement="{input}. It is")
    (stated,), (asked,) = prompts.statements(task, task.pairs), prompts.instructed(task, task.pairs)
    assert (stated.text, stated.answer) == ("a: Rome b: Paris. It is", " Paris")
    assert (stated.query.outputs, asked.query.outputs, asked.answer) == (("Paris",), ("b", "B"), " b")


def test_tokens_are_padded_on_the_left_and_answers_on_the_right(tiny: HookedTransformer) -> None:
    short = Prompt(text="w1 w2", answer=" w3", query=Pair("w1", "w3"))
    long = Prompt(text="w4 w5 w6", answer=" w7 w8", query=Pair("w4", "w7"))
    tokens = tokenize(tiny, [short, long])
    bos, ids = 1, tiny.tokenizer.get_vocab()
    assert tokens.prompts.tolist() == [
        [0, bos, ids["w1"], ids["w2"]],
        [bos, ids["w4"], ids["w5"], ids["w6"]],
    ]
    assert tokens.mask.tolist() == [[False, True, True, True], [True] * 4]
    assert tokens.answers.tolist() == [[ids["w3"], 0], [ids["w7"], ids["w8"]]]
    assert tokens.answer_mask.tolist() == [[True, False], [True, True]]
    alone = tokens[0:1]
    assert alone.prompts.tolist() == [[bos, ids["w1"], ids["w2"]]]
    assert alone.answers.tolist() == [[ids["w3"]]]


def test_prompts_followed_by_others_keep_their_logits(tiny: HookedTransformer) -> None:
    some = random_tokens(4, 9, 3, vocab=100)
    for others in (random_tokens(3, 14, 1, vocab=100, seed=1), random_tokens(3, 5, 4, vocab=100, seed=2)):
        for first, second in ((some, others), (others, some)):
            logits = answer_logits(tiny, first.followed_by(second))
            for tokens, own in ((first, logits[: len(first)]), (second, logits[len(first) :])):
                wanted = answer_logits(tiny, tokens)[tokens.answer_mask]
                found = own[:, : tokens.answers.shape[1]][tokens.answer_mask]
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_answers_tokens_are_those_of_the_joined_text(lab: HookedTransformer) -> None:
    # The prompt ends in a space, which belongs to the answer's first token.
    prompt = Prompt(text="Q: hot\nA: ", answer="cold", query=Pair("hot", "cold"))
    tokens = tokenize(lab, [prompt])
    joined = lab.tokenizer.encode("Q: hot\nA: cold", add_special_tokens=False)
    assert tokens.prompts[0, 1:].tolist() + tokens.answers[0].tolist() == joined
    assert lab.tokenizer.decode(tokens.answers[0]) == " cold"


def test_a_prompt_longer_than_the_context_is_refused(tiny: HookedTransformer) -> None:
    prompt = Prompt(text=" ".join(["w1"] * 130), answer=" w2", query=Pair("w1", "w2"))
    with pytest.raises(PromptError, match="131 tokens and its answer 1, but the model's context is 128; use fewer"):
        tokenize(tiny, [prompt])


def test_an_answer_of_no_token_is_refused(tiny: HookedTransformer) -> None:
    with pytest.raises(PromptError, match="the answer ' ' has no token of its own"):
        tokenize(tiny, [Prompt(text="w1", answer=" ", query=Pair("w1", " "))])
    with pytest.raises(PromptError, match="no prompts"):
        tokenize(tiny, [])


def test_word_templates_of_the_tests_are_known_words(tiny: HookedTransformer) -> None:
    rendered = WORD_TEMPLATE.render(Pair("w1", "w2"), demonstrations=[Pair("w3", "w4")], instruction="w5")
    assert tiny.tokenizer.unk_token_id not in tiny.tokenizer.encode(rendered.text + rendered.answer)


@pytest.mark.parametrize("name", prompts.__all__)
def test_every_public_name_of_prompts_is_there(name: str) -> None:
    assert getattr(prompts, name) is not None and name in dir(prompts)
