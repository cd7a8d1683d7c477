"""What does a command say beside its tables, and which figures does it draw?"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ivlens.errors import shorten
from ivlens.tables import plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from transformer_lens import HookedTransformer

    from ivlens.analysis.run_audit import Work
    from ivlens.plots.export import Exported


def complain(message: str) -> int:
    """One line, and never a long one, whatever a file put into it."""
    line = f"ivlens: {plain(shorten(message))}"  # Signs that cannot be printed become up to ten.
    with suppress(OSError):  # Where it cannot be said, the status still tells.
        print(shorten(line), file=sys.stderr)
    return 2


def say_stored(model: HookedTransformer) -> None:
    """One line where a model's weights had to be dequantised, or lost something of an adapter."""
    from ivlens.models import hooked

    stored = hooked.stored_as(model)
    if stored:
        print(f"{plain(hooked.model_name(model))}: {stored}.")


def file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name)[:80].strip(".-") or "run"


def draw_missing(drawn: dict[str, Figure], folder: Path) -> None:
    from ivlens.plots import export
    from ivlens.storage.atomic_files import inside

    # A page is written after its images: where all pages are, all that could be drawn has been.
    if not all((folder / "figures" / f"{name}.html").is_file() for name in drawn):
        say_notice(export.export(drawn, inside(folder, "figures")))


def say_notice(exported: Exported) -> None:
    if exported.notice:
        complain(exported.notice)


def is_long(work: Work) -> bool:
    """Whether an audit takes more than seconds, by the size of the work: no clock is asked."""
    from ivlens.steering.trial_plan import FLOOR, count_work

    return max(work.sizes.sweep, count_work(work.plan, work.sizes)) * 12 * work.sizes.d_model**2 > FLOOR


def forecast(work: Work) -> list[str]:
    """What an audit does and how long each part takes, about; the first prompt is run for it."""
    from ivlens.patching.pace import measure_pace
    from ivlens.steering.trial_plan import count_candidates, count_work, describe

    sizes, plan, asked = work.sizes, work.plan, work.asked
    pace = measure_pace(work.model, work.task, work.settings, memory=work.memory)
    one_row = max(0.0, pace.patching - pace.reading) / (sizes.n_layers * sizes.n_heads)
    queries, shown = len(sizes.evaluation), sum(map(bool, work.asked_prompts.values()))
    aie = asked.clean_prompts * pace.reading + asked.prompts * pace.patching
    tried = count_work(plan, sizes) / sizes.n_layers * one_row
    tried += asked.other_tasks * (plan.task_prompts or asked.clean_prompts) * pace.reading
    # Ablated rows begin at the first layer: all layers are before them, not half.
    ablated = min(queries, plan.ablated_prompts or queries)
    necessity = ablated * (pace.reading + 2 * one_row * (2 + asked.top + 2 * asked.draws))
    lines = [
        f"abilities: {shown} kinds of {queries} prompts, {_about(2 * queries * pace.reading)}; "
        f"AIE: {asked.prompts} prompts x {sizes.n_layers * sizes.n_heads} heads, {_about(aie)}; "
        f"trials: {count_candidates(plan, sizes)} vectors x {sizes.n_layers} layers x {queries} prompts, "
        f"{_about(tried)}; necessity: {ablated} prompts, {_about(necessity)}; --only heads stops behind the AIE"
    ]
    return lines + ([] if plan.is_whole else [describe(plan.record())])


def _about(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"about {seconds:.2g} s"
    return f"about {seconds / 60:.2g} min" if seconds < 5400 else f"about {seconds / 3600:.2g} h"
