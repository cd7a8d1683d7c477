"""What is said of engines is refused in a sentence before anything is begun."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import jaxtyping
import pytest

from ivlens.engine.options import Engine, EngineOptions
from ivlens.errors import IvlensError


def test_functions_take_every_field_and_nothing_else() -> None:
    written = {name: getattr(one, "__forward_arg__", one) for name, one in EngineOptions.__annotations__.items()}
    assert written == {one.name: one.type for one in fields(Engine)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "dask"}, "engine is 'dask'; it must be 'local' or 'ray'"),
        ({"workers": 0}, "workers is 0; it must be 1 or more"),
        ({"workers": True}, "workers is True; it must be a whole number"),
        ({"retries": -1}, "retries is -1; it must be 0 or more"),
        ({"engine": "ray", "gpus": 0.5}, "gpus is 0.5; it must be a whole number"),
        ({"address": "auto", "gpus": 1}, "gpus say what of a Ray cluster is used; give engine ray, too"),
        ({"address": "here:1", "cpus": 1}, "address and cpus say what of a Ray cluster is used; give engine ray, too"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # Types are only checked by it in tests.
    with pytest.raises(IvlensError) as refused:
        Engine(**options)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "address",
    [
        *("", "local", "here", "here:", ":1", "here:0", "here:99999", "http://here:1", "ray://", "ray://here", "a b:1"),
        *("here:1/path", "here:1\n", "ray://user@here:1", "\N{ARABIC-INDIC DIGIT ONE}:1"),
        "here:\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(IvlensError, match="give auto, HOST:PORT or ray://HOST:PORT"):
        Engine(engine="ray", address=address)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("auto", None),
        ("10.0.0.2:6379", ("10.0.0.2", 6379)),
        ("ray://head.of-mine:10001", ("head.of-mine", 10001)),
        ("[::1]:6379", ("::1", 6379)),
    ],
)
def test_where_an_address_leads(address: str, host: tuple[str, int] | None) -> None:
    assert Engine(engine="ray", address=address).host == host
