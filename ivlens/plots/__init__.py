"""Every figure, from numbers: one call each, and a `go.Figure` comes back.

    >>> import pandas as pd
    >>> from ivlens import plots
    >>> figure = plots.head_heatmap(effects.aie)
    >>> figure.layout.width, figure.layout.xaxis.title.text
    (672, 'head')

Nothing here computes a statistic or saves. NaN means "not measured": a gap, never a 0. `width` is of a two-column
paper: `column` (3.5 inches) or `page` (7 inches), with text of 8 points in both. A `title` is shown as it is, in up to
three lines. What a run found draws itself with `.figures()`, by these functions.
"""

from ivlens.plots.comparison import ability_bars as ability_bars
from ivlens.plots.comparison import aie_panels as aie_panels
from ivlens.plots.comparison import aie_scatter as aie_scatter
from ivlens.plots.comparison import dependence_bars as dependence_bars
from ivlens.plots.heads import head_heatmap as head_heatmap
from ivlens.plots.heads import necessity_by_head as necessity_by_head
from ivlens.plots.methods import method_dots as method_dots
from ivlens.plots.methods import trade_off as trade_off
from ivlens.plots.stage_heatmaps import accuracy_heatmaps as accuracy_heatmaps
from ivlens.plots.stage_heatmaps import aie_heatmaps as aie_heatmaps
from ivlens.plots.stages import stage_panels as stage_panels
from ivlens.plots.stages import stage_points as stage_points
from ivlens.plots.steering import accuracy_by_heads as accuracy_by_heads
from ivlens.plots.steering import measures_bars as measures_bars
from ivlens.plots.steering import steering_by_layer as steering_by_layer
from ivlens.plots.steering import steering_heatmap as steering_heatmap
from ivlens.plots.style import WIDTHS as WIDTHS
from ivlens.plots.style import Width as Width
from ivlens.plots.tasks import overlap_heatmap as overlap_heatmap
from ivlens.plots.tasks import recurrence_heatmap as recurrence_heatmap
from ivlens.plots.tasks import similarity_heatmap as similarity_heatmap
