"""The site's own parts: each page has its place, and each public name its page. `make docs` fails on dead links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import ismodule
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import CHROME, open_browser
from playwright.sync_api import Page
from test_docstrings import EVERYTHING
from transformer_lens import HookedTransformerConfig

from ivlens.errors import PromptError
from ivlens.patching.cost import Cost, sweep_cost
from ivlens.shapes import GIB

ROOT = Path(__file__).parents[1]
NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2].partition("exclude_docs:")[0]
CALCULATOR = (ROOT / "docs" / "calculator.js").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert not pages - set(re.findall(r": (\S+\.md)$", NAV, re.MULTILINE))


def test_every_notebook_is_in_the_navigation() -> None:
    assert {path.name for path in ROOT.glob("notebooks/*.ipynb")} == set(
        re.findall(r"(\w+\.ipynb)$", NAV, re.MULTILINE)
    )


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = [path.read_text(encoding="utf-8") for path in ROOT.glob("docs/reference/*.md")]
    shown = re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE)
    public = {str(one) for one in EVERYTHING if "." not in one.name and not ismodule(one.object)}
    assert len(shown) == len(set(shown)) and not public - set(shown)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROME is None:
        pytest.skip("no Chrome or Chromium on this machine")
    with open_browser() as browser:
        page = browser.new_context(offline=True).new_page()
        page.set_content(f'<div id="ivlens-calculator"></div><script>{CALCULATOR}</script>')
        yield page


def config(shape: dict[str, Any], dtype: torch.dtype) -> HookedTransformerConfig:
    return HookedTransformerConfig(
        n_layers=shape["layers"],
        n_heads=shape["heads"],
        n_key_value_heads=shape["kv"],
        d_model=shape["width"],
        d_head=shape["head"],
        d_mlp=shape["mlp"],
        gated_mlp=shape["gated"],
        d_vocab=shape["vocabulary"],
        n_ctx=1024,
        act_fn="silu",
        device="cpu",
        dtype=dtype,
    )


def on_paper(shape: dict[str, Any], dtype: torch.dtype, work: dict[str, int], bits: float, memory: int) -> dict:
    """As the page has it: 0 prompts where Python says that not one fits."""
    cfg = config(shape, dtype)
    try:
        cost = sweep_cost(cfg, prompts=work["prompts"], pos=work["tokens"], memory=memory, bits=bits)
    except PromptError:
        enough = sweep_cost(cfg, prompts=work["prompts"], pos=work["tokens"], memory=memory * 1000, bits=bits)
        cost = enough._replace(at_once=0)
    names = {"weights": "weights", "kept": "kept", "at_once": "atOnce", "reading": "reading", "products": "products"}
    assert tuple(names) == Cost._fields
    return {names[name]: value for name, value in cost._asdict().items()}


@pytest.mark.browser
@pytest.mark.parametrize("memory", [GIB // 4, 2 * GIB, 8 * GIB])
@pytest.mark.parametrize(
    ("precision", "bits"), [(torch.float32, 0.0), (torch.bfloat16, 0.0), (torch.bfloat16, 4.5)], ids=str
)
def test_the_calculator_reckons_as_python_does(page: Page, precision: torch.dtype, bits: float, memory: int) -> None:
    shapes = page.evaluate("MODELS")
    shapes["odd"] = {"layers": 7, "heads": 3, "kv": 1, "width": 50, "head": 17, "mlp": 91, "gated": False}
    shapes["odd"]["vocabulary"] = 333
    assert len(shapes) > 5
    for name, shape in shapes.items():
        for work in ({"prompts": 25, "tokens": 100}, {"prompts": 3, "tokens": 1000}):
            given = {**shape, **work, "size": precision.itemsize, "bits": bits, "memory": memory}
            assert page.evaluate("ivlensCost", given) == on_paper(shape, precision, work, bits, memory), name


@pytest.mark.browser
def test_the_calculator_shows_what_was_typed(page: Page) -> None:
    page.get_by_label("precision").select_option("16 bits")
    page.get_by_label("--memory, GiB").fill("8")
    page.get_by_label("operations a second").fill("400000")
    page.get_by_label("shape of").select_option("Llama 3.1 70B")
    shown = dict(re.findall(r"(.+)\t(.+)", page.locator("#ivlens-calculator table").inner_text()))
    assert shown["weights"] == "131 GiB" and shown["kept of a prompt: keys, values, rows"] == "191 MiB"
    assert shown["prompts of a batch"] == "16" and shown["sweep"] == "23.7 s"
    page.get_by_label("tokens of a prompt").fill("0")
    assert "above 0" in page.locator("#ivlens-calculator table").inner_text()
    page.get_by_label("tokens of a prompt").fill("100000")
    page.get_by_label("--memory, GiB").fill("0.5")
    assert "none fits" in page.locator("#ivlens-calculator table").inner_text()
