"""A reply ends with its line, a turn of a conversation where the template ends it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformer_lens import HookedTransformer

from ivlens.datasets.task import Pair
from ivlens.prompts.chat import ChatTemplate
from ivlens.prompts.template import DEFAULT, Prompt, Template
from ivlens.replies.endings import Ending, find_endings

PAIR = Pair("w1", "w2")


class Letters:
    """Every token is a character, but for those in angle brackets."""

    special = ("<eos>", "<turn>", "<unk>")

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(self.special[one] if one < len(self.special) else chr(one) for one in ids)


def cut(ending: Ending, text: str, *more: int) -> tuple[str, bool]:
    return ending.cut([*map(ord, text), *more], Letters())


@pytest.mark.parametrize(
    ("text", "reply", "has_ended"),
    [
        (" Warsaw", "Warsaw", False),
        (" Warsaw\n", "Warsaw", True),
        (" Warsaw\nQ: France", "Warsaw", True),
        ("\nWarsaw", "", True),
        ("  \n", "", True),
        ("", "", False),
        ("Łódź, 3.5\r\nQ", "Łódź, 3.5", True),
    ],
)
def test_a_plain_reply_ends_with_its_line(text: str, reply: str, has_ended: bool) -> None:
    assert cut(Ending(frozenset({0}), lines=1), text) == (reply, has_ended)


def test_a_reply_ends_before_a_token_that_is_no_text() -> None:
    for ending in (Ending(frozenset({0, 1})), Ending(frozenset({0, 1}), lines=1), Ending(frozenset({0, 1}), mark="|")):
        assert cut(ending, "yes", 1, ord("n")) == ("yes", True)
        assert cut(ending, "", 0) == ("", True)
        assert cut(ending, "yes", 2) == ("yes<unk>", False)
    assert cut(Ending(frozenset({0}), lines=1), "yes\nno", 0) == ("yes", True)


def test_a_turn_has_as_many_lines_as_it_likes_and_ends_at_its_mark() -> None:
    ending = Ending(frozenset({0}), mark="User:")
    assert cut(ending, "Sure!\n\nWarsaw") == ("Sure!\n\nWarsaw", False)
    assert cut(ending, "Sure!\nUser: and") == ("Sure!", True)
    assert cut(ending, "User:") == ("", True)


def test_a_line_break_that_the_template_writes_before_an_answer_ends_no_reply() -> None:
    ending = Ending(frozenset(), lines=1, skips_break=True)
    assert cut(ending, "\n") == ("", False)
    assert cut(ending, "\n\n x") == ("x", False)
    assert cut(ending, "\nx\ny") == ("x", True)
    assert cut(ending, "x\ny") == ("x", True)


def test_an_answer_of_two_lines_is_met_by_a_reply_of_two() -> None:
    ending = Ending(frozenset(), lines=2)
    assert cut(ending, " a\nb") == ("a\nb", False)
    assert cut(ending, " a\nb\nc") == ("a\nb", True)


def test_the_ending_of_a_plain_prompt_is_read_off_its_answer(tiny: HookedTransformer) -> None:
    below = Template(answer="\n{output}")
    found = find_endings(tiny, [DEFAULT.render(PAIR), below.render(PAIR), DEFAULT.render(Pair("x", "a\nb"))])
    assert [(one.lines, one.skips_break, one.mark) for one in found] == [(1, False, ""), (1, True, ""), (2, False, "")]
    assert found[0].tokens == {0, 1, 2, 3}  # <pad>, <bos>, <eos> and <unk>.


@pytest.mark.slow
def test_the_ending_of_a_conversation_is_what_its_template_writes_behind_an_answer(
    tiny: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    jinja = (
        "{% for m in messages %} w90 {{ m['content'] }} END\n{% endfor %}{% if add_generation_prompt %}w90 {% endif %}"
    )

    def ending(mark: str) -> Ending:
        layout = ChatTemplate(jinja=jinja.replace("END", mark), special_tokens={}, system=False)
        (found,) = find_endings(tiny, [layout.render(PAIR)])
        return found

    assert ending("<eos>") == Ending(frozenset({0, 1, 2, 3}))
    assert ending("w5\nw6") == Ending(frozenset({0, 1, 2, 3}), mark="w5")
    assert ending("") == Ending(frozenset({0, 1, 2, 3}))
    # Added tokens that are not marked as special, as those of some checkpoints are.
    more: Any = copy.deepcopy(tiny.tokenizer)
    more.add_tokens(["<turn>"])
    monkeypatch.setattr(tiny, "tokenizer", more)
    assert ending("<turn>") == Ending(frozenset({0, 1, 2, 3, len(more) - 1}))


def test_an_empty_answer_of_a_prompt_of_ones_own_is_a_line(tiny: HookedTransformer) -> None:
    (found,) = find_endings(tiny, [Prompt(text="w1", answer=" w2 \n", query=PAIR)])
    assert (found.lines, found.skips_break) == (1, False)
