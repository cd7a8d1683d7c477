"""No public argument is ever ignored: each is looked for in the record, or for its effect."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import WORD_TEMPLATE
from small import small_plan

import ivlens
from ivlens.analysis.options import AuditOptions, AuditSettings, ComparisonOptions, ComparisonSettings
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError
from ivlens.models import lora
from ivlens.models.lora import Adapter, Factors
from ivlens.patching.settings import Settings
from ivlens.prompts.chat import to_record
from ivlens.prompts.template import Template
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

OTHER_TEMPLATE = Template(
    demonstration="A : {input} Q : {output} \n ", query="A : {input} Q :", instruction="{instruction} \n "
)
SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}
CHANGED: dict[str, Any] = {
    "shots": 2,
    "clean_prompts": 5,
    "prompts": 3,
    "corruption": "zero-shot",
    "source": "instruction",
    "effect": "nll",
    "answered_only": True,
    "seed": 1,
    "template": OTHER_TEMPLATE,
}
# The random model answers nothing right: `answered_only` is tried on the lab's (tests/patching/test_answered.py).
TRIED = [name for name in CHANGED if name != "answered_only"]
HEADS = [Head(0, 1), Head(2, 3)]
# Of an analysis, beside those of the measurement: what is given, and what the record says.
ANALYSIS: dict[str, tuple[Any, Any]] = {
    "top": (2, 2),
    "heads": (HEADS, ["L0H1", "L2H3"]),
    "instruction": (2, 2),
    "draws": (1, 1),
    "score": ("contains", "contains"),
}
AUDIT = {**ANALYSIS, "rank": ("gradient", "gradient"), "other_tasks": (1, 1), "queries": (3, 3)}
COMPARISON = {**ANALYSIS, "queries": (3, 3)}
AUDITED = {**SMALL, "top": 3, "draws": 2, "other_tasks": 0}
COMPARED = {**SMALL, "top": 3, "draws": 2, "queries": 4}


def test_every_option_is_tried():
    assert CHANGED.keys() == Settings().values().keys()
    assert {*CHANGED, *AUDIT} == AuditSettings().values().keys()
    assert {*CHANGED, *COMPARISON} == ComparisonSettings().values().keys()


@pytest.mark.parametrize(
    ("options", "settings"), [(AuditOptions, AuditSettings), (ComparisonOptions, ComparisonSettings)]
)
def test_functions_take_every_field_of_the_settings_and_nothing_else(options: Any, settings: Any):
    written = {name: getattr(one, "__forward_arg__", one) for name, one in options.__annotations__.items()}
    assert written == {one.name: one.type for one in fields(settings)}


@pytest.fixture(scope="module")
def adapter(tiny: HookedTransformer) -> Adapter:
    """An adapter that changes every weight it is on visibly."""
    fresh, generator = lora.fresh(tiny, lora.LoraConfig(rank=2)), torch.Generator().manual_seed(0)
    factors = {
        name: Factors(a.double(), torch.randn(b.shape, generator=generator, dtype=torch.float64) * 0.2)
        for name, (a, b) in fresh.factors.items()
    }
    return Adapter(factors=factors, scale=1.0)


def recorded(folder: Path) -> dict[str, Any]:
    """What a run says that it was asked for."""
    record = json.loads((folder / "run.json").read_text())
    return {**record["settings"], "seed": record["seed"]}


def expected(asked: dict[str, Any], changed: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The same of what was asked for; heads, wordings, `answered_only` are left out where they are the usual ones."""
    settings = Settings(**{key: asked[key] for key in asked if key in CHANGED})
    found = {**asdict(settings), "template": to_record(settings.template)}
    del found["answered_only"]
    found |= {key: value for key, value in asked.items() if key not in CHANGED}
    found |= {key: record for key, (value, record) in changed.items() if asked.get(key) == value}
    return found | ({"top": len(HEADS)} if "heads" in asked else {})


def off_default(changed: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {**{name: CHANGED[name] for name in TRIED}, **{name: value for name, (value, _) in changed.items()}}


def without_top(usual: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in usual.items() if (name, key) != ("heads", "top")}


@pytest.mark.long
@pytest.mark.parametrize("name", off_default(AUDIT))
def test_an_audit_records_what_it_was_asked_for(tiny: HookedTransformer, word_task: Task, tmp_path: Path, name: str):
    asked = {**without_top(AUDITED, name), name: off_default(AUDIT)[name]}
    found = ivlens.audit(tiny, word_task, out=tmp_path / "run", **asked)
    assert recorded(tmp_path / "run") == expected(asked, AUDIT)
    assert found.effects.settings == found.vector.settings == Settings(**{k: asked[k] for k in asked if k in CHANGED})
    if name == "heads":
        assert found.vector.heads == tuple(HEADS)
    assert len(found.vector.heads) == recorded(tmp_path / "run")["top"]


@pytest.mark.long
@pytest.mark.parametrize("name", off_default(COMPARISON))
def test_a_comparison_records_what_it_was_asked_for(
    tiny: HookedTransformer, adapter: Adapter, word_task: Task, tmp_path: Path, name: str
):
    asked = {**without_top(COMPARED, name), name: off_default(COMPARISON)[name]}
    found = ivlens.compare(tiny, adapter, word_task, out=tmp_path / "run", **asked)
    assert recorded(tmp_path / "run") == expected(asked, COMPARISON)
    measured = Settings(**{key: asked[key] for key in asked if key in CHANGED})
    assert found.base.settings == found.tuned.settings == measured
    assert len(found.base_vector.heads) == recorded(tmp_path / "run")["top"]


@pytest.mark.slow
def test_an_analysis_takes_settings_whole(tiny: HookedTransformer, word_task: Task, tmp_path: Path):
    own = {key: AUDITED[key] for key in AUDITED if key not in CHANGED}
    asked = {**SMALL, "seed": 1, "effect": "nll"}
    ivlens.audit(tiny, word_task, out=tmp_path / "run", settings=Settings(**asked), **own)
    assert recorded(tmp_path / "run") == expected({**asked, **own}, AUDIT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:of task 'antonym' the model answers:ivlens.errors.TaskWarning")
@pytest.mark.parametrize("name", CHANGED)
def test_universal_heads_are_ranked_as_asked(lab: HookedTransformer, name: str):
    # A template that the lab knows.
    other = ivlens.template("function-vectors") if name == "template" else CHANGED[name]
    asked = {"shots": 3, "clean_prompts": 6, "prompts": 4, name: other}
    found = ivlens.universal_heads(lab, ["antonym"], top=3, scale=2.0, **asked)
    assert found.settings == Settings(**asked) and len(found.heads) == 3 and found.scale == 2.0
    again = ivlens.universal_heads(lab, ["antonym"], Settings(**asked), top=3, scale=2.0)
    assert again.settings == found.settings and again.aie.equal(found.aie)


def test_options_that_exclude_each_other_are_refused(tiny: HookedTransformer, adapter: Adapter, word_task: Task):
    with pytest.raises(IvlensError, match=r"^top is 5, but heads are 2; leave one of the two out$"):
        ivlens.audit(tiny, word_task, heads=HEADS, **{**AUDITED, "top": 5})
    with pytest.raises(IvlensError, match=r"^top is 5, but heads are 2; leave one of the two out$"):
        ivlens.compare(tiny, adapter, word_task, heads=HEADS, **{**COMPARED, "top": 5})
    vector = ivlens.instruction_vector(tiny, word_task, heads=HEADS, layer=1, scale=1.0, **SMALL)
    with (
        pytest.raises(IvlensError, match=r"^layer is 1, but site='distributed' puts .*; leave layer out$"),
        ivlens.steered(tiny, vector, site="distributed", layer=1),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"workers": 2}, "workers is 2, but a model that is given is trained in this process; leave one out"),
        ({"device": "cpu"}, "a HookedTransformer is taken as it is; leave device, dtype, revision and backend out"),
        ({"dtype": "float64"}, "a HookedTransformer is taken as it is; leave device, dtype, revision and backend out"),
    ],
)
def test_a_study_takes_a_given_model_as_it_is(
    lab: HookedTransformer, tmp_path: Path, options: dict[str, Any], complaint: str
):
    with pytest.raises(IvlensError, match=complaint):
        ivlens.study(small_plan(), out=tmp_path / "run", model=lab, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_effects_are_measured_as_asked(tiny: HookedTransformer, word_task: Task, name: str):
    asked = {**SMALL, name: CHANGED[name]}
    found = ivlens.indirect_effects(tiny, word_task, **asked)
    assert found.settings == Settings(**asked)
    again = ivlens.indirect_effects(tiny, word_task, settings=Settings(**asked))
    assert again.settings == found.settings and again.cie.equal(found.cie)
    usual = ivlens.indirect_effects(tiny, word_task, **SMALL)
    assert not (found.cie.equal(usual.cie) and found.mean_z.equal(usual.mean_z)), "and it changes the numbers"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
@pytest.mark.parametrize("heads", [None, HEADS], ids=["by effect", "given"])
def test_a_vector_is_of_the_settings_asked(
    tiny: HookedTransformer, word_task: Task, name: str, heads: list[Head] | None
):
    asked = {**SMALL, name: CHANGED[name]}
    by_settings = ivlens.instruction_vector(tiny, word_task, heads=heads, settings=Settings(**asked))
    assert by_settings.settings == Settings(**asked)
    by_options = ivlens.instruction_vector(tiny, word_task, heads=heads, **asked)
    assert by_options.settings == Settings(**asked) and by_options.vector.equal(by_settings.vector)
    if heads is None:
        effects = ivlens.indirect_effects(tiny, word_task, **asked)
        assert by_settings.heads == tuple(effects.top(10)) and by_settings.aie is not None
        assert by_settings.aie.equal(effects.aie)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_options_beside_effects_must_be_theirs(tiny: HookedTransformer, word_task: Task, name: str):
    effects = ivlens.indirect_effects(tiny, word_task, **SMALL)
    same = ivlens.instruction_vector(
        tiny, word_task, effects=effects, settings=effects.settings, shots=3, layer=1, scale=1.0
    )
    assert same.settings == effects.settings
    with pytest.raises(IvlensError, match=rf"^{name} is .*, but the effects have {name} "):
        ivlens.instruction_vector(tiny, word_task, effects=effects, **{name: CHANGED[name]})
    other = Settings(**{**SMALL, name: CHANGED[name]})
    with pytest.raises(IvlensError, match=rf"^{name} is .*, but the effects have {name} "):
        ivlens.instruction_vector(tiny, word_task, effects=effects, settings=other)


@pytest.mark.parametrize("function", [ivlens.indirect_effects, ivlens.instruction_vector])
def test_options_beside_settings_must_be_theirs(tiny: HookedTransformer, word_task: Task, function: Any):
    with pytest.raises(IvlensError, match=r"^shots is 2, but the settings have shots 3; leave one of the two out$"):
        function(tiny, word_task, settings=Settings(**SMALL), shots=2)
