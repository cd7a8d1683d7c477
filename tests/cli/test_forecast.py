"""How long an audit is said to take is what its parts take, by a clock that counts multiplications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import WORD_TEMPLATE
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import HookedTransformer

from ivlens.analysis import run_audit
from ivlens.cli import output
from ivlens.datasets.task import Pair, Task
from ivlens.patching import pace
from ivlens.steering import trial_plan
from ivlens.storage.run_tables import Tables

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ivlens.errors.TaskWarning")]


class Counter(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            left = args[1] if func.overloadpacket is torch.ops.aten.addmm else args[0]
            self.count += out.numel() * left.shape[-1]
        return out


def multiplications(run: Callable[[], object]) -> float:
    with Counter() as counter:
        run()
    return float(counter.count)


@pytest.fixture(scope="module")
def words() -> Task:
    pairs = tuple(Pair(f"w{n}", f"w{n + 1} w{n + 2}" if n % 3 else f"w{n + 1}") for n in range(60))
    return Task(name="words", pairs=pairs, instructions=("w100 w101", "w102"), statement="w103 {input} w104")


@pytest.mark.long
@pytest.mark.parametrize(("score", "floor"), [("greedy-match", trial_plan.FLOOR), ("f1", 0)])
def test_what_is_forecast_is_what_is_done(
    score: str, floor: int, tiny: HookedTransformer, words: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_plan, "FLOOR", floor)
    monkeypatch.setattr(pace, "_time", multiplications)
    options: dict[str, Any] = {"shots": 4, "clean_prompts": 30, "prompts": 8, "top": 3, "draws": 3, "other_tasks": 1}
    work = run_audit.prepare(tiny, words, score=score, instruction="best", template=WORD_TEMPLATE, **options)
    told = output.forecast_seconds(work, pace.measure_pace(tiny, words, work.settings, memory=work.memory))
    tables, done = Tables(), {}
    done["wordings"] = multiplications(lambda: work.fixed(tables))
    done["abilities"] = multiplications(work.abilities)
    effects = []
    done["AIE"] = multiplications(lambda: effects.append(work.first_half(tables, ""))) - done["abilities"]
    tried = []
    done["trials"] = multiplications(lambda: tried.append(work.trials(effects[0])))
    done["necessity"] = multiplications(lambda: work.necessity(effects[0].top(3)))
    if score != "greedy-match":
        done["replies"] = multiplications(lambda: work.measures(tables, tried[0]))
    assert told.keys() == done.keys()
    for name, forecast in told.items():
        # Replies end when they end: theirs is a bound. In so small a model attention to long prompts weighs much, and
        # vectors are tried on short ones.
        low, high = (1, 4) if name == "replies" else (0.5, 2.5)
        assert low <= forecast / done[name] <= high, (name, told, done)
