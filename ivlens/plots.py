"""Every figure, from numbers: one call each, and a `go.Figure` comes back.

    plots.head_heatmap(effects.aie)
    plots.similarity_heatmap(similarity(vectors))

Nothing here computes a statistic or saves. NaN means "not measured": a gap, never a 0. `width` is of a two-column
paper: `column` (3.5 inches) or `page` (7 inches), with text of 8 points in both. What a run found draws itself with
`.figures()`, by these functions.
"""

from ivlens.comparison_plots import ability_bars as ability_bars
from ivlens.comparison_plots import aie_panels as aie_panels
from ivlens.comparison_plots import aie_scatter as aie_scatter
from ivlens.comparison_plots import dependence_bars as dependence_bars
from ivlens.head_plots import head_heatmap as head_heatmap
from ivlens.method_plots import method_dots as method_dots
from ivlens.method_plots import trade_off as trade_off
from ivlens.place_plots import steering_heatmap as steering_heatmap
from ivlens.stage_heatmaps import accuracy_heatmaps as accuracy_heatmaps
from ivlens.stage_heatmaps import aie_heatmaps as aie_heatmaps
from ivlens.stage_plots import stage_panels as stage_panels
from ivlens.steering_plots import accuracy_by_heads as accuracy_by_heads
from ivlens.steering_plots import measures_bars as measures_bars
from ivlens.steering_plots import steering_by_layer as steering_by_layer
from ivlens.style import WIDTHS as WIDTHS
from ivlens.style import Width as Width
from ivlens.task_heatmaps import overlap_heatmap as overlap_heatmap
from ivlens.task_heatmaps import similarity_heatmap as similarity_heatmap
