"""A comparison says what changed, on the same prompts, and nothing where nothing did."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rounding
import torch
from checkpoints import build
from conftest import WORD_TEMPLATE
from scipy import stats
from transformer_lens import HookedTransformer

import ivlens
from ivlens.analysis import comparison_tables
from ivlens.analysis.comparison import CHANGES, Comparison
from ivlens.analysis.dependence import DEPENDENCE, per_prompt, summarise
from ivlens.analysis.probes import prepare
from ivlens.analysis.run_comparison import compare
from ivlens.datasets.task import Pair, Task
from ivlens.errors import FigureError, IvlensError, ModelError, RunError, ShapeMismatch
from ivlens.forward import memory
from ivlens.measures import interval
from ivlens.models import hooked, lora
from ivlens.models.lora import Adapter, LoraConfig
from ivlens.models.peft import read_adapter, write_adapter
from ivlens.patching import activations, branches, interventions
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.plots import comparison
from ivlens.plots.style import NOT_MEASURED
from ivlens.shapes import Head
from ivlens.vectors import drift
from ivlens.vectors.drift import AIE, DRIFT, aie_table, chance_jaccard, vector_drift
from ivlens.vectors.head_writing import write_vector

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "shots": 3,
    "clean_prompts": 20,
    "prompts": 8,
    "queries": 6,
    "top": 3,
    "draws": 2,
    "seed": 1,
    "template": WORD_TEMPLATE,
}
TABLES = ("base_effects", "tuned_effects", "aie", "measures", "drift", "recovery")
FRAMES = TABLES[2:]
FIGURES = ["aie", "heads", "dependence", "abilities"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama-gqa", tmp_path_factory.mktemp("compare") / "base")


@pytest.fixture(scope="module")
def base(checkpoint: Path) -> HookedTransformer:
    return ivlens.load(checkpoint, dtype="float64")


@pytest.fixture(scope="module")
def adapter_folder(base: HookedTransformer, checkpoint: Path) -> Path:
    random = lora.fresh(base, LoraConfig(rank=2))
    generator = torch.Generator().manual_seed(0)
    for factors in random.factors.values():
        factors.B.normal_(0, 0.2, generator=generator)
    write_adapter(random, checkpoint.parent / "tuned", base)
    return checkpoint.parent / "tuned"


@pytest.fixture(scope="module")
def adapter(base: HookedTransformer, adapter_folder: Path) -> Adapter:
    return read_adapter(adapter_folder, base)


@pytest.fixture(scope="module")
def merged_folder(checkpoint: Path, adapter_folder: Path) -> Path:
    """The same as a checkpoint of its own, merged by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ivlens.checkpoints.checkpoint import quiet_transformers

    folder = checkpoint.parent / "merged"
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), str(adapter_folder))
        model.merge_and_unload().save_pretrained(folder)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare-run") / "run"


@pytest.fixture(scope="module")
def found(base: HookedTransformer, adapter_folder: Path, word_task: Task, folder: Path) -> Comparison:
    return ivlens.compare(base, adapter_folder, word_task, out=folder, **SMALL)


def assert_same(one: Comparison, other: Comparison) -> None:
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    for name in ("base", "tuned"):
        assert torch.equal(getattr(one, name).cie, getattr(other, name).cie)
        vectors = [getattr(found, f"{name}_vector") for found in (one, other)]
        assert torch.equal(vectors[0].vector, vectors[1].vector) and vectors[0].heads == vectors[1].heads
        assert repr(vectors[0]) == repr(vectors[1])
    assert repr(one) == repr(other)


def test_every_table_has_its_columns_and_rows(found: Comparison) -> None:
    assert list(found.aie.columns) == list(AIE)
    assert found.aie.groupby("model", sort=False).size().to_dict() == {"base": 12, "tuned": 12, "difference": 12}
    assert list(found.measures.columns) == list(CHANGES)
    parts = found.measures.groupby(["model", "vector"], sort=False).size().to_dict()
    # With the vector at scale 1 beside it where that is not its scale: 7 lines of `measures`, 4 of `recovery`.
    more, own = (int(vector.scale != 1) for vector in (found.base_vector, found.tuned_vector))
    sizes = (("", 6), ("base", 18 + 7 * more))
    both = {(model, vector): n for model in ("base", "tuned", "difference") for vector, n in sizes}
    # The base model's verdict takes one line more of each.
    both |= {("base", vector): n + 1 for vector, n in sizes}
    assert parts == both | {("tuned", "tuned"): 18 + 7 * own}
    assert list(found.drift.columns) == list(DRIFT)
    assert list(zip(found.drift["measure"], found.drift["heads"], strict=True)) == [
        *(("jaccard", "chosen"), ("jaccard", "random"), ("spearman", "")),
        *(("cosine", "own"), ("cosine", "base"), ("cosine", "random")),
    ]
    assert list(found.recovery.columns) == list(DEPENDENCE) and len(found.recovery) == 10 + 4 * more


def test_intervals_contain_their_means(found: Comparison) -> None:
    for frame, name in ((found.aie, "aie"), (found.measures, "value")):
        assert frame["low"].notna().all()
        assert (frame["low"] <= frame[name] + 1e-12).all() and (frame[name] <= frame["high"] + 1e-12).all()
    ends = found.drift.dropna()
    assert (ends["low"] <= ends["high"]).all() and ends[["low", "high"]].abs().max(axis=None) <= 1
    assert list(found.drift["low"].isna()) == [False, True, False, False, False, False]


def test_before_and_after_are_what_each_model_gives_alone(
    found: Comparison, base: HookedTransformer, adapter: Adapter, word_task: Task
) -> None:
    probe = prepare(base, word_task, found.base_vector, prompts=6, draws=2)
    effects = {key: value for key, value in SMALL.items() if key not in ("queries", "top", "draws")}
    alone = {"base": ivlens.indirect_effects(base, word_task, **effects)}
    dependence = {"base": per_prompt(base, probe)}
    with lora.merged(base, adapter):
        alone["tuned"] = ivlens.indirect_effects(base, word_task, **effects)
        dependence["tuned"] = per_prompt(base, probe)
    for name in ("base", "tuned"):
        mine: HeadEffects = getattr(found, name)
        torch.testing.assert_close(mine.cie, alone[name].cie, rtol=0, atol=1e-12)
        assert getattr(found, f"{name}_vector").heads == tuple(alone[name].top(3))
        for (measure, heads), values in dependence[name].values.items():
            there = found.value(measure, model=name, heads=heads)
            assert there == pytest.approx(float(values.double().mean()), abs=1e-12)
    for key, values in dependence["tuned"].values.items():
        change = values - dependence["base"].values[key]
        line = found.measures.query(f"measure == {key[0]!r} and heads == {key[1]!r} and model == 'difference'")
        # What a difference of two probabilities, or of two differences of them, cannot leave.
        is_level = key[0].endswith(("probability", "accuracy")) and not key[0].startswith(("necessity", "sufficiency"))
        most = math.inf if key[0] == "shift" else 1.0 if is_level else 2.0
        expected = summarise(change, within=(-most, most), of_answers="accuracy" in key[0])
        assert (line["value"].item(), line["low"].item(), line["high"].item()) == pytest.approx(tuple(expected))
    assert abs(found.value("shift", heads="chosen")) > 1e-3, "too small to be seen"


def test_the_difference_of_effects_is_paired_by_query(found: Comparison) -> None:
    change = (found.tuned.cie - found.base.cie).double()
    groups = torch.stack([change[found.base.queries == query].mean(0) for query in found.base.queries.unique()])
    for head in (Head(0, 1), Head(2, 3)):
        line = found.aie.query(f"model == 'difference' and layer == {head.layer} and head == {head.head}")
        assert line["aie"].item() == pytest.approx(float(groups.mean(0)[head]), abs=1e-12)
        expected = interval(groups[:, head.layer, head.head], torch.arange(len(groups)))
        assert line["low"].item() == pytest.approx(expected.low) and line["high"].item() == pytest.approx(expected.high)
    assert float(change.abs().max()) > 1e-4
    other = replace(found.tuned, queries=found.tuned.queries.flip(0))
    with pytest.raises(IvlensError, match="not of the same prompts; measure both with one task"):
        aie_table(found.base, other)


def test_overlap_correlation_and_cosine_are_those_of_the_definitions(
    found: Comparison, base: HookedTransformer, adapter: Adapter
) -> None:
    tops = set(found.base.top(3)), set(found.tuned.top(3))
    assert found.drifted("jaccard", "chosen") == len(tops[0] & tops[1]) / len(tops[0] | tops[1])
    grids = [effects.aie.flatten().numpy() for effects in (found.base, found.tuned)]
    assert found.drifted("spearman") == pytest.approx(stats.spearmanr(*grids).statistic)
    assert found.drifted("cosine", "own") == pytest.approx(found.base_vector.cosine(found.tuned_vector), abs=1e-9)
    with lora.merged(base, adapter):
        moved = write_vector(base, found.tuned.mean_z, found.base_vector.heads)
    cosine = float(torch.cosine_similarity(moved, found.base_vector.vector, dim=0))
    assert found.drifted("cosine", "base") == pytest.approx(cosine, abs=1e-9)
    assert cosine < 1


def test_overlap_by_chance_is_that_of_drawing() -> None:
    generator = np.random.default_rng(0)
    drawn = [[set(generator.choice(12, 3, replace=False)) for _ in range(2)] for _ in range(4000)]
    assert chance_jaccard(12, 3) == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in drawn]), abs=0.01)
    assert chance_jaccard(5, 5) == 1.0


def test_cosines_of_equal_vectors_are_one_whatever_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 5, 8, dtype=torch.float64, generator=generator)
    lines = vector_drift(base, torch.cat([2 * base, 3 * base[:1]]))
    assert [line[1] for line in lines] == ["own", "base", "random"]
    assert all(line[2:5] == pytest.approx((1, 1, 1)) for line in lines)
    one = vector_drift(base[:, :1], torch.cat([base, base[:1]])[:, :1])
    assert all(np.isnan(line[3]) and line[5] == 1 for line in one), "one query has no interval"


def written(n: int, cosine: float, noise: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What heads of two models write on n queries, whose true vectors have such a cosine; noise is partly shared."""
    shared, own = (noise * torch.randn(1, n, 32, dtype=torch.float64, generator=generator) for _ in range(2))
    base, tuned = torch.zeros(2, 1, n, 32, dtype=torch.float64)
    base[..., 0], tuned[..., 0], tuned[..., 1] = 1, cosine, np.sqrt(1 - cosine**2)
    return base + shared, tuned + 0.7 * shared + 0.7 * own


@pytest.mark.slow
@pytest.mark.parametrize(("cosine", "noise"), [(0.95, 0.1), (0.6, 0.35)])
@pytest.mark.parametrize(("n", "least"), [(5, 0.90), (16, 0.92)])
def test_the_interval_of_a_cosine_covers_the_true_one(cosine: float, noise: float, n: int, least: float) -> None:
    generator, found = torch.Generator().manual_seed(n), []
    for _ in range(150):
        base, tuned = written(n, cosine, noise, generator)
        _, _, value, low, high, _ = vector_drift(base.repeat(2, 1, 1), tuned.repeat(3, 1, 1))[0]
        assert -1 <= low <= value <= high <= 1
        found.append(low <= cosine <= high)
    # Within three standard errors of 150 simulations.
    assert np.mean(found) >= least - 3 * np.sqrt(least * (1 - least) / 150)


def test_random_heads_that_differ_widen_the_interval_of_their_cosine() -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = [written(12, cosine, 0.05, generator) for cosine in (0.2, 0.5, 0.9)]
    base, tuned = (torch.cat([pair[i] for pair in [pairs[0], *pairs]]) for i in (0, 1))
    _, _, (_, _, value, low, high, _) = vector_drift(base, torch.cat([tuned, tuned[:1]]))
    assert value == pytest.approx((0.2 + 0.5 + 0.9) / 3, abs=0.05) and high - low > 0.5


def test_the_intervals_of_rank_agreement_cover_the_true_one() -> None:
    generator, sure = np.random.default_rng(0), {"jaccard": [], "spearman": []}
    before = 0.05 * generator.normal(size=48) ** 3
    after = 0.7 * before + 0.02 * generator.normal(size=48) ** 3
    tops = [set(np.argsort(-aie)[:10]) for aie in (before, after)]
    true = {"jaccard": len(tops[0] & tops[1]) / len(tops[0] | tops[1])}
    true["spearman"] = float(stats.spearmanr(before, after).statistic)
    for _ in range(60):
        noise = generator.normal(size=(2, 12, 48))
        noise[1] = 0.7 * noise[0] + 0.7 * noise[1]
        grids = (
            HeadEffects(
                cie=torch.as_tensor(aie + size * (0.02 + np.abs(aie))).reshape(12, 6, 8),
                baseline=torch.zeros(12),
                queries=torch.arange(12),
                mean_z=torch.zeros(6, 8, 2),
                settings=Settings(),
                task="t",
                task_digest="",
                model="m",
                model_digest="",
            )
            for aie, size in zip((before, after), noise, strict=True)
        )
        for measure, _, value, low, high, n in drift.head_drift(*grids, 10):
            if n:
                assert -1 <= low <= value <= high <= 1
                sure[measure].append(low - 1e-9 <= true[measure] <= high + 1e-9)
    assert min(np.mean(covered) for covered in sure.values()) >= 0.9


def test_a_comparison_says_how_many_heads_are_clear_and_what_corrupted_prompts_still_give(found: Comparison) -> None:
    told = found.how_many_clear()
    counts = [len(effects.clear()) for effects in (found.base, found.tuned)]
    assert f"{counts[0]} of 12 heads before, {counts[1]} after, " in told
    still = comparison_tables.corrupted_sentence(found)
    assert f"P(answer) is still {float(found.base.baseline.mean()):.2f} before" in still
    note = comparison_tables.comparison_tables(found)[1].note
    assert told in note and still in note and told in found.figures()["aie"].layout.title.text.replace("<br>", " ")


def test_effects_that_are_the_same_everywhere_have_no_rank_correlation(found: Comparison) -> None:
    flat = replace(found.base, cie=torch.zeros_like(found.base.cie))
    lines = {line[0]: line for line in drift.head_drift(flat, found.tuned, 3)}
    assert all(np.isnan(lines["spearman"][2:5]))


def test_the_base_model_is_left_as_it_was(
    base: HookedTransformer, adapter: Adapter, word_task: Task, found: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hooked.weight_digest(base)
    assert found.base.model_digest == digest != found.tuned.model_digest
    monkeypatch.setattr(sys.modules["ivlens.analysis.run_comparison"], "write_by_query", None)
    with pytest.raises(TypeError):
        compare(base, adapter, word_task, **SMALL)
    assert hooked.weight_digest(base) == digest


@pytest.mark.long
@pytest.mark.parametrize("given", ["adapter", "model", "merged checkpoint"])
def test_the_tuned_model_can_be_given_in_every_form(
    found: Comparison,
    base: HookedTransformer,
    adapter: Adapter,
    checkpoint: Path,
    merged_folder: Path,
    word_task: Task,
    given: str,
) -> None:
    tuned: Any = {"adapter": adapter, "merged checkpoint": str(merged_folder)}.get(given)
    if tuned is None:
        tuned = ivlens.load(checkpoint, dtype="float64")
        lora.merge(tuned, adapter)
    again = compare(base, tuned, word_task, **SMALL)
    # PEFT merges in float32, which moves a random model's numbers as a float32 run of it does.
    merged = rounding.bound(rounding.chain(base.cfg, 20), size=10.0)
    tolerance = merged if given == "merged checkpoint" else 1e-9
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), rtol=0, atol=tolerance)
    assert again.folder is None


def test_models_can_be_given_by_name(checkpoint: Path, adapter_folder: Path, word_task: Task) -> None:
    few = SMALL | {"clean_prompts": 4, "prompts": 3, "queries": 2}
    assert "base → base + tuned" in repr(compare(str(checkpoint), adapter_folder, word_task, **few))


@pytest.mark.long
def test_several_adapters_are_compared_as_their_sum(
    checkpoint: Path, adapter_folder: Path, word_task: Task, tmp_path: Path
) -> None:
    few = SMALL | {"clean_prompts": 4, "prompts": 3, "queries": 2}
    base = ivlens.load(checkpoint)
    found = compare(base, [adapter_folder, str(adapter_folder)], word_task, **few)
    assert found.tuned_name == "base + tuned + tuned"
    twice = ivlens.load(checkpoint, adapter=[adapter_folder, adapter_folder])
    again = compare(base, twice, word_task, **few)
    pd.testing.assert_frame_equal(found.measures, again.measures, rtol=0, atol=1e-3)


def test_the_same_model_twice_is_refused(
    base: HookedTransformer, checkpoint: Path, word_task: Task, tmp_path: Path
) -> None:
    for same in (base, str(checkpoint), lora.fresh(base, LoraConfig(rank=2))):
        sentence = r"have the same weights \(digest [0-9a-f]{12}\); there is no change to measure: give the model as it"
        with pytest.raises(ModelError, match=sentence):
            compare(base, same, word_task, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_another_shape_or_another_tokenizer_is_refused(
    base: HookedTransformer, word_task: Task, tmp_path: Path
) -> None:
    wide = ivlens.load(build("llama", tmp_path / "wide", num_hidden_layers=2), dtype="float64")
    with pytest.raises(ShapeMismatch, match=r"wide has n_layers 2 instead of 3, d_head 8 instead of 6 of base; give"):
        compare(base, wide, word_task, **SMALL)
    odd = ivlens.load(build("llama-gqa", tmp_path / "odd", seed=1), dtype="float64")
    odd.cfg.default_prepend_bos = False
    with pytest.raises(ModelError, match="odd and base make different tokens of the same prompts; give a model with"):
        compare(base, odd, word_task, **SMALL)
    odd.tokenizer = None
    small = lora.fresh(ivlens.load(build("llama", tmp_path / "small", hidden_size=16)), LoraConfig(rank=2))
    with pytest.raises(ShapeMismatch, match=r"the adapter has A \(2, 16\)"):
        compare(base, small, word_task, **SMALL)


def test_the_settings_are_refused_in_a_sentence(base: HookedTransformer, adapter: Adapter, word_task: Task) -> None:
    for given, sentence in {
        ("top", 0): "top is 0; it must be 1 or more",
        ("top", 13): "top is 13, but the model has 12 heads; take fewer",
        ("draws", 0): "draws is 0; it must be 1 or more",
        ("queries", 0): "queries is 0; it must be 1 or more",
        ("prompts", 0): "prompts is 0; it must be 1 or more",
        ("shots", 31): "40 pairs, but 31 shots need at least 41",
    }.items():
        with pytest.raises(IvlensError, match=re.escape(sentence)):
            compare(base, adapter, word_task, **SMALL | dict([given]))


def test_what_a_task_lacks_is_not_measured_and_never_zero(base: HookedTransformer, adapter: Adapter) -> None:
    bare = Task(name="bare", pairs=tuple(Pair(f"w{i}", f"w{i + 50}") for i in range(40)))
    found = compare(base, adapter, bare, **SMALL)
    for measure in ("knowledge probability", "instruction accuracy"):
        assert all(np.isnan(found.value(measure, model=model)) for model in ("base", "tuned", "difference"))
    assert np.isnan(found.value("necessity", heads="chosen"))
    assert "nan" in repr(found)
    dependence, *_, recovery = comparison_tables.comparison_tables(found)
    shown = [line[0].strip() for table in (dependence, recovery) for part in table.parts for line in part]
    assert "P of the query alone" in shown and "sufficiency" in shown and "query alone" in shown
    assert not {"P with the instruction", "P of the plain statement", "necessity", "with the instruction"} & set(shown)
    for told in (dependence.note, html.unescape(found._repr_html_())):
        assert told.count("Not measured") == 1 and told.count("not measured") == 0
        assert 'add "instructions": ["Write the opposite."]' in told and 'add "statement": "The opposite of' in told
    notes = [note.text for note in found.figures()["dependence"].layout.annotations]
    assert notes.count("not measured") == 2


# Run folders


def test_reading_gives_what_the_comparison_returned(found: Comparison, folder: Path) -> None:
    assert_same(Comparison.read(folder), found)
    assert found.folder == folder
    record = json.loads((folder / "run.json").read_text())
    assert record["command"] == "compare" and record["status"] == "complete" and record["seed"] == 1
    assert {role: source["name"] for role, source in record["sources"].items()} == {
        "base": "base",
        "tuned": "base + tuned",
        "task": "words",
    }
    assert record["settings"]["queries"] == 6 and record["settings"]["draws"] == 2


def test_without_out_nothing_is_written_and_the_numbers_are_the_same(
    found: Comparison,
    base: HookedTransformer,
    adapter_folder: Path,
    word_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_same(compare(base, adapter_folder, word_task, **SMALL), found)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5])
def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(
    found: Comparison,
    folder: Path,
    base: HookedTransformer,
    adapter_folder: Path,
    word_task: Task,
    tmp_path: Path,
    after: int,
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in TABLES[: after + 1]:
        (cut / f"{name}.parquet").write_bytes((folder / f"{name}.parquet").read_bytes())
    (cut / ".ivlens-tmp-1234-drift.parquet").write_bytes(b"half")
    record = json.loads((folder / "run.json").read_text()) | {"status": "running", "finished": None}
    (cut / "run.json").write_text(json.dumps(record))
    assert_same(compare(base, adapter_folder, word_task, out=cut, **SMALL), found)
    assert not list(cut.glob(".ivlens-tmp*"))


@pytest.mark.slow
def test_a_killed_run_leaves_the_base_model_and_goes_on(
    found: Comparison,
    base: HookedTransformer,
    adapter_folder: Path,
    word_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["ivlens.analysis.run_comparison"].TunedModel, "check_reading", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(base, adapter_folder, word_task, out=tmp_path / "run", **SMALL)
    with pytest.raises(RunError, match=r"unfinished.*run the same command"):
        Comparison.read(tmp_path / "run")
    assert [path.stem for path in (tmp_path / "run").glob("*.parquet")] == ["base_effects"]
    assert_same(compare(base, adapter_folder, word_task, out=tmp_path / "run", **SMALL), found)


@pytest.mark.long
@pytest.mark.parametrize("at", [2, 7])
def test_what_was_done_before_an_interruption_is_not_done_again(
    base: HookedTransformer,
    adapter_folder: Path,
    word_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    """In the sweep of the base model, and while the tuned one is asked; bit for bit the same numbers."""
    monkeypatch.setattr(memory, "WORK", 10**6)
    done: list[str] = []

    def counted(module: Any, name: str) -> None:
        compute = getattr(module, name)

        def count(*args: Any, **kwargs: Any) -> Any:
            if len(done) == at and (tmp_path / "run").exists():
                raise KeyboardInterrupt
            done.append(name)
            return compute(*args, **kwargs)

        monkeypatch.setattr(module, name, count)

    for module, name in ((branches, "climb"), (interventions, "_carry"), (activations, "last_z"), (drift, "last_z")):
        counted(module, name)
    whole = compare(base, adapter_folder, word_task, out=tmp_path / "whole", **SMALL)
    of_whole = list(done)
    assert len(of_whole) > 3 * at and set(of_whole) == {"climb", "_carry", "last_z"}
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        compare(base, adapter_folder, word_task, out=tmp_path / "run", **SMALL)
    assert done == of_whole[:at]
    done.append("")
    assert_same(compare(base, adapter_folder, word_task, out=tmp_path / "run", **SMALL), whole)
    assert [name for name in done if name] == of_whole, "none twice, none left out"
    assert not (tmp_path / "run" / "parts").exists()


def test_another_adapter_is_another_run(
    found: Comparison, base: HookedTransformer, adapter: Adapter, word_task: Task, folder: Path
) -> None:
    other = replace(adapter, scale=2 * adapter.scale)
    with pytest.raises(RunError, match=r"holds another run: the tuned is base \+ adapter \(digest"):
        compare(base, other, word_task, out=folder, **SMALL)


def test_a_run_of_another_kind_is_no_comparison(tmp_path: Path) -> None:
    from ivlens.storage.run_folder import open_run
    from ivlens.storage.run_record import Source

    with open_run(
        tmp_path / "other", command="audit", settings={}, sources={"model": Source(name="lab", digest="1")}, seed=0
    ) as run:
        run.complete()
    with pytest.raises(RunError, match=r"is of `ivlens audit`, not of a comparison; give a comparison's folder"):
        Comparison.read(run.folder)


# What is shown


@pytest.mark.command
def test_figures_are_drawn_from_saved_numbers_without_the_model(found: Comparison, folder: Path) -> None:
    script = (
        "import sys; from ivlens import Comparison; figures = Comparison.read(sys.argv[1]).figures(); "
        "assert 'transformer_lens' not in sys.modules and 'transformers' not in sys.modules; print(*figures)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == FIGURES, done.stderr


def test_the_three_grids_share_one_bound_and_show_their_numbers(found: Comparison) -> None:
    figure = found.figures()["aie"]
    assert [trace.type for trace in figure.data] == ["heatmap"] * 3
    shared = figure.layout.coloraxis
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"} and shared.cmin == -shared.cmax
    # No head of this random model is clear of 0: what chance gives is pale.
    change = replace(found.tuned, cie=found.tuned.cie - found.base.cie)
    by_chance = [effects.chance() for effects in (found.base, found.tuned, change)]
    assert shared.cmax == pytest.approx(max(by_chance) * 16) and shared.cmax > 5 * found.aie["aie"].abs().max()
    assert figure.layout.plot_bgcolor == NOT_MEASURED, "a gap must not look like 0"
    for trace, model in zip(figure.data, ("base", "tuned", "difference"), strict=True):
        lines = found.aie.query(f"model == {model!r}").sort_values(["layer", "head"])
        assert np.asarray(trace.z).reshape(-1).tolist() == lines["aie"].tolist()
    assert len(figure.layout.shapes) == 6, "each model's own top heads"
    with pytest.raises(FigureError, match="has 12 heads of 'base', but 4x4 are needed"):
        comparison.aie_panels(found.aie, (4, 4))
    with pytest.raises(FigureError, match="has no column low, high; it has model"):
        comparison.aie_panels(found.aie.drop(columns=["low", "high"]), (3, 4))


def test_every_head_is_a_point_and_every_bar_has_its_control(found: Comparison) -> None:
    drawn = found.figures()
    points = [trace for trace in drawn["heads"].data if trace.mode != "lines"]
    assert sum(len(trace.x) for trace in points) == 12
    tops = [set(found.base.top(3)), set(found.tuned.top(3))]
    sizes = {trace.name: len(trace.x) for trace in points}
    assert sizes.get("top in both", 0) == len(tops[0] & tops[1])
    assert sizes.get("top after", 0) == len(tops[1] - tops[0])
    bars = [trace for trace in drawn["dependence"].data if trace.type == "bar"]
    more = ["chosen heads, scale 1"] if found.base_vector.scale != 1 else []
    names = ["chosen heads", *more, "random heads"]
    assert [trace.name for trace in bars] == [*names, "chosen heads", "random heads", *names]
    bars = [trace for trace in bars if trace.name in ("chosen heads", "random heads")]
    before, after = (found.value("necessity", model=model, heads="chosen") for model in ("base", "tuned"))
    assert list(bars[2].y) == [before, after] and list(bars[2].x) == ["before", "after"]
    assert [len(trace.y) for trace in drawn["abilities"].data] == [4, 4]
    with pytest.raises(FigureError, match="no head of both models"):
        comparison.aie_scatter(found.aie.query("model == 'base'"))


def test_the_first_line_is_the_answer_and_a_notebook_shows_the_rest(found: Comparison) -> None:
    assert repr(found).startswith("Comparison(words, base → base + tuned: instruction probability ")
    assert f"cosine of the vectors {found.drifted('cosine', 'own'):.2f}" in repr(found)
    hostile = replace(found, tuned_name="<script>alert(1)</script>\x1b[31m")
    page = hostile._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert page.count("<tr>") == 1 + 12 + 2 * (found.base_vector.scale != 1) + 1 + 6
    assert f"{found.value('sufficiency', heads='chosen'):+.3f}" in page


def test_an_unknown_measure_is_named_beside_the_known(found: Comparison) -> None:
    with pytest.raises(IvlensError, match=r"there is no line .*'accuracy'.*; measures are instruction probability, "):
        found.value("accuracy")
    with pytest.raises(IvlensError, match="there is no drift 'cosine' of heads ''; see the table drift"):
        found.drifted("cosine")
    assert found.value("sufficiency", model="tuned", heads="chosen", vector="tuned") != found.value(
        "sufficiency", model="tuned", heads="chosen"
    )
