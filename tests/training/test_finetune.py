"""The loop takes the steps that a loop written out by hand takes, and goes on from a checkpoint as if never stopped."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import VOCAB, fresh_adapter, logits_alone, small_examples, small_model, small_tokens, trained_adapter
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import HookedTransformer

from ivlens.errors import IvlensError, ShapeMismatch, TrainingError
from ivlens.models import lora
from ivlens.models.lora import Adapter, LoraConfig
from ivlens.patching.activations import differentiable_answer_logits
from ivlens.prompts.tokens import Tokens
from ivlens.training import checkpoints, loop
from ivlens.training.guidance import GUIDANCE, Guidance, Guide
from ivlens.training.loop import Examples, Step, Training, answer_loss, finetune
from ivlens.training.methods import Ewc, Lora, Lwf

pytestmark = pytest.mark.numeric

TRAINING = Training(steps=6, batch=4, rate=0.02, warmup=2, weight_decay=0.1, clip=2.0)
CLIP = 1.4
"""A norm that some of these steps' gradients exceed."""


@pytest.fixture
def model() -> HookedTransformer:
    return small_model()


def guide_of(model: HookedTransformer, guidance: Guidance, *, vectors: int = 3) -> Guide:
    drawn = torch.randn(vectors, model.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return Guide(guidance=guidance, vectors=drawn, layer=0, teacher=lambda: lora.silenced(model))


def train(
    model: HookedTransformer,
    training: Training = TRAINING,
    *,
    examples: Examples | None = None,
    adapter: Adapter | None = None,
    stop: int | None = None,
    **settings: Any,
) -> tuple[list[Step], list[Tensor]]:
    """The steps up to `stop`, and the factors behind them."""
    adapter = adapter or fresh_adapter(model)
    settings = {"method": Lora(), "seed": 3, "name": "words", **settings}
    with lora.attached(model, adapter):
        steps = finetune(model, adapter, examples or small_examples(), training, **settings)
        taken = list(itertools.islice(steps, stop))
        steps.close()
    return taken, [factor.detach().clone() for factor in adapter.parameters()]


def assert_same(one: Iterable[Tensor], other: Iterable[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@dataclass(kw_only=True)
class Spoiled(Lora):
    """A penalty that turns bad at one of its calls, and looks like any other until then."""

    at: int | None = field(default=None, repr=False)
    infinite_slope: bool = field(default=False, repr=False)
    calls: int = field(default=0, repr=False)

    def penalty(self, model: HookedTransformer, adapter: Adapter, batch: Tokens, logits: Tensor) -> Tensor:
        self.calls += 1
        if self.calls - 1 != self.at:
            return torch.zeros(())
        b = adapter.parameters()[1]
        # The root of nothing is 0, and its slope infinite.
        return (b - b.detach()).square().sum().sqrt() if self.infinite_slope else b.sum() * math.nan


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 5])
def test_a_training_killed_after_any_step_goes_on_bit_for_bit(
    model: HookedTransformer, tmp_path: Path, killed: int
) -> None:
    settings: dict[str, Any] = {
        "training": replace(TRAINING, accumulate=2),
        "examples": small_examples(9, new=6, replayed=0.25),
        "method": Lwf(),
        "guide": guide_of(model, GUIDANCE["iv-general"]),
    }
    steps, factors = train(model, **settings)
    path = tmp_path / "checkpoint"
    begun, _ = train(model, **settings, stop=killed, checkpoint=path, every=2)
    assert path.exists() == (killed >= 2)
    went_on, at_the_end = train(model, **settings, checkpoint=path, every=2)
    assert begun == steps[:killed]
    assert went_on == steps[killed - killed % 2 :]
    assert_same(at_the_end, factors)


def test_slow_steps_are_kept_by_the_clock(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    train(model, stop=2, checkpoint=path)
    assert not path.exists(), "two quick steps of a hundred"
    monkeypatch.setattr(loop, "SECONDS", 0.0)
    train(model, stop=2, checkpoint=path)
    assert checkpoints.steps_of(path) == 2


@dataclass(frozen=True, kw_only=True)
class Listener(Guide):
    """Notes what the loop tells a guide."""

    told: list[float]

    def run(self, *args: Any, progress: float, **settings: Any) -> tuple[Tensor, Tensor]:
        self.told.append(progress)
        return super().run(*args, progress=progress, **settings)


@pytest.mark.slow
def test_a_guide_is_told_what_share_of_the_steps_has_been_taken(model: HookedTransformer, tmp_path: Path) -> None:
    guide = guide_of(model, GUIDANCE["iv"])
    listener = Listener(**{name: getattr(guide, name) for name in guide.__dataclass_fields__}, told=[])
    for stop in (2, None):
        train(model, guide=listener, stop=stop, checkpoint=tmp_path / "checkpoint", every=2)
    assert listener.told == [step / 6 for step in range(6)]


class ReadNumbers(TorchDispatchMode):
    """Notes the type of every tensor that a number is read of: where it lies on a GPU, that is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.types.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, "iv", "iv-general", "fv-published"])
def test_of_a_step_nothing_is_read_before_its_gradients_are_there(model: HookedTransformer, form: str | None) -> None:
    examples, adapter = small_examples(), fresh_adapter(model).requires_grad_()
    guide = guide_of(model, replace(GUIDANCE[form], heads=0.0)) if form else None
    with lora.attached(model, adapter):
        arguments = (model, adapter, examples, TRAINING, Lwf(), guide)
        loop._backward(*arguments, seed=3, step=0)  # What a guide asks of its vectors, it asks once.
        with ReadNumbers() as read:
            parts = loop._backward(*arguments, seed=3, step=1)
    assert set(read.types) == {torch.int64}, "counts of answer tokens, of masks on the CPU"
    assert loop._read(parts, torch.tensor(0.5))[2] == 0.5


def test_batches_depend_on_the_seed_and_the_step_only() -> None:
    examples = small_examples(9, new=6, replayed=0.25)
    in_order = [examples.rows(step, 4, 3).tolist() for step in range(8)]
    backwards = [examples.rows(step, 4, 3).tolist() for step in reversed(range(8))]
    assert backwards[::-1] == in_order
    assert [examples.rows(step, 4, 4).tolist() for step in range(8)] != in_order
    assert len({tuple(rows) for rows in in_order}) > 4


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 16])
def test_every_epoch_reads_every_prompt_once(batch: int) -> None:
    examples = small_examples(7)
    read = np.concatenate([examples.rows(step, batch, 3) for step in range(7)])
    epochs = [read[start : start + 7].tolist() for start in range(0, len(read), 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert batch == 1 or len({tuple(epoch) for epoch in epochs}) > 1, "every epoch has an order of its own"


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, "iv", "iv-general"])
@pytest.mark.parametrize("parts", [2, 6])
def test_a_step_in_parts_is_the_step_in_one(model: HookedTransformer, parts: int, form: str | None) -> None:
    # Rehearsal reads one token per prompt, so that its parts are alike only where answers are.
    examples = small_examples(answer=1 if form == "iv-general" else 3)
    guide = guide_of(model, replace(GUIDANCE[form], kl=0.5)) if form else None
    whole = Training(steps=3, batch=6, rate=0.02, warmup=0)
    settings: dict[str, Any] = {"examples": examples, "method": Lwf(weight=0.3), "guide": guide}
    steps, factors = train(model, whole, **settings)
    in_parts, same = train(model, replace(whole, accumulate=parts), **settings)
    assert steps[-1].penalty > 0.01
    for step, other in zip(steps, in_parts, strict=True):
        assert other == pytest.approx(step, rel=1e-9, abs=1e-14)
    for factor, other in zip(factors, same, strict=True):
        torch.testing.assert_close(other, factor, rtol=0, atol=1e-9)


def test_the_parts_of_a_step_are_of_like_lengths_and_of_the_same_prompts(model: HookedTransformer) -> None:
    @dataclass(kw_only=True)
    class Seen(Lora):
        parts: list[Tokens] = field(default_factory=list)

        def penalty(self, model: HookedTransformer, adapter: Adapter, batch: Tokens, logits: Tensor) -> Tensor:
            self.parts.append(batch)
            return torch.zeros(())

    seen, examples = Seen(), small_examples(12)
    train(model, replace(TRAINING, steps=1, batch=6, accumulate=3), examples=examples, method=seen)
    lengths = [(part.mask.sum(1) + part.answer_mask.sum(1)).tolist() for part in seen.parts]
    drawn = examples.lengths[examples.rows(0, 6, 3)].tolist()
    assert list(itertools.chain(*lengths)) == sorted(drawn) != drawn and len(lengths) == 3
    assert seen.parts[0].prompts.shape[1] < seen.parts[-1].prompts.shape[1]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "alibi"])
def test_the_loss_is_the_mean_over_answer_tokens_of_prompts_run_alone(kind: str) -> None:
    model, tokens = small_model(kind), small_tokens()
    with lora.attached(model, trained_adapter(model)):
        loss = answer_loss(differentiable_answer_logits(model, tokens), tokens)
        expected = mean_loss_alone(model, tokens, range(6))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


def mean_loss_alone(model: HookedTransformer, tokens: Tokens, rows: Iterable[int]) -> Tensor:
    losses = [
        cross_entropy(logits_alone(model, tokens, row), tokens.answers[row][tokens.answer_mask[row]], reduction="none")
        for row in rows
    ]
    return torch.cat(losses).mean()


@pytest.mark.slow
def test_the_loop_takes_the_steps_of_a_loop_written_out_by_hand(model: HookedTransformer) -> None:
    examples, training = small_examples(), replace(TRAINING, clip=CLIP)
    steps, factors = train(model, training)
    assert {step.gradient > CLIP for step in steps} == {True, False}, "some steps are clipped, and some are not"
    adapter = fresh_adapter(model).requires_grad_()
    parameters = adapter.parameters()
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    for number, step in enumerate(steps):
        rate = 0.02 * [1 / 2, 1, 1, (1 + math.cos(math.pi / 4)) / 2, 1 / 2, (1 - math.cos(math.pi / 4)) / 2][number]
        with lora.attached(model, adapter):
            loss = mean_loss_alone(model, examples.prompts, examples.rows(number, 4, 3).tolist())
            gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert step == pytest.approx((number, loss.item(), 0.0, rate, float(norm)), rel=1e-9)
        with torch.no_grad():
            for i, gradient in enumerate(gradients):
                # `+ 1e-6` is PyTorch's own when it clips.
                clipped = gradient * min(1.0, CLIP / (float(norm) + 1e-6))
                first[i] = 0.9 * first[i] + 0.1 * clipped
                second[i] = 0.999 * second[i] + 0.001 * clipped**2
                mean, spread = first[i] / (1 - 0.9 ** (number + 1)), second[i] / (1 - 0.999 ** (number + 1))
                parameters[i] -= rate * 0.1 * parameters[i]
                parameters[i] -= rate * mean / (spread.sqrt() + 1e-8)
    for parameter, factor in zip(parameters, factors, strict=True):
        torch.testing.assert_close(factor, parameter.detach(), rtol=0, atol=1e-8)


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    cosine = Training(steps=20, warmup=4, rate=2.0)
    assert [cosine.rate_at(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert cosine.rate_at(12) == pytest.approx(1.0) and cosine.rate_at(8) == pytest.approx(1 + 0.5**0.5)
    assert cosine.rate_at(20) == 0
    assert 0 < cosine.rate_at(19) < 0.03, "the last step still learns"
    linear = replace(cosine, schedule="linear")
    assert [linear.rate_at(step) for step in (3, 4, 8, 12, 20)] == [2.0, 2.0, 1.5, 1.0, 0.0]
    constant = replace(cosine, schedule="constant")
    assert [constant.rate_at(step) for step in (0, 3, 4, 12, 20)] == [0.5, 2.0, 2.0, 2.0, 2.0]
    assert [replace(linear, warmup=0).rate_at(step) for step in (0, 10)] == [2.0, 1.0]
    assert replace(cosine, warmup=40).rate_at(19) == 1.0, "a warm-up longer than the training is cut off"


@pytest.mark.slow
@pytest.mark.parametrize("infinite_slope", [False, True])
def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_good_checkpoint(
    model: HookedTransformer, tmp_path: Path, infinite_slope: bool
) -> None:
    path, adapter = tmp_path / "checkpoint", fresh_adapter(model)
    steps, factors = train(model, method=Spoiled())
    spoiled = Spoiled(at=3, infinite_slope=infinite_slope)
    what = r"and the norm of its gradient nan" if infinite_slope else "is nan"
    with pytest.raises(TrainingError, match=rf"the loss of words .*{what} .*at step 3; lower the rate"):
        train(model, adapter=adapter, method=spoiled, checkpoint=path, every=1)
    assert all(bool(factor.isfinite().all()) for factor in adapter.parameters())
    went_on, at_the_end = train(model, method=Spoiled(), checkpoint=path, every=1)
    assert went_on == steps[3:]
    assert_same(at_the_end, factors)


@pytest.mark.slow
def test_the_models_own_weights_stay_as_they_are(model: HookedTransformer) -> None:
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    _, factors = train(model, guide=guide_of(model, Guidance()), method=Lwf())
    assert all(bool(factor.any()) for factor in factors), "it learned"
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(weight.grad is None and not weight.requires_grad for weight in after.values())
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_an_adapter_under_the_one_that_learns_stays_as_it_is(model: HookedTransformer) -> None:
    earlier = trained_adapter(model, seed=8)
    kept = [factor.clone() for factor in earlier.parameters()]
    with lora.attached(model, earlier):
        steps, _ = train(model)
    assert_same(earlier.parameters(), kept)
    assert steps[0].loss != train(model, stop=1)[0][0].loss


class Touch:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_damaged_checkpoint_is_refused_and_nothing_is_unpickled(model: HookedTransformer, tmp_path: Path) -> None:
    path, trap = tmp_path / "checkpoint", tmp_path / "trap"
    train(model, stop=2, checkpoint=path, every=2)
    whole = path.read_bytes()
    torch.save({"factors": [], "optimizer": Touch(trap), "steps": 1}, tmp_path / "saved")
    contents = (whole[:-9], whole[:40], b"", b"hello", pickle.dumps(Touch(trap)), (tmp_path / "saved").read_bytes())
    for content in contents:
        path.write_bytes(content)
        adapter = fresh_adapter(model)
        with pytest.raises(TrainingError, match=r"checkpoint is no readable safetensors file .*; delete it"):
            train(model, adapter=adapter, checkpoint=path, every=2)
        assert_same(adapter.parameters(), fresh_adapter(model).parameters())
        assert path.read_bytes() == content and not trap.exists()


def test_a_checkpoint_of_another_training_is_refused(model: HookedTransformer, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    settings: dict[str, Any] = {"checkpoint": path, "every": 2}
    train(model, stop=2, **settings)
    others: dict[str, dict[str, Any]] = {
        "seed": {"seed": 4},
        "task": {"name": "others"},
        "prompts": {"examples": small_examples(7)},
        "training": {"training": replace(TRAINING, rate=0.03)},
        "method": {"method": Lwf()},
        "guidance": {"guide": guide_of(model, Guidance())},
        "training, method": {"training": replace(TRAINING, steps=9), "method": Ewc(weight=2.0)},
        "the adapter": {"adapter": lora.fresh(model, LoraConfig(rank=1))},
    }
    for differs, other in others.items():
        with pytest.raises(TrainingError, match=f"of another training: it differs in {differs}; train with"):
            train(model, **settings, **other)
    adapter = fresh_adapter(model)
    save_file(load_file(path), path)
    with pytest.raises(TrainingError, match="it differs in format, task, seed, prompts, training, method, guidance"):
        train(model, adapter=adapter, **settings)
    assert_same(adapter.parameters(), fresh_adapter(model).parameters())


@pytest.mark.slow
def test_training_learns_a_learnable_task(model: HookedTransformer) -> None:
    # The prompt's last word tells which of two answers.
    tokens = small_tokens(8, answer=1)
    kind = torch.arange(8) % 2
    tokens.prompts[:, -1], tokens.answers[:, 0] = 5 + kind, 9 + kind
    examples = Examples(prompts=tokens, bare=tokens, new=8)
    steps, _ = train(model, Training(steps=40, batch=8, rate=0.05, warmup=4), examples=examples)
    assert steps[0].loss > 1
    assert steps[-1].loss < 0.1 * steps[0].loss


@pytest.mark.slow
def test_autocast_keeps_factors_in_float32() -> None:
    model = small_model().to(torch.float32)
    adapter = lora.fresh(model, LoraConfig(rank=2))
    training = Training(steps=4, batch=6, rate=0.02, warmup=0)
    exact, _ = train(model, training, adapter=lora.fresh(model, LoraConfig(rank=2)))
    rough, factors = train(model, replace(training, precision="bfloat16"), adapter=adapter)
    assert {factor.dtype for factor in factors} == {torch.float32}
    assert [step.loss for step in rough] != [step.loss for step in exact]
    assert [step.loss for step in rough] == pytest.approx([step.loss for step in exact], rel=0.05)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"batch": 0}, "batch is 0; it must be 1 or more"),
        ({"warmup": -1}, "warmup is -1; it must be 0 or more"),
        ({"accumulate": 0}, "accumulate is 0; it must be 1 or more"),
        ({"batch": 6, "accumulate": 4}, "a batch of 6 has no 4 equal parts"),
        ({"rate": 0.0}, r"rate is 0\.0; it must be a number above 0"),
        ({"rate": math.nan}, "rate is nan; it must be a number above 0"),
        ({"clip": math.inf}, "clip is inf; it must be a number above 0"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; it must be 0 or more"),
        ({"schedule": "cosin"}, "schedule is 'cosin'; choose of cosine, linear, constant"),
        ({"precision": "float16"}, "precision is 'float16'; choose of float32, bfloat16"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the type checker of the tests, as users run it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(IvlensError, match=f"training: {sentence}"):
        Training(**settings)


def test_bad_examples_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="there are 6 prompts, but 5 without an instruction"):
        Examples(prompts=small_tokens(6), bare=small_tokens(5), new=6)
    for new in (0, 7):
        with pytest.raises(IvlensError, match=f"{new} of 6 prompts are said to be new; name 1 or more"):
            small_examples(6, new=new)
    with pytest.raises(IvlensError, match=r"the share of replayed prompts is 1\.0; it must be"):
        small_examples(6, new=3, replayed=1.0)
    for share, old in ((0.1, 0), (0.9, 4)):
        with pytest.raises(IvlensError, match=f"has {old} old and {4 - old} new prompts; choose a larger batch"):
            small_examples(6, new=3, replayed=share).rows(0, 4, 0)


def test_an_adapter_that_is_not_attached_is_refused(model: HookedTransformer) -> None:
    with pytest.raises(IvlensError, match="the adapter is not attached to the model"):
        next(finetune(model, fresh_adapter(model), small_examples(), TRAINING, method=Lora()))


def test_the_vocabulary_is_small_enough_for_the_tokens() -> None:
    assert int(small_tokens(9).prompts.max()) < VOCAB == small_model().cfg.d_vocab
