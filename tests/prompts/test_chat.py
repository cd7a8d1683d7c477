"""A conversation is what the tokenizer's own chat template makes of it, token for token."""

from __future__ import annotations

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


def test_an_answer_begins_as_the_template_begins_it(talking: HookedTransformer) -> None:
    assert with_template(talking, TAGGED).render(QUERY).answer == "w6 w7"
    assert with_template(talking, SPACED).render(QUERY).answer == " w6 w7"
    thinking = TAGGED.replace("w90 w93 {% endif %}", "w90 w93 w94 {% endif %}")
    assert with_template(talking, thinking).render(QUERY).answer == "w6 w7"


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


def test_a_model_is_audited_in_its_chat_template(talking: HookedTransformer, word_task: Task, tmp_path: Path) -> None:
    small: dict[str, Any] = {"shots": 2, "clean_prompts": 3, "prompts": 2, "top": 2, "draws": 1, "other_tasks": 0}
    template = with_template(talking, TAGGED)
    found = ivlens.audit(talking, word_task, template=template, out=tmp_path / "run", **small)
    assert found.vector.settings.template == template
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["template"]["jinja"] == TAGGED
