"""Everything of a model's heads, to be clicked on: in a notebook with the model at hand, or on a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.errors import as_ivlens_error
from ivlens.explorer import encoding
from ivlens.explorer.contents import Contents
from ivlens.explorer.page import check_name, write_page
from ivlens.explorer.page_data import Encoded, EncodedReplies
from ivlens.explorer.replies import kept_layers, reply_steered, strengths
from ivlens.storage.atomic_files import write_whole
from ivlens.vectors.head_writing import check_layer
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

LIVE_ROOM = 8 * encoding.ROOM
"""Letters for attention in a notebook."""


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Every head of a model, to be clicked on: in the last line of a cell, or as a page.

    >>> explorer
    Explorer(antonym on lab: 6x8 heads, attention on 2 prompts)
    """

    contents: Contents
    """Everything that is shown, in full precision."""
    model: HookedTransformer
    vector: InstructionVector

    def to_html(self) -> str:
        """The page as text. Replies with the vector are generated now, at eight layers and every strength.

        >>> explorer.to_html().count("<script")
        2
        """
        return write_page(self.encoded())

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all; it needs nothing beside itself, and no network.

        Raises:
            IvlensError: the name does not end in .html, or the disk refuses.

        >>> explorer.save("heads.html").name
        'heads.html'
        """
        path = Path(path)
        check_name(path)
        write_whole(path, self.to_html().encode(errors="replace"))
        return path

    @as_ivlens_error()
    def encoded(self) -> Encoded:
        """What the page draws, replies with the vector included; as `Encoded.model_dump_json` writes it.

        >>> explorer.encoded().steering.scales[:3]
        [-4.0, -1.0, 0.5]
        """
        own = self.contents.steering
        steered = reply_steered(
            self.model,
            own.prompts,
            self.vector.vector,
            layers=kept_layers(self.model.cfg.n_layers, own.layer),
            scales=strengths(own.scale),
        )
        return encoding.encode(self.contents, steered=steered)

    def reply(self, layer: int, scale: float) -> EncodedReplies:
        """What the model replies with the vector added, as the sliders show it; probabilities in thousandths.

        Args:
            layer: After which block.
            scale: How many times; below 0 the vector is taken away.

        Raises:
            IvlensError: the model has no such layer.

        >>> explorer.reply(2, 1.0).replies
        ['show']
        """
        check_layer(layer, self.model.cfg.n_layers)
        found = reply_steered(
            self.model, self.contents.steering.prompts, self.vector.vector, layers=[layer], scales=[scale]
        )
        return encoding.encode_replies(found.replies[0][0], found.probability[0, 0])

    def __repr__(self) -> str:
        first = self.contents.models[0]
        layers, heads = first.aie.mean.shape
        names = " and ".join(model.name for model in self.contents.models)
        return (
            f"Explorer({self.contents.task} on {names}: {layers}x{heads} heads, attention on "
            f"{len(self.contents.shown)} prompts)"
        )

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget where anywidget is installed, and one line of text everywhere."""
        try:
            from ivlens.explorer.widget import HeadExplorer
        except ModuleNotFoundError:
            hint = "pip install 'ivlens[notebook]' shows it here; .save('heads.html') writes it as a page"
            return {"text/plain": f"{self!r}\n{hint}"}
        widget = HeadExplorer(encoding.encode(self.contents, room=LIVE_ROOM), self.reply)
        found: Any = widget._repr_mimebundle_(**options)
        data, *metadata = found if isinstance(found, tuple) else (found,)
        return ({**data, "text/plain": repr(self)}, *metadata)
