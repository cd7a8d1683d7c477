"""A conversation is what the tokenizer's own chat template makes of it, token for token."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformer_lens import HookedTransformer

import ivlens
from ivlens import prompts
from ivlens.datasets.task import Pair, Task
from ivlens.errors import PromptError
from ivlens.patching.settings import Settings
from ivlens.prompts import chat, chat_sandbox
from ivlens.prompts.chat import ChatTemplate
from ivlens.prompts.template import check_bos
from ivlens.prompts.tokens import tokenize

# Words of the tiny model's tokenizer, which knows no others.
TAGGED = (
    "{{ bos_token + ' ' }}{% for m in messages %}{{ 'w90 ' + m['role'][:1].replace('s', 'w91').replace('u', 'w92')"
    ".replace('a', 'w93') + ' ' + m['content'] + ' ' + eos_token + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}w90 w93 {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TAGGED
DEAF = "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}" + TAGGED
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}"
    "{% else %} w90 {{ m['content'] }} w91{% endif %}{% endfor %}"
)
SHOWN = [Pair("w1", "w2"), Pair("w3", "w4")]
QUERY = Pair("w5", "w6 w7")
STATED = Task(name="stated", pairs=(QUERY,), statement="w8 {input} w9")


@pytest.fixture
def talking(tiny: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> HookedTransformer:
    """The tiny model, whose tokenizer adds `<bos>` by itself, with a chat template that writes it, too."""
    monkeypatch.setattr(tiny.tokenizer, "chat_template", TAGGED)
    return tiny


def with_template(model: HookedTransformer, jinja: Any) -> ChatTemplate:
    model.tokenizer.chat_template = jinja
    found = ivlens.template("chat", model)
    assert isinstance(found, ChatTemplate)
    return found


def messages(instruction: str | None, *, system: bool) -> list[dict[str, str]]:
    turns = [("user", "w1"), ("assistant", "w2"), ("user", "w3"), ("assistant", "w4"), ("user", "w5")]
    if instruction and system:
        turns.insert(0, ("system", instruction))
    elif instruction:
        turns[0] = ("user", f"{instruction}\n w1".replace("\n ", "\n"))
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.slow
@pytest.mark.parametrize(("jinja", "system"), [(TAGGED, True), (NO_SYSTEM, False), (DEAF, False)])
@pytest.mark.parametrize("instruction", [None, "w8 w9"])
def test_tokens_are_those_of_the_tokenizers_own_conversation(
    talking: HookedTransformer, jinja: str, system: bool, instruction: str | None
) -> None:
    template = with_template(talking, jinja)
    assert template.system is system
    prompt = template.render(QUERY, demonstrations=SHOWN, instruction=instruction)
    theirs = messages(instruction, system=system)
    tokenizer: Any = talking.tokenizer
    assert prompt.text == tokenizer.apply_chat_template(theirs, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(theirs, tokenize=True, add_generation_prompt=True, return_dict=False)
    found = tokenize(talking, [prompt])
    assert found.prompts[0].tolist() == ids
    assert ids.count(tokenizer.bos_token_id) == 1 and ids.count(tokenizer.eos_token_id) == len(theirs)
    assert tokenizer.convert_ids_to_tokens(found.answers[0].tolist()) == ["w6", "w7"]


@pytest.mark.slow
def test_an_answer_begins_as_the_template_begins_it(talking: HookedTransformer) -> None:
    assert with_template(talking, TAGGED).render(QUERY).answer == "w6 w7"
    assert with_template(talking, SPACED).render(QUERY).answer == " w6 w7"
    thinking = TAGGED.replace("w90 w93 {% endif %}", "w90 w93 w94 {% endif %}")
    assert with_template(talking, thinking).render(QUERY).answer == "w6 w7"


# As Qwen 3's: the last answer has an empty thinking block in front of it, which the option has the prompt begin.
QWEN = (
    "{% for m in messages %}<{{ m.role }}>\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ASKED = "<user>\nw5<end>\n<assistant>\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("jinja", "text", "answer", "end"),
    [
        (QWEN, ASKED + NO_THOUGHT, "w6 w7", "<end>\n"),
        (
            QWEN.replace("</think>\n\n{% endif %}{{", "</think> {% endif %}{{"),
            ASKED + NO_THOUGHT[:-2],
            " w6 w7",
            "<end>\n",
        ),
        # The prompt begins a thought, which no answer in the conversation has.
        (
            QWEN.replace(NO_THOUGHT, "", 1).replace("<assistant>\n{% if", "<assistant>\n<think>\n{% if"),
            ASKED,
            "w6 w7",
            "<end>\n",
        ),
        # Harmony: the answer is written in a channel of its own.
        (QWEN.replace(NO_THOUGHT, "<final>", 1), ASKED + "<final>", "w6 w7", "<end>\n"),
        # Nothing but space behind the answer, and nothing at all.
        (QWEN.replace("<end>", " "), ASKED.replace("<end>", " ") + NO_THOUGHT, "w6 w7", " \n"),
    ],
)
def test_a_prompt_ends_where_the_template_puts_an_answer(jinja: str, text: str, answer: str, end: str) -> None:
    found = ChatTemplate(jinja=jinja, special_tokens={}, system=False).render(QUERY)
    assert (found.text, found.answer, found.end) == (text, answer, end)


@pytest.mark.parametrize("word", ["think", "assistant", "end", "\n", "w5"])
def test_an_answer_that_stands_in_the_template_is_found_where_it_is_given(word: str) -> None:
    found = ChatTemplate(jinja=QWEN, special_tokens={}, system=False).render(Pair("w5", word))
    assert (found.text, found.answer, found.end) == (ASKED + NO_THOUGHT, word, "<end>\n")


def test_options_of_the_template_are_set_and_recorded(talking: HookedTransformer) -> None:
    talking.tokenizer.chat_template = QWEN
    options: dict[str, Any] = {"enable_thinking": False}
    found = ivlens.template("chat", talking, options=options)
    assert isinstance(found, ChatTemplate)
    # The prompt has the block by itself, before the seam is looked for.
    assert found._written([{"role": "user", "content": "w5"}], opened=True) == ASKED + NO_THOUGHT
    assert found.render(QUERY).text == ASKED + NO_THOUGHT and found.render(QUERY).answer == "w6 w7"
    record = json.loads(json.dumps(chat.to_record(found)))
    assert record["options"] == options and chat.from_record(record) == found
    usual = ivlens.template("chat", talking)
    assert "options" not in chat.to_record(usual) and chat.from_record(chat.to_record(usual)) == usual


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("thinking", "the chat template knows no option 'thinking'; leave it out"),
        ("messages", "'messages' cannot be an option of the chat template: ivlens sets it"),
        ("bos_token", "'bos_token' cannot be an option of the chat template: ivlens sets it"),
    ],
)
def test_options_that_the_template_cannot_have_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        ChatTemplate(jinja=QWEN, special_tokens={"bos_token": "<s>"}, system=False, options={name: 1})
    with pytest.raises(PromptError, match=f"{name} can be set of a chat template only, not of 'qa'; leave it out"):
        ivlens.template("qa", options={name: 1})


def test_a_prompt_begins_with_the_bos_token_as_is_asked_for(
    talking: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins(layout: Any) -> list[bool]:
        made = [layout.render(QUERY), *prompts.statements(STATED, [QUERY], bos=layout.bos)]
        ids = [tokenize(talking, [one]).prompts[0].tolist() for one in made]
        assert all(one.count(talking.tokenizer.bos_token_id) <= 1 for one in ids)
        return [one[0] == talking.tokenizer.bos_token_id for one in ids]

    talking.tokenizer.chat_template = TAGGED
    for name in ("qa", "chat"):
        assert begins(ivlens.template(name, talking)) == [True, True]
        assert begins(ivlens.template(name, talking, bos="no")) == [False, False]
        monkeypatch.setattr(talking.cfg, "default_prepend_bos", False)
        assert begins(ivlens.template(name, talking)) == [name == "chat", False]
        assert begins(ivlens.template(name, talking, bos="yes")) == [True, True]
        monkeypatch.setattr(talking.cfg, "default_prepend_bos", True)
    assert chat.to_record(ivlens.template("qa", bos="no"))["bos"] == "no"
    assert "bos" not in chat.to_record(ivlens.template("qa"))


def test_a_bos_token_that_there_is_not_is_refused(tiny: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    without: Any = copy.deepcopy(tiny.tokenizer)
    without.bos_token = None
    monkeypatch.setattr(tiny, "tokenizer", without)
    with pytest.raises(PromptError, match=r"bos is 'yes', but the tokenizer of .* has no BOS token; take bos='auto'"):
        tokenize(tiny, [ivlens.template("qa", bos="yes").render(QUERY)])
    assert len(tokenize(tiny, [ivlens.template("qa", bos="no").render(QUERY)])) == 1
    unknown: Any = "maybe"
    with pytest.raises(PromptError, match="bos is 'maybe'; it must be 'auto' or 'yes' or 'no'"):
        check_bos(unknown)


def test_a_plain_prompt_still_gets_its_bos_token(talking: HookedTransformer) -> None:
    plain = tokenize(talking, prompts.zero_shot([QUERY], template=prompts.Template(query="{input}")))
    assert plain.prompts[0].tolist()[0] == talking.tokenizer.bos_token_id


def test_of_several_templates_the_default_is_taken(talking: HookedTransformer) -> None:
    assert with_template(talking, {"default": TAGGED, "tool_use": "x"}).jinja == TAGGED
    with pytest.raises(PromptError, match="has no chat template"):
        with_template(talking, {"rag": TAGGED, "tool_use": "x"})


def test_a_tokenizer_without_a_chat_template_is_refused(lab: HookedTransformer) -> None:
    with pytest.raises(PromptError, match="the tokenizer of lab has no chat template; choose another template, such"):
        ivlens.template("chat", lab)


@pytest.mark.parametrize(
    ("jinja", "sentence"),
    [
        ("{{ messages[0", "the chat template fails"),
        ("{{ raise_exception('only tools') }}", r"fails \(only tools\); choose another template"),
        ("{{ 1 / 0 }}", "the chat template fails"),
        ("{{ messages + 1 }}", "the chat template fails"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "the chat template fails .*unsafe"),
        ("{{ 'x' * 10 ** 10 }}", r"fails \(MemoryError\)"),
        ("{{ 'x' * 10 ** 7 }}", r"fails \(it writes 10,000,000 characters; 1,048,576 at most are read\)"),
        ("{{ '\\ud800' }}", "fails .*surrogates not allowed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails .*recursion"),
        ("{% include 'config.json' %}", "fails .*no loader"),
        ("no query", "leaves out the query 'Write any word.'; choose another template"),
    ],
)
def test_a_template_that_fails_is_refused_in_a_sentence(talking: HookedTransformer, jinja: str, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        with_template(talking, jinja).render(QUERY)


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.slow
@pytest.mark.parametrize("endless", [LOOPS, "{{ (10 ** 4000) ** (10 ** 6) }}"])
def test_a_template_without_end_is_ended_and_the_next_one_runs(
    talking: HookedTransformer, endless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_sandbox, "SECONDS", 1)
    with pytest.raises(PromptError, match=r"fails \(it takes more than 1 s, or more memory"):
        with_template(talking, endless + TAGGED).render(QUERY)
    assert with_template(talking, TAGGED).render(QUERY).query == QUERY


def test_the_date_stands_still(talking: HookedTransformer) -> None:
    template = with_template(talking, "{{ strftime_now('%d %b %Y') }} " + TAGGED)
    assert template.render(QUERY).text.startswith("26 Jul 2024 <bos>")


def test_a_recorded_chat_template_writes_the_same(talking: HookedTransformer) -> None:
    template = with_template(talking, TAGGED)
    settings = Settings(template=template)
    record = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert Settings.from_record(record) == settings
    assert chat.from_record(record["template"]).render(QUERY) == template.render(QUERY)
    assert Settings.from_record(dataclasses.asdict(Settings())) == Settings()


@pytest.mark.slow
def test_a_model_is_audited_in_its_chat_template(talking: HookedTransformer, word_task: Task, tmp_path: Path) -> None:
    small: dict[str, Any] = {"shots": 2, "clean_prompts": 3, "prompts": 2, "top": 2, "draws": 1, "other_tasks": 0}
    template = with_template(talking, TAGGED)
    found = ivlens.audit(talking, word_task, template=template, out=tmp_path / "run", **small)
    assert found.vector.settings.template == template
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["template"]["jinja"] == TAGGED
