"""What a page is given is small, complete to a bound that it tells, and prints as Python prints."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace

import numpy as np
import pydantic
import pytest
import torch
from bounds import bounded
from made_up import made_up_attention, made_up_contents, made_up_replies

from ivlens.explorer import encoding, page
from ivlens.explorer.attention import Attention
from ivlens.explorer.page_data import Encoded


def unpack(text: str, shape: tuple[int, int, int]) -> Attention:
    """By the words of `pack`'s docstring."""
    content = np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=np.uint8)
    size = int(np.prod(shape))
    last, counts, rest = content[:size], content[size : 2 * size], content[2 * size :]
    kept = int(counts.sum(dtype=int))
    keys = rest[kept:] if shape[2] <= 256 else rest[kept:].view("<u2")
    return Attention(
        last=last.reshape(shape), counts=counts.reshape(shape), weights=rest[:kept], keys=keys.astype(np.uint16)
    )


@pytest.mark.parametrize("tokens", [2, 256, 300])
def test_attention_is_unpacked_as_it_was_packed(tokens: int):
    made = made_up_attention(2, 2, tokens, torch.Generator().manual_seed(1))
    again = unpack(encoding.pack(made), made.last.shape)
    assert all((getattr(again, name) == getattr(made, name)).all() for name in ("last", "counts", "weights", "keys"))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [2, 256, 300])
def test_packed_attention_is_unfolded_no_further_than_its_heads_and_tokens_allow(tokens: int):
    made = made_up_attention(2, 2, tokens, torch.Generator().manual_seed(1))
    packed, size = encoding.pack(made), 8 * tokens + len(made.weights) * (2 if tokens <= 256 else 3)
    assert encoding.check_packed(packed, 4, tokens, most=size) == size
    content = gzip.decompress(base64.b64decode(packed))
    for other in (content[:-1], content + b"x", bytes(2**28), b"\xff" * 2**20, b""):
        text = base64.b64encode(gzip.compress(other)).decode()
        with bounded(1.0), pytest.raises(ValueError, match="of other heads or tokens, or too much"):
            encoding.check_packed(text, 4, tokens, most=size)
    for text, heads in (("x", 4), (packed[:40], 4), (packed, 4 * tokens), (packed, 0)):
        with pytest.raises(ValueError, match=r"padding|base64|of other heads|is nothing, or more than"):
            encoding.check_packed(text, heads, tokens, most=size)


@pytest.mark.parametrize("digits", [2, 3, 7])
def test_whole_numbers_are_the_digits_that_python_prints(digits: int):
    values = [0.0005, 0.0015, 0.0625, -0.0625, 0.125, 1.005, -0.45, 1e-9, 2.675, 0.0, -1.0]
    values += np.random.default_rng(0).normal(size=1000).tolist()
    for value, whole in zip(values, encoding.to_whole(values, digits), strict=True):
        assert whole is not None
        sign, whole = "-" * (whole < 0), abs(whole)
        printed = f"{sign}{whole // 10**digits}.{whole % 10**digits:0{digits}d}"
        assert printed == f"{value:.{digits}f}".replace(f"-{0:.{digits}f}", f"{0:.{digits}f}")
    assert encoding.to_whole([float("nan")], digits) == [None]


def test_small_effects_have_more_digits():
    contents = made_up_contents()
    assert encoding.find_digits(contents) == 3
    (model,) = contents.models
    small = replace(model, aie=type(model.aie)(*(1e-5 * grid for grid in model.aie)))
    assert encoding.find_digits(replace(contents, models=(small,))) > 5


def test_where_there_is_no_room_weights_of_the_last_token_stay_and_it_is_told_from_where_on_others_are_left_out():
    contents = made_up_contents(tokens=60, layers=4)
    whole = encoding.encode(contents)
    size = sum(map(len, whole.models[0].attention))
    assert whole.least == 1
    for room in (size - 1, size // 2, 0):
        found = encoding.encode(contents, room=room)
        assert found.least in encoding.LEAST[1:]
        assert sum(map(len, found.models[0].attention)) <= room or found.least == encoding.LEAST[-1]
        for text, one in zip(found.models[0].attention, contents.models[0].attention, strict=True):
            again, wanted = unpack(text, one.last.shape), one.thinned(found.least)
            assert (again.last == one.last).all() and (again.weights == wanted.weights).all()


@pytest.mark.slow
def test_a_page_of_32_by_32_heads_of_two_models_on_200_tokens_has_at_most_8_megabytes():
    contents = made_up_contents(layers=32, heads=32, tokens=200, prompts=25, shown=3, models=2)
    encoded = encoding.encode(contents, steered=made_up_replies(contents))
    assert 10**6 < len(page.write_page(encoded).encode()) <= 8 * 10**6


def test_it_is_read_back_as_it_was_written():
    contents = made_up_contents(models=2)
    encoded = encoding.encode(contents, steered=made_up_replies(contents))
    assert Encoded.model_validate_json(encoded.model_dump_json()) == encoded


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one["models"][0]["cie"].pop(),
        lambda one: one["models"][0]["cie"][0].pop(),
        lambda one: one["models"][1]["attention"].pop(),
        lambda one: one["models"][1]["lost"]["low"].append(3),
        lambda one: one["change"].update(mean=[]),
        lambda one: one.update(heads=5),
        lambda one: one.update(layers="3"),
        lambda one: one.update(more=1),
        lambda one: one.update(version=2),
    ],
)
def test_what_does_not_belong_together_is_refused(damage):
    content = json.loads(encoding.encode(made_up_contents(models=2)).model_dump_json())
    damage(content)
    with pytest.raises(pydantic.ValidationError):
        Encoded.model_validate_json(json.dumps(content))
