"""The explorer as a widget of a notebook, whose sliders ask the kernel for replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from ivlens.explorer.page import asset
from ivlens.explorer.page_data import Encoded, EncodedReplies

Reply = Callable[[int, float], EncodedReplies]
"""Replies with the vector added after a block, so many times."""


class HeadExplorer(anywidget.AnyWidget):
    """What `ivlens.explore` shows in a notebook."""

    _esm = asset("explorer.js")
    _css = asset("explorer.css")
    data = traitlets.Unicode("{}").tag(sync=True)
    """`Encoded` as JSON."""

    def __init__(self, encoded: Encoded, reply: Reply) -> None:
        super().__init__(data=encoded.model_dump_json())
        self._reply = reply
        self.on_msg(self._answer)

    def _answer(self, _: object, message: dict[str, Any], __: object) -> None:
        found = self._reply(int(message["layer"]), float(message["scale"]))
        self.send({"number": message["number"], **found.model_dump()})
