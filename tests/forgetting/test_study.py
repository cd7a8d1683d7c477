"""A study gives the same numbers however it is run, stopped and resumed, and leaves the model as it was."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import pytest
import rounding
import torch
from choreographer.browsers.chromium import Chromium
from small import PLAN, small_plan
from transformer_lens import HookedTransformer

import ivlens
from ivlens.cli.app import main
from ivlens.datasets.task import task
from ivlens.engine.packed_files import unpack_files
from ivlens.engine.worker import use_threads
from ivlens.errors import IvlensError, ModelError, RunError, StudyError, TaskError, TrainingError
from ivlens.forgetting import cell_jobs, method_run, metrics, recovery
from ivlens.forgetting.plan import Evaluation, Plan
from ivlens.forgetting.preparation import general_tasks, prepare_base, sequence
from ivlens.forgetting.study import Study
from ivlens.models import hooked, lora
from ivlens.models.adapter import load_adapter
from ivlens.models.lora import LoraConfig
from ivlens.patching.activations import last_z, mean_z
from ivlens.patching.effects import clean_prompts
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import Head
from ivlens.steering.controls import draw_heads
from ivlens.steering.universal_heads import Universal
from ivlens.storage import run_folder
from ivlens.training import loop
from ivlens.training.benchmark_stages import stage
from ivlens.training.guidance import GUIDANCE, Guidance
from ivlens.training.loop import Examples, Training
from ivlens.training.methods import METHODS, Lora
from ivlens.vectors.head_writing import write_vector

pytestmark = pytest.mark.slow

TABLES = ("evaluations", "steps", "aie")


def assert_same_bytes(one: Path, other: Path) -> None:
    """Also of two processes: a cell pins its threads, and has the same bits on the same machine."""
    for name in TABLES:
        assert (one / f"{name}.parquet").read_bytes() == (other / f"{name}.parquet").read_bytes(), name


def steps_of(found: Study, method: str, number: int) -> pd.DataFrame:
    steps = found.steps
    return steps[(steps["method"] == method) & (steps["stage"] == number)].reset_index(drop=True)


def traces(model: HookedTransformer) -> dict[str, Any]:
    """Everything that a study could leave behind on a model."""
    return {
        "digest": hooked.weight_digest(model),
        "parameters": {name: (weight.requires_grad, weight.grad) for name, weight in model.named_parameters()},
        "hooks": [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks],
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study") / "run"


@pytest.fixture(scope="module")
def found(lab: HookedTransformer, folder: Path) -> Study:
    """Run without a stop, in this process."""
    before = traces(lab)
    study = ivlens.study(PLAN, out=folder, model=lab)
    assert traces(lab) == before
    return study


# What is in it


def test_every_cell_has_every_measure_of_every_task_after_every_stage(found: Study) -> None:
    evaluations = found.evaluations
    assert tuple(evaluations.columns) == (*method_run.EVALUATIONS, method_run.LEARNED)
    by_cell = evaluations.groupby(["method", "seed", "stage"], sort=False)
    assert list(by_cell.groups) == [(method, 0, number) for method in PLAN.methods for number in range(3)]
    keys = [part[["task", "kind", "measure", "heads"]].to_numpy().tolist() for _, part in by_cell]
    assert all(one == keys[0] for one in keys) and not evaluations.isna().drop(columns="value").any(axis=None)
    kinds = {kind: set(part["task"]) for kind, part in evaluations.groupby("kind")}
    bounds = {kind: {""} for kind in method_run.PROBE_BOUNDS}
    assert kinds == {"sequence": set(PLAN.tasks), "general": set(PLAN.general), "probe": {"antonym"}} | bounds
    assert tuple(found.steps.columns) == method_run.STEPS and len(found.steps) == 2 * 2 * 8
    by_stage = found.steps.groupby(["method", "stage"])["step"]
    assert all(list(steps) == list(range(8)) for _, steps in by_stage)
    assert tuple(found.grids.columns) == method_run.GRIDS and set(found.grids["stage"]) == {0, 2}


def test_recovery_is_measured_with_every_vector_on_every_form_of_prompts_at_every_stage(found: Study) -> None:
    table = found.recovery.set_index(["method", "prompts", "vector", "stage"])
    for stage_number, prompts, vector in itertools.product(range(3), recovery.PROMPTS, recovery.VECTORS):
        line = table.loc[("lora", prompts, vector, stage_number)]
        assert 0 <= line["low"] <= line["value"] <= line["high"] <= 1, "one seed: over queries and draws"
        if stage_number == 0 and vector == "own vector":  # The tuned model is the base model still.
            assert line["value"] == table.loc[("lora", prompts, "base vector", 0), "value"]
    assert table.loc[("lora", recovery.COSINE, "own vector", 0), "value"] == pytest.approx(1.0)
    assert "recovery-by-stage" in found.figures()


def test_all_cells_start_from_the_same_base_model(found: Study) -> None:
    base = found.evaluations[found.evaluations["stage"] == 0].drop(columns="method")
    one, other = (part.reset_index(drop=True) for _, part in base.groupby(found.evaluations["method"]))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_the_tuned_models_numbers_are_those_of_its_adapters(found: Study, folder: Path, lab: HookedTransformer) -> None:
    adapters = [load_adapter(folder / "cells" / "lora-0" / f"stage-{i}.safetensors", lab) for i in (1, 2)]
    tokens = tokenize(lab, stage("class-letter", seed=0).test)
    for number in (1, 2):
        with lora.attached(lab, *adapters[:number]):
            logits = method_run.loop.differentiable_answer_logits(lab, tokens)
        near = rounding.bound(rounding.chain(lab.cfg, tokens.prompts.shape[1]), size=float(logits.abs().max()))
        wanted = logits[:, 0].softmax(-1).gather(1, tokens.answers[:, :1]).double().mean()
        rows = found.evaluations.query("method == 'lora' and task == 'class-letter' and measure == 'probability'")
        assert float(rows.set_index("stage")["value"][number]) == pytest.approx(float(wanted), rel=near)


def test_plain_lora_in_a_study_is_finetune_called_by_hand(found: Study, lab: HookedTransformer) -> None:
    past: list[lora.Adapter] = []
    for number, name in enumerate(PLAN.tasks, 1):
        learned, seed = stage(name, seed=0, limit=8), loop.mix_seeds(0, number)
        adapter = lora.fresh(lab, PLAN.lora, seed=seed)
        train, bare = tokenize(lab, learned.train), tokenize(lab, learned.bare)
        examples = Examples(prompts=train, bare=bare, new=8)
        old = [lora.stack(past)] if past else []
        with use_threads(PLAN.threads), lora.attached(lab, *old, adapter):
            steps = list(loop.finetune(lab, adapter, examples, PLAN.training, method=Lora(), seed=seed))
        past.append(adapter.requires_grad_(False))
        ours = steps_of(found, "lora", number)[["step", "loss", "penalty", "rate", "gradient"]]
        assert ours.to_numpy().tolist() == [list(step) for step in steps]


def test_the_study_says_its_numbers_in_a_line(found: Study) -> None:
    values = found.summary.set_index(["method", "measure"])["value"]
    text = repr(found)
    assert text.startswith("Study(small on lab, 1 seed; lora: AP ") and text.count("\n") == 0
    assert f"lora+iv: AP {values['lora+iv', 'AP']:.2f}, F {values['lora+iv', 'F']:.2f}" in text


# Seeds


@pytest.fixture(scope="module")
def drawn(lab: HookedTransformer, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two seeds, which learn the two tasks in different orders."""
    asked = small_plan(
        tasks=PLAN.tasks, order="seed", seeds=(0, 1), methods=("lora", "replay-general"), general=PLAN.general
    )
    return ivlens.study(asked, out=tmp_path_factory.mktemp("drawn") / "run", model=lab)


def test_every_seed_learns_the_tasks_in_an_order_of_its_own(drawn: Study) -> None:
    assert drawn.order.to_numpy().tolist() == [list(drawn.plan.ordered(seed)) for seed in (0, 1)]
    assert drawn.order.loc[0].tolist() == drawn.order.loc[1].tolist()[::-1]
    trained = drawn.steps.drop_duplicates(["method", "seed", "stage"])
    for row in trained.to_dict("records"):
        assert row["task"] == drawn.order.loc[row["seed"], row["stage"]], "what the table says is what was trained on"
    assert Study.read(drawn.folder).order.equals(drawn.order)


def test_measures_of_permuted_orders_are_those_counted_task_by_task(drawn: Study) -> None:
    found = metrics.cells(drawn.evaluations).set_index(["method", "seed", "measure"])["value"].to_dict()
    for method, seed in itertools.product(drawn.plan.methods, drawn.plan.seeds):
        lines = drawn.evaluations.query(f"method == {method!r} and seed == {seed} and measure == 'accuracy'")
        accuracy = {(line["stage"], line["task"]): line["value"] for line in lines.to_dict("records")}
        steps = drawn.steps.query(f"method == {method!r} and seed == {seed}")
        stage_of = {line["task"]: line["stage"] for line in steps.to_dict("records")}
        learned = [accuracy[stage, name] for name, stage in stage_of.items()]
        fallen = [accuracy[1, name] - accuracy[2, name] for name, stage in stage_of.items() if stage < 2]
        assert found[method, seed, "learned"] == pytest.approx(sum(learned) / 2)
        assert found[method, seed, "AP"] == pytest.approx(sum(accuracy[2, name] for name in stage_of) / 2)
        assert found[method, seed, "F"] == pytest.approx(fallen[0]) and len(fallen) == 1


def test_every_seed_is_asked_other_questions_and_all_methods_of_a_seed_the_same(drawn: Study) -> None:
    base = drawn.evaluations.query("stage == 0 and kind == 'general'")
    asked = {key: tuple(part["value"].dropna()) for key, part in base.groupby(["method", "seed"])}
    assert asked["lora", 0] == asked["replay-general", 0] != asked["lora", 1] == asked["replay-general", 1]
    kept = [Universal.load(drawn.folder / f"universal-{seed}.safetensors") for seed in (0, 1)]
    assert not torch.equal(kept[0].vectors, kept[1].vectors), "the prompts of the vectors are drawn anew, too"


def test_drawn_once_every_seed_is_asked_the_same(lab: HookedTransformer, tmp_path: Path) -> None:
    once = replace(small_plan().evaluation, drawn="once")
    asked = small_plan(seeds=(0, 1), evaluation=once, training=Training(steps=1, batch=4))
    found = ivlens.study(asked, out=tmp_path / "run", model=lab)
    base = found.evaluations.query("stage == 0 and kind == 'general'").drop(columns="method")
    one, other = (part.drop(columns="seed").reset_index(drop=True) for _, part in base.groupby("seed"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert [path.name for path in (tmp_path / "run").glob("universal*")] == ["universal.safetensors"]


def test_replay_general_trains_on_the_very_prompts_that_vectors_are_taken_from(
    drawn: Study, lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, learn = [], loop.finetune

    def watched(model: Any, adapter: Any, examples: Examples, *args: Any, **others: Any) -> Any:
        seen.append(examples)
        return learn(model, adapter, examples, *args, **others)

    monkeypatch.setattr(loop, "finetune", watched)
    asked = small_plan(methods=("replay-general",))
    ivlens.study(asked, out=tmp_path / "run", model=lab)
    universal = Universal.load(tmp_path / "run" / "universal-0.safetensors")
    _, wanted = clean_prompts(lab, task("antonym"), universal.settings)
    vector = write_vector(lab, mean_z(lab, wanted), universal.heads)
    torch.testing.assert_close(vector, universal.vectors[0], msg="of these prompts the vector is")
    old = seen[0].prompts[slice(seen[0].new, None)]
    assert torch.equal(old.prompts, wanted.prompts) and torch.equal(old.answers, wanted.answers)
    assert seen[0].replayed == 0.25


def test_guides_are_asked_in_no_wording_that_is_kept_back_nor_are_the_random_heads_beside_them(
    lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, build = {}, method_run._make_guide

    def watched(guidance: Guidance, *args: Any, **others: Any) -> Any:
        found[guidance.vector] = build(guidance, *args, **others)
        return found[guidance.vector]

    monkeypatch.setattr(method_run, "_make_guide", watched)
    asked = small_plan(methods=("lora+iv-general", "lora+iv-general-random-heads"))
    asked = asked.with_changes(evaluation=replace(asked.evaluation, kept_back=2, clean_prompts=6))
    study = ivlens.study(asked, out=tmp_path / "run", model=lab)
    assert study.evaluations.query("measure == 'unseen wording accuracy'")["n"].eq(2).all()
    universal, whole = Universal.load(tmp_path / "run" / "universal-0.safetensors"), task("antonym")
    pairs = whole.split(shots=asked.evaluation.shots, seed=0).mean[:6]
    texts = [f"{whole.instructions[i % 4]}\nQ: {pair.input}\nA:" for i, pair in enumerate(pairs)]
    prepared = prepare_base(asked, 0, lab, general_tasks(asked), tmp_path / "run")
    assert [prompt.text for prompt in prepared.general] == texts, "nor is what replay-general trains on"
    z = torch.stack([last_z(lab, tokenize(lab, [Prompt(text=text, answer=" a", query=pairs[0])]))[0] for text in texts])
    z = z.double().mean(0)

    def written(heads: Sequence[Head]) -> torch.Tensor:
        return torch.stack([z[head] @ lab.W_O[head].double() for head in heads]).sum(0)

    chosen = written(universal.heads)
    torch.testing.assert_close(universal.vectors[0].double(), chosen, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["general"].vectors[0].double(), universal.scale * chosen, rtol=0, atol=1e-4)
    (drawn,) = draw_heads((6, 8), 3, draws=1, seed=0, apart=universal.heads)
    assert not {*drawn} & {*universal.heads}
    random = written(drawn) * (universal.scale * chosen.norm() / written(drawn).norm())
    torch.testing.assert_close(found["general-random-heads"].vectors[0].double(), random, rtol=0, atol=1e-4)


def test_runs_of_before_the_order_was_written_down_are_read_in_the_one_of_their_plan() -> None:
    for path in sorted((Path(__file__).parents[2] / "figures" / "numbers").glob("lab-*/evaluations.parquet")):
        found = Study.read(path.parent)
        if found.plan.order == "given":
            assert (found.order == list(found.plan.tasks)).all(axis=None) and not found.order.empty
            assert len(found.comparisons()) == 5 * (len(found.plan.methods) - 1)


# Stopped and gone on with


def test_reading_gives_what_the_study_returned(found: Study, folder: Path) -> None:
    again = Study.read(folder)
    for name in ("evaluations", "steps", "grids", "summary"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), check_exact=True)
    assert again.plan == found.plan == PLAN and again.guided == found.guided == ("antonym", "english-french")


def test_a_complete_study_is_read_and_not_computed_again(
    found: Study, folder: Path, lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(lab), "forward", None)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = ivlens.study(PLAN, out=folder, model=lab)
    pd.testing.assert_frame_equal(again.evaluations, found.evaluations, check_exact=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from ivlens.forgetting import plan
from ivlens.training import loop
from ivlens import study

out, workers, every, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
learn = loop.finetune
loop.SECONDS = 1e9  # However slow this machine is.

def stopped(*args, name, **others):
    for step in learn(*args, name=name, every=every, **others):
        yield step
        if step.number == 4 and name.startswith("stage 2" if end == "kill" else "stage 1"):
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            Path(f"{out}-{os.getpid()}.pid").touch()
            time.sleep(600)

loop.finetune = stopped
if __name__ == "__main__":
    study(plan.from_record(json.load(sys.stdin)), out=out, workers=workers)
"""


def started(tmp_path: Path, out: Path, *, workers: int, every: int, end: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(out), str(workers), str(every), end]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), *arguments], stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({**PLAN.record(), "model": "lab"}))
    process.stdin.close()
    return process


def lines_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines() if line]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_study_goes_on_from_its_checkpoint_to_the_same_numbers(
    found: Study, folder: Path, lab: HookedTransformer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(tmp_path, out, workers=1, every=2, end="kill")
    assert process.wait(300) == -signal.SIGKILL
    cut = out / "cells" / "lora-0"
    assert (cut / "stage-1.parquet").is_file() and not (cut / "stage-2.parquet").exists()
    assert (cut / "stage-2.checkpoint").is_file() and not (out / "cells" / "lora+iv-0").exists()
    with (cut / "stage-2-steps.jsonl").open("a") as file:
        file.write('{"number": 5, "los')
    ivlens.study(PLAN, out=out, model=lab)
    assert_same_bytes(out, folder)
    lines = (cut / "stage-2-steps.jsonl").read_text().splitlines()
    taken = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    assert taken == [0, 1, 2, 3, 4, 4, 5, 6, 7], "the checkpoint after four steps is gone on from"
    assert not list(out.rglob("*.checkpoint"))


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_workers_end_with_a_killed_study_and_several_go_on_to_the_numbers_of_one(
    found: Study, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(tmp_path, out, workers=2, every=100, end="wait")
    workers: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 300
        while len(workers) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            workers = [psutil.Process(int(path.stem.rpartition("-")[2])) for path in tmp_path.glob("*.pid")]
    finally:
        process.kill()
        process.wait(30)
    assert len(workers) == 2 and process.pid not in {worker.pid for worker in workers}
    _, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        worker.kill()
    assert not alive, "they would write on beside the next one"
    assert not list(out.glob("cells/*/stage-1.parquet"))
    ivlens.study(PLAN, out=out, workers=2)
    assert_same_bytes(out, folder)


def test_a_checkpoint_whose_steps_are_not_all_written_down_is_not_gone_on_from(
    found: Study, folder: Path, lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, out, learn = PLAN.with_changes(methods=("lora",)), tmp_path / "run", loop.finetune

    def stopped(*args: Any, **others: Any) -> Any:
        for step in learn(*args, every=2, **others):
            if step.number == 3:  # The checkpoint is there, the line is not.
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finetune", stopped)
        with pytest.raises(KeyboardInterrupt):
            ivlens.study(asked, out=out, model=lab)
    cut = out / "cells" / "lora-0"
    assert (cut / "stage-1.checkpoint").is_file() and lines_of(cut / "stage-1-steps.jsonl") == [0, 1, 2]
    again = ivlens.study(asked, out=out, model=lab)
    pd.testing.assert_frame_equal(again.steps, found.steps.query("method == 'lora'"), check_exact=True)


PARTS = {
    "cells/lora-0/stage-0.parquet": "away",
    "cells/lora-0/stage-1.parquet": "away",
    "cells/lora-0/stage-1-steps.parquet": "empty",
    "cells/lora-0/stage-2-aie.parquet": "away",
    "cells/lora-0/stage-1.safetensors": "empty",
    "cells/lora+iv-0/stage-2.safetensors": "away",
    "cells/lora+iv-0/stage-1.json": "cut",
    "cells/lora+iv-0/adapter/adapter_model.safetensors": "away",
    "universal-0.safetensors": "empty",
    "steps.parquet": "cut",
}


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how != "away":
        path.write_bytes(content[: len(content) // 2 if how == "cut" else 0])


def assert_same_files(one: Path, other: Path) -> None:
    """Everything that a study consists of, adapters and lists of files, too."""
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    assert records[0]["files"] == records[1]["files"] and {record["status"] for record in records} == {"complete"}


@pytest.mark.long
@pytest.mark.parametrize("names", [*([name] for name in list(PARTS)[::2]), list(PARTS)], ids=len)
def test_what_is_missing_or_broken_is_named_by_readers_and_computed_again(
    found: Study, folder: Path, lab: HookedTransformer, tmp_path: Path, names: list[str]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in names:
        damage(copy / name, PARTS[name])
    for read in (Study.read, ivlens.report):
        with pytest.raises(RunError, match=r"in .*copy, .* (is missing|cannot be read: ).*; run the same command"):
            read(copy)
    ivlens.study(PLAN, out=copy, model=lab)
    assert_same_files(copy, folder)
    pd.testing.assert_frame_equal(Study.read(copy).evaluations, found.evaluations, check_exact=True)


def test_what_is_whole_is_not_computed_again(
    found: Study, folder: Path, lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy / "cells" / "lora-0" / "stage-1.parquet", "away")
    monkeypatch.setattr(loop, "finetune", None)
    ivlens.study(PLAN, out=copy, model=lab)
    assert_same_files(copy, folder)


def test_what_a_process_left_that_was_killed_behind_its_last_line_is_removed(
    folder: Path, lab: HookedTransformer, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    left = copy / "cells" / "lora+iv-0"
    (left / "stage-1-batches" / "guide").mkdir(parents=True)
    (left / "stage-2.checkpoint").touch()
    damage(copy / "steps.parquet", "away")
    ivlens.study(PLAN, out=copy, model=lab)
    assert_same_files(copy, folder)
    assert not [*copy.rglob("*-batches"), *copy.rglob("*.checkpoint")]


def test_a_cell_elsewhere_goes_on_from_what_the_study_has_and_sends_the_rest(
    found: Study, folder: Path, lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, learn, learned = Path(shutil.copytree(folder, tmp_path / "copy")), loop.finetune, list[str]()
    for path in (copy / "cells" / "lora-0").glob("stage-2*"):
        path.unlink()

    def watched(*args: Any, name: str, **others: Any) -> Any:
        learned.append(name)
        return learn(*args, name=name, **others)

    monkeypatch.setattr(loop, "finetune", watched)
    monkeypatch.setattr(cell_jobs.loader, "load", lambda *_, **__: lab)
    run, general = run_folder.read_run(folder), general_tasks(PLAN)
    one = replace(cell_jobs.all_cells(PLAN, run)[0], home=run.home._replace(folder=copy))
    questions = cell_jobs.Questions(sequence(PLAN, 0, general), general)
    named = cell_jobs.Named("lab", "auto", "auto", run.source("model").digest)
    try:
        with use_threads(PLAN.threads):
            pieces = list(cell_jobs._run_apart(one, cell_jobs._pack_kept(one), named, questions))
    finally:
        cell_jobs._load.cache_clear()
        cell_jobs._workplace.cache_clear()
    assert pieces[:2] == [b"", b""] and learned == ["stage 2 (continent-letter)"]
    sent = unpack_files(pieces[2], below="cells/lora-0/")
    assert list(sent)[-1] == "cells/lora-0/stage-2.json"
    assert sent == {name: (folder / name).read_bytes() for name in sent} and len(sent) == 7


def test_a_worker_that_has_other_weights_of_the_name_is_refused(
    lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_jobs.loader, "load", lambda *_, **__: lab)
    with pytest.raises(ModelError, match=r"the model lab is another one on the worker's machine .* weights differ"):
        cell_jobs._load(cell_jobs.Named("lab", "auto", "auto", "other"))


@pytest.mark.long
def test_parts_of_another_study_are_not_believed(
    found: Study, folder: Path, lab: HookedTransformer, tmp_path: Path
) -> None:
    """Neither by a complete study nor by one that goes on, whichever of its files are exchanged together."""
    other = PLAN.with_changes(training=Training(steps=8, batch=4, warmup=1, rate=1e-2))
    ivlens.study(other, out=tmp_path / "other", model=lab)
    kept = {path.name for path in (folder / "cells" / "lora-0").glob("stage-*") if path.suffix != ".jsonl"}
    for names, status in (
        (["stage-1.parquet"], "running"),
        (["stage-1.safetensors"], "complete"),
        (sorted(kept), "running"),
    ):
        copy = Path(shutil.copytree(folder, tmp_path / f"copy-{len(names)}-{status}"))
        record = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps(record | {"status": status}))
        for name in names:
            shutil.copy(tmp_path / "other" / "cells" / "lora-0" / name, copy / "cells" / "lora-0" / name)
        ivlens.study(PLAN, out=copy, model=lab)
        assert_same_files(copy, folder)


def test_a_study_that_loses_a_part_while_it_works_is_not_complete(
    lab: HookedTransformer, folder: Path, found: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, out = cell_jobs.train, tmp_path / "run"

    def careless(*args: Any, **others: Any) -> Any:
        yield from train(*args, **others)
        (out / "cells" / "lora-0" / "stage-0.parquet").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(cell_jobs, "train", careless)
        with pytest.raises(RunError, match=r"files of cells/lora-0 in .* were changed or removed while the study"):
            ivlens.study(PLAN, out=out, model=lab)
    with pytest.raises(RunError, match="unfinished"):
        Study.read(out)
    ivlens.study(PLAN, out=out, model=lab)
    assert_same_files(out, folder)


@pytest.mark.long
@pytest.mark.parametrize("module", ["loop", "method_run"])
def test_a_study_whose_folder_is_renamed_midway_is_complete_nowhere(
    module: str, lab: HookedTransformer, folder: Path, found: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it trains, and while it measures."""
    old, new = tmp_path / "old", tmp_path / "new"
    where, name = {"loop": (loop, "answer_loss"), "method_run": (method_run, "_measure_probe")}[module]
    compute, calls = getattr(where, name), iter(range(10**6))

    def renamed(*args: Any) -> Any:
        if next(calls) == 2:
            old.rename(new)
        return compute(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, renamed)
        with pytest.raises(RunError, match="old was renamed or removed while ivlens was at work in it"):
            ivlens.study(PLAN, out=old, model=lab)
    assert not old.exists() and json.loads((new / "run.json").read_text())["status"] == "running"
    ivlens.study(PLAN, out=new, model=lab)
    assert_same_files(new, folder)


def test_another_configuration_is_refused_with_its_differences(
    found: Study, folder: Path, lab: HookedTransformer
) -> None:
    other = PLAN.with_changes(training=Training(steps=9, batch=4, warmup=1), seeds=(1,))
    with pytest.raises(RunError, match=r"holds another run: .*training.steps is 9 here but 8 in that run") as refused:
        ivlens.study(other, out=folder, model=lab)
    assert "seeds is [1] here but [0] in that run" in str(refused.value)
    stronger = PLAN.with_changes(guidance={"iv": Guidance(kl=1.0)})
    with pytest.raises(RunError, match=r"guidance.iv.kl is 1.0 here but 0.05 in that run"):
        ivlens.study(stronger, out=folder, model=lab)


def test_an_unfinished_study_and_a_run_of_another_kind_are_not_read(folder: Path, found: Study, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    record = json.loads((copy / "run.json").read_text())
    for change, sentence in (({"status": "running"}, "unfinished"), ({"command": "audit"}, "not of a study")):
        (copy / "run.json").write_text(json.dumps(record | change))
        with pytest.raises(RunError, match=sentence):
            Study.read(copy)


# Without a trace


@pytest.mark.long
def test_an_exception_in_a_stage_leaves_no_trace_and_the_study_goes_on_later(
    found: Study, folder: Path, lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = traces(lab)
    for module, name in ((loop, "answer_loss"), (method_run, "_measure_probe")):
        real, calls = getattr(module, name), iter(range(100))

        def fails(*args: Any, real: Any = real, calls: Any = calls) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fails)
            with pytest.raises(KeyboardInterrupt):
                ivlens.study(PLAN, out=tmp_path / "run", model=lab)
        assert traces(lab) == before
    ivlens.study(PLAN, out=tmp_path / "run", model=lab)
    assert_same_bytes(tmp_path / "run", folder)


def test_weights_that_take_gradients_are_left_without_them_and_still_do(tmp_path: Path) -> None:
    model = ivlens.load("lab").requires_grad_(True)
    ivlens.study(small_plan(methods=("ewc+iv",), tasks=PLAN.tasks), out=tmp_path / "run", model=model)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_a_given_model_is_recorded_by_its_own_name(tmp_path: Path, lab: HookedTransformer) -> None:
    found = ivlens.study(small_plan(model="another"), out=tmp_path / "run", model=lab)
    assert found.plan.model == "lab" and found.plan == small_plan()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sources"]["model"] == {"name": "lab", "digest": hooked.weight_digest(lab), "backend": "hooked"}
    again = ivlens.study(small_plan(), out=tmp_path / "run")
    pd.testing.assert_frame_equal(again.evaluations, found.evaluations, check_exact=True)


# Guidance and methods


def test_guidance_that_adds_nothing_equals_the_plain_method_bit_for_bit(lab: HookedTransformer, tmp_path: Path) -> None:
    forms = {"none": Guidance(kl=0.0, student=False), "zero": Guidance(kl=0.0, vector="zero")}
    asked = small_plan(methods=("lora", "lora+none", "lora+zero", "lora+iv-steer"), guidance=forms)
    found = ivlens.study(asked, out=tmp_path / "run", model=lab)
    plain = steps_of(found, "lora", 1).drop(columns="method")
    for name in ("lora+none", "lora+zero"):
        pd.testing.assert_frame_equal(steps_of(found, name, 1).drop(columns="method"), plain, check_exact=True)
    assert not steps_of(found, "lora+iv-steer", 1)["loss"].equals(plain["loss"]), (
        "a vector that is added does something"
    )
    values = {method: part["value"].tolist() for method, part in found.evaluations.groupby("method")}
    assert str(values["lora+none"]) == str(values["lora+zero"]) == str(values["lora"])


@pytest.mark.long
def test_every_method_runs_with_guidance_and_each_trains_in_a_way_of_its_own(
    lab: HookedTransformer, tmp_path: Path
) -> None:
    forms = {"previous": Guidance(teacher="previous", kl=1.0), "base": Guidance(kl=1.0)}
    guided = [f"{name}+iv" for name in METHODS]
    methods = ("lora", *guided, "ewc+fv", "lora+iv-other", "replay+iv-general-bare", "lora+previous", "lora+base")
    asked = small_plan(methods=methods, tasks=PLAN.tasks, guidance=forms, training=Training(steps=2, batch=4, warmup=0))
    found = ivlens.study(asked, out=tmp_path / "run", model=lab)
    assert found.steps["loss"].notna().all() and found.steps["penalty"].notna().all()
    second = {method: steps_of(found, method, 2)[["loss", "penalty"]].to_numpy().tolist() for method in methods}
    assert len({str(one) for one in second.values()}) == len(methods)
    first = {method: steps_of(found, method, 1)["loss"].tolist() for method in methods}
    assert first["lora+previous"] == first["lora+base"], "before the first stage both teachers are the base model"


def test_guidance_is_at_the_universal_heads_layer_unless_another_is_named(
    lab: HookedTransformer, found: Study, tmp_path: Path
) -> None:
    best = Universal.load(found.folder / "universal-0.safetensors").layer
    forms = {
        name: Guidance(kl=1.0, layer=layer) for name, layer in {"own": None, "best": best, "next": best + 1}.items()
    }
    asked = PLAN.with_changes(
        tasks=PLAN.tasks[:1],
        methods=tuple(f"lora+{name}" for name in forms),
        training=Training(steps=2, batch=4),
        guidance=forms,
    )
    guided = ivlens.study(asked, out=tmp_path / "run", model=lab)
    own, same, other = (steps_of(guided, method, 1).drop(columns="method") for method in asked.methods)
    pd.testing.assert_frame_equal(own, same, check_exact=True)
    assert not own["penalty"].equals(other["penalty"])


def test_guidance_at_a_layer_that_the_model_does_not_have_is_refused(lab: HookedTransformer, tmp_path: Path) -> None:
    asked = small_plan(methods=("lora", "lora+deep"), guidance={"deep": Guidance(layer=6)})
    with pytest.raises(StudyError, match=r"guidance of lora\+deep is at layer 6, but the model has 6 layers"):
        ivlens.study(asked, out=tmp_path / "run", model=lab)
    assert not (tmp_path / "run").exists()


def test_the_previous_teacher_is_the_model_before_this_stage(
    lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokenize(lab, stage("class-letter", seed=0).test[:2])

    def logits() -> torch.Tensor:
        return loop.differentiable_answer_logits(lab, tokens).detach()

    seen: dict[int, torch.Tensor] = {}
    base, build = logits(), method_run._make_guide

    def watched(*args: Any, **others: Any) -> Any:
        guide = build(*args, **others)
        old, adapter = args[2], args[3]
        for factors in adapter.factors.values():
            factors.B.fill_(0.1)
        with lora.attached(lab, *old, adapter), guide.teacher():
            seen[len(seen) + 1] = logits()
        with lora.attached(lab, *old):
            assert torch.equal(seen[len(seen)], logits())
        for factors in adapter.factors.values():
            factors.B.zero_()
        return guide

    monkeypatch.setattr(method_run, "_make_guide", watched)
    asked = small_plan(
        methods=("lora+previous",), tasks=PLAN.tasks, guidance={"previous": Guidance(teacher="previous", kl=1.0)}
    )
    ivlens.study(asked, out=tmp_path / "run", model=lab)
    assert torch.equal(seen[1], base) and not torch.equal(seen[2], base)


def test_the_published_form_takes_its_vector_from_demonstrations_and_from_the_model_before_the_first_stage(
    lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, build = [], method_run._make_guide

    def watched(*args: Any, **others: Any) -> Any:
        found.append(build(*args, **others))
        return found[-1]

    monkeypatch.setattr(method_run, "_make_guide", watched)
    asked = small_plan(methods=("lora+fv-published",), tasks=PLAN.tasks)
    ivlens.study(asked, out=tmp_path / "run", model=lab)
    for number, name in enumerate(PLAN.tasks):
        shown = stage(name, seed=0, limit=8).with_demonstrations(asked.evaluation.shots, seed=0)
        assert all(prompt.text.count("Q:") == asked.evaluation.shots + 1 for prompt in shown)
        z = torch.stack([last_z(lab, tokenize(lab, [prompt]))[0] for prompt in shown]).double().mean(0)
        expected = sum(z[head] @ lab.W_O[head].double() for head in found[number].heads)
        torch.testing.assert_close(found[number].vectors[0].double(), expected, rtol=0, atol=1e-5)


def test_too_few_prompts_for_the_demonstrations_of_a_guidance_are_refused_before_the_model_is_read(
    tmp_path: Path,
) -> None:
    evaluation = replace(PLAN.evaluation, shots=8)
    asked = small_plan(methods=("lora+fv-published",), evaluation=evaluation, model="no-such-model")
    with pytest.raises(TaskError, match="stage 'class-letter' has 8 training prompts, but 8 demonstrations"):
        ivlens.study(asked, out=tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("form", ["iv", "iv-random", "iv-general", "iv-general-random", "fv"])
def test_guidance_is_as_long_as_chosen_or_as_said(
    form: str, lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[float | None, torch.Tensor] = {}
    build = method_run._make_guide

    def watched(guidance: Guidance, *args: Any, **others: Any) -> Any:
        found[guidance.scale] = build(guidance, *args, **others).vectors
        return build(guidance, *args, **others)

    monkeypatch.setattr(method_run, "_make_guide", watched)
    forms = {"as-chosen": GUIDANCE[form], "once": replace(GUIDANCE[form], scale=1.0)}
    asked = small_plan(methods=("lora+as-chosen", "lora+once"), guidance=forms)
    ivlens.study(asked, out=tmp_path / "run", model=lab)
    scale = Universal.load(tmp_path / "run" / "universal-0.safetensors").scale
    torch.testing.assert_close(found[None], scale * found[1.0])
    fixed = small_plan(methods=("lora+as-chosen",), guidance=forms, evaluation=replace(asked.evaluation, scale=4.0))
    ivlens.study(fixed, out=tmp_path / "fixed", model=lab)
    torch.testing.assert_close(found[None], 4.0 * found[1.0])


# Bad input

# Infinite scores: norms would make any other overflow finite again.
DIVERGING: dict[str, Any] = {
    "lora": LoraConfig(rank=2, targets=("W_Q", "W_K")),
    "training": Training(steps=6, batch=4, warmup=0, rate=1e30),
}


def test_a_loss_that_is_not_finite_names_stage_and_step_and_keeps_what_was_done(
    lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = traces(lab)
    asked = small_plan(**DIVERGING)
    with pytest.raises(TrainingError, match=r"stage 1 \(class-letter\).* step \d"):
        ivlens.study(asked, out=tmp_path / "run", model=lab)
    assert traces(lab) == before
    cut = tmp_path / "run" / "cells" / "lora-0"
    assert (cut / "stage-0.parquet").is_file() and not (cut / "stage-1.parquet").exists()
    with pytest.raises(RunError, match="unfinished"):
        Study.read(tmp_path / "run")


def test_a_last_step_that_spoils_the_adapter_is_not_kept(
    lab: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = loop.finetune

    def spoiled(model: Any, adapter: lora.Adapter, *args: Any, **others: Any) -> Any:
        yield from learn(model, adapter, *args, **others)
        adapter.parameters()[-1].data[0] = torch.inf

    monkeypatch.setattr(loop, "finetune", spoiled)
    with pytest.raises(TrainingError, match=r"stage 1 \(class-letter\), step 2, made the adapter NaN or infinite"):
        ivlens.study(small_plan(), out=tmp_path / "run", model=lab)
    assert not list((tmp_path / "run").rglob("stage-1.safetensors"))


@pytest.mark.long
def test_an_error_in_a_worker_ends_the_study_with_its_sentence(tmp_path: Path) -> None:
    asked = small_plan(seeds=(0, 1), **DIVERGING)
    with pytest.raises(TrainingError, match=r"stage 1 \(class-letter\).* step \d"):
        ivlens.study(asked, out=tmp_path / "run", workers=2)
    assert not [one for one in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(one.cmdline())]


def written(folder: Path, name: str, n: int, **others: Any) -> str:
    pairs = [{"input": pair.input, "output": pair.output} for pair in task("antonym").pairs[:n]]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"instructions": ["Say something."], "pairs": pairs} | others))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": ("class-letter", "antonym")}, "antonym is trained on and measured as a general task; choose one"),
        ({"tasks": ("{antonym}",)}, "antonym is trained on and measured as a general task; choose one"),
        ({"tasks": ("{small}",)}, "task 'small' has 5 pairs, but a stage needs at least 6"),
        ({"tasks": ("class-leter",)}, "there is no task, file or folder 'class-leter'; did you mean class-letter"),
        ({"general": ("antonym", "antonim")}, "there is no built-in task and no file 'antonim'"),
        ({"general": ("antonym", "{antonym}")}, "two general tasks are called antonym; rename one"),
        ({"general": ("antonym", "{bare}")}, "general task 'bare' has no instruction"),
        ({"general": ("antonym", "{few}")}, "general task 'few' has 3 pairs, but 3 demonstrations and a query need"),
        ({"guides": ("synonym",)}, "guides names synonym, which is not among the general tasks; add it there"),
        (
            {"evaluation": Evaluation(probes=("synonym",))},
            "evaluation.probes names synonym, which is not among the general tasks",
        ),
        (
            {"general": ("antonym", "{twelve}"), "evaluation": Evaluation(probes=("{twelve}",), shots=3)},
            "task 'twelve' has 12 pairs, but 3 shots need at least 13",
        ),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr("ivlens.models.loader.load", None)
    files = {"antonym": (20, {}), "small": (5, {}), "bare": (20, {"instructions": []}), "few": (3, {})}
    paths = {name: written(tmp_path, name, n, **others) for name, (n, others) in (files | {"twelve": (12, {})}).items()}

    def put(value: Any) -> Any:
        return tuple(one.format(**paths) for one in value)

    changes = {key: value if isinstance(value, Evaluation) else put(value) for key, value in changes.items()}
    if isinstance(chosen := changes.get("evaluation"), Evaluation):
        changes["evaluation"] = Evaluation(probes=put(chosen.probes), shots=chosen.shots)
    with pytest.raises((StudyError, TaskError)) as refused:
        ivlens.study(small_plan(**changes), out=tmp_path / "run")
    assert sentence in str(refused.value) and not (tmp_path / "run").exists()


def test_guides_and_probes_may_be_named_as_the_general_tasks_are(tmp_path: Path, lab: HookedTransformer) -> None:
    path = written(tmp_path, "mine", 40)
    for named in (path, "mine"):
        evaluation = Evaluation(
            queries=2, few_shot_queries=2, shots=3, probe_prompts=2, clean_prompts=2, top=3, probes=(named,)
        )
        asked = small_plan(general=("country-capital", path), guides=(named,), evaluation=evaluation)
        found = ivlens.study(asked, out=tmp_path / f"run-{Path(named).stem}-{named == path}", model=lab)
        assert found.guided == ("mine",) and set(found.grids["task"]) == {"mine"}


def test_without_workers_there_is_no_study(tmp_path: Path) -> None:
    for number in (0, -1):
        with pytest.raises(IvlensError, match=rf"workers is {number}; it must be 1 or more"):
            ivlens.study(PLAN, out=tmp_path / "run", workers=number)


def test_general_tasks_are_all_built_in_ones_unless_named() -> None:
    every = general_tasks(Plan(name="x", tasks=("class-letter",)))
    assert [one.name for one in every] == ivlens.tasks()
    assert [one.name for one in general_tasks(PLAN)] == list(PLAN.general)


# The public surface


def test_study_is_a_function_also_where_its_module_is_imported_first() -> None:
    code = """
    import importlib, types
    importlib.import_module("ivlens.forgetting.run_study")
    import ivlens, ivlens.forgetting.run_study
    from ivlens import Plan, Study, study
    assert isinstance(ivlens.study, types.FunctionType) and study is ivlens.study
    assert isinstance(Plan, type) and isinstance(Study, type) and {"Plan", "Study", "study"} <= set(dir(ivlens))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line of a mistake."""
        assert self.status == 2 and self.out == "", (self.out, self.err)
        assert self.err.startswith("ivlens: ") and self.err.count("\n") == 1 and self.err.endswith("\n")
        return self.err.removeprefix("ivlens: ").rstrip("\n")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        status = main(["study", *map(str, arguments)])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        "tasks = ['class-letter']\ngeneral = ['antonym', 'country-capital']\nguides = ['antonym']\nseeds = [0]\n"
        "methods = ['lora']\ntrain_prompts = 8\n[training]\nsteps = 9\nbatch = 4\nwarmup = 1\n"
        "[evaluation]\nqueries = 2\nfew_shot_queries = 2\nshots = 3\nprobe_prompts = 2\nclean_prompts = 2\ntop = 3\n"
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lab-fun"], "there is no built-in study and no file 'lab-fun'"),
        (["{file}", "--methods", "sgd"], "there is no method 'sgd' (of 'sgd'); there are lora, ewc"),
        (["{file}", "--methods", "lora,lora+vi"], "no guidance 'vi' (of 'lora+vi'); did you mean iv? There are iv, kl"),
        (["{file}", "--methods", "lora,lora"], "names lora more than once"),
        (["{file}", "--seeds", "0,x"], "'x' is not a whole number"),
        (["{file}", "--seeds", "1,1"], "names 1 more than once"),
        (["{file}", "--steps", "0"], "steps is 0; it must be 1 or more"),
        (["{file}", "--steps", "many"], "'many' is not a whole number"),
        (["{file}", "--workers", "0"], "workers is 0; it must be 1 or more"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line_before_the_model_is_read(
    command: Callable[..., Outcome],
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr("ivlens.models.loader.load", None)
    arguments = [one.format(file=file) for one in arguments]
    assert sentence in command(*arguments, "--out", tmp_path / "run").complaint()
    assert not (tmp_path / "run").exists()


def test_a_run_folder_must_be_named(command: Callable[..., Outcome]) -> None:
    assert "--out" in command("lab-func").complaint()


@pytest.mark.long
def test_the_command_runs_what_was_asked_prints_it_and_draws_it(
    command: Callable[..., Outcome], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)  # Images take seconds; pages are enough here.
    out = tmp_path / "run"
    asked = [file, "--out", out, "--methods", "lora, lora+kl", "--seeds", "1,0", "--steps", 2, "--workers", 1]
    first = command(*asked)
    assert first.status == 0, first.err
    found = Study.read(out)
    assert found.plan.methods == ("lora", "lora+kl") and found.plan.seeds == (1, 0)
    assert found.plan.training == Training(steps=2, batch=4, warmup=1) and len(found.steps) == 2 * 2 * 2
    assert "lora+kl" in first.out and "GP" in first.out and f"In {out}: run.json" in first.out
    drawn = {path.stem for path in (out / "figures").glob("*.html")}
    assert drawn and drawn == set(found.figures())
    monkeypatch.setattr(cell_jobs, "train", None)
    again = command(*asked)
    assert again.status == 0 and again.out == first.out
    assert (
        "training.steps is 3 here but 2 in that run" in command(*[3 if one == 2 else one for one in asked]).complaint()
    )
