"""What does a page say about a study?"""

from __future__ import annotations

from ivlens.forgetting import tables as study_tables
from ivlens.forgetting.study import Study
from ivlens.reports.page import DEPENDENCE, LAB, Page, order_figures

_STUDY = {
    "trade-off": (
        "What was learned against what was kept",
        "Accuracy on new tasks, each right after its stage, against accuracy on general tasks after the last stage. Up "
        "and to the right is better.",
    ),
    "methods": ("Method by method", "After the last stage; the dashed line is the base model."),
    "wordings": (
        "What the guides have seen, and what not",
        "After the last stage: accuracy on new tasks, and on general tasks of families that guide and of others, in "
        "the wordings that guides had and in those that were kept back; the dashed line is the base model on all.",
    ),
    "accuracy": (
        "Stage by stage",
        "Accuracy on the tasks learned so far and on general tasks; stage 0 is the base model.",
    ),
    "r-matrix": ("Every task after every stage", "Mean over seeds; on hover, the lowest and the highest seed."),
    "instruction-knowledge": (
        "Instruction and knowledge",
        "P(answer) with the instruction and of the plain statement of the same facts.",
    ),
    "dependence": (
        "Dependence on the vector",
        "On the base model's vector, before the first and after the last stage.",
    ),
    "drift": ("How far the vectors moved", "Cosine with the base model's vector after each stage."),
    "aie": (
        "Which heads carry the tasks",
        "AIE before the first stage, after the last, and the difference. Colours grow with the square root of the "
        "effect.",
    ),
    "similarity": (
        "Accuracy against the cosine of the vectors",
        "A point is a probe after a stage: how alike is what the heads write to what they wrote in the base model, and "
        "how right are answers in the form that the base model is better at? The interval of r is for other tasks and "
        "for other stages, in which all tasks fall together.",
    ),
    "recovery-by-stage": (
        "What the vector brings back, stage by stage",
        "Accuracy on the probes without a vector, with the base model's, with what the same heads write in the tuned "
        "model, and with those of random heads; dotted: what the instruction gives without a vector. Queries alone are "
        "not the form that was trained: that a vector still works on them says that what reads it is there, not that "
        "the model can be used as before. Read it to the last stage: what comes back early may be gone by then. What "
        "was not measured has no line.",
    ),
    "recovery": (
        "What the vector brings back after the last stage",
        "Accuracy with the base model's vector added, and with a random one.",
    ),
}


def study_page(found: Study) -> Page:
    plan = found.plan
    drawn = "order the tasks, " if plan.order == "seed" else ""
    return Page(
        kind="Study",
        title=study_tables.where(found),
        question=f"{plan.model} learns {', '.join(plan.tasks)}, one after the other. What does each method learn, and "
        "what does it forget?",
        answer=study_tables.sentence(found),
        answer_table=study_tables.answer_table(found),
        cautions=(
            *(family.sentence() for family in study_tables.families_of_differences(found) if family.size),
            f"Intervals are over seeds, which {drawn}part the pairs, draw the adapters and order the batches; each is "
            "that of one number, not corrected for how many there are."
            if len(plan.seeds) > 1
            else "One seed: there are no intervals, and differences may be chance.",
            *([LAB] if plan.model == "lab" else []),
        ),
        captions=_STUDY,
        figures=order_figures(found.figures(), _STUDY),
        narrow=found.figures(width="column"),
        tables=(
            *study_tables.study_tables(found),
            *study_tables.recovery_tables(found, plan.methods),
            *study_tables.correlation_table(found),
        ),
        words=_STUDY_WORDS | DEPENDENCE | {"interval": study_tables.interval_note(found)},
        method="Every cell, a method with a seed, trained a LoRA adapter on the tasks in their order; after each stage "
        "all tasks so far, the general tasks and the dependence on the base model's vector were measured, on the same "
        "prompts for every cell.",
        data={"summary": found.summary, "recovery": found.recovery},
    )


_STUDY_WORDS = {
    "learned": "accuracy on each new task right after its own stage, mean over tasks",
    "AP": "accuracy on all learned tasks after the last stage",
    "F": "how far the tasks before the last have fallen from their best",
    "GP, IP": "accuracy on general tasks, which are never trained on, with their instruction; with demonstrations",
    "GP, unguided": "the same of families of general tasks of which the guidance has seen none",
    "GP, reworded": "the same queries, with the instruction in wordings that were kept from the guides",
    "GP kept": "share of the GP lost by the unguided method that a guided one keeps",
    "P(instruction), P(knowledge)": "P(answer) with the instruction; of the plain statement of the same fact",
    "+iv, +kl, ...": "a method's guidance; +kl is plain distillation from the base model, the control of the others",
}
