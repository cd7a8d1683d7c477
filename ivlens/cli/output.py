"""What does a command say beside its tables, and which figures does it draw?"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ivlens.errors import shorten
from ivlens.tables import plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from transformer_lens import HookedTransformer

    from ivlens.analysis.run_audit import Work
    from ivlens.matrix.audit_jobs import AskedAudit
    from ivlens.patching.pace import Pace
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


def draw(drawn: dict[str, Figure], folder: Path) -> None:
    from ivlens.plots import export
    from ivlens.storage.atomic_files import inside

    say_notice(export.export(drawn, inside(folder, "figures"), alone=False))


def draw_missing(drawn: dict[str, Figure], folder: Path) -> None:
    # A page is written after its images: where all pages are, all that could be drawn has been.
    if not all((folder / "figures" / f"{name}.html").is_file() for name in drawn):
        draw(drawn, folder)


def say_notice(exported: Exported) -> None:
    if exported.notice:
        complain(exported.notice)


def is_long(work: Work) -> bool:
    """Whether an audit takes more than seconds, by the size of the work: no clock is asked."""
    from ivlens.steering.trial_plan import FLOOR, count_replies, count_work

    sizes, plan = work.sizes, work.plan
    largest = max(sizes.sweep, count_work(plan, sizes), count_replies(plan, sizes))
    return largest * 12 * sizes.d_model**2 > FLOOR


def forecast(work: Work) -> list[str]:
    """What an audit does and how long each part takes, about; the first prompts are run for it."""
    from ivlens.patching.pace import measure_pace
    from ivlens.steering.trial_plan import count_candidates, describe

    sizes, plan, asked = work.sizes, work.plan, work.asked
    pace = measure_pace(work.model, work.task, work.settings, memory=work.memory)
    takes = {name: about(seconds) for name, seconds in forecast_seconds(work, pace).items()}
    queries, shown = len(sizes.evaluation), sum(map(bool, work.asked_prompts.values()))
    parts = [
        *([f"wordings: {len(work.task.instructions)}, {takes['wordings']}"] if "wordings" in takes else []),
        f"abilities: {shown} kinds of {queries} prompts, {takes['abilities']}",
        f"AIE: {asked.prompts} prompts x {sizes.n_layers * sizes.n_heads} heads, {takes['AIE']}",
        f"trials: {count_candidates(plan, sizes)} vectors x {sizes.n_layers} layers x {queries} prompts, "
        f"{takes['trials']}",
        *([f"replies under vectors: {takes['replies']} at most"] if "replies" in takes else []),
        f"necessity: {min(queries, plan.ablated_prompts or queries)} prompts, {takes['necessity']}",
        "--only heads stops behind the AIE",
    ]
    left_out = plan.record()
    return ["; ".join(parts), *([describe(left_out)] if left_out else [])]


def forecast_audits(left: Sequence[AskedAudit]) -> tuple[list[str], float, bool]:
    """A line for each model of several audits, the seconds of all of them on one worker, and whether any is long.

    Each model is loaded, and its pace measured on its first task. What cannot be audited will say so in its turn.
    """
    from itertools import groupby

    from ivlens.errors import IvlensError
    from ivlens.matrix.audit_jobs import prepare_audit
    from ivlens.patching.pace import measure_pace

    lines, total, any_long = [], 0.0, False
    for model, own in groupby(left, key=lambda one: one.model):
        each, pace = dict[str, float](), None
        try:
            for work in map(prepare_audit, own):
                pace = pace or measure_pace(work.model, work.task, work.settings, memory=work.memory)
                each[work.task.name] = sum(forecast_seconds(work, _of_task(pace, work)).values())
                any_long = any_long or is_long(work)
        except IvlensError as error:
            lines.append(f"{model.name}: not known, since {error}")
            continue
        shortest, longest = (choose(each, key=lambda name: each[name]) for choose in (min, max))
        ends = f", from {shortest} ({about(each[shortest])}) to {longest} ({about(each[longest])})" * (len(each) > 1)
        audits = f"{len(each)} audit{'s' if len(each) > 1 else ''}"
        lines.append(f"{model.name}: {audits}, {about(sum(each.values()))} of one worker{ends}")
        total += sum(each.values())
    return lines, total, any_long


def _of_task(pace: Pace, work: Work) -> Pace:
    """The pace of a model on another task: by its tokens and rows."""
    from dataclasses import replace

    from ivlens.prompts.tokens import tokenize

    asked = work.asked_prompts
    tokens = tokenize(work.model, asked["few-shot"] or asked["instructed"] or asked["zero-shot"])
    reading = pace.token * float(tokens.mask.sum()) / len(tokens)
    return replace(pace, reading=reading, patching=reading + work.sizes.n_layers * work.sizes.n_heads * pace.row)


def forecast_seconds(work: Work, pace: Pace) -> dict[str, float]:
    """Of each part of an audit, from the pace of its first prompts and from how much there is of each."""
    from ivlens.analysis.options import MOST_VALIDATION
    from ivlens.prompts.choices import GREEDY_MATCH
    from ivlens.prompts.tokens import tokenize
    from ivlens.replies.generation import NEW_TOKENS
    from ivlens.steering.necessity import OTHER_PROMPTS
    from ivlens.steering.trial_plan import count_replies, count_work

    sizes, plan, asked = work.sizes, work.plan, work.asked
    prompts = {kind: tokenize(work.model, own) for kind, own in work.asked_prompts.items() if own}
    # A prompt of each kind, on average; those that replies are written to are read again for it.
    reads = {kind: pace.token * float(tokens.mask.sum()) / len(tokens) for kind, tokens in prompts.items()}
    # Rows that begin at the first layer have all layers before them, not half.
    written = NEW_TOKENS * 2 * pace.row if asked.accuracy_score != GREEDY_MATCH else 0.0
    asks = {kind: 2 * read + written if written else read for kind, read in reads.items()}
    queries, validation = len(sizes.evaluation), len(sizes.validation)
    whole = work.task.split(shots=asked.shots, seed=asked.seed)
    answered = len(whole.mean) + len(whole.rank) if asked.answered_only else 0
    trials = count_work(plan, sizes) / sizes.n_layers * pace.row + (4 * validation + 2 * queries) * reads["zero-shot"]
    # Heads alone begin at half of the layers on average, sets of them near the first one.
    ablations = 2 + asked.top + asked.draws + (2 * (1 + asked.draws) if asked.top > 1 else 0)
    ablated = min(queries, plan.ablated_prompts or queries)
    found = {
        "abilities": queries * sum(asks.values()),
        "AIE": (answered + asked.clean_prompts) * pace.reading + asked.prompts * pace.patching,
        "trials": trials + asked.other_tasks * (plan.task_prompts or asked.clean_prompts) * pace.reading,
        "necessity": sum(
            (OTHER_PROMPTS + ablated) * reads[kind] + ablated * ablations * pace.row
            for kind in ("instructed", "few-shot")
            if kind in reads
        ),
    }
    if written:
        found["replies"] = count_replies(plan, sizes) / sizes.n_layers * 2 * pace.row
    if asked.instruction == "best" and "instructed" in asks:
        found["wordings"] = (
            len(work.task.instructions) * min(MOST_VALIDATION, len(whole.validation)) * asks["instructed"]
        )
    return found


def about(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"about {seconds:.2g} s"
    return f"about {seconds / 60:.2g} min" if seconds < 5400 else f"about {seconds / 3600:.2g} h"
