"""What a browser makes of an explorer: clicks, keys, and numbers that are Python's."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import needs_chrome, open_browser
from made_up import made_up_contents, made_up_replies
from playwright.sync_api import Browser, Locator, Page
from transformer_lens import HookedTransformer

import ivlens
from ivlens.cli.app import main
from ivlens.errors import RunError
from ivlens.explorer import encoding
from ivlens.explorer.contents import Contents
from ivlens.explorer.explorer import Explorer
from ivlens.explorer.page import asset, write_page
from ivlens.explorer.page_data import Encoded
from ivlens.explorer.widget import HeadExplorer
from ivlens.models import lora
from ivlens.shapes import Head
from ivlens.storage.run_folder import read_run

pytestmark = [
    pytest.mark.browser,
    needs_chrome,
]
HOSTILE = "</script><script>window.hit=1</script><img src=x onerror=window.hit=2><!-- $\\alpha$ &lt;b>"
FEW: dict[str, Any] = {"shots": 4, "clean_prompts": 8, "prompts": 7}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab_explorer(lab: HookedTransformer) -> Explorer:
    """Of two models, so that everything is there."""
    task = ivlens.task("antonym")
    effects = ivlens.indirect_effects(lab, task, **FEW)
    adapter = lora.fresh(lab, lora.LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B[:] = 0.02
    return ivlens.explore(lab, task, effects, tuned=adapter, shown=1)


@pytest.fixture(scope="module")
def encoded(lab_explorer: Explorer) -> Encoded:
    return encoding.encode(lab_explorer.contents, steered=made_up_replies(lab_explorer.contents))


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page of what is to be drawn. Afterwards, nothing may have been complained of, fetched or run."""
    told, pages = list[str](), list[Page]()

    def show(drawn: Encoded | Path, *, width: int = 1280, scheme: Any = "light") -> Page:
        path = drawn if isinstance(drawn, Path) else tmp_path / "heads.html"
        if isinstance(drawn, Encoded):
            path.write_text(write_page(drawn), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        page.get_by_role("heading", name=re.compile("^Head L")).wait_for()
        pages.append(page)
        return page

    yield show
    assert [page.evaluate("window.hit") for page in pages] == [None] * len(pages)
    assert told == []
    for page in pages:
        page.close()


def cell_of(page: Page, head: Head) -> Locator:
    return page.get_by_role("gridcell", name=re.compile(rf"^{head}:"))


def cells_of(page: Page, caption: str) -> list[list[str]]:
    """The lines of a table, whether it is folded away or not."""
    table = page.locator("table", has=page.locator("caption", has_text=caption)).first
    rows = "(table) => [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))"
    return table.evaluate(rows)


def facts_of(page: Page) -> dict[str, str]:
    names, values = (page.locator(f".ivx-facts {tag}").all_text_contents() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def visible(text: str) -> str:
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    text = f"·{text[1:]}" if text.startswith(" ") else text
    return f"{text[:-1]}·" if text.endswith(" ") else text


def bounded(grids: Any, head: Head, digits: int = 3) -> str:
    mean, low, high = (f"{float(grid[head]):+.{digits}f}" for grid in grids)
    return f"{mean} [{low}, {high}]".replace("-0.000", "+0.000")


# Numbers


@pytest.mark.parametrize("head", [Head(3, 3), Head(0, 6), Head(5, 7)])
def test_a_click_on_a_head_shows_the_numbers_of_python(
    opened: Callable[..., Page], encoded: Encoded, lab_explorer: Explorer, head: Head
):
    page, contents = opened(encoded), lab_explorer.contents
    cell_of(page, head).click()
    before, after = contents.models
    assert contents.change is not None
    rank = sorted(range(48), key=lambda at: (-float(before.aie.mean.flatten()[at]), at)).index(
        8 * head.layer + head.head
    )
    found = facts_of(page)
    assert found["AIE (probability), before"] == f"{bounded(before.aie, head)}, rank {rank + 1} of 48"
    assert found["AIE (probability), after"].startswith(bounded(after.aie, head))
    assert found["AIE, change (probability)"] == bounded(contents.change, head)
    assert found["P(answer) lost when ablated, before"] == bounded(before.lost, head)
    assert ("Vector" in found) == (head in contents.marked)
    assert page.locator(".ivx-note").first.text_content().startswith(f"{head}: AIE before {bounded(before.aie, head)}")  # pyright: ignore

    for caption, prompts, values, whole in (
        ("Effect of its clean output", contents.corrupted, "cie", "unpatched"),
        ("Loss when ablated", contents.clean, "lost_by_prompt", "whole"),
    ):
        wanted = [
            [
                f"{prompt.query.input} → {prompt.answer.strip()}",
                *(
                    text
                    for model in contents.models
                    for text in (
                        f"{float(getattr(model, whole)[at]):.3f}",
                        f"{float(getattr(model, values)[at][head]):+.3f}".replace("-0.000", "+0.000"),
                    )
                ),
            ]
            for at, prompt in enumerate(prompts)
        ]
        assert cells_of(page, caption) == wanted

    assert before.writing is not None
    for caption, ids, logits in (
        ("Written most", before.writing.top, before.writing.top_logits),
        ("Written least", before.writing.bottom, before.writing.bottom_logits),
    ):
        texts = [visible(before.writing.texts[token]) for token in ids[head].tolist()]
        values = [f"{value:+.2f}" for value in logits[head].tolist()]
        assert cells_of(page, caption) == [list(pair) for pair in zip(texts, values, strict=True)]


def attended(contents: Contents, head: Head, token: int, *, model: int = 0, prompt: int = 0) -> list[list[str]]:
    """The lines of the table of what is attended to most."""
    row = contents.models[model].attention[prompt].row(head.layer, head.head, token).tolist()
    order = [at for at in sorted(range(len(row)), key=lambda at: (-row[at], at)) if row[at]]
    texts = contents.shown[prompt].tokens
    return [[str(at), visible(texts[at]), f"{row[at] / 100:.2f}"] for at in order[:6]]


def test_attention_is_from_the_last_token_or_the_one_that_is_pointed_at_focused_or_clicked(
    opened: Callable[..., Page], encoded: Encoded, lab_explorer: Explorer
):
    page, contents, head = opened(encoded), lab_explorer.contents, Head(3, 4)
    cell_of(page, head).click()
    last, tokens = len(contents.shown[0].tokens) - 1, page.locator(".ivx-token")
    assert tokens.all_text_contents() == list(map(visible, contents.shown[0].tokens))
    assert cells_of(page, "Attended most") == attended(contents, head, last)
    tokens.nth(7).hover()
    assert cells_of(page, "Attended most") == attended(contents, head, 7)
    assert tokens.nth(8).get_attribute("aria-label") == f"token 8 {visible(contents.shown[0].tokens[8])}: comes later"
    page.mouse.move(0, 0)
    assert cells_of(page, "Attended most") == attended(contents, head, last)
    tokens.nth(last).focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.token") == str(last - 2)
    assert cells_of(page, "Attended most") == attended(contents, head, last - 2)
    tokens.nth(5).click()
    page.mouse.move(0, 0)
    cell_of(page, Head(3, 3)).click()  # A token that was clicked stays, head by head.
    assert cells_of(page, "Attended most") == attended(contents, Head(3, 3), 5)
    page.get_by_label("Model", exact=True).select_option(index=1)
    assert cells_of(page, "Attended most") == attended(contents, Head(3, 3), 5, model=1)
    page.get_by_label("Prompt", exact=True).select_option(index=1)
    wanted = attended(contents, Head(3, 3), len(contents.shown[1].tokens) - 1, model=1, prompt=1)
    assert cells_of(page, "Attended most") == wanted


# Keys


def test_the_map_is_one_stop_of_the_tabulator_and_the_arrows_move_in_it(
    opened: Callable[..., Page], encoded: Encoded, lab_explorer: Explorer
):
    page = opened(encoded)
    (top,) = lab_explorer.vector.heads[:1]
    assert page.locator(".ivx-cell[tabindex='0']").count() == 1
    page.get_by_label("Head", exact=True).focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(f"{top}:")
    at = list(top)
    for key, layer, head in (
        *(("ArrowRight", 0, 1), ("ArrowDown", 1, 0), ("ArrowLeft", 0, -1), ("ArrowUp", -1, 0)),
        *(("Home", 0, -9), ("ArrowLeft", 0, -1), ("End", 0, 9), ("ArrowRight", 0, 1)),
        *(("PageUp", -9, 0), ("ArrowUp", -1, 0), ("PageDown", 9, 0), ("ArrowDown", 1, 0)),
    ):
        page.keyboard.press(key)
        at = [min(5, max(0, at[0] + layer)), min(7, max(0, at[1] + head))]
        shown = str(Head(*at))
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(f"{shown}:"), key
        assert page.locator(".ivx-head h3").text_content() == f"Head {shown}"
        assert page.locator("[aria-selected='true']").get_attribute("aria-label").startswith(f"{shown}:")  # pyright: ignore
    page.keyboard.press("Control+Home")
    assert page.locator(".ivx-head h3").text_content() == "Head L0H0"


def test_an_address_can_be_typed_and_a_wrong_one_is_told(opened: Callable[..., Page], encoded: Encoded):
    page = opened(encoded)
    field = page.get_by_label("Head", exact=True)
    for typed in ("l4h2", " 4 2 ", "L4H2"):
        field.fill(typed)
        field.press("Enter")
        assert page.locator(".ivx-head h3").text_content() == "Head L4H2"
    for typed in ("L6H0", "L0H8", "four"):
        field.fill(typed)
        field.press("Enter")
        assert page.get_by_text(f"There is no head {typed}").is_visible()
        assert field.get_attribute("aria-invalid") == "true"
    assert page.locator(".ivx-head h3").text_content() == "Head L4H2"


def test_the_map_shows_what_is_chosen(opened: Callable[..., Page], encoded: Encoded, lab_explorer: Explorer):
    page, contents, head = opened(encoded), lab_explorer.contents, Head(0, 2)
    assert contents.change is not None
    for number, (name, grids) in enumerate(
        [
            ("AIE before", contents.models[0].aie),
            ("lost when ablated, before", contents.models[0].lost),
            ("AIE after", contents.models[1].aie),
            ("lost when ablated, after", contents.models[1].lost),
            ("AIE, change", contents.change),
        ]
    ):
        page.get_by_label("Colour").select_option(index=number)
        told = cell_of(page, head).get_attribute("aria-label")
        assert told is not None and told.startswith(f"{head}: {name} {bounded(grids, head)}")


# The vector


def test_sliders_show_the_reply_at_every_layer_and_strength(
    opened: Callable[..., Page], encoded: Encoded, lab_explorer: Explorer
):
    page, found, own = opened(encoded), made_up_replies(lab_explorer.contents), lab_explorer.contents.steering
    layer, strength = page.get_by_role("slider", name="layer"), page.get_by_role("slider", name="strength")
    assert layer.get_attribute("aria-valuetext") == f"after block {own.layer}"
    assert strength.get_attribute("aria-valuetext") == f"{own.scale:g} ×"
    layer.focus()
    page.keyboard.press("Home")
    strength.focus()
    page.keyboard.press("End")
    for press in range(2):
        (line,) = cells_of(page, "Replies")
        assert line[1] == f"{own.replies[0]}{float(own.probability[0]):.3f}"
        assert line[2] == f"{found.replies[0][-1 - press][0]}{float(found.probability[0, -1 - press, 0]):.3f}"
        page.keyboard.press("ArrowLeft")


def test_the_page_of_the_lab_has_the_replies_of_the_steered_model(
    opened: Callable[..., Page], lab_explorer: Explorer, tmp_path: Path, lab: HookedTransformer
):
    page = opened(lab_explorer.save(tmp_path / "lab.html"))
    own = lab_explorer.contents.steering
    with ivlens.steered(lab, lab_explorer.vector, layer=own.layer, scale=own.scale):
        wanted = ivlens.ask(lab, own.prompts)
    (line,) = cells_of(page, "Replies")
    assert line[2] == f"{wanted.reply[0]}{float(wanted.first[0]):.3f}" and line[1] != line[2]


# How it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_to_the_side_and_text_stands_out(
    opened: Callable[..., Page], encoded: Encoded, width: int, scheme: str
):
    page = opened(encoded, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 200)")
    dark = page.evaluate(
        "getComputedStyle(document.querySelector('.ivx')).color.match(/\\d+/g).every((part) => part < 60)"
    )
    assert (light, dark) == ((True, True) if scheme == "light" else (False, False))
    assert page.locator(".ivx-cell").first.bounding_box()["width"] >= 8  # pyright: ignore[reportOptionalSubscript]
    assert contrast_of_the_darkest_token(page) >= 4.5


def contrast_of_the_darkest_token(page: Page) -> float:
    """Of the text of a token that has all the attention, by WCAG 2.2."""
    page.locator(".ivx-token").first.evaluate("(token) => token.style.setProperty('--ivx-weight', 1)")
    ink, above, below = page.evaluate(
        """() => [
          getComputedStyle(document.querySelector(".ivx-token")).color,
          getComputedStyle(document.querySelector(".ivx-token")).backgroundColor,
          getComputedStyle(document.body).backgroundColor,
        ].map((colour) => colour.match(/[\\d.]+/g).map(Number))"""
    )
    share = above[3] if len(above) > 3 else 1.0
    ground = [share * a + (1 - share) * b for a, b in zip(above, below, strict=False)]

    def luminance(colour: list[float]) -> float:
        linear = [(c / 255 / 12.92 if c <= 10.31 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_roles_and_names_say_what_everything_is(opened: Callable[..., Page], encoded: Encoded):
    page = opened(encoded)
    grid = page.get_by_role("grid", name="Heads: layers down, heads across")
    assert grid.get_by_role("gridcell").count() == 48 and grid.get_by_role("row").count() == 6
    for role, name in (("region", "Heads"), ("region", "The vector"), ("toolbar", "Tokens of the prompt")):
        assert page.get_by_role(role, name=name).first.is_visible()  # pyright: ignore[reportArgumentType]
    unnamed = page.locator("button, input, select, [role=gridcell]").evaluate_all(
        "(all) => all.filter((one) => !(one.ariaLabel || one.textContent || one.labels?.length)).length"
    )
    assert unnamed == 0
    assert page.locator("h3[aria-live=polite]").text_content() == "Head L3H3"


@pytest.mark.slow
def test_at_32_by_32_heads_and_200_tokens_every_step_takes_less_than_100_milliseconds(opened: Callable[..., Page]):
    contents = made_up_contents(layers=32, heads=32, tokens=200, prompts=25, shown=1)
    page = opened(encoding.encode(contents, steered=made_up_replies(contents)))
    client = page.context.new_cdp_session(page)
    # Time of the page's thread on a core, which depends little on what else the machine does.
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        return {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}["TaskDuration"]

    drawn = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
    for step in (
        "document.querySelectorAll('.ivx-cell')[500].click()",
        "document.querySelectorAll('.ivx-token')[150].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))",
        "document.querySelectorAll('select')[1].dispatchEvent(new Event('change'))",
        "document.querySelectorAll('select')[0].dispatchEvent(new Event('change'))",
        "document.querySelector('input[type=range]').dispatchEvent(new Event('input'))",
    ):
        before = spent()
        page.evaluate(f"() => {{ {step}; return {drawn}; }}")
        assert 0 < spent() - before < 0.1, step
    assert page.locator(".ivx-head h3").text_content() == "Head L15H20"


def test_what_prompts_and_names_hold_is_text(opened: Callable[..., Page]):
    contents = made_up_contents()
    hostile = encoding.encode(contents, steered=made_up_replies(contents)).model_dump_json()
    for text in ("made up", "model 0", "cat", " word0", " t0", "c0", "o0"):
        hostile = hostile.replace(f'"{text}"', f'"{HOSTILE}"'.replace("\\", "\\\\"))
    page = opened(Encoded.model_validate_json(hostile))
    assert HOSTILE in page.locator("h1").text_content()  # pyright: ignore[reportOperatorIssue]
    assert HOSTILE in cells_of(page, "Effect of its clean output")[0][0]
    assert page.locator("img, .ivx script").count() == 0


# In the report of a run


@pytest.fixture(scope="module")
def run(lab: HookedTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "antonym"
    ivlens.audit(lab, "antonym", out=folder, top=2, other_tasks=0, draws=1, **FEW)
    return folder


def test_a_run_that_was_explored_has_its_heads_in_the_report(
    opened: Callable[..., Page], run: Path, capsys: pytest.CaptureFixture[str]
):
    assert "ivx" not in ivlens.report(run).read_text(encoding="utf-8")
    assert main(["explore", str(run)]) == 0
    assert capsys.readouterr().out == f"Written: {run / 'explorer.html'}\n"
    found = ivlens.Audit.read(run)
    for path in (run / "explorer.html", ivlens.report(run)):
        page = opened(path, width=390)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        head = found.vector.heads[1]
        page.get_by_label("Head", exact=True).fill(str(head))
        page.get_by_label("Head", exact=True).press("Enter")
        bounds = found.effects.aie, *found.effects.interval()
        assert facts_of(page)["AIE (probability)"].startswith(bounded(bounds, head))
        assert (
            page.get_by_role("slider", name="layer").get_attribute("aria-valuetext")
            == f"after block {found.vector.layer}"
        )


def test_a_kept_explorer_that_is_damaged_or_of_another_task_is_named(run: Path, tmp_path: Path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    numbers = folder / "explorer.json"
    numbers.write_text('{"version": 1}')
    with pytest.raises(RunError, match=r"explorer.json cannot be read .*; delete it, or run ivlens explore again"):
        ivlens.report(folder)
    other = encoding.encode(made_up_contents(), steered=made_up_replies(made_up_contents()))
    numbers.write_text(other.model_dump_json())
    with pytest.raises(RunError, match=r"the explorer is of made up on model 0, and .* of another task"):
        ivlens.report(folder)
    numbers.unlink()
    assert read_run(folder).is_complete and "ivx" not in ivlens.report(folder).read_text(encoding="utf-8")


# In a notebook


@pytest.fixture
def in_notebook(browser: Browser, lab_explorer: Explorer) -> Iterator[tuple[Page, list[dict[str, Any]]]]:
    """The widget in a page that stands for a notebook, and what its kernel sent."""
    sent: list[dict[str, Any]] = []
    widget = HeadExplorer(encoding.encode(lab_explorer.contents), lab_explorer.reply)
    widget.send = lambda content, buffers=None: sent.append(content)
    page = browser.new_page()

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        widget._handle_custom_msg(message, [])
        return sent[-1]

    page.expose_function("kernel", ask)
    page.set_content("<div id=here class=jp-OutputArea-output></div>")
    page.add_style_tag(content=asset("explorer.css"))
    page.add_script_tag(
        type="module",
        content=asset("explorer.js").replace("export default", "window.widget =").replace("export async", "async"),
    )
    page.wait_for_function("window.widget")
    page.evaluate(
        """(data) => {
          let hear;
          const model = {
            get: () => data,
            on: (name, heard) => { hear = heard; },
            off: () => {},
            send: (message) => window.kernel(message).then(hear),
          };
          window.widget.render({model, el: document.getElementById("here")});
        }""",
        widget.data,
    )
    yield page, sent
    page.close()


def test_in_a_notebook_the_kernel_answers_what_the_sliders_ask(
    in_notebook: tuple[Page, list[dict[str, Any]]], lab_explorer: Explorer
):
    page, sent = in_notebook
    page.get_by_role("slider", name="strength").focus()
    page.keyboard.press("End")
    wanted = lab_explorer.reply(lab_explorer.contents.steering.layer, 16.0)
    page.get_by_text(wanted.replies[0], exact=False).first.wait_for()
    (line,) = cells_of(page, "Replies")
    assert line[2] == f"{wanted.replies[0]}{wanted.probability[0] / 1000:.3f}"  # pyright: ignore
    assert sent[-1] == {"number": len(sent), **wanted.model_dump()}


# JupyterLab 4.6: its style of lists, and how it takes keys, of which "d" twice deletes the cell, unless told not to.
LISTS = """
.jp-OutputArea-output dl, .jp-OutputArea-output dt, .jp-OutputArea-output dd { display: block; }
.jp-OutputArea-output dt { font-weight: bold; float: left; width: 20%; }
.jp-OutputArea-output dd { float: left; width: 80%; }
"""
SHORTCUTS = """
window.taken = [];
document.addEventListener("keydown", (event) => {
  if (event.target.hasAttribute("data-lm-suppress-shortcuts")) return;
  window.taken.push(event.key);
  event.preventDefault();
  event.stopPropagation();
}, true);
"""


def test_jupyterlab_keeps_its_keys_and_its_style_to_itself(in_notebook: tuple[Page, list[dict[str, Any]]]):
    page, _ = in_notebook
    page.add_style_tag(content=LISTS)
    page.add_script_tag(content=SHORTCUTS)
    cell_of(page, Head(1, 2)).click()
    for key in ("ArrowDown", "d", "d", "ArrowRight"):
        page.keyboard.press(key)
    assert page.locator(".ivx-head h3").text_content() == "Head L2H3"
    strength = page.get_by_role("slider", name="strength")
    strength.press("End")
    strength.press("ArrowLeft")
    assert strength.get_attribute("aria-valuetext") == "8 ×"
    assert page.evaluate("window.taken") == []
    for key in ("Control+s", "Shift+Enter"):
        page.keyboard.press(key)
    assert page.evaluate("window.taken") == ["Control", "s", "Enter"]
    lefts, tops = (
        [
            page.locator(f".ivx-facts {tag}").evaluate_all(f"(all) => all.map((one) => one.{side})")
            for tag in ("dt", "dd")
        ]
        for side in ("offsetLeft", "offsetTop")
    )
    assert len(set(lefts[0])) == len(set(lefts[1])) == 1 and lefts[0][0] < lefts[1][0] and tops[0] == tops[1]


def test_enter_finds_a_head_where_it_changes_nothing_by_itself(in_notebook: tuple[Page, list[dict[str, Any]]]):
    page, _ = in_notebook
    page.evaluate("addEventListener('keydown', (event) => { if (event.key === 'Enter') event.preventDefault(); })")
    page.get_by_label("Head", exact=True).click()
    page.keyboard.type("l4h2")  # In place of the address that was there.
    page.keyboard.press("Enter")
    assert page.locator(".ivx-head h3").text_content() == "Head L4H2"


def test_the_last_line_of_a_cell_is_the_widget(lab_explorer: Explorer):
    bundle = lab_explorer._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_without_anywidget_one_line_says_what_to_do(lab_explorer: Explorer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ivlens.explorer.widget", None)
    (text,) = lab_explorer._repr_mimebundle_().values()
    assert text.startswith(repr(lab_explorer)) and "pip install 'ivlens[notebook]'" in text
