"""A page with an explorer on it that needs nothing beside itself."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from ivlens.errors import IvlensError
from ivlens.explorer.page_data import Encoded
from ivlens.tables import plain

_TAIL = """
mount(document.querySelector(".ivx"), JSON.parse(document.getElementById("ivx-data").textContent)).catch((error) => {
  document.querySelector(".ivx").textContent = `The explorer cannot be drawn here (${error.message}).`;
});
"""


def check_name(path: Path) -> None:
    """Raises IvlensError where it cannot be the name of a page."""
    if path.suffix.lower() != ".html":
        raise IvlensError(f"the page is to be written to {path}; give a name that ends in .html")


def asset(name: str) -> str:
    """A file that lies in `assets`."""
    return (resources.files("ivlens.explorer") / "assets" / name).read_text(encoding="utf-8")


def page_script() -> str:
    """What draws the explorer of a page from the data that stands on it."""
    return asset("explorer.js") + _TAIL


def data_text(encoded: Encoded) -> Markup:
    """JSON that can stand in a page: what begins a tag or ends a line elsewhere is written as an escape."""
    text = encoded.model_dump_json()
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def script_digest(script: str) -> Markup:
    """As a page's policy names the scripts that it allows."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")


def write_page(encoded: Encoded) -> str:
    """The whole page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_as_text)
    script = page_script()
    return environment.from_string(asset("page.html")).render(
        title=f"{encoded.task} on {' and '.join(model.name for model in encoded.models)}",
        digest=script_digest(script),
        style=Markup(asset("explorer.css")),
        script=Markup(script),
        data=data_text(encoded),
    )


def _as_text(value: object) -> object:
    return value if isinstance(value, Markup) else plain(value)
