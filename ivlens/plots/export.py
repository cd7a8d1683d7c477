"""Figures as files: one self-contained HTML page each and, where a Chrome is found, images for a paper."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import kaleido
import plotly.graph_objects as go
from choreographer.errors import (
    BrowserClosedError,
    BrowserFailedError,
    ChannelClosedError,
    ChromeNotFoundError,
    DevtoolsProtocolError,
)
from kaleido.errors import JavascriptError, KaleidoError
from plotly.offline import get_plotlyjs

from ivlens.errors import FigureError, list_choices
from ivlens.storage.atomic_files import write_whole

FORMATS = ("html", "png", "svg", "pdf")
_CLOSING = 15.0
_FAILURES = (
    BrowserClosedError,
    BrowserFailedError,
    ChannelClosedError,
    DevtoolsProtocolError,
    JavascriptError,
    KaleidoError,
    OSError,  # TimeoutError is one.
)


class Exported(NamedTuple):
    """What `export` wrote."""

    written: tuple[Path, ...]
    notice: str | None
    """One line for the user where images were asked for and not all of them could be made."""


class _Image(NamedTuple):
    name: str
    format: str


def export(
    figures: Mapping[str, go.Figure],
    folder: Path | str,
    formats: Iterable[str] = FORMATS,
    *,
    alone: bool = True,
    dots: int = 3,
    timeout: float = 60.0,
) -> Exported:
    """Write each figure as `folder/NAME.FORMAT`, replacing what was there; every file whole or not at all.

    Images are drawn by a Chrome or Chromium. Without one, or where it fails, HTML is written in their place.

    Args:
        figures: By file name without suffix.
        alone: Each page has all of plotly.js (4.8 MB) in it; else it lies beside them, once.
        dots: Of a PNG, to a pixel of the figure, of which an inch has 96; 3 make 288 an inch in print.
        timeout: Seconds that the browser may take to start, and for each image.

    Raises:
        FigureError: a format is unknown, or a name is no plain file name.
        RunError: the disk refuses.
    """
    folder, formats = Path(folder), tuple(dict.fromkeys(formats))
    _check(figures, formats)
    wanted = [_Image(name, suffix) for name in figures for suffix in formats if suffix != "html"]
    images, reason = _draw(figures, wanted, dots, timeout) if wanted else ({}, None)
    contents = {folder / f"{image.name}.{image.format}": _lasting(image, one) for image, one in images.items()}
    if "html" in formats or reason is not None:
        contents |= {folder / f"{name}.html": _page(figure, name, alone) for name, figure in figures.items()}
        if not alone:
            contents[folder / "plotly.min.js"] = get_plotlyjs().encode()
    for path, content in contents.items():
        write_whole(path, content)
    if reason is None:
        return Exported(tuple(contents), None)
    missing = [image for image in wanted if image not in images]
    suffixes = ", ".join(dict.fromkeys(image.format for image in missing))
    amount = f"{len(missing)} of {len(wanted)} images ({suffixes})"
    return Exported(tuple(contents), f"{reason}: {amount} are missing, HTML was written in their place")


def _check(figures: Mapping[str, go.Figure], formats: tuple[str, ...]) -> None:
    for suffix in formats:
        if suffix not in FORMATS:
            raise FigureError(
                f"{suffix!r} is not a format of figures; {list_choices(suffix, FORMATS, lead='use any of')}"
            )
    for name in figures:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise FigureError(f"{name!r} cannot name a figure; use letters, digits, - and _")


def _page(figure: go.Figure, name: str, alone: bool) -> bytes:
    # The same figure makes the same file: plotly would draw a new id each time.
    page = figure.to_html(include_plotlyjs=alone or "directory", div_id=name, config={"displaylogo": False})
    return page.encode()


def _lasting(image: _Image, content: bytes) -> bytes:
    """The same figure makes the same file: plotly draws new ids each time, and a PDF bears the date."""
    if image.format == "pdf":
        return re.sub(rb"(?<=Date \(D:)\d{14}", b"20000101000000", content)
    if image.format == "svg":
        for number, one in enumerate(dict.fromkeys(re.findall(rb"(?:defs-|cb|trace)([0-9a-f]{6})", content))):
            content = re.sub(rb"(?<=[a-z-])" + one, b"%06x" % number, content)
    return content


def _draw(
    figures: Mapping[str, go.Figure], wanted: list[_Image], dots: int, timeout: float
) -> tuple[dict[_Image, bytes], str | None]:
    """The images that could be drawn, and why not all of them where some are missing."""
    try:
        # No MathJax: it would be fetched from the net, and our text is never TeX.
        browser = kaleido.Kaleido(n=1, timeout=None, mathjax=False)
    except ChromeNotFoundError:
        return {}, "no Chrome or Chromium was found (plotly_get_chrome installs one)"
    drawn: dict[_Image, bytes] = {}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(_draw_all(browser, figures, wanted, drawn, dots, timeout))
        except BaseException as error:  # Raised again by the thread that waits.
            errors.append(error)

    # A thread of its own, because a notebook already runs an event loop in this one; a daemon, so that Python can
    # end whatever a browser does.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(timeout * (len(wanted) + 1) + 3 * _CLOSING)
    finally:
        if thread.is_alive():  # It hangs, or Ctrl-C was pressed.
            _kill(browser)
    if thread.is_alive():
        return dict(drawn), "the browser did not end in time"
    if errors and not isinstance(errors[0], _FAILURES):
        raise errors[0]
    return drawn, _reason(errors[0], timeout) if errors else None


async def _draw_all(
    browser: kaleido.Kaleido,
    figures: Mapping[str, go.Figure],
    wanted: list[_Image],
    drawn: dict[_Image, bytes],
    dots: int,
    timeout: float,
) -> None:
    done = False
    try:
        async with asyncio.timeout(timeout):
            await browser.open()
        for image in wanted:
            options: Any = {"format": image.format, "scale": dots if image.format == "png" else 1}
            async with asyncio.timeout(timeout):
                drawn[image] = await browser.calc_fig(figures[image.name].to_dict(), opts=options)
        done = True
    finally:
        if not done:
            _kill(browser)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await browser.close()
        _kill(browser)


def _kill(browser: kaleido.Kaleido) -> None:
    """End a browser that may no longer listen, with its children: it leads a process group of its own."""
    process = getattr(browser, "subprocess", None)
    if process is None or process.poll() is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_CLOSING)


def _reason(error: BaseException, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"the browser took more than {timeout:g} s"
    if isinstance(error, BrowserFailedError):
        return f"the browser did not start within {timeout:g} s, or ended at once"
    return f"the browser failed ({' '.join(str(error).split())[:100]})"
