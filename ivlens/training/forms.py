"""In which forms can training be guided by a vector? Ours, the follow-up's as its code has it, and their controls.

`iv` follows the description of Jiang et al. 2024, arXiv:2406.12227, of which no code is public: the student is steered
by `s` times the vector, `s` falling from 1 to 0, and held to the steered base model by `0.05 * KL[teacher || student]`.
What no code settles is ours: the mean over the answer's tokens, the schedule's shape, the place, and that the vector is
what the heads write on the new task's own training prompts.

`fv-published` is the form of its follow-up, arXiv:2502.11019, as its code has it (GangweiJiang/FvForgetting; read were
`src/tuning/trainer/base.py` with `src/tuning/model/hparam.py`, `adapter.py` and `llama/modeling_llama.py`, the three
`scripts/train/*_fvg.sh`, `scripts/fv_extract/uni_fv.sh` and `src/fvector/evaluate_function_vector.py`). The penalty is

    20 * D(first) + 0.1 * D(all) + sum over heads of mean (z_new - z_previous)^2, over prompts and `d_head`,

`D` being KL[new || previous] at temperature 2 without its square: at the token that predicts the answer's first one,
and summed over all tokens of prompt and answer; both are means over prompts. A `D` of at most 0.1 counts as 0, and so
does a head's distance of at most 0.01. New is the student, never steered; previous is the model before this stage, with
the base model's vector added once to the attention's output of one block, at that first token alone; its heads are read
unsteered, there too. In the scripts the weights are 20 and 0.1, 20 and 0.5, or 1 and 0.1, and 1 for the heads.

Not as there: pads, which their sum over all tokens counts, are left out; layer and heads are chosen on this model,
where they have block 9 of 32 and ten heads of Llama-2-7b; there is no dropout; and the mean output is over all training
prompts, where they keep those whose answers are most probable. Not to be known: how many demonstrations their prompts
have, since the data is not in the repository; and the weights of the later stages of their first sequence, where the
script names variables that it does not set.

`fv` is ours, after that paper: heads beside the divergence of `iv-kl`. `docs/methods.md` has all of them in one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ivlens.errors import IvlensError
from ivlens.prompts.choices import Source

Vector = Literal["task", "zero", "random", "other", "general", "general-random", "general-random-heads"]
Schedule = Literal["linear", "steps", "constant"]
Teacher = Literal["base", "previous"]
Places = Literal["answer", "first"]
Site = Literal["block", "attention"]

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "vector": get_args(Vector),
    "source": get_args(Source),
    "taken_from": (*get_args(Teacher), None),
    "site": get_args(Site),
    "places": get_args(Places),
    "schedule": get_args(Schedule),
    "teacher": get_args(Teacher),
}


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How training is guided. `iv` is the default, after Jiang et al. 2024, arXiv:2406.12227.

    Raises:
        IvlensError: a choice that there is not, a weight below 0, or settings that contradict each other.

    >>> training.Guidance(vector="random").kl, training.GUIDANCE["iv-random"] == training.Guidance(vector="random")
    (0.05, True)
    """

    vector: Vector = "task"
    """`task`: of the task being learned; `zero`: none, plain distillation; `random`: of equal norm; `other`: another
    task's; `general`: a general task's, drawn for every prompt anew; `general-random`: of equal norms;
    `general-random-heads`: of equal norms, what heads drawn at random write on the same prompts."""
    layer: int | None = None
    """Block at which the vectors are added; None: where those of the universal heads are right most often."""
    scale: float | None = None
    """Factor of what the heads write; None: that which was chosen with the layer. Random vectors have the same length.
    A vector that is short beside the residual stream does nothing at 1: guidance by it is plain distillation."""
    student: bool = True
    """Is the student steered, too?"""
    schedule: Schedule = "linear"
    """How `s` falls: from 1 to 0, in four steps of 0.25, or not at all."""
    kl: float = 0.05
    """Weight of the divergence, per nat: of its mean over prompts and `places`; 0: the teacher is not asked for it."""
    kl_everywhere: float = 0.0
    """Weight of the divergence summed over all tokens of prompt and answer but the answer's last, per nat; mean over
    prompts."""
    kl_ignored: float = 0.0
    """A divergence, of either kind, that is not above this many nats adds nothing."""
    reverse: bool = False
    """KL[student || teacher] in place of KL[teacher || student]."""
    temperature: float = 1.0
    """Both distributions are softened by it."""
    temperature_squared: bool = True
    """The divergence is multiplied by the temperature's square, as Hinton et al. 2015, arXiv:1503.02531, do."""
    teacher: Teacher = "base"
    """The model before the first stage, or before this one."""
    rehearsal: bool = False
    """Compare student and teacher in a run of its own, both steered; the task itself is then learned without a vector.
    Otherwise one run serves both. Compared is the first token of the answer."""
    bare: bool = False
    """Rehearse on the queries without their instruction rather than on the new task's own prompts."""
    heads: float = 0.0
    """Weight of the squared distance of the top heads' outputs `z` to the unsteered teacher's (mean over heads, prompts
    and `places`, sum over `d_head`)."""
    heads_summed: bool = False
    """The sum over heads of the mean over `d_head`, rather than the other way round."""
    heads_ignored: float = 0.0
    """A head whose squared distance, on average over `d_head`, is not above this adds nothing."""
    source: Source = "instruction"
    """Prompts that the task's vector is taken from: the new task's own, as they are trained on, or their queries
    without the instruction behind demonstrations (the study's `evaluation.shots`)."""
    taken_from: Teacher | None = None
    """Model that the task's vector is taken from: before the first stage, or before this one; None: as `teacher`."""
    site: Site = "block"
    """Behind the block, or to its attention's output, which its MLP reads, too."""
    places: Places = "answer"
    """Where vectors are added, and heads and `kl` compared: at every token that predicts one of the answer, or at the
    first of them alone."""

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise IvlensError(f"the guidance's scale is {self.scale}; it must be above 0, or be left out")
        for name in ("kl", "kl_everywhere", "kl_ignored", "heads", "heads_ignored"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise IvlensError(f"the guidance's {name} is {getattr(self, name)}; it must be 0 or more")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise IvlensError(f"the guidance's temperature is {self.temperature}; it must be above 0")
        if self.bare and not self.rehearsal:
            raise IvlensError("the guidance is bare without rehearsal; only what is rehearsed on can be bare")
        if self.rehearsal and self.kl == 0:
            raise IvlensError("the guidance rehearses, but its kl is 0; give it a weight, or leave out rehearsal")
        if self.rehearsal and self.kl_everywhere > 0:
            raise IvlensError(
                "the guidance rehearses, which reads one token alone; leave out rehearsal or kl_everywhere"
            )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                named = ", ".join(one for one in known if one is not None)
                raise IvlensError(f"the guidance's {name} is {getattr(self, name)!r}; choose of {named}")

    def strength(self, progress: float) -> float:
        """`s` after a share `progress` (0 to 1) of the steps; from 1 to 0.

        >>> [training.Guidance(schedule="steps").strength(progress) for progress in (0.0, 0.3, 0.99)]
        [1.0, 0.75, 0.25]
        """
        if self.schedule == "constant":
            return 1.0
        return 1 - (math.floor(4 * progress) / 4 if self.schedule == "steps" else progress)


# Rehearsal leaves the task's own run alone, and bears a larger weight.
_REHEARSAL = Guidance(vector="general", schedule="constant", kl=1.0, rehearsal=True)
# That of the follow-up's code, see above.
_PUBLISHED = Guidance(
    source="demonstrations",
    taken_from="base",
    teacher="previous",
    site="attention",
    places="first",
    scale=1.0,
    student=False,
    kl=20.0,
    kl_everywhere=0.1,
    kl_ignored=0.1,
    reverse=True,
    temperature=2.0,
    temperature_squared=False,
    heads=1.0,
    heads_summed=True,
    heads_ignored=0.01,
)

GUIDANCE = {
    "iv": Guidance(),
    "kl": Guidance(vector="zero"),
    "iv-random": Guidance(vector="random"),
    "iv-other": Guidance(vector="other"),
    "iv-steer": Guidance(kl=0.0),
    "iv-kl": Guidance(student=False),
    "fv": Guidance(student=False, heads=1.0),
    "fv-published": _PUBLISHED,
    "fv-published-zero": replace(_PUBLISHED, vector="zero"),
    "fv-published-random": replace(_PUBLISHED, vector="random"),
    "iv-general": _REHEARSAL,
    "iv-general-random": replace(_REHEARSAL, vector="general-random"),
    "iv-general-random-heads": replace(_REHEARSAL, vector="general-random-heads"),
    "iv-general-bare": replace(_REHEARSAL, bare=True),
    "kl-bare": replace(_REHEARSAL, vector="zero", bare=True),
}
"""Forms of guidance and their controls by name."""
