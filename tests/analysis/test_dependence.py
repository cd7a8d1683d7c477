"""Dependence on a vector is what one hooked run per prompt says, and nothing is measured where nothing was asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import rounding
import torch
from checkpoints import KINDS, random_hooked
from conftest import WORD_TEMPLATE, random_tokens
from transformer_lens import HookedTransformer

from ivlens.analysis import dependence
from ivlens.analysis.dependence import DEPENDENCE, Dependence, measure, per_prompt, pooled, recovery, summarise
from ivlens.analysis.probes import Probe, prepare
from ivlens.datasets.task import Pair, Task
from ivlens.errors import IvlensError, ModelError, ShapeMismatch
from ivlens.measures import interval
from ivlens.models import lora
from ivlens.models.lora import Adapter, LoraConfig
from ivlens.patching import interventions
from ivlens.patching.interventions import Change
from ivlens.patching.settings import Settings
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head
from ivlens.steering.vector_building import instruction_vector
from ivlens.vectors.instruction_vector import InstructionVector

pytestmark = pytest.mark.numeric

SETTINGS = Settings(shots=3, clean_prompts=6, prompts=5, template=WORD_TEMPLATE)
HEADS = (Head(0, 1), Head(2, 3), Head(2, 0))
RANDOM = ((Head(0, 0), Head(1, 1), Head(2, 2)), (Head(1, 0), Head(1, 2), Head(1, 3)))
OTHERS = [
    Task(name=f"other{i}", pairs=tuple(Pair(f"w{j}", f"w{j + 1}") for j in range(i, i + 20)), instructions=("w90",))
    for i in range(2)
]


def random_probe(seed: int = 0) -> Probe:
    """Of no task: prompts, vectors and means at random."""
    generator = torch.Generator().manual_seed(seed)
    return Probe(
        task="random",
        heads=HEADS,
        random=RANDOM,
        vectors=torch.randn(3, 32, dtype=torch.float64, generator=generator),
        unscaled=None,
        layer=1,
        z=torch.randn(3, 4, 8, dtype=torch.float64, generator=generator),
        zero_shot=random_tokens(seed=seed),
        instructed=random_tokens(seed=seed + 1),
        statement=random_tokens(n=3, seed=seed + 2),
        seed=0,
    )


@contextmanager
def changed(model: HookedTransformer, probe: Probe, change: Change, position: int) -> Iterator[None]:
    """The model with one change at one token, by TransformerLens' own hooks."""

    def add(resid: torch.Tensor, hook: object) -> torch.Tensor:
        resid = resid.clone()
        resid[0, position] += change.added
        return resid

    def ablate(z: torch.Tensor, hook: object) -> torch.Tensor:
        z = z.clone()
        for head in change.ablated:
            if head.layer == hook.layer():  # type: ignore[attr-defined]
                z[0, position, head.head] = probe.z[head]
        return z

    hooks = [(lambda name: name.endswith("hook_z"), ablate)]
    hooks += [(f"blocks.{probe.layer}.hook_resid_post", add)] if change.added is not None else []
    with model.hooks(fwd_hooks=hooks):
        yield


def alone(
    model: HookedTransformer, probe: Probe, tokens: Tokens, row: int, change: Change
) -> tuple[float, float, torch.Tensor]:
    """Probability, success and next-token distribution of one prompt, unpadded, token by token of its answer."""
    ids = tokens.prompts[row][tokens.mask[row]]
    answer = tokens.answers[row][tokens.answer_mask[row]]
    with changed(model, probe, change, len(ids) - 1):
        first = model(ids[None])[0, -1].softmax(-1)
        right = True
        for n in range(len(answer)):
            logits = model(torch.cat([ids, answer[:n]])[None])[0, -1]
            right = right and int(logits.argmax()) == int(answer[n])
    return float(first[answer[0]]), float(right), first


def twin(model: HookedTransformer, probe: Probe) -> dict[tuple[str, str], list[float]]:
    """Every measure by its definition, one prompt and one change at a time."""
    found: dict[tuple[str, str], list[float]] = {}
    kinds = {"chosen": [0], "random": [1, 2]}
    sides = (("sufficiency", probe.zero_shot), ("necessity", probe.instructed))
    for name, tokens in sides:
        assert tokens is not None
        for row in range(len(tokens)):
            plain = alone(model, probe, tokens, row, Change())
            for heads, numbers in kinds.items():
                parts, shifts = [], []
                for number in numbers:
                    vector = probe.vectors[number]
                    change = Change(vector) if name == "sufficiency" else Change(ablated=probe.sets[number])
                    there = alone(model, probe, tokens, row, change)
                    sign = 1 if name == "sufficiency" else -1
                    parts.append([sign * (there[i] - plain[i]) for i in range(2)])
                    away = alone(model, probe, tokens, row, Change(-vector))[2]
                    shifts.append(float((plain[2] * (plain[2] / away).log()).sum()))
                found.setdefault((name, heads), []).append(sum(part[0] for part in parts) / len(parts))
                found.setdefault((f"{name} accuracy", heads), []).append(sum(part[1] for part in parts) / len(parts))
                if name == "necessity":
                    found.setdefault(("shift", heads), []).append(sum(shifts) / len(shifts))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_dependence_is_that_of_one_hooked_run_per_prompt(kind: str) -> None:
    model, probe = random_hooked(kind), random_probe()
    found, expected = per_prompt(model, probe), twin(model, probe)
    assert set(expected) == {key for key in found.values if key[0].split()[0] in ("sufficiency", "necessity", "shift")}
    for key, values in expected.items():
        wanted = torch.tensor(values, dtype=torch.float64)
        ours = found.values[key].reshape(len(wanted), -1).mean(1)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12, msg=lambda text: f"{key}: {text}")  # noqa: B023
    assert max(abs(v) for values in expected.values() for v in values) > 1e-2, "too small to be seen"


@pytest.mark.slow
def test_probability_and_accuracy_are_those_of_the_unchanged_model() -> None:
    model, probe = random_hooked("llama"), random_probe()
    found = per_prompt(model, probe)
    kinds = {"instruction": probe.instructed, "knowledge": probe.statement, "zero-shot": probe.zero_shot}
    for name, tokens in kinds.items():
        assert tokens is not None
        single = [alone(model, probe, tokens, row, Change()) for row in range(len(tokens))]
        assert found.values[f"{name} probability", ""].tolist() == pytest.approx([s[0] for s in single])
        assert found.values[f"{name} accuracy", ""].tolist() == [s[1] for s in single]
    steered = [alone(model, probe, probe.zero_shot, row, Change(probe.vectors[0]))[0] for row in range(5)]
    assert found.values["steered zero-shot probability", "chosen"].tolist() == pytest.approx(steered)


@pytest.mark.slow
def test_a_models_own_vector_and_demonstrations_are_one_hooked_run_per_prompt() -> None:
    model, probe = random_hooked("llama"), replace(random_probe(), few_shot=random_tokens(n=4, seed=7))
    own, plain = -2.0 * probe.vectors[1], per_prompt(model, probe)
    found = per_prompt(model, probe, own=own)
    kinds = {"instruction": probe.instructed, "zero-shot": probe.zero_shot, "few-shot": probe.few_shot}
    for name, tokens in kinds.items():
        assert tokens is not None
        for heads, change in (("own", Change(own)), ("chosen", Change(probe.vectors[0]))):
            single = [alone(model, probe, tokens, row, change) for row in range(len(tokens))]
            assert found.values[f"steered {name} probability", heads].tolist() == pytest.approx([s[0] for s in single])
            assert found.values[f"steered {name} accuracy", heads].tolist() == [s[1] for s in single]
    for key, values in plain.values.items():
        torch.testing.assert_close(values, found.values[key], rtol=0, atol=1e-12)
    assert ("necessity", "own") not in found.values and ("sufficiency", "own") not in plain.values


def test_tasks_count_the_same_and_the_interval_is_over_queries_and_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {n: (torch.rand(n, 4, generator=generator) < 0.3).double() for n in (6, 12)}
    parts = [
        Dependence(values={("steered zero-shot accuracy", "random"): values}, task=str(n), n_heads=1, seed=0)
        for n, values in drawn.items()
    ]
    found, n = pooled(parts, "steered zero-shot accuracy", "random")
    assert n == 18 and found.mean == pytest.approx(sum(float(values.mean()) for values in drawn.values()) / 2)
    queries = interval(torch.cat([values.mean(1) for values in drawn.values()]))
    assert found.high - found.low > queries.high - queries.low and found.low >= 0, "draws would be others, too"
    nothing = [replace(parts[0], values={("zero-shot accuracy", ""): torch.zeros(0)})]
    assert math.isnan(pooled(nothing, "zero-shot accuracy")[0].mean)


@pytest.mark.slow
def test_answers_that_the_model_writes_are_right_and_stop_being_so() -> None:
    """Random answers are never right: take the model's own, so that accuracies move."""
    model, probe = random_hooked("gpt2"), random_probe()
    tokens = probe.zero_shot
    rows = range(len(tokens))
    own = [int(alone(model, probe, tokens, row, Change())[2].argmax()) for row in rows]
    steered = [int(alone(model, probe, tokens, row, Change(probe.vectors[0]))[2].argmax()) for row in rows]
    for answers, before in ((own, 1.0), (steered, 0.0)):
        asked = replace(tokens.first(), answers=torch.tensor(answers)[:, None])
        found = per_prompt(model, replace(probe, zero_shot=asked))
        changes = [float(a != b) for a, b in zip(own, steered, strict=True)]
        assert sum(changes) > 0
        assert found.value("zero-shot accuracy") == pytest.approx(before or 1 - sum(changes) / len(changes))
        sign = -1 if before else 1
        assert found.values["sufficiency accuracy", "chosen"].tolist() == [sign * change for change in changes]


@pytest.mark.slow
def test_many_prompts_in_small_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, probe = random_hooked("neox"), random_probe()
    whole = per_prompt(model, probe)
    monkeypatch.setattr(interventions, "_LOGITS", 1)
    for key, values in per_prompt(model, probe).values.items():
        torch.testing.assert_close(values, whole.values[key], rtol=0, atol=1e-12)


def test_an_ablation_by_a_heads_own_output_and_a_vector_of_zero_change_nothing() -> None:
    model, probe = random_hooked("llama"), random_probe()
    ids = probe.zero_shot.prompts[:1]
    kept = []
    model.run_with_hooks(ids, fwd_hooks=[(lambda name: name.endswith("hook_z"), lambda z, hook: kept.append(z[0, -1]))])
    one = probe.zero_shot.first()[:1]
    found = interventions.run_changes(
        model,
        one,
        [Change(ablated=HEADS), Change(added=torch.zeros(32))],
        layer=0,
        z=torch.stack(kept),
        shifted=range(3),
    )
    near = rounding.of_forward(model, ids)
    torch.testing.assert_close(found.probability, found.probability[:, :1].expand(-1, 3), rtol=0, atol=near)
    assert float(found.shift.abs().max()) < near


@pytest.fixture(scope="module")
def vector(tiny: HookedTransformer, word_task: Task) -> InstructionVector:
    return instruction_vector(tiny, word_task, heads=HEADS, settings=SETTINGS, layer=1, scale=1.0)


@pytest.fixture(scope="module")
def probe(tiny: HookedTransformer, word_task: Task, vector: InstructionVector) -> Probe:
    return prepare(tiny, word_task, vector, prompts=6, draws=4, others=OTHERS)


@pytest.fixture
def adapter(tiny: HookedTransformer) -> Adapter:
    adapter = lora.fresh(tiny, LoraConfig(rank=2))
    generator = torch.Generator().manual_seed(0)
    for factors in adapter.factors.values():
        factors.B.normal_(0, 0.3, generator=generator)
    return adapter


def test_demonstrations_are_of_the_pairs_that_give_means(
    probe: Probe, vector: InstructionVector, word_task: Task, tiny: HookedTransformer
) -> None:
    assert probe.few_shot is None
    asked = prepare(tiny, word_task, vector, prompts=6, draws=4, others=OTHERS, demonstrations=True)
    assert asked.few_shot is not None and torch.equal(asked.few_shot.answers, probe.zero_shot.answers)
    split, seen = word_task.split(shots=3, seed=0), set(tiny.tokenizer.decode(asked.few_shot.prompts[0]).split())
    shown = [pair for pair in split.mean if {pair.input, pair.output} <= seen]
    assert len(shown) == 3 and split.evaluation[0].input in seen and split.evaluation[0].output not in seen


def test_a_probe_asks_evaluation_pairs_beside_random_heads_of_equal_norm(
    probe: Probe, vector: InstructionVector, word_task: Task, tiny: HookedTransformer
) -> None:
    pairs = word_task.split(shots=3, seed=0).evaluation[:6]
    words = [tiny.tokenizer.decode(int(row[-3])) for row in probe.zero_shot.prompts]
    assert words == [pair.input for pair in pairs]
    assert len(probe.random) == 4 and all(len(set(heads)) == 3 for heads in probe.random)
    assert not {head for heads in probe.random for head in heads} & set(vector.heads)
    assert probe.vectors.norm(dim=1).tolist() == pytest.approx([float(vector.vector.norm())] * 5)
    assert torch.equal(probe.vectors[0], vector.vector) and probe.layer == 1
    assert repr(probe) == "Probe(words: 6 queries, 3 heads at layer 1 beside 4 random draws)"


@pytest.mark.slow
def test_the_means_for_ablation_are_over_other_tasks(
    tiny: HookedTransformer, word_task: Task, vector: InstructionVector, probe: Probe
) -> None:
    kept: list[torch.Tensor] = []
    for other in OTHERS:
        z = []
        for pair in other.pairs:
            ids = tiny.to_tokens(f"w90 \n Q : {pair.input} A :", prepend_bos=True)
            layers: list[torch.Tensor] = []
            hook = (lambda name: name.endswith("hook_z"), lambda z, hook, layers=layers: layers.append(z[0, -1]))
            tiny.run_with_hooks(ids, fwd_hooks=[hook])
            z.append(torch.stack(layers))
        # 50 prompts of 20 pairs: some are asked three times, all of them at least twice.
        kept.append(torch.stack(z))
    assert float((probe.z - torch.cat(kept).mean(0)).abs().max()) < 0.5 * float(torch.cat(kept).std(0).max())
    again = prepare(tiny, word_task, vector, others=[*OTHERS, word_task, Task(name="x", pairs=word_task.pairs)])
    assert torch.equal(again.z, probe.z), "the task itself and tasks without an instruction are left out"


def test_what_a_task_lacks_is_not_measured_and_never_zero(tiny: HookedTransformer, word_task: Task) -> None:
    bare = Task(name="bare", pairs=word_task.pairs)
    vector = instruction_vector(tiny, bare, heads=HEADS, settings=SETTINGS, layer=1, scale=1.0)
    probe = prepare(tiny, bare, vector, prompts=6, others=OTHERS)
    assert repr(probe).endswith("without instructed and statement prompts)")
    frame = measure(tiny, probe)
    missing = frame[frame["n"] == 0]
    names = ("instruction", "knowledge", "necessity", "shift", "steered instruction")
    assert {line.startswith(names) for line in missing["measure"]} == {True} and len(missing) == 14
    assert missing[["value", "low", "high"]].isna().all(axis=None)
    assert frame[frame["n"] > 0][["value", "low", "high"]].notna().all(axis=None)


@pytest.mark.slow
def test_every_line_has_its_interval(tiny: HookedTransformer, probe: Probe) -> None:
    frame = measure(tiny, probe)
    assert list(frame.columns) == list(DEPENDENCE) and len(frame) == 24
    assert set(frame["heads"]) == {"", "chosen", "random"} and set(frame["n"]) == {6}
    assert (frame["n_heads"] == frame["heads"].map({"": 0, "chosen": 3, "random": 3})).all()
    assert (frame["low"] <= frame["value"] + 1e-12).all() and (frame["value"] <= frame["high"] + 1e-12).all()
    pd.testing.assert_frame_equal(frame, measure(tiny, probe), check_exact=True)


@pytest.mark.slow
def test_attached_merged_and_taken_off(tiny: HookedTransformer, probe: Probe, adapter: Adapter) -> None:
    before = per_prompt(tiny, probe)
    with lora.attached(tiny, adapter):
        attached = per_prompt(tiny, probe)
    with lora.merged(tiny, adapter):
        merged = per_prompt(tiny, probe)
    after = per_prompt(tiny, probe)
    for key, values in before.values.items():
        assert torch.equal(values, after.values[key]) and torch.equal(attached.values[key], merged.values[key])
    assert not torch.equal(before.values["sufficiency", "chosen"], merged.values["sufficiency", "chosen"])


@pytest.mark.slow
def test_changes_are_paired_by_query(tiny: HookedTransformer, probe: Probe, adapter: Adapter) -> None:
    before = per_prompt(tiny, probe)
    with lora.merged(tiny, adapter):
        after = per_prompt(tiny, probe)
    change = after.minus(before)
    for key, values in change.values.items():
        assert torch.equal(values, after.values[key] - before.values[key])
    line = change.to_frame().set_index(["measure", "heads"]).loc["sufficiency", "chosen"]
    paired = interval(change.values["sufficiency", "chosen"], torch.arange(6))
    assert (line["value"], line["low"], line["high"]) == pytest.approx(tuple(paired))
    assert repr(change).startswith("Dependence(change of dependence on 3 heads of words: sufficiency ")
    with pytest.raises(IvlensError, match="not of the same probe; measure both models with one probe"):
        change.minus(replace(before, task="other"))


def test_a_difference_is_never_taken_for_a_proportion() -> None:
    ones = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert summarise(ones, proportion=True) == interval(ones)
    assert summarise(ones) != interval(ones) and summarise(ones).mean == 0.75
    found = Dependence(
        values={("zero-shot accuracy", ""): ones, ("sufficiency accuracy", "chosen"): ones}, task="t", n_heads=1, seed=0
    )
    low = found.to_frame().set_index("measure")["low"]
    paired = interval(ones, torch.arange(4))
    assert low["zero-shot accuracy"] == pytest.approx(interval(ones).low)
    assert low["sufficiency accuracy"] == pytest.approx(paired.low) and paired.low < interval(ones).low
    # That no answer has changed makes it no certainty that none would.
    assert found.minus(found).to_frame()["high"].tolist() == pytest.approx([interval(torch.zeros(4)).high] * 2)


def test_recovery_is_what_comes_back_of_what_was_lost(tiny: HookedTransformer, probe: Probe) -> None:
    found = per_prompt(tiny, probe)

    def with_accuracies(instruction: list[int], steered: list[int], zero_shot: list[int]) -> Dependence:
        values = dict(found.values)
        values["instruction accuracy", ""] = torch.tensor(instruction, dtype=torch.float64)
        values["steered instruction accuracy", "chosen"] = torch.tensor(steered, dtype=torch.float64)
        values["steered zero-shot accuracy", "chosen"] = torch.tensor(zero_shot, dtype=torch.float64)
        return replace(found, values=values)

    base = with_accuracies([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1])
    tuned = with_accuracies([0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0])
    frame = recovery(base, tuned)
    assert list(frame.columns) == list(DEPENDENCE)
    lines = frame.set_index(["measure", "heads"])
    assert lines.loc[("lost instruction accuracy", ""), "value"] == pytest.approx(1)
    assert lines.loc[("regained instruction accuracy", "chosen"), "value"] == pytest.approx(2 / 6)
    share = lines.loc[("share regained instruction", "chosen")]
    assert share["value"] == pytest.approx(2 / 6) and 0 <= share["low"] < 0.4 < share["high"] <= 1
    zero_shot = float(found.values["zero-shot accuracy", ""].sum())
    assert lines.loc[("regained zero-shot accuracy", "chosen"), "value"] == pytest.approx((1 - zero_shot) / 6)
    kept = recovery(base, base)
    assert kept[kept["measure"].str.startswith("share")]["value"].isna().all(), "nothing was lost"


@pytest.mark.slow
@pytest.mark.parametrize("n_draws", [1, 6])
def test_the_interval_of_a_regained_share_covers_the_true_one(n_draws: int) -> None:
    generator, covered = torch.Generator().manual_seed(0), []
    for _ in range(200):
        lost = (torch.rand(24, generator=generator) < 0.8).double()
        # Draws differ: of what was lost, one brings 0.1 back, another 0.5.
        rates = 0.3 + 0.2 * (2 * torch.rand(n_draws, generator=generator) - 1) * (n_draws > 1)
        back = lost[:, None] * (torch.rand(24, n_draws, generator=generator) < rates).double()
        found = dependence._share(back.squeeze(1) if n_draws == 1 else back, lost)
        assert 0 <= found.low <= found.mean <= found.high <= 1
        covered.append(found.low <= 0.3 <= found.high)
    assert sum(covered) / len(covered) >= 0.9


def test_no_interval_of_a_share_or_a_difference_leaves_what_it_can_be() -> None:
    nearly = torch.tensor([0.99, 0.98, 1.0, 0.4], dtype=torch.float64)
    names = ("instruction probability", "knowledge probability", "steered zero-shot probability")
    values = {(name, ""): nearly for name in names} | {("necessity", "chosen"): nearly, ("shift", "chosen"): 1 - nearly}
    found = Dependence(values=values, task="t", n_heads=1, seed=0)
    frame = found.to_frame().set_index("measure")
    assert (frame["high"].drop("shift") == 1.0).all() and frame.loc["shift", "low"] == 0.0
    zero = Dependence(values={key: 0 * value for key, value in values.items()}, task="t", n_heads=1, seed=0)
    change = zero.minus(found).to_frame().set_index("measure")
    assert (change.loc[list(names), "low"] == -1.0).all() and change.loc["necessity", "low"] < -1.0


def test_a_probe_of_another_shape_or_task_is_refused(
    tiny: HookedTransformer, word_task: Task, vector: InstructionVector, probe: Probe
) -> None:
    with pytest.raises(
        ShapeMismatch, match=r"means are \(3, 4, 8\) but random-gpt2 has heads \(3, 2, 8\) as .*prepare"
    ):
        per_prompt(random_hooked("gpt2", n_heads=2), probe)
    with pytest.raises(ShapeMismatch, match=r"a vector is \(32,\), but random-gpt2 has d_model 16; prepare the probe"):
        per_prompt(random_hooked("gpt2", d_model=16), probe)
    for given, sentence in (
        ({"prompts": 0}, "prompts is 0; it must be 1 or more"),
        ({"draws": 0}, "draws is 0; it must be 1 or more"),
        ({"others": [Task(name="x", pairs=word_task.pairs)]}, "no other task has an instruction and prompts that fit"),
    ):
        with pytest.raises(IvlensError, match=sentence):
            prepare(tiny, word_task, vector, **given)
    with pytest.raises(IvlensError, match="the vector is of task 'words', not of 'bare'; build it on this task"):
        prepare(tiny, Task(name="bare", pairs=word_task.pairs), vector)
    with pytest.raises(IvlensError, match=r"has no layer yet; take vector\.at\(layer\)"):
        prepare(tiny, word_task, replace(vector, layer=None))
    with pytest.raises(
        IvlensError, match=r"no measure 'accuracy' of heads ''; there are .*sufficiency of chosen heads"
    ):
        per_prompt(tiny, probe).value("accuracy")


def test_a_broken_model_names_its_layer(probe: Probe) -> None:
    model = random_hooked("llama", n_key_value_heads=4)
    model.blocks[1].mlp.b_out.data[0] = torch.nan
    with pytest.raises(ModelError, match="after layer 1 is NaN or infinite"):
        per_prompt(model, probe)


def test_few_other_heads_are_drawn_from_all(tiny: HookedTransformer, word_task: Task) -> None:
    many = [Head(layer, head) for layer in range(3) for head in range(3)]
    vector = instruction_vector(tiny, word_task, heads=many, settings=SETTINGS, layer=1, scale=1.0)
    probe = prepare(tiny, word_task, vector, others=OTHERS, draws=3)
    assert all(len(set(heads)) == 9 for heads in probe.random)


def test_nothing_is_left_on_the_model(tiny: HookedTransformer, probe: Probe) -> None:
    per_prompt(tiny, probe)
    assert all(not point.fwd_hooks for point in tiny.hook_dict.values())


@pytest.mark.slow
def test_values_of_the_lab_are_finite_and_the_vector_is_sufficient(lab: HookedTransformer) -> None:
    import ivlens

    task = ivlens.task("antonym")
    heads = [Head(layer, head) for layer in range(lab.cfg.n_layers) for head in range(2)]
    vector = ivlens.instruction_vector(lab, task, heads=heads, layer=1, scale=1.0, settings=Settings(clean_prompts=10))
    found = measure(lab, prepare(lab, task, vector, prompts=4, draws=2))
    assert len(found) == 24 and not found["value"].isna().any()
    assert math.isfinite(found["high"].max())
