import os
import re
import stat
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import kaleido
import numpy as np
import plotly.graph_objects as go
import pytest
from choreographer.browsers.chromium import Chromium

from ivlens import plots
from ivlens.errors import FigureError, RunError
from ivlens.plots import export

CHROME = Chromium.find_browser(skip_local=False)
needs_chrome = pytest.mark.skipif(CHROME is None, reason="no Chrome or Chromium on this machine")


def grid(title: str = "AIE") -> go.Figure:
    return plots.head_heatmap(np.array([[0.1, -0.2], [0.0, np.nan]]), title=title)


@pytest.fixture
def no_chrome(monkeypatch):
    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)


@pytest.fixture
def fake_chrome(tmp_path, monkeypatch):
    """A program that stands in for Chrome."""
    if sys.platform == "win32":
        pytest.skip("the stand-ins for Chrome are shell scripts")

    def install(script: str) -> None:
        path = tmp_path / "chrome"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(Chromium, "find_browser", lambda **_: str(path))

    return install


def names(exported: export.Exported) -> list[str]:
    assert all(path.is_file() for path in exported.written)
    return sorted(path.name for path in exported.written)


def test_a_page_needs_nothing_from_the_net(tmp_path):
    exported = export.export({"effects": grid()}, tmp_path / "figures", ["html"])
    assert exported == ((tmp_path / "figures" / "effects.html",), None)
    page = exported.written[0].read_text()
    assert page.count("<script") < 6 and not re.search(r"<(script|link|img)[^>]+(src|href)\s*=", page)
    assert 'id="effects"' in page


def test_the_same_figure_makes_the_same_page(tmp_path):
    first, second = (export.export({"effects": grid()}, tmp_path / name, ["html"]).written[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_pages_of_a_folder_can_share_one_plotly_js(tmp_path):
    exported = export.export({"a": grid(), "b": grid()}, tmp_path, ["html"], alone=False)
    assert names(exported) == ["a.html", "b.html", "plotly.min.js"]
    page = (tmp_path / "a.html").read_text()
    assert len(page) < 10_000 and 'src="plotly.min.js"' in page and "https" not in page


def test_ids_and_dates_that_change_from_drawing_to_drawing_are_settled():
    def svg(one: str, bar: str) -> bytes:
        text = f'<defs id="defs-{one}"><g class="trace{bar} cb{bar}" clip-path="url(#clip{one}xy)" d="M1.{one}"/>'
        return f'{text}<path fill="#{one}"/>'.encode()

    kinds = [export._Image("a", "svg"), export._Image("a", "pdf")]
    first, second = (
        export._lasting(kinds[0], svg(one, bar)) for one, bar in (("12ab34", "5678ef"), ("777777", "0abcde"))
    )
    assert first == svg("000000", "000001").replace(b"M1.000000", b"M1.12ab34").replace(b"#000000", b"#12ab34")
    assert second == first.replace(b"12ab34", b"777777"), "a number and a colour stay as they are"
    dated = b"/CreationDate (D:20251124213722+00'00')\n/ModDate (D:20251124213722+00'00')>>"
    assert export._lasting(kinds[1], dated) == dated.replace(b"20251124213722", b"20000101000000")


def test_a_hostile_title_cannot_leave_its_script(tmp_path):
    (path,) = export.export({"a": grid("</script><script>alert(1)</script>")}, tmp_path, ["html"]).written
    assert "<script>alert" not in path.read_text()


def test_html_alone_starts_no_browser(tmp_path, monkeypatch):
    monkeypatch.setattr(kaleido, "Kaleido", None)
    assert names(export.export({"a": grid()}, tmp_path, ["html"])) == ["a.html"]
    assert export.export({}, tmp_path) == ((), None)


@pytest.mark.parametrize("formats", [("html", "png", "pdf"), ("png", "pdf")])
def test_without_chrome_html_is_written_and_said_at_once(tmp_path, no_chrome, formats):
    start = time.monotonic()
    exported = export.export({"a": grid(), "b": grid()}, tmp_path, formats)
    # Not after the minute that a browser may take to start; how long pages take is the machine's.
    assert names(exported) == ["a.html", "b.html"] and time.monotonic() - start < 30
    assert exported.notice == (
        "no Chrome or Chromium was found (plotly_get_chrome installs one): "
        "4 of 4 images (png, pdf) are missing, HTML was written in their place"
    )


@pytest.mark.slow
def test_unknown_formats_and_names_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(FigureError, match="'gif' is not a format of figures; use any of html, png, svg, pdf"):
        export.export({"a": grid()}, tmp_path, ["html", "gif"])
    for name in ("../a", "a/b", "", ".hidden", "a.png", 'a"onload='):
        with pytest.raises(FigureError, match="cannot name a figure"):
            export.export({name: grid()}, tmp_path, ["html"])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_leaves_the_old_figure(tmp_path, monkeypatch):
    (path,) = export.export({"a": grid()}, tmp_path, ["html"]).written
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        export.export({"a": grid("other")}, tmp_path, ["html"])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.command
def test_a_chrome_that_ends_at_once_is_said(tmp_path, fake_chrome):
    fake_chrome("exit 1")
    exported = export.export({"a": grid()}, tmp_path / "out", ["png"], timeout=20.0)
    assert names(exported) == ["a.html"]
    assert exported.notice is not None and "did not start within 20 s, or ended at once" in exported.notice


@pytest.mark.command
def test_a_chrome_that_hangs_is_ended_and_said(tmp_path, fake_chrome):
    fake_chrome(f"trap '' TERM INT; echo $$ > {tmp_path}/pid; while true; do sleep 0.1; done")
    start, threads = time.monotonic(), threading.active_count()
    exported = export.export({"a": grid()}, tmp_path / "out", ["png"], timeout=1.5)
    assert time.monotonic() - start < 10
    assert names(exported) == ["a.html"] and exported.notice is not None
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert threading.active_count() == threads


@pytest.mark.browser
@needs_chrome
def test_images_are_written_in_every_format_at_the_size_of_print(tmp_path):
    exported = export.export({"a": grid(), "b": plots.head_heatmap(np.eye(3), width="column")}, tmp_path)
    assert exported.notice is None
    assert names(exported) == sorted(f"{name}.{suffix}" for name in "ab" for suffix in export.FORMATS)
    png = (tmp_path / "b.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(png[16:20], "big") == 336 * 3
    assert (tmp_path / "a.svg").read_text().startswith("<svg") and (tmp_path / "a.pdf").read_bytes()[:4] == b"%PDF"


@pytest.mark.browser
@needs_chrome
def test_fonts_are_embedded_in_a_pdf(tmp_path):
    assert export.export({"a": grid()}, tmp_path, ["pdf"]).notice is None
    content = (tmp_path / "a.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    for stream in streams:
        with suppress(zlib.error):
            content += zlib.decompress(stream)
    assert b"/Font" in content and content.count(b"/FontDescriptor ") == len(re.findall(rb"/FontFile\d? ", content)) > 0


@pytest.mark.browser
@needs_chrome
def test_images_can_be_drawn_where_an_event_loop_runs_already(tmp_path):
    import asyncio

    async def in_a_notebook():
        return export.export({"a": grid()}, tmp_path, ["svg"])

    assert names(asyncio.run(in_a_notebook())) == ["a.svg"]


@pytest.mark.browser
@needs_chrome
def test_images_drawn_before_a_failure_are_kept(tmp_path, monkeypatch):
    draw = kaleido.Kaleido.calc_fig

    async def fails_on_svg(self, figure, *, opts):
        if opts["format"] == "svg":
            raise TimeoutError
        return await draw(self, figure, opts=opts)

    monkeypatch.setattr(kaleido.Kaleido, "calc_fig", fails_on_svg)
    exported = export.export({"a": grid()}, tmp_path, ["png", "svg", "pdf"], timeout=30.0)
    assert names(exported) == ["a.html", "a.png"]
    assert exported.notice == (
        "the browser took more than 30 s: 2 of 3 images (svg, pdf) are missing, HTML was written in their place"
    )


@pytest.mark.browser
@needs_chrome
def test_a_fault_of_ours_is_not_taken_for_a_failure_of_the_browser(tmp_path, monkeypatch):
    def broken(self):
        raise ZeroDivisionError

    monkeypatch.setattr(go.Figure, "to_dict", broken)
    with pytest.raises(ZeroDivisionError):
        export.export({"a": go.Figure()}, tmp_path, ["svg"])
