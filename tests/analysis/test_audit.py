"""An audit's tables say what the model does, on pairs that nothing was chosen on."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import WORD_TEMPLATE
from transformer_lens import HookedTransformer

import ivlens
from ivlens import prompts
from ivlens.analysis import audit_tables, run_audit
from ivlens.analysis.audit import HEADS, MEASURES, STEERING, Audit
from ivlens.analysis.audit_tables import print_audit
from ivlens.datasets.task import Pair, Task
from ivlens.errors import IvlensError, PromptError, RunError
from ivlens.forward import memory
from ivlens.models import hooked
from ivlens.patching import branches
from ivlens.patching.head_effects import EFFECTS
from ivlens.reports.audit_page import audit_page
from ivlens.steering import necessity, steered_replies, trial_plan
from ivlens.steering.search import SCALES
from ivlens.steering.trials import BY_QUERY, PLACES
from ivlens.storage.parquet import to_bytes
from ivlens.storage.run_folder import open_run
from ivlens.storage.run_record import Source

# Its answers are pairs of few words, of which several begin alike.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*whose first token begins other answers:ivlens.errors.TaskWarning"),
]

SMALL: dict[str, Any] = {
    "shots": 3,
    "clean_prompts": 6,
    "prompts": 5,
    "top": 3,
    "draws": 2,
    "other_tasks": 1,
    "seed": 1,
    "template": WORD_TEMPLATE,
}
BASELINES = ["zero-shot", "instructed", "few-shot", "shuffled", "statement", "most frequent answer"]
KINDS = ["", ", random", ", low-AIE", ", gaussian", ", other-task"]
STEERED = [f"steered{kind}{suffix}" for suffix in ("", ", scale 1") for kind in KINDS]
FRAMES = ("measures", "steering", "heads")


def said(model: HookedTransformer, text: str, n: int) -> str:
    """What greedy decoding writes after one prompt, run alone."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    ids = torch.tensor([[model.tokenizer.bos_token_id, *ids]])
    new = model.generate(ids, max_new_tokens=n, do_sample=False, stop_at_eos=False, verbose=False)[0, ids.shape[1] :]
    return " ".join(model.tokenizer.convert_ids_to_tokens(new.tolist()))


@pytest.fixture(scope="module")
def known(tiny: HookedTransformer) -> Task:
    """Two-word answers of which every second is the one that the random model gives to the query alone."""
    pairs = []
    for i in range(48):
        answer = said(tiny, f"Q : w{i} A :", 2)
        if i % 2 or not re.fullmatch(r"w\d+ w\d+", answer):
            answer = f"w{i + 50} w{i + 51}"
        pairs.append(Pair(f"w{i}", answer))
    return Task(name="known", pairs=tuple(pairs), instructions=("w100 w101", "w102"), statement="w103 {input} w104")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "run"


@pytest.fixture(scope="module")
def found(tiny: HookedTransformer, known: Task, folder: Path) -> Audit:
    return ivlens.audit(tiny, known, out=folder, **SMALL)


@pytest.fixture(scope="module")
def bare(tiny: HookedTransformer, known: Task) -> Audit:
    """Of the same pairs without instructions and statement."""
    return ivlens.audit(tiny, Task(name="bare", pairs=known.pairs), **SMALL)


def line(audit: Audit, measure: str) -> dict[str, Any]:
    (row,) = audit.measures[audit.measures["measure"] == measure].to_dict("records")
    return row


def assert_same(one: Audit, other: Audit) -> None:
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    for name in ("cie", "baseline", "queries", "mean_z"):
        assert torch.equal(getattr(one.effects, name), getattr(other.effects, name))
    assert torch.equal(one.vector.vector, other.vector.vector)
    assert one.effects.settings == other.effects.settings
    assert repr(one) == repr(other) and repr(one.effects) == repr(other.effects)
    assert repr(one.vector) == repr(other.vector)


def test_every_table_has_its_columns_and_rows(found: Audit, folder: Path) -> None:
    assert list(found.measures.columns) == list(MEASURES)
    assert list(found.measures["measure"]) == BASELINES + STEERED
    assert list(found.steering.columns) == list(STEERING)
    by_layer = found.steering.groupby("heads", sort=False)
    assert {kind: list(part["layer"]) for kind, part in by_layer} == {
        kind: [0, 1, 2] for kind in ("chosen", "random", "low-AIE", "gaussian", "other-task")
    }
    assert set(found.steering["n_heads"]) == {3}
    assert dict(by_layer["draws"].first()) == {"chosen": 1, "random": 2, "low-AIE": 2, "gaussian": 2, "other-task": 1}
    assert list(found.heads.columns) == list(HEADS)
    kinds = {count: list(part["heads"]) for count, part in found.heads.groupby("n_heads")}
    both = ["chosen", "random"]
    assert kinds == {1: both, 2: both, 3: [*both, "low-AIE", "gaussian", "other-task"], 5: both, 10: both}
    effects = pd.read_parquet(folder / "effects.parquet")
    assert list(effects.columns) == list(EFFECTS) and len(effects) == 5 * 3 * 4
    assert list(found.places.columns) == list(PLACES) and len(found.places) == 3 * len(SCALES)
    (place,) = found.places[found.places["chosen"]].to_dict("records")
    assert (place["layer"], place["scale"]) == (found.vector.layer, found.vector.scale)


def test_every_number_comes_from_the_evaluation_pairs(found: Audit, known: Task) -> None:
    n = len(known.split(shots=3, seed=1).evaluation)
    assert n > 5
    assert all(set(getattr(found, name)["prompts"]) == {n} for name in FRAMES)


def test_intervals_contain_their_means(found: Audit) -> None:
    for name in FRAMES:
        frame = getattr(found, name)
        for value in ("accuracy", "probability"):
            frame = frame[frame[value].notna()]  # Of one answer to all queries there is no probability.
            assert (frame[f"{value}_low"] <= frame[value] + 1e-12).all()
            assert (frame[value] <= frame[f"{value}_high"] + 1e-12).all()
            assert frame[value].between(0, 1).all()
    low, high = found.effects.interval()
    assert bool((low <= found.effects.aie).all()) and bool((found.effects.aie <= high).all())


def test_unsteered_accuracy_is_that_of_generating_on_each_prompt_alone(
    found: Audit, tiny: HookedTransformer, known: Task
) -> None:
    pairs = known.split(shots=3, seed=1).evaluation
    texts = {
        "zero-shot": [f"Q : {pair.input} A :" for pair in pairs],
        "instructed": [f"{('w100 w101', 'w102')[i % 2]} \n Q : {p.input} A :" for i, p in enumerate(pairs)],
        "statement": [f"w103 {pair.input} w104" for pair in pairs],
    }
    for measure, prompts_ in texts.items():
        right = [said(tiny, text, 2) == pair.output for text, pair in zip(prompts_, pairs, strict=True)]
        assert line(found, measure)["accuracy"] == pytest.approx(sum(right) / len(right))
    assert 0.1 < found.accuracy("zero-shot") < 0.9


def test_steered_numbers_are_those_of_steering_each_prompt_alone(
    found: Audit, tiny: HookedTransformer, known: Task
) -> None:
    pairs = known.split(shots=3, seed=1).evaluation
    chosen = found.steering[found.steering["heads"] == "chosen"].set_index("layer")
    for layer in range(3):
        right, first = [], []
        for pair in pairs:
            text = f"Q : {pair.input} A :"
            with ivlens.steered(tiny, found.vector, layer=layer):
                right.append(said(tiny, text, 2) == pair.output)
                logits = tiny(tiny.to_tokens(text, prepend_bos=True))[0, -1]
            first.append(float(logits.softmax(-1)[tiny.tokenizer.convert_tokens_to_ids(pair.output.split()[0])]))
        assert chosen.loc[layer, "accuracy"] == pytest.approx(sum(right) / len(right))
        assert chosen.loc[layer, "probability"] == pytest.approx(sum(first) / len(first), rel=1e-6)
    own = chosen.loc[found.vector.layer]
    assert line(found, "steered")["accuracy"] == own["accuracy"]
    assert line(found, "steered")["probability"] == own["probability"]


def test_the_layer_is_the_best_on_validation_pairs(found: Audit, tiny: HookedTransformer, known: Task) -> None:
    pairs = known.split(shots=3, seed=1).validation
    score = {}
    for layer in range(3):
        with ivlens.steered(tiny, found.vector, layer=layer):
            right = [said(tiny, f"Q : {pair.input} A :", 2) == pair.output for pair in pairs]
        score[layer] = sum(right)
    assert score[found.vector.layer] == max(score.values())


def test_the_four_parts_share_no_pair_and_demonstrations_come_from_the_first(
    tiny: HookedTransformer, known: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[prompts.Prompt]]] = []
    for name in ("patching.effects", "steering.vector_building", "analysis.run_audit", "replies.inquiry"):

        def record(model: Any, given: list[prompts.Prompt], name: str = name) -> Any:
            asked.append((name, list(given)))
            return prompts.tokenize(model, given)

        monkeypatch.setattr(sys.modules[f"ivlens.{name}"], "tokenize", record)
    ivlens.audit(tiny, known, **SMALL)
    ours = [(name, given) for name, given in asked if {prompt.query for prompt in given} <= set(known.pairs)]
    (_, mean), (_, rank) = [entry for entry in ours if entry[0] == "patching.effects"]
    assert "steering.vector_building" not in dict(ours), "layer and scale are those of the trials"
    (_, validation), *evaluation = [entry for entry in ours if entry[0] == "analysis.run_audit"]
    evaluation += [entry for entry in ours if entry[0] == "replies.inquiry"]
    assert len(evaluation) == 8
    parts = [{p.query for p in mean}, {p.query for p in rank}, {p.query for p in validation}]
    parts += [{p.query for _, given in evaluation for p in given}]
    assert sum(map(len, parts)) == len(set.union(*parts))
    pool = {pair.input for pair in known.split(shots=3, seed=1).mean}
    for _, given in ours:
        for prompt in given:
            shown = re.findall(r"Q : (w\d+) A :", prompt.text)
            assert set(shown) - {prompt.query.input} <= pool
            assert len(shown) == len(set(shown))


def test_what_a_task_lacks_is_not_measured_and_never_zero(bare: Audit) -> None:
    for measure in ("instructed", "statement"):
        row = line(bare, measure)
        assert row["prompts"] == 0
        assert all(math.isnan(row[name]) for name in MEASURES if name not in ("measure", "prompts", "score"))
        assert math.isnan(bare.accuracy(measure))
    assert bare.accuracy("zero-shot") >= 0
    bars = bare.figures()["measures"]
    assert sum(note.text == "not measured" for note in bars.layout.annotations) == 2
    assert bare._repr_html_().count("not measured") == 5, "and what P(answer) one answer to all would have"


def test_too_few_shots_for_a_shuffle_are_not_measured_as_one(tiny: HookedTransformer, known: Task) -> None:
    few = SMALL | {"shots": 1, "corruption": "zero-shot"}
    found = ivlens.audit(tiny, known, **few)
    assert math.isnan(found.accuracy("shuffled")) and not math.isnan(found.accuracy("few-shot"))
    none = ivlens.audit(tiny, known, **few | {"shots": 0, "source": "instruction"})
    assert math.isnan(none.accuracy("few-shot"))


def test_without_out_nothing_is_written_and_the_numbers_are_the_same(
    tiny: HookedTransformer, known: Task, found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = ivlens.audit(tiny, known, **SMALL)
    assert not list(tmp_path.iterdir()) and again.folder is None
    assert_same(again, found)


def test_reading_gives_what_the_audit_returned(found: Audit, folder: Path) -> None:
    assert_same(Audit.read(folder), found)
    assert found.folder == folder


def test_a_complete_run_is_read_and_not_computed_again(
    tiny: HookedTransformer, known: Task, found: Audit, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny), "forward", None)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert_same(ivlens.audit(tiny, known, out=folder, **SMALL), found)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.long
@pytest.mark.parametrize("after", ["effects", "steering", "heads", "measures", "vector"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(
    tiny: HookedTransformer, known: Task, found: Audit, folder: Path, tmp_path: Path, after: str
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    files = ["effects.parquet", "steering.parquet", "heads.parquet", "measures.parquet", "vector.safetensors"]
    kept = files[: [file.split(".")[0] for file in files].index(after) + 1]
    for file in kept:
        (cut / file).write_bytes((folder / file).read_bytes())
    (cut / ".ivlens-tmp-1234-heads.parquet").write_bytes(b"half")
    record = json.loads((folder / "run.json").read_text()) | {"status": "running", "finished": None}
    (cut / "run.json").write_text(json.dumps(record))
    again = ivlens.audit(tiny, known, out=cut, **SMALL)
    assert_same(again, found)
    assert not list(cut.glob(".ivlens-tmp*"))


def test_queries_bound_what_is_reported_on(tiny: HookedTransformer, known: Task, tmp_path: Path) -> None:
    few = ivlens.audit(tiny, known, out=tmp_path / "run", queries=4, **SMALL)
    for frame in (few.measures, few.heads, few.steering, few.necessity, few.places):
        assert frame is not None and set(frame["prompts"]) <= {4}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["queries"] == 4


def test_a_bound_that_bounds_nothing_is_no_difference(
    tiny: HookedTransformer, known: Task, found: Audit, folder: Path
) -> None:
    """So that runs of before, which had no such bound, go on."""
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert not {"queries", "trials"} & settings.keys()
    assert_same(ivlens.audit(tiny, known, out=folder, queries=1000, **SMALL), found)
    with pytest.raises(RunError, match="queries is 4 here but not set in that run"):
        ivlens.audit(tiny, known, out=folder, queries=4, **SMALL)


def test_trials_that_leave_something_out_say_so_in_the_record(
    tiny: HookedTransformer, known: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_plan, "FLOOR", 0)
    short = ivlens.audit(tiny, known, out=tmp_path / "run", **SMALL)
    left_out = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["trials"]
    assert set(short.heads["n_heads"]) == set(left_out["counts"]) and 3 in left_out["counts"]
    assert set(short.places["prompts"]) == {left_out["first"], len(known.split(shots=3, seed=1).validation)}
    assert set(short.steering["prompts"]) == {left_out["layer_prompts"]}
    assert list(short.figures()) == ["aie", "measures", "steering", "places", "heads", "necessity"]
    with pytest.raises(RunError, match=r"trials\.first is not set here"):
        monkeypatch.undo()
        ivlens.audit(tiny, known, out=tmp_path / "run", **SMALL)


def test_replies_under_vectors_are_as_many_as_planned(
    tiny: HookedTransformer, known: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def score(model: Any, prompts: Any, score: Any, **changes: Any) -> torch.Tensor:
        asked.append(len(prompts))
        return torch.arange(len(prompts), dtype=torch.float64) / len(prompts)

    monkeypatch.setattr(steered_replies, "score_replies", score)
    monkeypatch.setattr(trial_plan, "FLOOR", 0)
    monkeypatch.setattr(trial_plan, "_REPLY_RUNGS", ((4, 2),))
    work = run_audit.prepare(tiny, known, score="f1", **SMALL)
    bounded = run_audit.run_audit(work, None).measures.set_index("measure")
    # The vector, two draws of random heads, and one of each other control.
    assert asked == [4] * (1 + 2 + 3)
    assert trial_plan.count_replies(work.plan, work.sizes) == 4 * len(asked) * work.sizes.reply * 3
    for kind in KINDS:
        line = bounded.loc[f"steered{kind}"]
        assert line["prompts"] == 4 and line["score"] == "f1" and line["accuracy"] == 0.375
    assert bounded.loc["zero-shot", "prompts"] == len(known.split(shots=3, seed=1).evaluation)


def test_abilities_are_measured_first_and_kept(
    tiny: HookedTransformer, known: Task, found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_audit, "kept_effects", interrupted)
        ivlens.audit(tiny, known, out=tmp_path, **SMALL)
    assert (tmp_path / "parts" / "abilities.parquet").exists() and not list(tmp_path.glob("*.parquet"))
    monkeypatch.setattr(run_audit, "measure_prompts", interrupted)
    assert_same(ivlens.audit(tiny, known, out=tmp_path, **SMALL), found)
    assert not (tmp_path / "parts").exists()


@pytest.mark.long
@pytest.mark.parametrize("at", [3, 8, 14])
def test_what_was_done_before_an_interruption_is_not_done_again(
    tiny: HookedTransformer, known: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """In the sweep, while places are searched, and on evaluation pairs; bit for bit the same numbers."""
    monkeypatch.setattr(memory, "WORK", 10**7)
    climb, batches = branches.climb, []

    def counted(forward: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        if len(batches) == at and (tmp_path / "run").exists():
            raise KeyboardInterrupt
        batches.append(len(tokens))
        return climb(forward, tokens, *args, **kwargs)

    monkeypatch.setattr(branches, "climb", counted)
    whole = ivlens.audit(tiny, known, **SMALL)
    of_whole = list(batches)
    assert len(of_whole) > 16
    batches.clear()
    with pytest.raises(KeyboardInterrupt):
        ivlens.audit(tiny, known, out=tmp_path / "run", **SMALL)
    assert batches == of_whole[:at]
    batches.append(0)
    resumed = ivlens.audit(tiny, known, out=tmp_path / "run", **SMALL)
    assert [n for n in batches if n] == of_whole, "none twice, none left out"
    assert_same(resumed, whole)
    assert not (tmp_path / "run" / "parts").exists()


def test_heads_alone_are_gone_on_from(
    tiny: HookedTransformer, known: Task, found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = run_audit.prepare(tiny, known, **SMALL)
    effects = run_audit.audit_heads(work, tmp_path)
    assert torch.equal(effects.cie, found.effects.cie) and torch.equal(effects.mean_z, found.effects.mean_z)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "heads"
    with pytest.raises(RunError, match=r"has the effects of heads alone.*the same command without --only"):
        Audit.read(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(branches, "climb", None)
        assert torch.equal(run_audit.audit_heads(work, tmp_path).cie, found.effects.cie), "not measured again"
    before = (tmp_path / "effects.parquet").stat().st_mtime_ns
    assert_same(ivlens.audit(tiny, known, out=tmp_path, **SMALL), found)
    assert (tmp_path / "effects.parquet").stat().st_mtime_ns == before
    assert torch.equal(run_audit.audit_heads(work, tmp_path).cie, found.effects.cie), "of a complete one, as it is"


def test_another_seed_asks_other_prompts(tiny: HookedTransformer, known: Task, found: Audit) -> None:
    other = ivlens.audit(tiny, known, **SMALL | {"seed": 2})
    assert not torch.equal(other.effects.baseline, found.effects.baseline)
    assert not torch.equal(other.effects.mean_z, found.effects.mean_z)


def test_the_record_says_what_was_asked_of_which_model_and_task(
    found: Audit, folder: Path, tiny: HookedTransformer, known: Task
) -> None:
    record = json.loads((folder / "run.json").read_text())
    assert record["schema_version"] == 1 and record["command"] == "audit" and record["status"] == "complete"
    assert record["started"] < record["finished"]
    assert record["seed"] == 1 and record["settings"]["shots"] == 3 and record["settings"]["top"] == 3
    assert record["settings"]["template"]["query"] == WORD_TEMPLATE.query
    assert record["sources"] == {
        "model": {"name": hooked.model_name(tiny), "digest": hooked.weight_digest(tiny), "backend": "hooked"},
        "task": {"name": "known", "digest": known.digest},
    }
    assert set(record["versions"]) == {"ivlens", "torch", "transformer-lens"}
    assert found.vector.model_digest == record["sources"]["model"]["digest"]


def test_complete_is_said_last(
    tiny: HookedTransformer, known: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ivlens.InstructionVector, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ivlens.audit(tiny, known, out=tmp_path / "run", **SMALL)
    assert {path.stem for path in (tmp_path / "run").glob("*.parquet")} == {
        "effects",
        "places",
        "draws",
        "by_query",
        "layer_draws",
        "necessity",
        *FRAMES,
    }
    with pytest.raises(RunError, match=r"unfinished.*run the same command"):
        Audit.read(tmp_path / "run")


@pytest.mark.command
def test_figures_are_drawn_from_saved_numbers_without_the_model(found: Audit, folder: Path) -> None:
    script = (
        "import sys; from ivlens import Audit; figures = Audit.read(sys.argv[1]).figures(); "
        "assert 'transformer_lens' not in sys.modules and 'transformers' not in sys.modules; print(*figures)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["aie", "measures", "steering", "places", "heads", "necessity"], done.stderr


def test_figures_say_what_is_not_drawn_and_what_dashes_are(found: Audit) -> None:
    places = found.places.query("layer < 2 and scale in [1, 4]")
    assert len(places) == 4
    for kept, said in ((places, False), (places.iloc[1:], True)):
        drawn = dataclasses.replace(found, places=kept).figures()
        assert ("(grey: not tried)" in drawn["places"].layout.title.text.replace("<br>", " ")) == said
    assert "(dashes: single draws)" in drawn["heads"].layout.title.text.replace("<br>", " ")


def test_necessity_is_of_the_vectors_heads_on_instructed_and_few_shot_prompts(found: Audit, bare: Audit) -> None:
    frame = found.necessity
    assert frame is not None
    whole = frame[frame["heads"] == "none"].set_index("prompt")
    for kind in ("instructed", "few-shot"):
        of_kind = frame[frame["prompt"] == kind]
        assert of_kind["heads"].tolist() == ["none", *["chosen"] * 3, "random", "chosen", "random"]
        assert of_kind["ablated"].tolist()[1:4] == list(map(str, found.vector.heads))
        assert of_kind["ablated"].tolist()[5] == " ".join(map(str, found.vector.heads))
        # Nothing ablated: the prompts of the table of measures, each the same.
        assert whole.loc[kind, "accuracy"] == found.accuracy(kind)
        assert whole.loc[kind, "probability"] == pytest.approx(line(found, kind)["probability"], rel=1e-6)
    assert bare.necessity is not None and set(bare.necessity["prompt"]) == {"few-shot"}, "it has no instruction"
    assert not frame[frame["heads"] != "none"]["necessity"].abs().lt(1e-9).all(), "something is ablated"


def test_an_audit_whose_model_reads_no_other_task_goes_on_without_necessity(
    tiny: HookedTransformer, known: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(necessity, "tasks", list)
    alone = ivlens.audit(tiny, known, out=tmp_path / "alone", **SMALL | {"other_tasks": 0})
    assert alone.necessity is not None and alone.necessity.empty
    assert "necessity" not in alone.figures()
    assert len(audit_tables.audit_tables(alone)) == 3 and "ablated" not in audit_page(alone).answer


def test_a_folder_of_version_0_1_is_read_and_drawn_in_the_words_of_now(
    found: Audit, folder: Path, tmp_path: Path
) -> None:
    """It has no ablations, no draws by layer and no list of its files, and calls a control otherwise."""
    old = shutil.copytree(folder, tmp_path / "old")
    record = json.loads((old / "run.json").read_text())
    del record["files"]
    (old / "run.json").write_text(json.dumps(record))
    for name in ("necessity", "layer_draws", "by_query"):
        (old / f"{name}.parquet").unlink()
    for name, column in {"measures": "measure", "steering": "heads", "heads": "heads", "draws": "heads"}.items():
        frame = pd.read_parquet(old / f"{name}.parquet")
        frame[column] = frame[column].str.replace("low-AIE", "bottom")
        assert frame[column].str.contains("bottom").any()
        (old / f"{name}.parquet").write_bytes(to_bytes(frame))
    again = Audit.read(old)
    assert_same(again, found)
    assert again.necessity is None and again.layer_draws is None and again.by_query is None
    assert again.verdict.gain is not None and again.verdict.gain.draws == 2
    assert list(again.figures()) == ["aie", "measures", "steering", "places", "heads"]
    assert len(audit_tables.audit_tables(again)) == 3
    print_audit(again)
    assert audit_page(again).tables


def test_every_draw_of_a_control_is_a_dash_at_every_layer(found: Audit) -> None:
    assert found.layer_draws is not None
    means = found.layer_draws.groupby(["heads", "layer"])["accuracy"].mean()
    for row in found.steering.to_dict("records"):
        assert means[row["heads"], row["layer"]] == pytest.approx(row["accuracy"])
    traces = found.figures()["steering"].data
    dashes = {trace.legendgroup: trace for trace in traces if trace.mode == "markers"}
    assert len(dashes["random heads"].y) == 2 * 3 and not len(dashes["chosen heads"].y)
    of_random = found.layer_draws[found.layer_draws["heads"] == "random"]
    assert list(dashes["random heads"].y) == of_random["accuracy"].tolist()


def test_what_shuffled_prompts_still_give_stands_beside_the_aie(found: Audit) -> None:
    told = audit_tables.corrupted_sentence(found)
    still, clean = (line(found, name) for name in ("shuffled", "few-shot"))
    assert f"still right {still['accuracy']:.2f} of the time, P(answer) {still['probability']:.2f}" in told
    assert f"(clean: {clean['accuracy']:.2f}, {clean['probability']:.2f})" in told
    note = audit_tables.audit_tables(found)[2].note
    clear = found.effects.how_many_clear()
    assert clear == "5 queries cannot tell any head from 0; 6 can"
    for text in (note, found.figures()["aie"].layout.title.text.replace("<br>", " "), str(audit_page(found).cautions)):
        assert told in text and clear in text, text


def test_tables_tell_what_is_lost_and_what_is_left_without_heads(found: Audit) -> None:
    lost, left = audit_tables.audit_tables(found)[3:]
    names = [*map(str, found.vector.heads), "a random head", "all 3 heads", "3 random heads"]
    assert [row[0] for row in lost.parts[0]] == names and [row[0] for row in left.parts[0]] == ["nothing", *names]
    assert lost.columns == ("ablated", "AIE", "with the instruction", "95 % interval", "3 shots", "95 % interval")
    first = found.vector.heads[0]
    assert lost.parts[0][0][1] == f"{float(found.effects.aie[first]):+.2f}" and lost.parts[0][3][1] == ""
    assert found.necessity is not None
    line = found.necessity.query("prompt == 'instructed' and ablated == @first.__str__()").iloc[0]
    assert lost.parts[0][0][2:4] == (
        f"{line['necessity']:+.2f}",
        f"[{line['necessity_low']:+.2f}, {line['necessity_high']:+.2f}]",
    )
    assert f"without {first} {line['accuracy']:.2f} [" in audit_tables.necessity_sentence(found)


def test_an_effect_in_nats_says_so(tiny: HookedTransformer, known: Task) -> None:
    found = ivlens.audit(tiny, known, **SMALL | {"effect": "nll", "corruption": "zero-shot", "source": "instruction"})
    assert found.effects.unit == "nats" and bool((found.effects.baseline < 0).all())


def test_the_first_line_of_an_audit_is_its_answer(found: Audit) -> None:
    text = repr(found)
    assert "known on " in text and f"layer {found.vector.layer}" in text
    assert f"zero-shot accuracy {found.accuracy('zero-shot'):.2f}" in text
    assert f"of random heads {found.accuracy('steered, random'):.2f}" in text


def test_a_notebook_shows_every_measure_and_no_markup_from_names(found: Audit) -> None:
    import dataclasses

    vector = dataclasses.replace(found.vector, task="<script>alert(1)</script>\x1b[31m", model="a & b")
    page = dataclasses.replace(found, vector=vector)._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page and "a &amp; b" in page
    assert page.count("<tr>") == 1 + len(BASELINES + STEERED) + 1 + 6, "and without each head, all, and random ones"
    assert f"{found.accuracy('steered'):.2f}" in page


def test_the_verdict_comes_first_everywhere(found: Audit, capsys: pytest.CaptureFixture[str]) -> None:
    told = found.verdict
    assert told.outcome == "cannot do" and told.queries == line(found, "steered")["prompts"]
    assert told.share == line(found, "most frequent answer")["accuracy"]
    print_audit(found)
    name, _, rest = capsys.readouterr().out.partition("\n\n")
    assert name.startswith("known on ") and " ".join(rest.split()).startswith(f"{told.sentence} {told.advice}")
    page, notebook = audit_page(found), found._repr_html_()
    assert page.answer.startswith(told.sentence) and page.cautions[0] == told.advice
    assert page.captions["aie"][1].startswith(told.short)
    assert notebook.index(told.sentence) < notebook.index("<table")
    assert told.short in found.figures()["aie"].layout.title.text.replace("<br>", " ")


def test_the_most_frequent_answer_is_that_of_the_evaluation_pairs(found: Audit, known: Task) -> None:
    answers = [pair.output for pair in known.split(shots=3, seed=1).evaluation]
    share = max(map(answers.count, answers)) / len(answers)
    assert found.accuracy("most frequent answer") == pytest.approx(share)


def test_a_gain_is_of_the_vector_beside_each_draw_on_the_same_queries(found: Audit) -> None:
    assert found.by_query is not None and list(found.by_query.columns) == list(BY_QUERY)
    means = found.by_query.groupby(["heads", "draw"])[["accuracy", "probability"]].mean()
    for row in found.draws.query("n_heads == 3 and heads in ['chosen', 'random']").to_dict("records"):
        own = means.loc[(row["heads"], row["draw"])]
        assert own["accuracy"] == pytest.approx(row["accuracy"])
        assert own["probability"] == pytest.approx(row["probability"], rel=1e-6)
    gain, steered, random = found.verdict.gain, line(found, "steered"), line(found, "steered, random")
    assert gain is not None and gain.draws == 2
    assert gain.probability.mean == pytest.approx(steered["probability"] - random["probability"], abs=1e-6)
    assert gain.accuracy == pytest.approx(steered["accuracy"] - random["accuracy"])


def test_without_a_vector_on_trial_the_verdict_says_so(found: Audit) -> None:
    import dataclasses

    alone = dataclasses.replace(found, measures=found.measures[found.measures["measure"].isin(BASELINES)])
    assert alone.verdict.gain is None and "no vector was tried" in alone.verdict.sentence


def test_an_unknown_measure_is_named_beside_the_known(found: Audit) -> None:
    with pytest.raises(IvlensError, match=r"no measure 'accuracy'; there are 'zero-shot', 'instructed'"):
        found.accuracy("accuracy")


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    sources = {"base": Source(name="lab", digest="1"), "tuned": Source(name="lab", digest="2")}
    with open_run(tmp_path / "foreign", command="compare", settings={}, sources=sources, seed=0) as run:
        run.complete()
    yield run.folder


def test_a_run_of_another_kind_is_not_an_audit(foreign: Path) -> None:
    with pytest.raises(RunError, match=r"is of `ivlens compare`, not of an audit; give an audit's folder"):
        Audit.read(foreign)


def test_the_settings_are_refused_in_a_sentence(tiny: HookedTransformer, known: Task) -> None:
    for given, sentence in {
        ("top", 0): "top is 0; it must be 1 or more",
        ("top", 13): "top is 13, but the model has 12 heads; take fewer",
        ("draws", 0): "draws is 0; it must be 1 or more",
        ("other_tasks", -1): "other_tasks is -1; it must be 0 or more",
        ("clean_prompts", 0): "clean_prompts is 0; it must be 1 or more",
        ("shots", 39): "48 pairs, but 39 shots need at least 49",
    }.items():
        with pytest.raises(IvlensError, match=re.escape(sentence)):
            ivlens.audit(tiny, known, **SMALL | dict([given]))


def test_what_cannot_be_asked_claims_no_folder(tiny: HookedTransformer, known: Task, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="take 2 shots or more, or zero-shot"):
        ivlens.audit(tiny, known, out=tmp_path / "run", **SMALL | {"shots": 1})
    assert not (tmp_path / "run").exists()


def test_a_single_query_has_no_interval_rather_than_nan(
    tiny: HookedTransformer, known: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ivlens.audit(tiny, known, **SMALL | {"queries": 1, "prompts": 1, "other_tasks": 0})
    print_audit(found)
    assert "nan" not in capsys.readouterr().out and "nan" not in repr(found.effects)


def test_random_heads_that_cannot_be_others_are_named_so(tiny: HookedTransformer, known: Task) -> None:
    found = ivlens.audit(tiny, known, **SMALL | {"queries": 4, "other_tasks": 0, "top": 7})
    assert "the vector's own among them" in found.verdict.sentence


def test_without_controls_of_other_tasks_none_are_listed(tiny: HookedTransformer, known: Task) -> None:
    found = ivlens.audit(tiny, known, **SMALL | {"other_tasks": 0, "top": 12})
    assert list(found.measures["measure"]) == BASELINES + [name for name in STEERED if "other-task" not in name]
    assert 12 in set(found.heads["n_heads"])
