"""A model is asked prompts: what it says, whether that is right, and how sure that is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rounding
import torch
from conftest import WORD_TEMPLATE
from transformer_lens import HookedTransformer

import ivlens
from ivlens.datasets.task import Pair
from ivlens.errors import PromptError
from ivlens.prompts.builders import instructed, zero_shot
from ivlens.prompts.chat import ChatTemplate
from ivlens.prompts.template import Prompt
from ivlens.replies.inquiry import SHOWN, Replies, measure_prompts

pytestmark = pytest.mark.numeric


@pytest.mark.slow
def test_a_reply_is_what_greedy_decoding_writes_up_to_the_first_wrong_token(lab: HookedTransformer) -> None:
    task = ivlens.task("next-two")  # Answers of two tokens.
    prompts = zero_shot(task.pairs[:20]) + instructed(task, task.pairs[:20])
    replies = ivlens.ask(lab, prompts)
    for prompt, said, right in zip(prompts, replies.said, replies.right.tolist(), strict=True):
        tokens, answer = lab.to_tokens(prompt.text), lab.to_tokens(prompt.answer, prepend_bos=False)[0].tolist()
        written: list[int] = []
        while len(written) < len(answer) and written == answer[: len(written)]:
            written.append(int(lab(torch.cat([tokens, torch.tensor([written], dtype=torch.long)], 1))[0, -1].argmax()))
        assert said == lab.to_string(written).strip()
        assert right == (written == answer) and len(answer) > 1
    assert {True, False} == set(replies.right.tolist()), "some right, some wrong: else this shows little"


def test_probability_is_of_the_first_answer_token(lab: HookedTransformer) -> None:
    prompts = zero_shot([Pair("hot", "cold"), Pair("big", "small")])
    replies = ivlens.ask(lab, prompts)
    for prompt, first in zip(prompts, replies.first.tolist(), strict=True):
        answer = int(lab.to_tokens(prompt.answer, prepend_bos=False)[0, 0])
        ids = lab.to_tokens(prompt.text)
        near = rounding.of_forward(lab, ids)  # In nats: relative to the probability.
        assert first == pytest.approx(float(lab(ids)[0, -1].softmax(0)[answer]), rel=near)


@pytest.mark.slow
def test_inside_steered_the_steered_model_is_asked(lab: HookedTransformer) -> None:
    task = ivlens.task("antonym")
    vector = ivlens.instruction_vector(lab, task, heads=[ivlens.Head(3, 3)], layer=2)
    prompts = zero_shot(task.split().evaluation)
    before = ivlens.ask(lab, prompts)
    with ivlens.steered(lab, vector):
        assert ivlens.ask(lab, prompts).accuracy.mean > before.accuracy.mean + 0.5
    assert torch.equal(ivlens.ask(lab, prompts).first, before.first)


def test_replies_show_themselves_and_hide_no_markup(tiny: HookedTransformer) -> None:
    prompts = [
        Prompt(text="Q : w1 A :", answer=" w51", query=Pair("<b>w1", "w51")),
        *zero_shot([Pair(f"w{i}", f"w{i + 50}") for i in range(2, 9)], template=WORD_TEMPLATE),
    ]
    replies = ivlens.ask(tiny, prompts)
    assert repr(replies).startswith("Replies(8 prompts: accuracy ")
    shown = replies._repr_html_()
    assert "&lt;b&gt;w1" in shown and "<b>" not in shown
    assert shown.count("<tr>") == 1 + SHOWN
    assert replies.to_frame()["answer"].tolist() == [f"w{i + 50}" for i in range(1, 9)]


@pytest.mark.slow
def test_the_reply_is_what_the_model_writes_to_the_end_of_the_line(lab: HookedTransformer) -> None:
    task = ivlens.task("next-two")
    prompts = zero_shot(task.pairs[:6]) + instructed(task, task.pairs[:6])
    replies = ivlens.ask(lab, prompts)
    controls = set(lab.tokenizer.all_special_ids)
    for prompt, reply in zip(prompts, replies.reply, strict=True):
        ids, written = lab.to_tokens(prompt.text), []
        while len(written) < 32 and "\n" not in lab.tokenizer.decode(written):
            written.append(int(lab(torch.cat([ids, torch.tensor([written], dtype=torch.long)], 1))[0, -1].argmax()))
            if written[-1] in controls:
                written.pop()
                break
        assert reply == lab.tokenizer.decode(written).split("\n")[0].strip()
    assert replies.to_frame()["reply"].tolist() == list(replies.reply)
    short = ivlens.ask(lab, prompts, new_tokens=1).reply
    assert (
        all(reply.startswith(first) for reply, first in zip(replies.reply, short, strict=True))
        and short != replies.reply
    )


@pytest.fixture
def written() -> Replies:
    """What chat models write, as if it had been asked for."""
    template = ChatTemplate(
        jinja="{% for m in messages %}{{ m.content }}|{% endfor %}", special_tokens={}, system=False
    )
    pairs = [Pair("Poland", "Warsaw"), Pair("France", "Paris"), Pair("vehicle", "automobile")]
    found = ("The capital of Poland is Warsaw.", "It is Lyon.", "A car!")
    nothing = torch.zeros(3)
    prompts = tuple(template.render(pair) for pair in pairs)
    return Replies(prompts=prompts, said=("The", "It", "A"), right=nothing.bool(), first=nothing, reply=found)


def test_a_sentence_that_holds_the_answer_is_right_in_a_conversation(written: Replies) -> None:
    assert written.usual_score == "contains"
    assert written.scores().tolist() == [1, 0, 0] and written.score("contains") == written.score()
    assert written.scores("greedy-match").tolist() == [0, 0, 0] and written.accuracy.mean == 0
    assert written.scores("f1").tolist() == pytest.approx([1 / 3, 0, 0])
    shown = repr(written)
    assert shown.startswith("Replies(3 prompts: contains 0.33 [") and ", greedy-match 0.00 [0.00, 0.56], P(ans" in shown
    assert "The capital of Poland is Warsaw." in written._repr_html_()


def test_any_of_several_right_answers_is_right(written: Replies) -> None:
    prompts = (
        *written.prompts[:2],
        replace(written.prompts[2], query=Pair("vehicle", "automobile", ("car", "motor car"))),
    )
    assert replace(written, prompts=prompts).scores("exact").tolist() == [0, 0, 1]


@pytest.mark.slow
def test_prompts_are_scored_as_their_replies_are(lab: HookedTransformer) -> None:
    task = ivlens.task("next-two")
    prompts = zero_shot(task.pairs[:6]) + instructed(task, task.pairs[:6])
    replies = ivlens.ask(lab, prompts)
    for score in ("greedy-match", "contains", "f1"):
        values, first = measure_prompts(lab, prompts, score)
        assert torch.equal(values, replies.scores(score)) and torch.equal(first, replies.first)
    assert not torch.equal(replies.scores("f1"), replies.scores("greedy-match"))


def test_no_prompts_are_refused(tiny: HookedTransformer) -> None:
    with pytest.raises(PromptError, match="no prompts"):
        ivlens.ask(tiny, [])


def test_texts_are_asked_as_they_are_and_have_a_reply_alone(lab: HookedTransformer) -> None:
    shown = "Q: big\nA: small\n\nQ: hot\nA:"
    replies = ivlens.ask(lab, [shown, "Q: hot\nA:"])
    known = ivlens.ask(lab, [replace(prompt, answer=" cold") for prompt in replies.prompts])
    assert replies.reply == known.reply and replies.reply[0] == "cold"
    assert ivlens.ask("lab", shown).reply == replies.reply[:1]
    assert not replies.right.any() and replies.first.isnan().all() and replies.to_frame()["right"].isna().all()
    assert repr(replies).startswith("Replies(2 of 2 prompts without an answer: ('cold', ")
    for measure in (lambda: replies.accuracy, lambda: replies.probability, lambda: replies.score("contains")):
        with pytest.raises(PromptError, match=r"^2 of 2 prompts have no answer to score; give prompts that have, such"):
            measure()


def test_of_prompts_some_of_which_have_an_answer_replies_alone_are_known(lab: HookedTransformer) -> None:
    mixed = ivlens.ask(lab, [*zero_shot(ivlens.task("antonym").pairs[:1]), "Q: hot\nA:"])
    assert len(mixed.reply) == 2 and mixed.first.isnan().all()
    with pytest.raises(PromptError, match=r"^1 of 2 prompts have no answer"):
        mixed.scores()
