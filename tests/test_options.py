"""No public argument is ever ignored: each is looked for in the record, or for its effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from conftest import WORD_TEMPLATE

import ivlens
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError
from ivlens.patching.settings import Settings
from ivlens.prompts.template import Template
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

OTHER_TEMPLATE = Template(
    demonstration="A : {input} Q : {output} \n ", query="A : {input} Q :", instruction="{instruction} \n "
)
SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}
CHANGED: dict[str, Any] = {
    "shots": 2,
    "clean_prompts": 5,
    "prompts": 3,
    "corruption": "zero-shot",
    "source": "instruction",
    "effect": "nll",
    "seed": 1,
    "template": OTHER_TEMPLATE,
}
HEADS = [Head(0, 1), Head(2, 3)]


def test_every_option_is_tried():
    assert CHANGED.keys() == Settings().values().keys()


@pytest.mark.parametrize("name", CHANGED)
def test_effects_are_measured_as_asked(tiny: HookedTransformer, word_task: Task, name: str):
    asked = {**SMALL, name: CHANGED[name]}
    found = ivlens.indirect_effects(tiny, word_task, **asked)
    assert found.settings == Settings(**asked)
    again = ivlens.indirect_effects(tiny, word_task, settings=Settings(**asked))
    assert again.settings == found.settings and again.cie.equal(found.cie)
    usual = ivlens.indirect_effects(tiny, word_task, **SMALL)
    assert not (found.cie.equal(usual.cie) and found.mean_z.equal(usual.mean_z)), "and it changes the numbers"


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("heads", [None, HEADS], ids=["by effect", "given"])
def test_a_vector_is_of_the_settings_asked(
    tiny: HookedTransformer, word_task: Task, name: str, heads: list[Head] | None
):
    asked = {**SMALL, name: CHANGED[name]}
    by_settings = ivlens.instruction_vector(tiny, word_task, heads=heads, settings=Settings(**asked))
    assert by_settings.settings == Settings(**asked)
    by_options = ivlens.instruction_vector(tiny, word_task, heads=heads, **asked)
    assert by_options.settings == Settings(**asked) and by_options.vector.equal(by_settings.vector)
    if heads is None:
        effects = ivlens.indirect_effects(tiny, word_task, **asked)
        assert by_settings.heads == tuple(effects.top(10)) and by_settings.aie is not None
        assert by_settings.aie.equal(effects.aie)


@pytest.mark.parametrize("name", CHANGED)
def test_options_beside_effects_must_be_theirs(tiny: HookedTransformer, word_task: Task, name: str):
    effects = ivlens.indirect_effects(tiny, word_task, **SMALL)
    same = ivlens.instruction_vector(
        tiny, word_task, effects=effects, settings=effects.settings, shots=3, layer=1, scale=1.0
    )
    assert same.settings == effects.settings
    with pytest.raises(IvlensError, match=rf"^{name} is .*, but the effects have {name} "):
        ivlens.instruction_vector(tiny, word_task, effects=effects, **{name: CHANGED[name]})
    other = Settings(**{**SMALL, name: CHANGED[name]})
    with pytest.raises(IvlensError, match=rf"^{name} is .*, but the effects have {name} "):
        ivlens.instruction_vector(tiny, word_task, effects=effects, settings=other)


@pytest.mark.parametrize("function", [ivlens.indirect_effects, ivlens.instruction_vector])
def test_options_beside_settings_must_be_theirs(tiny: HookedTransformer, word_task: Task, function: Any):
    with pytest.raises(IvlensError, match=r"^shots is 2, but the settings have shots 3; leave one of the two out$"):
        function(tiny, word_task, settings=Settings(**SMALL), shots=2)
