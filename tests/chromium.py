"""The browser that pages are tried in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
needs_chrome = pytest.mark.skipif(CHROME is None, reason="no Chrome or Chromium on this machine")


@contextmanager
def open_browser(arguments: Sequence[str] = ARGUMENTS) -> Iterator[Browser]:
    """Inside the `with` block, a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROME, args=list(arguments))
        yield browser
        browser.close()
