"""How does every figure look: its size, its colours by meaning, its text?

A method, a form of guidance, a kind of heads has one colour in every figure, whatever else is drawn. Whatever text
comes in (task names, baselines) is shown as it is, never read as markup.
"""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeVar

import plotly.graph_objects as go

from ivlens.errors import FigureError

# Adobe's metrics of Helvetica: thousandths of the font's size, by the letters of that width.
_LETTERS = {
    letter: width
    for width, letters in {
        222: "ijl",
        260: "|",
        278: " !,./:;I[\\]ft",
        333: "()-`r",
        334: "{}",
        355: '"',
        191: "'",
        389: "*",
        469: "^",
        500: "Jckxsvyz",
        556: "#$0123456789?L_abdeghnopqu",
        584: "+<=>~−",
        611: "FTZ",
        667: "&ABEKPSVXY",
        722: "CDHNRUw",
        778: "GOQ",
        833: "Mm",
        889: "%",
        944: "W",
        1000: "…",
        1015: "@",
    }.items()
    for letter in letters
}

T = TypeVar("T")
Width = Literal["column", "page", "single", "double"]
"""Of a two-column paper: 3.5 or 7 inches at 96 pixels an inch, or 3.25 and 6.75; with text of 8 points in all."""

WIDTHS: dict[Width, int] = {"column": 336, "page": 672, "single": 312, "double": 648}
FONT = 10.67  # 8 points.
LEFT, TOP, BOTTOM = 48, 12, 44
"""Margins in pixels."""

# Okabe & Ito, "Color Universal Design" (2008); yellow is left out as too pale for lines on white.
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK, GREY, WHITE = "#000000", "#6E6E6E", "#FFFFFF"
COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK)


class Look(NamedTuple):
    """How one thing is drawn, wherever it is drawn; what shares a colour differs in symbol and dash."""

    colour: str
    symbol: str = "circle"
    dash: str = "solid"

    @property
    def fill(self) -> str:
        """Of a bar: pale where the symbol is hollow."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return f"rgba({red},{green},{blue},0.45)" if "open" in self.symbol else self.colour


LOOKS = {
    # Whose vector is added, or which heads write it.
    "chosen": Look(BLUE),
    "unscaled": Look(BLUE, "circle-open", "dot"),
    "own": Look(VERMILION, "diamond"),
    "random": Look(GREY, "square"),
    "low-AIE": Look(ORANGE, "diamond"),
    "gaussian": Look(PINK, "cross"),
    "other-task": Look(GREEN, "triangle-up"),
    "none": Look(BLACK, "triangle-down"),
    # Which model.
    "before": Look(SKY, "diamond"),
    "after": Look(VERMILION, "square"),
    # What is asked.
    "learned tasks": Look(PINK, "square"),
    "instructed": Look(BLUE),
    "few-shot": Look(ORANGE, "diamond"),
    "statement": Look(GREEN, "triangle-up"),
}
"""By meaning; see `looks` for what is not named here."""
NAMES = {
    "chosen": "chosen heads",
    "random": "random heads",
    "low-AIE": "low-AIE heads",
    "gaussian": "Gaussian",
    "other-task": "other tasks",
    "unscaled": "chosen heads, scale 1",
    "instructed": "with the instruction",
    "statement": "plain statement",
}
"""What figures call it; what is not named here is called as in tables."""
REFERENCE = {"color": GREY, "width": 1, "dash": "dash"}
"""The line of what there was before, or of no change."""
UNSTEERED = {"zero-shot": "dash", "instructed": "12px,3px", "few-shot": "dot"}
"""Of black level lines: what the model does by itself."""

# Of a method's name the part before `+` is its symbol, the guidance its colour; a control is hollow and dashed.
_METHODS = {
    "lora": "circle",
    "ewc": "square",
    "lwf": "diamond",
    "olora": "triangle-up",
    "replay": "star",
    "replay-general": "bowtie",
}
_GUIDANCE = {
    "": (BLACK, "", "solid"),
    "iv": (BLUE, "", "solid"),
    "iv-random": (BLUE, "-open", "dash"),
    "iv-other": (BLUE, "-open-dot", "dot"),
    "iv-steer": (SKY, "", "longdash"),
    "iv-kl": (SKY, "-open", "dashdot"),
    "kl": (ORANGE, "", "solid"),
    "kl-bare": (ORANGE, "-open", "dash"),
    "fv": (PINK, "", "solid"),
    "fv-published": (VERMILION, "", "solid"),
    "fv-published-zero": (VERMILION, "-open", "dash"),
    "fv-published-random": (VERMILION, "-open-dot", "dot"),
    "iv-general": (GREEN, "", "solid"),
    "iv-general-random": (GREEN, "-open", "dash"),
    "iv-general-random-heads": (GREEN, "-open-dot", "dash"),
    "iv-general-bare": (GREEN, "-open-dot", "dot"),
}
_OTHER_GUIDANCE = [
    (colour, *style)
    for colour in (VERMILION, PINK, SKY)
    for style in (("", "solid"), ("-open", "dash"), ("-open-dot", "dot"))
]
_OTHER_SYMBOLS = ("pentagon", "cross", "triangle-down", "hexagram", "triangle-left", "triangle-right", "diamond-tall")
NOT_MEASURED = "#D0D0D0"
# ColorBrewer RdBu, which colour-blind readers tell apart; white is exactly 0.
DIVERGING = (
    (0.0, "#053061"),
    (0.125, "#2166AC"),
    (0.25, "#4393C3"),
    (0.375, "#92C5DE"),
    (0.5, "#FFFFFF"),
    (0.625, "#F4A582"),
    (0.75, "#D6604D"),
    (0.875, "#B2182B"),
    (1.0, "#67001F"),
)
# Of effects: by their square root, so that one large head does not leave all others white. Still symmetric about 0.
EFFECTS = tuple((0.5 + 2 * (place - 0.5) * abs(place - 0.5), colour) for place, colour in DIVERGING)
# The half of the diverging scale that stands apart from the one of effects, turned round: white is 0.
SEQUENTIAL = tuple((1 - 2 * place, colour) for place, colour in reversed(DIVERGING) if place <= 0.5)


@cache
def template() -> go.layout.Template:
    """What plotly calls the defaults of a figure."""
    lines = {"linecolor": "#444444", "tickcolor": "#444444", "gridcolor": "#E5E5E5"}
    ticks = {"ticks": "outside", "ticklen": 3, "exponentformat": "e"}
    axis = {"automargin": True, "showline": True, "zeroline": False, "title_standoff": 6} | lines | ticks
    text = {"family": "Arial, Helvetica, Liberation Sans, sans-serif", "size": FONT, "color": "#222222"}
    layout = {
        "font": text,
        "title": {"x": 0, "pad_l": 8, "yanchor": "bottom", "font_size": FONT + 1.33},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": COLOURS,
        "xaxis": axis | {"title_font_size": FONT},
        "yaxis": axis | {"title_font_size": FONT},
        "margin": {"l": LEFT, "r": 12, "t": TOP, "b": BOTTOM},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "tracegroupgap": 0},
        "hoverlabel": {"font": text, "bgcolor": "white"},
    }
    bar = {"outlinewidth": 0, "thickness": 10, "xpad": 8, "ypad": 0} | ticks
    return go.layout.Template(layout=layout, data={"heatmap": [{"colorbar": bar}]})


def pixels(width: Width) -> int:
    """The width of a figure.

    Raises:
        FigureError: there is no such width.
    """
    if width not in WIDTHS:
        raise FigureError(f"width is {width!r}; it can be {' or '.join(WIDTHS)}")
    return WIDTHS[width]


def is_narrow(width: Width) -> bool:
    """Whether a figure is for one column."""
    return width in ("column", "single")


def lay_out(figure: go.Figure, title: str | None, width: Width, *, height: int, below: int = 0) -> None:
    """Size the figure for a plot of `height` pixels with `below` pixels of legend; break the title into lines."""
    lines = break_text((title or "")[:2000], pixels(width) - 20.0, FONT + 1.33)  # Far more than is shown.
    most = 6 if is_narrow(width) else 3
    lines = [*lines[: most - 1], f"{lines[most - 1]} …"] if len(lines) > most else lines
    above, below = TOP + 16 * len(lines), BOTTOM + below
    height = above + height + below
    figure.update_layout(template=template(), width=pixels(width), height=height)
    figure.update_layout(margin={"t": above, "b": below})
    if lines:  # Anchored by the foot of the first line: plotly cuts it when anchored by its top.
        figure.update_layout(title={"text": "<br>".join(lines), "y": 1 - 18 / height})


def hollow(look: Look) -> Look:
    """The same before something was done to it."""
    return look._replace(symbol=f"{look.symbol}-open")


def method_looks(methods: Iterable[str]) -> dict[str, Look]:
    """How methods such as `ewc+iv-0.3` are drawn: the guidance, at whatever weight, is the colour of all figures.

    Where two methods that are no forms of one kind would look the same, the later one has another symbol.
    """
    found: dict[str, Look] = {}
    for method in methods:
        name, _, guidance = without_weight(method).partition("+")
        colour, fill, dash = _GUIDANCE.get(guidance) or _pick(_OTHER_GUIDANCE, guidance)
        symbols = [_METHODS.get(name) or _pick(_OTHER_SYMBOLS, name), *_OTHER_SYMBOLS]
        choices = [Look(colour, symbol + fill, dash) for symbol in symbols]
        taken = {look for other, look in found.items() if without_weight(other) != without_weight(method)}
        found[method] = next((look for look in choices if look not in taken), choices[0])
    return found


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How things of any name are drawn: as `LOOKS` says; others in a colour that follows from the name.

    Only where that colour is taken in this figure has a name that nobody knows the next one.
    """
    found = {name: LOOKS.get(name) for name in names}
    taken = {look.colour for look in found.values() if look is not None}
    for number, name in enumerate(name for name, look in found.items() if look is None):
        start = COLOURS.index(_pick(COLOURS, name))
        choices = [*COLOURS[start:], *COLOURS[:start]]
        colour = next((one for one in choices if one not in taken), choices[0])
        taken.add(colour)
        found[name] = Look(colour, _OTHER_SYMBOLS[number % len(_OTHER_SYMBOLS)])
    return {name: look for name, look in found.items() if look is not None}


def without_weight(method: str) -> str:
    """The name without the number at its end: `lora+iv` of `lora+iv-0.3`."""
    return re.sub(r"(?<=\w)[-_]?[0-9.]+$", "", method)


def _pick(choices: Sequence[T], name: str) -> T:
    """One that follows from the name alone, on every machine."""
    return choices[zlib.crc32(name.encode()) % len(choices)]


def text_width(text: str, size: float = FONT) -> float:
    """Pixels of a line of text in Helvetica, whose widths Arial and Liberation Sans have, too."""
    return size / 1000 * sum(_LETTERS.get(letter, 600 if letter.isascii() else 1000) for letter in text)


def fit(text: object, pixels: float, size: float = FONT) -> str:
    """The text, safe to show; of one that is wider the middle is left out."""
    plain, most = " ".join(str(text).split()), int(pixels / text_width("'", size)) + 1  # The narrowest letter.
    if len(plain) > most:  # A file may call something by a million letters.
        plain = plain[:most] + plain[-most:]
    limits = range(min(len(plain), most), 5, -1)
    fits = (limit for limit in limits if text_width(html.unescape(safe(plain, limit)), size) <= pixels)
    return safe(plain, next(fits, 5))


def break_text(text: str, pixels: float, size: float = FONT) -> list[str]:
    """Lines of whole words that are no wider, safe to show; of a word that is wider the middle is left out."""
    lines = list[str]()
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= pixels:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fit(line, pixels, size) for line in lines]


def safe(text: object, limit: int = 60) -> str:
    """As plotly shows it unchanged: it reads tags and entities, and in notebooks TeX between dollars.

    Of a text longer than `limit` the middle is left out: names of methods and tasks often differ at their ends.
    """
    shown, end = " ".join(str(text).split()), (limit - 1) // 3
    shown = shown if len(shown) <= limit else f"{shown[: limit - 1 - end]}…{shown[len(shown) - end :]}"
    return html.escape(shown, quote=False).replace("$", "&#36;")
