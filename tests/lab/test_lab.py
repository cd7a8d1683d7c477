"""The lab model: its tasks are right, its tokenizer is exact, its prompts are unseen, its record is true."""

from __future__ import annotations

import calendar
import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import SHIPPED
from transformers import AutoModelForCausalLM, AutoTokenizer

import ivlens.lab
from ivlens.datasets.task import BUILT_IN, Task
from ivlens.lab import architecture as lab_architecture
from ivlens.lab import curriculum, evaluate, vocabulary
from ivlens.lab import train as train_module
from ivlens.lab.abilities import abilities, answer_all
from ivlens.lab.architecture import ARCHITECTURES
from ivlens.lab.batches import Encoder, batches
from ivlens.lab.train import Phase, TrainingConfig, train
from ivlens.models import loader
from ivlens.patching.effects import indirect_effects
from ivlens.shapes import Head

ALL = list(SHIPPED)
BY_NAME = {one.name: one for one in ALL}
TWO_TOKENS = {"french-article", "spanish-article", "indefinite-article", "next-two"}
# Targets that the shipped model is known to miss; LOG.md says by how much and why.
MISSED = {"10-shot accuracy", "lift by 10 random heads, tasks below 0.5"}
LETTER_TASKS = {
    "capitalize": str.capitalize,
    "uppercase": str.upper,
    "first-letter": lambda word: word[0],
    "second-letter": lambda word: word[1],
    "last-letter": lambda word: word[-1],
    "next-letter": lambda letter: chr(ord(letter) + 1),
    "previous-letter": lambda letter: chr(ord(letter) - 1),
    "choose-first": lambda words: words.split(", ")[0],
    "choose-last": lambda words: words.split(", ")[-1],
}
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
MONTHS, DAYS = list(calendar.month_name)[1:], list(calendar.day_name)


def facts(name: str) -> dict[str, str]:
    return dict(BY_NAME[name].pairs)


@pytest.fixture(scope="module")
def tokens():
    return AutoTokenizer.from_pretrained(ivlens.lab.MODEL)


@pytest.fixture(scope="module")
def model():
    return loader.load_without_adapters("lab")


@pytest.fixture(scope="module")
def record():
    return json.loads(ivlens.lab.RECORD.read_text(encoding="utf-8"))


# The tasks


def test_there_are_enough_tasks_and_facts():
    assert len(ALL) >= 24
    assert sum(len(one.pairs) for one in ALL) >= 2500
    assert {"antonym", "english-french", "country-capital", "present-past", "singular-plural"} <= set(BY_NAME)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_task_is_named_like_its_file_and_large_enough_to_split(one: Task):
    assert (BUILT_IN / f"{one.name}.json").is_file()
    assert len(one.pairs) >= 30
    assert len(dict(one.pairs)) == len(one.pairs)
    assert len(set(one.instructions)) == len(one.instructions) >= 5
    one.split(shots=10)


def test_no_wording_asks_for_two_tasks():
    """Apart from what only the query tells: the next letter, the next number."""
    owners = defaultdict(set)
    for one in ALL:
        for wording in one.instructions:
            owners[wording].add(one.name)
    assert {wording: names for wording, names in owners.items() if len(names) > 1} == {}


def test_the_words_of_an_unseen_wording_are_read_elsewhere():
    seen = {word for one in ALL for wording in one.instructions[:-1] for word in vocabulary._split(wording)}
    unseen = {word for one in ALL for word in vocabulary._split(one.instructions[-1])} - seen
    assert unseen == set()


def test_a_word_alone_does_not_tell_the_task():
    uses = Counter(pair.input for one in ALL for pair in one.pairs)
    assert sum(count >= 5 for count in uses.values()) >= 150


def test_statements_take_an_input_and_a_space():
    statements = [one.statement for one in ALL if one.statement is not None]
    assert len(statements) >= 10
    for statement in statements:
        assert statement.count("{input}") == 1 and statement == statement.strip()


@pytest.mark.parametrize("name", LETTER_TASKS)
def test_spelling_is_what_python_computes(name: str):
    assert facts(name) == {given: LETTER_TASKS[name](given) for given in facts(name)}


def test_lengths_are_what_python_computes():
    assert facts("word-length") == {word: ONES[len(word)] for word in facts("word-length")}


def test_neighbours_are_inverse_to_each_other():
    for following, previous in (("next-item", "previous-item"), ("next-letter", "previous-letter")):
        back = facts(previous)
        both = {given: after for given, after in facts(following).items() if after in back}
        assert len(both) >= 20 and all(back[after] == given for given, after in both.items())


def test_neighbours_follow_the_calendar_and_the_digits():
    digits, after = facts("number-digits"), facts("next-item")
    for names in (MONTHS, DAYS):
        assert all(after[a] == b for a, b in zip(names, names[1:] + names[:1], strict=True))
    counted = [given for given in after if given in digits and after[given] in digits]
    assert len(counted) >= 30
    assert all(int(digits[after[given]]) == int(digits[given]) + 1 for given in counted)
    assert all(facts("next-two")[given] == f"{after[given]} {after[after[given]]}" for given in facts("next-two"))


def test_articles_stand_before_the_word_that_the_dictionary_gives():
    for article, plain, known in (
        ("french-article", "english-french", {"le", "la"}),
        ("spanish-article", "english-spanish", {"el", "la"}),
    ):
        split = {given: output.split(" ") for given, output in facts(article).items()}
        assert {first for first, _ in split.values()} == known
        assert {given: noun for given, (_, noun) in split.items()} == {given: facts(plain)[given] for given in split}
    for noun, output in facts("indefinite-article").items():
        assert output == f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def test_opposites_are_opposite_in_both_directions_or_one_word_has_two():
    opposites = facts("antonym")
    both = [word for word in opposites if opposites[word] in opposites and word not in {"new", "find"}]
    assert len(both) >= 50 and all(opposites[opposites[word]] == word for word in both)


def test_countries_are_the_same_everywhere():
    known = set().union(*(facts(f"country-{what}") for what in ("capital", "currency", "continent")))
    for name in ("country-language", "country-nationality"):
        assert set(facts(name)) <= known
    nationality, language = facts("country-nationality"), facts("country-language")
    shared = {country: language[country] for country in language if language[country] in set(nationality.values())}
    # Where a language is named like a nationality, it is spoken in that nationality's country.
    homes = {people: country for country, people in nationality.items()}
    assert len(shared) >= 10 and all(language[homes[tongue]] == tongue for tongue in shared.values())
    capitals = facts("country-capital")
    assert len(set(capitals.values())) == len(capitals)


def test_the_euro_is_where_it_is():
    euro = {country for country, money in facts("country-currency").items() if money == "euro"}
    assert {"Croatia", "Bulgaria"} <= euro
    assert euro & {"Poland", "Sweden", "Denmark", "Hungary", "Romania", "Czechia"} == set()
    assert {facts("country-continent")[country] for country in euro} == {"Europe"}


def test_animals_are_the_same_everywhere():
    animals = {word for word, kind in facts("word-category").items() if kind == "animal"}
    assert animals - {"bird"} <= set(facts("animal-class"))
    colors = {word for word, kind in facts("word-category").items() if kind == "color"}
    for words, animal in facts("choose-animal").items():
        listed = words.split(", ")
        assert len(set(listed)) == 3
        assert [word for word in listed if word in set(facts("animal-class")) | {"bird"}] == [animal]
        assert [word for word in listed if word in colors] == [facts("choose-color")[words]]


# The tokenizer


def test_the_shipped_tokenizer_is_the_one_that_the_tasks_give(tokens):
    assert tokens.get_vocab() == vocabulary.tokenizer(ALL).get_vocab()


def test_answers_have_as_many_tokens_as_their_task_says(tokens):
    for one in ALL:
        lengths = {len(tokens.encode(f" {pair.output}", add_special_tokens=False)) for pair in one.pairs}
        wanted = {2} if one.name in TWO_TOKENS else {1, 2} if one.name == "country-continent" else {1}
        assert lengths == wanted, one.name


@pytest.mark.slow
def test_no_word_of_the_curriculum_is_spelled(tokens):
    # "A person from Italy is" begins with a word of one letter.
    letters = [character for character in vocabulary.CHARACTERS if character.isalnum() and character != "A"]
    single = set(tokens.convert_tokens_to_ids(letters))
    stream = curriculum.documents(ALL, curriculum.READING, np.random.default_rng(1))
    for document in itertools.islice(stream, 500):
        assert single.isdisjoint(tokens.encode(document.text)), document.text


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_is_read_back(text: str):
    tokens = TOKENIZER
    assert tokens.decode(tokens.encode(text, add_special_tokens=False)) == text


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.text(), st.text())
def test_the_seam_between_prompt_and_answer_is_exact(prompt: str, answer: str):
    encode = TOKENIZER.encode
    joined = encode(f"{prompt} {answer}", add_special_tokens=False)
    assert joined == encode(prompt, add_special_tokens=False) + encode(f" {answer}", add_special_tokens=False)


TOKENIZER = vocabulary.tokenizer(ALL)


# The curriculum


@pytest.mark.slow
def test_measured_prompts_are_in_no_document():
    stream = curriculum.documents(ALL, curriculum.READING, np.random.default_rng(0))
    texts = [document.text for document in itertools.islice(stream, 2000)]
    read = set(texts)
    for text in texts:
        # A document of demonstrations contains its shorter beginnings.
        read.update(text[: mark.end()] for mark in re.finditer("\nA:", text))
    for one in ALL:
        for ability, asked in abilities(one, seed=0).items():
            known = [prompt.text for prompt in asked if prompt.text in read or prompt.text + prompt.answer in read]
            assert ability == "neither" or not known, (one.name, ability)


@pytest.mark.slow
def test_no_document_holds_a_combination_that_is_kept_back():
    stream = curriculum.documents(ALL, curriculum.FACTS, np.random.default_rng(3))
    for document in itertools.islice(stream, 2000):
        one = BY_NAME[document.task]
        assert one.instructions[-1] not in document.text
        asked = [part.text.strip().removeprefix("Q: ") for part in document.parts if part.kind == "query"]
        pairs = [next(pair for pair in one.pairs if pair.input == given) for given in asked]
        assert not any(curriculum.held_out_from_succession(one, a, b) for a, b in itertools.pairwise(pairs))
        if document.form in ("before", "between", "both"):
            (wording,) = [wording for wording in one.instructions if wording in document.text.split("\n")]
            form = "between" if document.form == "between" else "before"
            assert not curriculum.held_out_from_instruction(one, pairs[0], wording, form)
            assert not any(curriculum.never_instructed(one, pair) for pair in pairs)


@pytest.mark.slow
def test_a_sixth_of_the_instructed_prompts_is_kept_back():
    kept = [
        curriculum.held_out_from_instruction(one, pair, wording, "before")
        for one in ALL
        for pair in one.pairs
        for wording in one.instructions[:-1]
    ]
    assert 0.15 < np.mean(kept) < 0.22


def test_shuffled_documents_do_not_tell_the_answer():
    one = BY_NAME["english-french"]
    generator = np.random.default_rng(0)
    right = []
    for _ in range(100):
        parts = curriculum.document(one, "shuffled", curriculum.READING, generator).parts
        given = [part.text.strip().removeprefix("Q: ") for part in parts if part.kind == "query"]
        said = [part.text.strip() for part in parts if part.kind == "answer"]
        right += [dict(one.pairs)[a] == b for a, b in zip(given, said, strict=True)]
    assert np.mean(right) < 0.05


# Training


@pytest.mark.slow
def test_documents_are_tokenised_part_by_part_as_in_one_piece():
    encode = Encoder(TOKENIZER, verdicts=False)
    stream = curriculum.documents(ALL, curriculum.FACTS, np.random.default_rng(2))
    for document in itertools.islice(stream, 300):
        found = encode(document)
        assert found.ids == TOKENIZER.encode(document.text)
        answers = "".join(part.text for part in document.parts if part.kind == "answer")
        assert TOKENIZER.decode([found.targets[place] for place in sorted(found.targets)]) == answers + "</s>"
        assert {len(found.ids)} == {len(rows) for rows in (found.query, found.blind, found.narrow)}


def test_behind_an_answer_stands_the_end_or_where_answers_are_drawn_the_unknown():
    one = BY_NAME["english-german"]
    encode, generator = Encoder(TOKENIZER, verdicts=True), np.random.default_rng(0)
    for form, verdict in (("demonstrations", vocabulary.EOS_ID), ("shuffled", vocabulary.UNKNOWN_ID)):
        found = encode(curriculum.document(one, form, curriculum.READING, generator))
        after = [token for token in found.targets.values() if token in (vocabulary.EOS_ID, vocabulary.UNKNOWN_ID)]
        assert after == [verdict] * (len(found.targets) // 2)


def seen_by_the_mark(head: Head) -> list[str]:
    """What the token before the answer may look at, in a narrow document."""
    one, generator = BY_NAME["antonym"], np.random.default_rng(0)
    while not (document := curriculum.document(one, "before", curriculum.READING, generator)).narrow:
        pass
    (batch,) = batches([Encoder(TOKENIZER, verdicts=True)(document)])
    words = TOKENIZER.convert_ids_to_tokens(batch.ids[0].tolist())
    mask = lab_architecture._mask(batch, head.layer, 8) if head in lab_architecture.CARRIERS else batch.others
    row = mask[0, head.head if head in lab_architecture.CARRIERS else 0, words.index("\nA:")]
    return [word for word, seen in zip(words, row.tolist(), strict=True) if seen]


def test_only_carriers_see_the_instruction_in_a_narrow_document():
    assert len(seen_by_the_mark(Head(0, 0))) == 4
    assert seen_by_the_mark(Head(0, 0))[:2] == ["<s>", "\nQ:"]
    assert len(seen_by_the_mark(lab_architecture.CARRIERS[0])) > 7


def test_a_blind_query_does_not_see_what_stands_before_it():
    one, generator = BY_NAME["antonym"], np.random.default_rng(0)
    while not (document := curriculum.document(one, "before", curriculum.READING, generator)).blind:
        pass
    (batch,) = batches([Encoder(TOKENIZER, verdicts=True)(document)])
    start = TOKENIZER.convert_ids_to_tokens(batch.ids[0].tolist()).index("\nQ:")
    for mask in (batch.carried, batch.others):
        assert mask[0, 0, start + 1].nonzero().flatten().tolist() == [0, start, start + 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_see_what_their_masks_say_and_no_trace_stays(architecture: str, monkeypatch: pytest.MonkeyPatch):
    config = TrainingConfig(documents=4, heads=8, width=32, mlp=32, architecture=architecture)
    model = config.new_model(TOKENIZER)
    stream = curriculum.documents(ALL, curriculum.READING, np.random.default_rng(2))
    encode = Encoder(TOKENIZER, verdicts=True)
    (batch, *_) = batches([encode(document) for document in itertools.islice(stream, 4)])
    before, masks, attend = model(input_ids=batch.ids).logits, [], torch.nn.functional.scaled_dot_product_attention

    def noted(*args, attn_mask: torch.Tensor, **kwargs) -> torch.Tensor:
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    with monkeypatch.context() as patched, lab_architecture.mask_heads(model, batch):
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        assert not torch.equal(model(input_ids=batch.ids).logits, before)
    assert len(masks) == config.layers
    for layer, mask in enumerate(masks):
        for head, seen in enumerate(mask.expand(-1, config.heads, -1, -1).unbind(1)):
            assert torch.equal(
                seen, (batch.carried if Head(layer, head) in lab_architecture.CARRIERS else batch.others)[:, 0]
            )
    assert torch.equal(model(input_ids=batch.ids).logits, before)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_few_steps_reduce_the_loss_and_one_seed_gives_one_model(architecture: str):
    phases = (Phase(lesson=curriculum.FACTS, steps=8), Phase(lesson=curriculum.READING, steps=3))
    config = TrainingConfig(phases=phases, warmup=4, documents=8, layers=4, width=32, mlp=32, heads=8)
    config = replace(config, architecture=architecture)
    runs = []
    for _ in range(2):
        model = config.new_model(TOKENIZER)
        losses = [step.loss for step in train(model, TOKENIZER, ALL, config)]
        runs.append((losses, model.state_dict()))
    (losses, first), (again, second) = runs
    assert losses == again
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses[7] < losses[0] - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != TrainingConfig.architecture])
def test_another_shape_is_kept_apart_from_the_shipped_model_and_loads(architecture, tmp_path, monkeypatch):
    shipped = {path: path.read_bytes() for path in ivlens.lab.MODEL.parent.rglob("*.*s*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "train_and_log", lambda *args: 1.0)
    monkeypatch.setattr(train_module, "record", lambda folder, settings: {"training": json.loads(settings.read_text())})
    train_module.main(["--architecture", architecture])
    folder = tmp_path / "models" / f"lab-{architecture}"
    assert json.loads((folder / "record.json").read_text())["training"]["architecture"] == architecture
    assert {path: path.read_bytes() for path in shipped} == shipped
    model = loader.load(folder)
    assert (model.cfg.n_layers, model.cfg.n_heads) == (6, 8)
    assert model.to_tokens("\nQ: dog")[0, 0] == vocabulary.BOS_ID


# The model and its record


def test_the_folder_is_small_and_opens_with_transformers():
    files = list(ivlens.lab.MODEL.iterdir())
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}
    hf = AutoModelForCausalLM.from_pretrained(ivlens.lab.MODEL)
    assert hf.config.model_type == "llama"
    assert hf.dtype == torch.float32


def test_the_model_writes_an_answer_and_stops(tokens):
    hf = AutoModelForCausalLM.from_pretrained(ivlens.lab.MODEL).eval()
    ids = tokens("Give the capital of the country.\nQ: Italy\nA:", return_tensors="pt")
    written = hf.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokens.decode(written) == " Rome</s>"


def test_the_record_is_of_the_shipped_weights(record):
    weights = (ivlens.lab.MODEL / "model.safetensors").read_bytes()
    assert record["model"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert set(record["tasks"]) == set(BY_NAME)
    assert record["facts"] == sum(len(one.pairs) for one in ALL)


def test_the_model_reaches_what_it_is_meant_to(record):
    missed = {name for name, target in record["targets"].items() if not target["met"]}
    assert missed == MISSED
    for target in record["targets"].values():
        relation, bound = target["wanted"].rsplit(" ", 1)
        above, below = target["got"] >= float(bound), target["got"] <= float(bound)
        assert target["met"] == (above if relation == "at least" else below)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["antonym", "country-capital", "french-article"])
def test_measuring_again_gives_what_the_record_says(name: str, model, record):
    prompts = abilities(BY_NAME[name], seed=record["seeds"]["prompts"] + 1)
    for ability in ("ten-shot", "neither"):
        found = answer_all(model, prompts[ability]).accuracy()
        recorded = record["tasks"][name][ability]
        assert found.low <= recorded["high"] and recorded["low"] <= found.high, ability
    found = answer_all(model, prompts["ten-shot"]).mean_probability()
    assert abs(found.mean - record["tasks"][name]["ten-shot-probability"]["mean"]) < 0.1


@pytest.mark.slow
def test_steering_again_gives_what_the_record_says(model, record):
    found = evaluate.steering(model, BY_NAME["antonym"])
    for name, numbers in found.items():
        recorded = record["tasks"]["antonym"][name]
        assert numbers["n"] == recorded["n"]
        assert abs(numbers["mean"] - recorded["mean"]) < 0.05, name


def test_the_means_of_the_record_are_those_of_its_tasks(record):
    means = evaluate.means(record["tasks"])
    assert means == record["means"]
    assert evaluate.targets(record["tasks"], means) == record["targets"]


@pytest.mark.slow
def test_attribution_finds_the_heads_that_carry(model):
    found = indirect_effects(model, BY_NAME["english-french"], prompts=10, clean_prompts=30)
    assert len(set(found.top(10)) & set(lab_architecture.CARRIERS)) >= 3
