"""A lab model whose statements do not pass through the carrier heads: how it is trained, and how that is measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from shipped import SHIPPED

import ivlens
from ivlens.lab import architecture as lab_architecture
from ivlens.lab import curriculum, separate
from ivlens.lab.architecture import ARCHITECTURES, output_projection
from ivlens.lab.batches import Batch, Encoder, batches
from ivlens.lab.train import TrainingConfig
from ivlens.lab.vocabulary import tokenizer
from ivlens.shapes import Head

ALL = list(SHIPPED)
TOKENIZER = tokenizer(ALL)


def batch_with_statements() -> Batch:
    stream = curriculum.documents(ALL, curriculum.SEPARATION, np.random.default_rng(5))
    encode = Encoder(TOKENIZER, verdicts=True)
    encoded = [encode(document) for document in itertools.islice(stream, 40)]
    return next(part for part in batches(encoded) if part.apart.any() and not part.apart.all())


def test_statements_and_nothing_else_are_kept_apart_and_only_in_that_lesson():
    generator = np.random.default_rng(0)
    for lesson, apart in ((curriculum.SEPARATION, {"statement"}), (curriculum.READING, set())):
        drawn = list(itertools.islice(curriculum.documents(ALL, lesson, generator), 100))
        assert {one.form for one in drawn if one.apart} == apart
        assert all(one.apart for one in drawn if one.form in apart)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_apart_the_carriers_alone_say_what_they_say_about_the_document_before(architecture: str):
    batch = batch_with_statements()
    model = TrainingConfig(architecture=architecture).new_model(TOKENIZER)
    seen: dict[str, torch.Tensor] = {}
    layer = lab_architecture.CARRIERS[0].layer
    projection = output_projection(model, layer)

    def run(name: str, part: Batch) -> None:
        handle = projection.register_forward_hook(lambda module, args, out: seen.update({name: args[0].detach()}))
        with lab_architecture.mask_heads(model, part):
            model(input_ids=part.ids)
        handle.remove()

    run("plain", batch._replace(apart=torch.zeros_like(batch.apart)))
    run("exchanged", batch)
    plain, exchanged = (seen[name].unflatten(-1, (8, -1)) for name in ("plain", "exchanged"))
    for document, apart in enumerate(batch.apart.tolist()):
        for head in range(8):
            source = document - 1 if apart and Head(layer, head) in lab_architecture.CARRIERS else document
            assert torch.equal(exchanged[document, :, head], plain[source, :, head])


@pytest.mark.slow
def test_the_shipped_model_reads_statements_through_its_carriers_which_is_why_it_separates_nothing():
    found = separate.ablate_carriers(ivlens.load("lab"), [ivlens.task("english-french"), ivlens.task("antonym")])
    accuracy = found.set_index(["form", "ablated", "task"])["accuracy"]
    for form in ("instructed", "statement"):
        for name in ("english-french", "antonym"):
            assert accuracy[form, "none", name] == 1.0
            assert accuracy[form, "carriers", name] < 0.3
            assert accuracy[form, "random", name] > 0.9
