"""What is lost when heads are ablated is what one hooked run per ablation says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import random_hooked
from conftest import random_tokens
from transformer_lens import HookedTransformer

import ivlens
from ivlens import prompts
from ivlens.analysis import probes
from ivlens.analysis.dependence import per_prompt
from ivlens.measures import interval
from ivlens.patching.activations import mean_z
from ivlens.prompts.template import DEFAULT
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head
from ivlens.steering.controls import draw_heads
from ivlens.steering.necessity import NECESSITY, Asked, measure_necessity, other_prompts

pytestmark = pytest.mark.numeric

HEADS = (Head(0, 1), Head(2, 3), Head(2, 0))
NUMBERS = Path(__file__).parents[2] / "figures" / "numbers"
CARRIERS = tuple(Head(3, head) for head in (1, 4, 6))


def asked(seed: int = 0) -> Asked:
    generator = torch.Generator().manual_seed(seed)
    return Asked(random_tokens(seed=seed), torch.randn(3, 4, 8, dtype=torch.float64, generator=generator))


def alone(
    model: HookedTransformer, tokens: Tokens, row: int, z: torch.Tensor, ablated: tuple[Head, ...]
) -> tuple[float, float]:
    """Probability and success on one prompt, unpadded, token by token of its answer."""
    ids, answer = tokens.prompts[row][tokens.mask[row]], tokens.answers[row][tokens.answer_mask[row]]

    def ablate(heads: torch.Tensor, hook: object) -> torch.Tensor:
        heads = heads.clone()
        for head in ablated:
            if head.layer == hook.layer():  # type: ignore[attr-defined]
                heads[0, len(ids) - 1, head.head] = z[head]
        return heads

    right = True
    with model.hooks(fwd_hooks=[(lambda name: name.endswith("hook_z"), ablate)]):
        first = model(ids[None])[0, -1].softmax(-1)
        for n in range(len(answer)):
            logits = model(torch.cat([ids, answer[:n]])[None])[0, -1]
            right = right and int(logits.argmax()) == int(answer[n])
    return float(first[answer[0]]), float(right)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_line_is_that_of_one_hooked_run_per_prompt_and_ablation(kind: str) -> None:
    model, given = random_hooked(kind), asked()
    found = measure_necessity(model, {"instructed": given}, HEADS, draws=2, seed=1)
    assert list(found.columns) == list(NECESSITY)
    drawn = {k: [tuple(one) for one in draw_heads((3, 4), k, draws=2, seed=1, apart=HEADS)] for k in (1, 3)}
    sets = [[()], *([(head,)] for head in HEADS), drawn[1], [HEADS], drawn[3]]
    assert found["heads"].tolist() == ["none", *["chosen"] * 3, "random", "chosen", "random"]
    assert found["ablated"].tolist() == ["", "L0H1", "L2H3", "L2H0", "", "L0H1 L2H3 L2H0", ""]
    assert found["n_heads"].tolist() == [0, 1, 1, 1, 1, 3, 3] and found["draws"].tolist() == [1] * 4 + [2, 1, 2]
    size = 0.0
    for line, ablated in zip(found.to_dict("records"), sets, strict=True):
        values = torch.tensor(
            [[alone(model, given.tokens, row, given.z, one) for one in ablated] for row in range(len(given.tokens))],
            dtype=torch.float64,
        )
        plain = [alone(model, given.tokens, row, given.z, ())[0] for row in range(len(given.tokens))]
        lost = torch.tensor(plain, dtype=torch.float64)[:, None] - values[..., 0]
        assert line["probability"] == pytest.approx(float(values[..., 0].mean()), abs=1e-12)
        assert line["accuracy"] == pytest.approx(float(values[..., 1].mean()))
        bounds = interval(lost, torch.arange(len(lost)))
        assert [line[name] for name in NECESSITY[-3:]] == pytest.approx(list(bounds), abs=1e-9)
        size = max(size, abs(line["necessity"]))
    assert size > 1e-3, "too small to be seen"


@pytest.mark.slow
def test_random_heads_are_not_among_the_chosen_and_one_head_has_no_lines_of_all() -> None:
    model, given = random_hooked("llama"), asked()
    every = [Head(layer, head) for layer in range(3) for head in range(4)]
    found = measure_necessity(model, {"few-shot": given}, every[:11], draws=3)
    singles = found[found["n_heads"] == 1].set_index("heads")
    (last,) = measure_necessity(model, {"few-shot": given}, every[11:], draws=1)["necessity"].tolist()[1:2]
    assert singles.loc["random", "necessity"] == pytest.approx(last), "only one head is left to draw"
    one = measure_necessity(model, {"few-shot": given}, every[:1], draws=3)
    assert one["heads"].tolist() == ["none", "chosen", "random"]


def test_nothing_asked_is_nothing_measured() -> None:
    assert measure_necessity(random_hooked("llama"), {}, HEADS, draws=2).empty


@pytest.mark.slow
def test_necessity_is_that_of_a_comparison(lab: HookedTransformer) -> None:
    vector = ivlens.InstructionVector.load(NUMBERS / "lab-antonym" / "vector.safetensors")
    probe = probes.prepare(lab, ivlens.task("antonym"), vector, draws=4)
    assert probe.instructed is not None
    given = {"instructed": Asked(probe.instructed, probe.z)}
    found = measure_necessity(lab, given, probe.heads, draws=4, seed=probe.seed).set_index(["heads", "n_heads"])
    other = per_prompt(lab, probe)
    for heads in ("chosen", "random"):
        together = found.loc[[(heads, len(probe.heads))], "necessity"].item()
        assert together == pytest.approx(other.value("necessity", heads), abs=1e-6)
        assert together > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "without"), [("antonym", 0.55), ("english-french", 0.08), ("present-past", 0.0)])
def test_the_lab_does_without_the_head_of_largest_aie_and_not_without_the_other_carriers(
    lab: HookedTransformer, name: str, without: float
) -> None:
    task = ivlens.task(name)
    tokens = prompts.tokenize(lab, prompts.instructed(task, task.split(shots=10).evaluation))
    others = other_prompts(lab, task, template=DEFAULT, seed=0)
    given = {"instructed": Asked(tokens, mean_z(lab, prompts.tokenize(lab, others)))}
    whole, first = measure_necessity(lab, given, [Head(3, 3)], draws=1)["accuracy"].tolist()[:2]
    together = measure_necessity(lab, given, CARRIERS, draws=1).set_index(["heads", "n_heads"])["accuracy"]
    assert whole == first == 1.0
    assert together["chosen", 3] == pytest.approx(without, abs=0.006)
