"""A report is one page that needs nothing beside itself, and shows whatever a file holds as text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chromium import needs_chrome, open_browser
from conftest import WORD_TEMPLATE
from playwright.sync_api import Browser, Page, expect
from plotly.offline import get_plotlyjs
from small import small_plan
from transformer_lens import HookedTransformer

import ivlens
from ivlens.cli.app import main
from ivlens.datasets.task import Pair, Task
from ivlens.errors import RunError
from ivlens.forgetting import plan
from ivlens.models import lora
from ivlens.models.lora import LoraConfig
from ivlens.plots import WIDTHS
from ivlens.prompts.chat import ChatTemplate
from ivlens.prompts.template import Template
from ivlens.reports import findings
from ivlens.reports.html import _again, report
from ivlens.storage.command_line import remember_arguments
from ivlens.storage.run_folder import open_run
from ivlens.storage.run_record import read_record

HOSTILE = "</script><script>window.hit=1</script><img src=x onerror=window.hit=2><!-- $\\alpha$ \u2028 &lt;b>"
SHOWN = HOSTILE.replace("\u2028", "\\u2028")
KINDS = ("audit", "compare", "study")
SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 4, "prompts": 4, "top": 3, "draws": 2, "template": WORD_TEMPLATE}
TYPED = ("audit", "a model's folder", "--task", f"{HOSTILE}\n", "--out", "$HOME `x`")
UNDRAWN = ".plot:not(.js-plotly-plot)"
PATIENCE = 60_000
"""Milliseconds, for a machine with much else to do."""


@pytest.fixture(scope="module")
def hostile() -> Task:
    """Every text that a task file may hold tries to be markup."""
    pairs = tuple(Pair(f"w{i} {HOSTILE}", f"w{i + 50}") for i in range(24))
    return Task(name=HOSTILE, pairs=pairs, instructions=(HOSTILE,), statement=f"w103 {{input}} {HOSTILE}")


@pytest.fixture(scope="module")
def folders(
    tiny: HookedTransformer, lab: HookedTransformer, hostile: Task, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run of each kind with its page: an audit that was typed, a comparison and a study from Python."""
    parent, called = tmp_path_factory.mktemp("report"), tiny.cfg.model_name
    adapter = lora.fresh(tiny, LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    found = {kind: parent / f"{kind} <b>" for kind in KINDS}
    tiny.cfg.model_name = HOSTILE
    try:
        with remember_arguments(TYPED):
            ivlens.audit(tiny, hostile, out=found["audit"], other_tasks=1, source="instruction", **SMALL)
        ivlens.compare(tiny, adapter, hostile, out=found["compare"], queries=4, **SMALL)
    finally:
        tiny.cfg.model_name = called
    ivlens.study(small_plan(methods=("lora", "lora+kl"), seeds=(0, 1)), out=found["study"], model=lab)
    for folder in found.values():
        assert ivlens.report(folder) == folder / "report.html"
    return found


class Elements(HTMLParser):
    """The elements of a page, with their attributes and all text inside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[int] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img"):
            self.open.append(len(self.found))
        self.found.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.found[self.open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.texts[index] += data

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        pairs = zip(self.found, self.texts, strict=True)
        return [(attributes, text) for (name, attributes), text in pairs if name == tag]


def elements(folder: Path) -> Elements:
    return Elements((folder / "report.html").read_text(encoding="utf-8"))


def data_of(folder: Path) -> dict[str, Any]:
    ((_, text),) = [one for one in elements(folder).all("script") if one[0].get("id") == "data"]
    return json.loads(text)


# What is in the file


@pytest.mark.long
def test_a_page_can_leave_plotly_to_a_file_that_the_pages_of_a_run_share(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["study"], tmp_path / "run"))
    page = ivlens.report(folder, single_file=False).read_text(encoding="utf-8")
    assert get_plotlyjs() not in page and len(page) < 10**6
    sources = [attributes["src"] for attributes, _ in Elements(page).all("script") if "src" in attributes]
    assert sources == ["figures/plotly.min.js"] and (folder / sources[0]).read_text("utf-8") == get_plotlyjs()
    assert "script-src &#39;self&#39;" in page or "script-src 'self'" in page
    assert get_plotlyjs() in ivlens.report(folder).read_text(encoding="utf-8"), "by default it can be sent to somebody"


@pytest.mark.slow
def test_the_answer_of_a_study_is_a_sentence_and_a_table(folders: dict[str, Path]) -> None:
    found = elements(folders["study"])
    answer = next(text for attributes, text in found.all("p") if attributes.get("class") == "answer")
    assert answer.count("±") <= 4 and re.search(r"is after the last stage \S+ ±\S+ with lora \(learned: ", answer)
    first = next(
        text for attributes, text in found.all("table") if attributes.get("aria-labelledby") == "answer-heading"
    )
    assert first.split()[0] == "method" and "lora+kl" in first


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_holds_plotly_once_and_names_no_other_file(folders: dict[str, Path], kind: str) -> None:
    page = (folders[kind] / "report.html").read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) == 1
    for tag, attributes in Elements(page).found:
        assert not {"src", "srcset", "data", "action", "onerror", "onload"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), tag
    own = page.replace(get_plotlyjs(), "")
    assert not re.search(r"url\(|@import|https?://", own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_of_a_page_allows_its_own_scripts_and_nothing_else(folders: dict[str, Path], kind: str) -> None:
    found = elements(folders[kind])
    (policy,) = [one["content"] for one, _ in found.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    scripts = [text for attributes, text in found.all("script") if not attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert policy is not None and len(scripts) == 2
    assert policy.split("; ")[:2] == ["default-src 'none'", f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["audit", "compare"])
def test_what_a_task_file_holds_is_on_the_page_as_text(folders: dict[str, Path], kind: str) -> None:
    found = elements(folders[kind])
    assert len(found.all("script")) == 3 and not found.all("img")
    ((_, heading),) = found.all("h1")
    assert SHOWN in heading and SHOWN in "".join(text for _, text in found.all("pre"))
    title = findings.page_of(findings.read_findings(folders[kind])).title
    assert HOSTILE in title and data_of(folders[kind])["title"] == title


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_figures_and_tables_are_those_of_the_run(folders: dict[str, Path], kind: str) -> None:
    run, data = findings.read_findings(folders[kind]), data_of(folders[kind])
    drawn = run.figures()
    assert set(data["figures"]) == set(drawn) != set()
    for name, figure in drawn.items():
        assert data["figures"][name] == json.loads(figure.to_json())
    page = findings.page_of(run)
    cells = [text for _, text in elements(folders[kind]).all("td")]
    tables = (*filter(None, [page.answer_table]), *page.tables)
    wanted = [cell for table in tables for part in table.parts for line in part for cell in line[1:]]
    assert cells[: len(wanted)] == wanted
    assert page.answer in [text for _, text in elements(folders[kind]).all("p")]


@pytest.mark.slow
def test_the_command_is_shown_as_a_shell_reads_it(folders: dict[str, Path]) -> None:
    (shown,) = [text for one, text in elements(folders["audit"]).all("pre") if one.get("id") == "again-text"]
    assert shlex.split(shown.replace("\\u2028", "\u2028")) == ["ivlens", *TYPED]


@pytest.mark.slow
def test_the_call_that_is_shown_makes_the_same_run(folders: dict[str, Path]) -> None:
    (shown,) = [text for one, text in elements(folders["compare"]).all("pre") if one.get("id") == "again-text"]
    called: list[Any] = []
    stand_in = SimpleNamespace(Template=Template, compare=lambda *names, **settings: called.extend([names, settings]))
    exec(shown.removeprefix("import ivlens\n"), {"ivlens": stand_in})
    (base, tuned, task), settings = called
    assert (base, tuned, task) == (HOSTILE, f"{HOSTILE} + adapter", HOSTILE)
    asked = SMALL | {"queries": 4, "seed": 0, "out": "run"}
    assert {key: settings[key] for key in asked} == asked


@pytest.mark.slow
def test_the_plan_that_is_shown_is_read_back_as_the_same_plan(folders: dict[str, Path], tmp_path: Path) -> None:
    (shown,) = [text for one, text in elements(folders["study"]).all("pre") if one.get("id") == "plan-text"]
    (tmp_path / "plan.toml").write_text(shown, encoding="utf-8")
    study = ivlens.Study.read(folders["study"])
    assert plan.read_plan(tmp_path / "plan.toml").record() == study.plan.record()


@pytest.mark.slow
def test_the_same_run_makes_the_same_page(folders: dict[str, Path]) -> None:
    before = (folders["audit"] / "report.html").read_bytes()
    assert ivlens.report(folders["audit"]).read_bytes() == before


@pytest.mark.slow
def test_a_disk_that_refuses_leaves_the_old_page(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    listed, before = sorted(folders["audit"].iterdir()), (folders["audit"] / "report.html").read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        ivlens.report(folders["audit"])
    assert (folders["audit"] / "report.html").read_bytes() == before and sorted(folders["audit"].iterdir()) == listed


def test_what_is_no_complete_run_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(tmp_path / "half", command="audit", settings={}, sources={}, seed=0):
        pass
    (tmp_path / "other").mkdir()
    for name, sentence in {"half": "is unfinished", "other": "is not a run of ivlens", "none": "not a run"}.items():
        assert main(["report", str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / name / "report.html").exists()


@pytest.mark.slow
def test_the_command_line_says_where_the_page_is(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folders["compare"])]) == 0
    assert capsys.readouterr().out == f"Written: {folders['compare'] / 'report.html'}\n"


@pytest.mark.slow
def test_prompts_that_cannot_be_read_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["audit"], tmp_path / "run")
    (tmp_path / "run" / "prompts.json").write_text('["clean"]')
    with pytest.raises(RunError, match=r"prompts.json cannot be read: it was cut to 9 of"):
        ivlens.report(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"files": {}}))  # As runs of before have it.
    with pytest.raises(RunError, match=r"prompts.json cannot be read .* delete it"):
        ivlens.report(tmp_path / "run")
    (tmp_path / "run" / "prompts.json").unlink()
    assert "A clean prompt" not in ivlens.report(tmp_path / "run").read_text(encoding="utf-8")


# What a browser makes of it


@pytest.mark.slow
def test_a_record_that_does_not_say_how_the_run_was_made_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((folders["audit"] / "run.json").read_text())
    for number, change in enumerate(({"settings": {}}, {"settings": {"template": []}}, {"sources": {}})):
        folder = tmp_path / str(number)
        shutil.copytree(folders["audit"], folder)
        (folder / "run.json").write_text(json.dumps({**record, "typed": [], **change}))
        with pytest.raises(RunError, match=r"does not (record how it was made|say of which)"):
            report(folder)


@pytest.mark.slow
def test_the_call_that_is_shown_has_the_runs_chat_template(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["audit"], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    template = {"jinja": "{{ messages }}", "special_tokens": {"bos_token": "<s>"}, "system": True}
    record |= {"typed": [], "settings": {**record["settings"], "template": template}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    found = read_record(tmp_path / "run")
    call = _again(found) if found else ""
    written = call[call.index("template=") + len("template=") :].removesuffix(",\n)")
    assert eval(written, {"ChatTemplate": ChatTemplate}) == ChatTemplate(**template)
    assert "\nfrom ivlens.prompts import ChatTemplate\n" in call


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What the browser complained of or fetched beside the pages themselves."""
    return []


@pytest.fixture(scope="module")
def tab(browser: Browser, folders: dict[str, Path], told: list[str]) -> Callable[[str], Page]:
    """The page of a run with all its figures drawn; loaded once."""

    @cache
    def load(kind: str) -> Page:
        page, url = browser.new_page(), (folders[kind] / "report.html").as_uri()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if request.url != url else None)
        page.goto(url, timeout=PATIENCE)
        expect(page.locator(UNDRAWN)).to_have_count(0, timeout=PATIENCE)
        return page

    return load


@pytest.fixture
def opened(tab: Callable[[str], Page], told: list[str]) -> Iterator[Any]:
    """Shows a page on a screen. Afterwards, nothing may have been complained of, fetched or run."""
    shown = []

    def show(kind: str, *, width: int = 1280, scheme: Any = "light") -> Page:
        page = tab(kind)
        page.emulate_media(media="screen", color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        shown.append(page)
        return page

    yield show
    assert [page.evaluate("window.hit") for page in shown] == [None] * len(shown)
    assert told == []


@pytest.mark.long
@pytest.mark.browser
@needs_chrome
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_drawn_and_can_be_read(opened: Any, kind: str, scheme: str) -> None:
    page = opened(kind, scheme=scheme)
    plots = page.locator(".plot:has(.main-svg)").all()
    assert len(plots) == len(page.locator("figure").all()) > 0
    for plot in plots:
        box = plot.bounding_box()
        assert box is not None and box["width"] > 600 and box["height"] > 150
    # Of text and page; a filter turns the figures round.
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 200)")
    turned = page.evaluate("getComputedStyle(document.querySelector('.plot')).filter.includes('invert')")
    assert (light, turned) == ((True, False) if scheme == "light" else (False, True))


def column(page: Page, table: int, number: int) -> list[str]:
    return page.evaluate(
        "([table, number]) => [...document.querySelectorAll('.table')[table].querySelectorAll('tbody tr')]"
        ".map((row) => row.cells[number].textContent)",
        [table, number],
    )


@pytest.mark.browser
@needs_chrome
def test_a_click_or_a_key_sorts_a_table_by_its_numbers(opened: Any) -> None:
    page = opened("audit")
    before = column(page, 0, 1)
    head = page.locator(".table").first.locator("thead th").nth(1)
    button = head.get_by_role("button")
    assert head.get_attribute("aria-sort") == "none"
    button.click()
    assert head.get_attribute("aria-sort") == "ascending" and column(page, 0, 1) == sorted(before, key=float)
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 0, 1) == sorted(before, key=float, reverse=True)
    other = page.locator(".table").first.locator("thead th").nth(2)
    other.get_by_role("button").press("Space")
    assert (head.get_attribute("aria-sort"), other.get_attribute("aria-sort")) == ("none", "ascending")
    lows = [float(cell.strip("[").split(",")[0]) for cell in column(page, 0, 2)]
    assert lows == sorted(lows)
    other.get_by_role("button").press("Enter")
    other.get_by_role("button").press("Enter")
    assert other.get_attribute("aria-sort") == "none" and column(page, 0, 1) == before


@pytest.mark.browser
@needs_chrome
def test_numbers_are_sorted_by_size_and_sign_and_what_was_not_measured_comes_last(opened: Any) -> None:
    page = opened("compare")
    cells = ["+1.2e-05", "not measured", "-3.000 ±0.100", "", "10", "9", "-0.5", "nothing lost"]
    page.evaluate(
        "(cells) => [...document.querySelectorAll('.table')[0].querySelectorAll('tbody tr')].slice(0, cells.length)"
        ".forEach((row, index) => { row.cells[1].textContent = cells[index]; })",
        cells,
    )
    button = page.locator(".table").first.locator("thead th").nth(1).get_by_role("button")
    button.click()
    upward = [cell for cell in column(page, 0, 1) if cell in cells]
    assert upward[:5] == ["-3.000 ±0.100", "-0.5", "+1.2e-05", "9", "10"]
    assert upward[5:] == ["not measured", "", "nothing lost"]
    button.click()
    downward = [cell for cell in column(page, 0, 1) if cell in cells]
    assert downward == [*upward[4::-1], *upward[5:]]


@pytest.mark.browser
@needs_chrome
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_phone_only_boxes_scroll_to_the_side(opened: Any, kind: str) -> None:
    page = opened(kind, width=375)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every((box) => box.clientWidth <= 375)")
    # Figures are drawn as for a paper's column; nothing of them lies outside the screen.
    wait_for_figures(page, WIDTHS["column"])
    hidden = "[...document.querySelectorAll('figure .scroll')].map((box) => box.scrollWidth - box.clientWidth)"
    assert set(page.evaluate(hidden)) == {0}
    page.set_viewport_size({"width": 1280, "height": 800})
    wait_for_figures(page, WIDTHS["page"])


def wait_for_figures(page: Page, width: int) -> None:
    """Until all of them are drawn so wide: they are drawn one after the other."""
    for _ in range(200):
        widths = page.evaluate("[...document.querySelectorAll('.plot')].map((plot) => plot.layout?.width)")
        if set(widths) == {width}:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"figures are {widths} wide, not {width}")


@pytest.mark.browser
@needs_chrome
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_printed_with_its_figures_on_the_paper(opened: Any, kind: str) -> None:
    page = opened(kind, scheme="dark")
    assert page.pdf(format="A4", prefer_css_page_size=True)[:5] == b"%PDF-"
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 673, "height": 900})  # A4 without its margins.
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") == 673
    assert page.evaluate("getComputedStyle(document.querySelector('.plot')).filter") == "none"
    assert not page.locator("nav").is_visible()


@pytest.mark.browser
@needs_chrome
def test_figures_and_tables_can_be_taken_away_as_files(opened: Any, folders: dict[str, Path]) -> None:
    page, found = opened("study"), ivlens.Study.read(folders["study"])
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("summary")).click()
    assert download.value.suggested_filename.endswith("-summary.csv")
    assert download.value.path().read_text(encoding="utf-8") == found.summary.to_csv(index=False)
    with page.expect_download() as download:
        page.get_by_role("button", name="SVG").first.click()
    assert re.fullmatch(r"ivlens-[A-Za-z0-9.-]+\.svg", download.value.suggested_filename)
    assert download.value.path().read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.browser
@needs_chrome
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_takes_less_than_two_seconds_of_a_core_until_all_is_drawn(opened: Any, kind: str) -> None:
    page = opened(kind)
    client = page.context.new_cdp_session(page)
    # Time of the page's thread on a core, which depends little on what else the machine does.
    client.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    expect(page.locator(UNDRAWN)).to_have_count(0, timeout=PATIENCE)
    spent = {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 2
