"""Sites are patched at the tokens that a role names, on the prompts of the AIE, and are told with its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import WORD_TEMPLATE
from pytest import approx

import ivlens
from ivlens.attribution.site_effects import Place
from ivlens.attribution.site_patching import ask, own_twins
from ivlens.datasets.task import Pair, Task
from ivlens.errors import IvlensError, PromptError, TaskError, TaskWarning
from ivlens.patching.effects import find_queries, rank_prompts, ranking_prompts
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import few_shot
from ivlens.prompts.roles import ROLES, find_columns
from ivlens.prompts.template import Prompt, Template
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}


def words(model: HookedTransformer, task: Task, settings: Settings, role: str | int) -> list[list[str]]:
    prompts = rank_prompts(task, settings)
    tokens = tokenize(model, prompts)
    columns = find_columns(model, prompts, tokens, role)
    return [
        [str(model.to_string([i])) for i in ids[at].tolist()] for ids, at in zip(tokens.prompts, columns, strict=True)
    ]


def test_every_role_names_its_own_tokens(tiny: HookedTransformer, word_task: Task) -> None:
    settings = Settings(**SMALL)
    prompt = rank_prompts(word_task, settings)[0]
    inputs = [span for span in prompt.spans if span.part == "input"]
    found = {role: words(tiny, word_task, settings, role)[0] for role in ROLES if role != "instruction"}
    assert found["inputs"] == [prompt.text[start:stop] for _, start, stop in inputs] and len(inputs) == 3
    assert found["query"] == [prompt.query.input] and found["last"] == [":"]
    assert found["last-output"] == found["outputs"][-1:] and len(found["outputs"]) == 3
    assert found["separators"] == ["Q", ":", "A", ":", "\n"] * 3 + ["Q", ":", "A"]
    assert words(tiny, word_task, settings, -3)[0] == found["query"]
    assert words(tiny, word_task, settings, 0)[0] == ["<bos>"]


def test_words_of_several_tokens_are_of_one_role_and_padding_moves_nothing(tiny: HookedTransformer) -> None:
    pairs = (Pair("w1 w2", "w3"), Pair("w4", "w5 w6 w7"))
    prompts = [
        WORD_TEMPLATE.render(pairs[0], demonstrations=pairs[1:], instruction="w9"),
        WORD_TEMPLATE.render(pairs[1]),
    ]
    tokens = tokenize(tiny, prompts)
    query = find_columns(tiny, prompts, tokens, "query")
    assert tokens.prompts[query].tolist() == tiny.tokenizer.encode("w1 w2 w4", add_special_tokens=False)  # pyright: ignore
    one = tokenize(tiny, prompts[:1])
    for role in ROLES:
        ids = one.prompts[find_columns(tiny, prompts[:1], one, role)]
        assert len(ids) == {"query": 2, "outputs": 3, "last-output": 3, "separators": 8, "instruction": 2}.get(
            role, 1
        ), role


def test_a_role_that_cannot_be_told_is_refused(tiny: HookedTransformer, word_task: Task) -> None:
    prompts = [WORD_TEMPLATE.render(word_task.pairs[0])]
    tokens = tokenize(tiny, prompts)
    with pytest.raises(PromptError, match="1 of 1 prompts have no token of the role 'last-output'; choose another"):
        find_columns(tiny, prompts, tokens, "last-output")
    with pytest.raises(PromptError, match="1 of 1 prompts have no token -40"):
        find_columns(tiny, prompts, tokens, -40)
    with pytest.raises(PromptError, match=r"there is no role 'qury'; did you mean query\?"):
        find_columns(tiny, prompts, tokens, "qury")
    by_hand = [Prompt(text="Q : w1 A :", answer=" w2", query=word_task.pairs[0])]
    with pytest.raises(PromptError, match="'query' is not known of prompts of a chat template or written by hand"):
        find_columns(tiny, by_hand, tokenize(tiny, by_hand), "query")


def test_braces_in_a_pair_stay_text_and_are_of_their_part() -> None:
    prompt = Template().render(Pair("{output}", "x"), demonstrations=[Pair("{input}", "{input}{output}")])
    assert prompt.text == "Q: {input}\nA: {input}{output}\n\nQ: {output}\nA:"
    assert [prompt.text[start:stop] for part, start, stop in prompt.spans if part != "separator"] == [
        "{input}",
        "{input}{output}",
        "{output}",
    ]


@pytest.mark.slow
def test_heads_at_the_last_token_are_the_indirect_effects(tiny: HookedTransformer, word_task: Task) -> None:
    found = ivlens.site_effects(tiny, word_task, site="heads", **SMALL)
    known = ivlens.indirect_effects(tiny, word_task, **SMALL)
    torch.testing.assert_close(found.effects, known.cie, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.mean, known.aie)
    torch.testing.assert_close((found.interval(), found.p_values()), (known.interval(), known.p_values()))
    assert found.top(3) == known.top(3) and found.of_heads and isinstance(found.top(1)[0], Head)
    assert found.chance() == known.chance() and torch.equal(found.queries, known.queries)


@pytest.mark.slow
def test_each_position_is_patched_by_itself(tiny: HookedTransformer, word_task: Task) -> None:
    several = ivlens.site_effects(tiny, word_task, site="attn_out", positions=["query", -1], **SMALL)
    for column, position in enumerate(("query", "last")):
        alone = ivlens.site_effects(tiny, word_task, site="attn_out", positions=position, **SMALL)
        torch.testing.assert_close(several.effects[:, :, column], alone.effects[:, :, 0], rtol=0, atol=1e-12)
    assert several.columns == ("query", "-1") and isinstance(several.top(1)[0], Place)


def test_a_twin_is_its_prompt_with_every_output_in_its_place(tiny: HookedTransformer, word_task: Task) -> None:
    settings = Settings(**SMALL)
    queries = find_queries(tiny, word_task, settings)
    right = {pair.input: pair.output for pair in word_task.pairs}
    for kept, shuffled in zip(own_twins(word_task, settings, queries), rank_prompts(word_task, settings), strict=True):
        shown = [kept.text[start:stop] for part, start, stop in kept.spans if part in ("input", "output")]
        assert all(right[given] == output for given, output in zip(shown[::2], shown[1::2], strict=True))
        assert kept.text != shuffled.text and kept.query == shuffled.query
        assert sorted(kept.text.split()) == sorted(shuffled.text.split())


def test_the_whole_stream_of_the_twin_gives_the_answer_of_the_twin(tiny: HookedTransformer, word_task: Task) -> None:
    settings = Settings(**SMALL)
    found = ivlens.site_effects(tiny, word_task, site="resid_post", clean="own", settings=settings)
    twins = tokenize(tiny, own_twins(word_task, settings, find_queries(tiny, word_task, settings)))
    probability = tiny(twins.prompts)[:, -1].softmax(-1).gather(1, twins.answers)[:, 0]
    torch.testing.assert_close(found.baseline + found.effects[:, -1, 0], probability, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_prompts_that_do_not_align_with_their_twins_are_left_out_aloud(tiny: HookedTransformer) -> None:
    pairs = tuple(Pair(f"w{i}", f"w{i + 50}" if i % 8 else f"w{i + 50} w3") for i in range(40))
    task, settings = Task(name="uneven", pairs=pairs), Settings(**{**SMALL, "prompts": 8})
    with pytest.warns(TaskWarning, match=r"of task 'uneven', \d of 8 prompts have as many tokens at every position"):
        found = ivlens.site_effects(tiny, task, positions="last-output", clean="own", settings=settings)
    assert 2 <= len(found.effects) < 8
    every = ask(tiny, task, settings, ["last"], clean="own")
    assert len(every.tokens) == 8
    odd = tuple(Pair(f"w{i}", " ".join([f"w{i + 50}", *["w3"] * i])) for i in range(20))
    with pytest.raises(TaskError, match=r"of task 'odd', [01] of 4 prompts .* clean='own' needs 2: take clean='mean'"):
        ivlens.site_effects(tiny, Task(name="odd", pairs=odd), positions="last-output", clean="own", **SMALL)


@pytest.mark.slow
def test_a_zero_shot_prompt_has_a_twin_of_the_same_query(tiny: HookedTransformer, word_task: Task) -> None:
    for source in ("demonstrations", "instruction"):
        settings = Settings(**SMALL, corruption="zero-shot", source=source)
        found = own_twins(word_task, settings, find_queries(tiny, word_task, settings))
        assert [one.query for one in found] == [one.query for one in rank_prompts(word_task, settings)]
        assert all(len(one.text.split()) > 5 for one in found)
        ivlens.site_effects(tiny, word_task, positions=["query", "last"], clean="own", settings=settings)


def test_shuffling_draws_what_it_did(word_task: Task) -> None:
    """Numbers that were published are of these prompts."""
    (prompt,) = few_shot(
        word_task.pairs[:1], word_task.pairs, shots=3, generator=np.random.default_rng(0), shuffled=True
    )
    shown = [prompt.text[start:stop] for part, start, stop in prompt.spans if part in ("input", "output")]
    assert shown == ["w25", "w82", "w20", "w75", "w32", "w70"]


def test_what_cannot_be_asked_for_is_refused(tiny: HookedTransformer, word_task: Task) -> None:
    for words_, wrong in (
        ("positions are empty", {"positions": []}),
        ("positions last, last name one of them twice", {"positions": ["last", "last"]}),
        ("site is 'heads' at 2 positions; heads are patched at one", {"site": "heads", "positions": [-1, -2]}),
    ):
        with pytest.raises(IvlensError, match=words_):
            ivlens.site_effects(tiny, word_task, **wrong, **SMALL)


@pytest.mark.slow
def test_a_grid_is_drawn_and_tabled_with_its_columns(tiny: HookedTransformer, word_task: Task) -> None:
    found = ivlens.site_effects(tiny, word_task, positions=["query", "last"], **SMALL)
    figure: Any = found.figure()
    assert list(figure.layout.xaxis.ticktext) == ["query", "last"]
    assert figure.data[0].text[2][1].startswith("L2 last: ")
    frame: Any = found.to_frame()
    one = frame[(frame["prompt"] == 1) & (frame["layer"] == 2) & (frame["column"] == "last")]
    assert float(one["effect"].iloc[0]) == approx(float(found.effects[1, 2, 1]))
    _, tokens = ranking_prompts(tiny, word_task, found.settings)
    assert len(frame) == len(tokens) * 3 * 2
