"""Options are written once, checked at birth, and never ignored."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import jaxtyping
import numpy as np
import pytest

import ivlens
from ivlens.errors import IvlensError
from ivlens.patching.settings import Options, Settings, gather_options
from ivlens.prompts.template import DEFAULT


def written(kind: type) -> dict[str, str]:
    """Names and types of a typed dictionary, inherited ones included, as they are written."""
    return {name: getattr(one, "__forward_arg__", one) for name, one in kind.__annotations__.items()}


def test_functions_take_every_field_of_the_settings_and_nothing_else():
    assert written(Options) == {one.name: one.type for one in fields(Settings)}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("shots", True, "shots is True; it must be a whole number"),
        ("shots", "3", "shots is '3'; it must be a whole number"),
        ("prompts", float("nan"), "prompts is nan; it must be a whole number"),
        ("seed", 1.0, "seed is 1.0; it must be a whole number"),
        ("prompts", 0, "prompts is 0; it must be 1 or more"),
        ("clean_prompts", 10**30, "clean_prompts is more than 1,000,000; give less"),
        ("seed", 10**400, "seed is more than 9,223,372,036,854,775,807; give less"),
        ("corruption", "shuffle", "corruption is 'shuffle'; it must be 'shuffled' or 'zero-shot'"),
        ("effect", ["prob"], r"effect is \['prob'\]; it must be 'prob' or 'nll'"),
        ("template", "arrow", r"template is 'arrow', no template; give ivlens.template\('arrow', model\)"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_said_at_birth(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, complaint: str
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # Types are only checked by it in tests.
    with pytest.raises(IvlensError, match=rf"^{complaint}$"):
        Settings(**{name: value})


def test_numbers_of_numpy_become_pythons(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert type(Settings(shots=np.int64(3)).shots) is int


def test_options_and_settings_are_one():
    found = gather_options(Settings, Settings(shots=3), {"shots": 3, "template": DEFAULT})
    assert found == Settings(shots=3)
    with pytest.raises(IvlensError, match=r"^shots is 4, but the settings have shots 3; leave one of the two out$"):
        gather_options(Settings, Settings(shots=3), {"shots": 4})
    with pytest.raises(IvlensError, match=r"^there is no option 'promts'; did you mean prompts[?]$"):
        gather_options(Settings, None, {"promts": 4})


def test_the_docstring_explains_every_option():
    for one in fields(Settings):
        assert f"{one.name}: {one.metadata['words']}" in str(ivlens.Settings.__doc__)
