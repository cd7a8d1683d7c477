"""Whatever a file holds, reading it gives a value or our own sentence, within bounded time and memory.

Valid files are mutated: bits flipped, cut, lengthened, numbers and texts exchanged, lengths of headers that lie. More
mutations of each with `make fuzz`, or with the environment variable IVLENS_FUZZ (their number).
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bounds import bounded
from checkpoints import build
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_folders import (
    audit_folder,
    comparison_folder,
    effects_table,
    forget_digests,
    study_folder,
    universal,
    vector,
)
from safetensors.torch import load_file
from small import small_examples, small_model, trained_adapter

from ivlens.analysis import comparison
from ivlens.analysis.audit import Audit
from ivlens.datasets.task import Pair, read_task
from ivlens.errors import IvlensError
from ivlens.forgetting import method_run, plan
from ivlens.forgetting.study import Study
from ivlens.models import loader, lora
from ivlens.models.adapter import load_adapter, save_adapter
from ivlens.models.peft import read_adapter, write_adapter
from ivlens.prompts.chat import ChatTemplate
from ivlens.prompts.template import find_template
from ivlens.steering.head_choice import parse_heads
from ivlens.steering.universal_heads import Universal
from ivlens.storage import parquet
from ivlens.training import benchmark_stages, loop
from ivlens.training.loop import Training
from ivlens.training.methods import Lora
from ivlens.vectors import function_vectors, vector_formats
from ivlens.vectors import gguf as control_vectors
from ivlens.vectors.convert import read_effects
from ivlens.vectors.instruction_vector import InstructionVector
from ivlens.vectors.vector_formats import Facts

pytestmark = pytest.mark.slow

ASKED = int(os.environ.get("IVLENS_FUZZ", "0"))
MODEL = small_model()


@dataclass
class Reader:
    """Makes valid files in a folder, and reads them."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]


def outcome(reader: Reader, folder: Path) -> IvlensError | None:
    with bounded():
        try:
            reader.read(folder)
        except IvlensError as error:
            return error
    return None


def handed_over(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A folder of a run as those of before: where it says how its files were, changed ones are not read at all."""

    def made(folder: Path) -> None:
        make(folder)
        forget_digests(folder)

    return made


def text(name: str, content: object) -> Callable[[Path], object]:
    written = content if isinstance(content, str) else json.dumps(content, indent=1)
    return lambda folder: (folder / name).write_text(written)


def texts(contents: dict[str, object]) -> Callable[[Path], object]:
    return lambda folder: [text(name, content)(folder) for name, content in contents.items()]


def saved(content: object) -> Callable[[Path], object]:
    return lambda folder: torch.save(content, folder / "a.pt")


def training(folder: Path) -> object:
    """One step of a training that goes on from a checkpoint."""
    adapter = trained_adapter(MODEL)
    with lora.attached(MODEL, adapter):
        steps = loop.finetune(
            MODEL,
            adapter,
            small_examples(),
            Training(steps=3, batch=2),
            method=Lora(),
            checkpoint=folder / "a.checkpoint",
            every=1,
        )
        return list(islice(steps, 1))


def data_set(folder: Path) -> None:
    """Texts, lists of texts and classes in two files, as `datasets` saves them."""
    features = Features({"input": Value("string"), "more": [Value("string")], "label": ClassLabel(names=["x", "y"])})
    lines = {
        "input": [f"in{i}" for i in range(24)],
        "more": [[f"out{i}", "z"] for i in range(24)],
        "label": [0, 1] * 12,
    }
    Dataset.from_dict(lines, features=features).save_to_disk(folder, num_shards=2)


def read_data_set(folder: Path) -> None:
    for column in ("more", "label"):
        read_task(folder, columns=("input", column))


def converse(folder: Path) -> None:
    """Write conversations by the template in a file."""
    jinja = (folder / "a.jinja").read_text(errors="replace")
    template = ChatTemplate(jinja=jinja, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}, system=True)
    template.render(Pair("hot", "cold"), demonstrations=[Pair("up", "down")], instruction="Do.")


def conversation(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"in{i}"}, {"role": "assistant", "content": f"out{i}"}]


PAIRS = [{"input": f"in{i}", "output": f"out{i}"} for i in range(24)]
TRACE = [{"prompt": f"What is {i}?", "answer": f"it is {i}"} for i in range(12)]
SENTENCES = [{"sentence": f"This is {i}.", "label": "good" if i % 2 else "bad"} for i in range(12)]
INSTANCES = [{"id": str(i), "input": f"in{i}", "output": [f"out{i}"]} for i in range(24)]
CHAT = """{{ bos_token }}{% for m in messages %}{% if loop.index0 > 8 %}{{ raise_exception('too long') }}{% endif %}
<|{{ m['role'] }}|> {{ m['content'] | trim }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
STUDY = """
tasks = ["antonym", "a.json"]
methods = ["lora", "lora+kl"]
seeds = [0, 1]
[lora]
rank = 8
targets = ["W_Q"]
[training]
steps = 50
rate = 3e-4
[guidance.kl]
kl = 0.3
"""
READERS = {
    "task list": Reader(text("a.json", PAIRS), lambda folder: read_task(folder / "a.json")),
    "task object": Reader(
        text("a.json", {"name": "a", "instructions": ["Do."], "statement": "{input} is", "pairs": PAIRS[:4]}),
        lambda folder: read_task(folder / "a.json"),
    ),
    "TRACE": Reader(
        texts({f"{part}.json": TRACE[i::3] for i, part in enumerate(("train", "eval", "test"))}),
        lambda folder: benchmark_stages.stage(folder, seed=0),
    ),
    "O-LoRA": Reader(
        texts(
            {f"{part}.json": SENTENCES[i::3] for i, part in enumerate(("train", "dev", "test"))}
            | {"labels.json": ["good", "bad"]}
        ),
        lambda folder: benchmark_stages.stage(folder, seed=0),
    ),
    "Super-NaturalInstructions": Reader(
        text("a.json", {"Definition": ["Do."], "Instances": INSTANCES}),
        lambda folder: benchmark_stages.stage(folder / "a.json", seed=0),
    ),
    "task of TRACE": Reader(text("test.json", TRACE), read_task),
    "task of O-LoRA": Reader(texts({"test.json": SENTENCES, "labels.json": ["good", "bad"]}), read_task),
    "task of Super-NaturalInstructions": Reader(
        text("a.json", {"Definition": ["Do."], "Instances": INSTANCES}), lambda folder: read_task(folder / "a.json")
    ),
    "CSV": Reader(
        text("a.csv", "id;input;output\n" + "".join(f'{i};"in, {i}";"out ""{i}"""\r\n' for i in range(24))),
        lambda folder: read_task(folder / "a.csv"),
    ),
    "TSV": Reader(
        text("a.tsv", "".join(f"in{i}\tout{i}\n" for i in range(24))), lambda folder: read_task(folder / "a.tsv")
    ),
    "JSON lines": Reader(
        text("a.jsonl", "".join(f'{{"question": "in{i}", "answer": ["out{i}", {i}]}}\n' for i in range(24))),
        lambda folder: read_task(folder / "a.jsonl"),
    ),
    "alpaca": Reader(
        text("a.json", [{"instruction": "Do.", **one} for one in PAIRS]), lambda folder: read_task(folder / "a.json")
    ),
    "conversations": Reader(
        text("a.json", [{"messages": conversation(i)} for i in range(12)]), lambda folder: read_task(folder / "a.json")
    ),
    "parquet": Reader(
        lambda folder: pq.write_table(
            pa.table({"input": [f"in{i}" for i in range(24)], "output": [[f"out{i}", "z"] for i in range(24)]}),
            folder / "a.parquet",
            write_page_checksum=True,
        ),
        lambda folder: read_task(folder / "a.parquet"),
    ),
    "parquet of conversations": Reader(
        lambda folder: pq.write_table(
            pa.table({"messages": [conversation(i) for i in range(12)]}), folder / "a.parquet", compression="zstd"
        ),
        lambda folder: read_task(folder / "a.parquet"),
    ),
    "data set": Reader(data_set, read_data_set),
    "template": Reader(
        text(
            "a.json", {"demonstration": "{input} -> {output}\n", "query": "{input} ->", "instruction": "{instruction}"}
        ),
        lambda folder: find_template(folder / "a.json"),
    ),
    "template of function_vectors": Reader(
        text("a.json", {"prefixes": {"input": "Q:", "output": "A:"}, "separators": {"input": "\n"}}),
        lambda folder: find_template(folder / "a.json"),
    ),
    "chat template": Reader(text("a.jinja", CHAT), converse),
    "list of heads": Reader(text("a.json", ["L9H6", [3, 2]]), lambda folder: parse_heads(folder / "a.json")),
    "universal heads as JSON": Reader(
        lambda folder: universal().save(folder / "a.json"), lambda folder: parse_heads(folder / "a.json")
    ),
    "heads of universal ones": Reader(
        lambda folder: universal().save(folder / "a.safetensors"), lambda folder: parse_heads(folder / "a.safetensors")
    ),
    "heads of a vector": Reader(
        lambda folder: vector().save(folder / "a.safetensors"), lambda folder: parse_heads(folder / "a.safetensors")
    ),
    "study plan": Reader(text("a.toml", STUDY), lambda folder: plan.read_plan(folder / "a.toml")),
    "audit": Reader(handed_over(audit_folder), Audit.read),
    "comparison": Reader(handed_over(comparison_folder), comparison.Comparison.read),
    "study": Reader(handed_over(study_folder), Study.read),
    "steps of a cell": Reader(
        text("a.jsonl", "".join(f'{{"step": {i}, "loss": 0.5, "stage": "ab"}}\n' for i in range(9))),
        lambda folder: method_run._read_lines(folder / "a.jsonl", "ab"),
    ),
    "table": Reader(
        lambda folder: (folder / "a.parquet").write_bytes(parquet.to_bytes(effects_table())),
        lambda folder: read_effects(folder / "a.parquet"),
    ),
    "vector": Reader(
        lambda folder: vector().save(folder / "a.safetensors"),
        lambda folder: InstructionVector.load(folder / "a.safetensors"),
    ),
    "universal heads": Reader(
        lambda folder: universal().save(folder / "a.safetensors"),
        lambda folder: Universal.load(folder / "a.safetensors"),
    ),
    "adapter": Reader(
        lambda folder: save_adapter(trained_adapter(MODEL), folder / "a.safetensors"),
        lambda folder: load_adapter(folder / "a.safetensors", MODEL),
    ),
    "training checkpoint": Reader(training, training),
    "function vector": Reader(saved(torch.randn(1, 20)), lambda folder: vector_formats.read_vector(folder / "a.pt")),
    "steering vector": Reader(
        saved({"layer_activations": {3: torch.randn(20)}, "layer_type": "decoder_block"}),
        lambda folder: vector_formats.read_vector(folder / "a.pt"),
    ),
    "mean activations": Reader(
        saved(torch.randn(2, 4, 3, 6)), lambda folder: function_vectors.read_mean_activations(folder / "a.pt")
    ),
    "indirect effects": Reader(
        saved(torch.randn(3, 2, 4, 2)), lambda folder: function_vectors.read_indirect_effects(folder / "a.pt")
    ),
    "gguf": Reader(
        lambda folder: control_vectors.write_control_vector(
            folder / "a.gguf", control_vectors.ControlVector({2: torch.randn(20), 5: torch.randn(20)}, "llama", "a")
        ),
        lambda folder: vector_formats.read_vector(folder / "a.gguf", facts=Facts(layer=2)),
    ),
    "npy": Reader(
        lambda folder: np.save(folder / "a.npy", np.ones(20, np.float32)),
        lambda folder: vector_formats.read_vector(folder / "a.npy"),
    ),
}
WORDS = [b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b"1.5", b"-1", b"NaN", b"1e999", b"9" * 20, b"9" * 5000]
LENGTHS = [0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
NESTS = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 500 + b"]" * 500]


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """One to three changes of a file's content."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "length", "head", "word", "word", "nest", "repeat")))
        rest = content[place:]
        if kind == "flip" and rest:
            content = content[:place] + bytes([rest[0] ^ 1 << draw(st.integers(0, 7))]) + rest[1:]
        elif kind == "cut":
            content = content[:place]
        elif kind == "insert":
            content = content[:place] + draw(st.binary(max_size=16)) + rest
        elif kind in ("length", "head"):
            size = draw(st.sampled_from(("<Q", "<I")))
            number = struct.pack(size, draw(st.sampled_from(LENGTHS)) % 2 ** (8 * struct.calcsize(size)))
            place = 0 if kind == "head" else place
            content = content[:place] + number + content[place + len(number) :]
        elif kind == "word":
            found = list(re.finditer(rb'"[^"]{0,40}"|\d+(?:\.\d+)?', content))
            if found:
                match = draw(st.sampled_from(found))
                content = content[: match.start()] + draw(st.sampled_from(WORDS)) + content[match.end() :]
        elif kind == "nest":
            content = content[:place] + draw(st.sampled_from(NESTS)) + rest
        else:
            content = content[:place] + rest[: draw(st.integers(0, 64))] + rest
    return content


def valid(reader: Reader, folder: Path) -> dict[str, bytes]:
    """The files of a reader, which it reads."""
    folder.mkdir()
    reader.make(folder)
    assert outcome(reader, folder) is None, "the files are valid before they are mutated"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def fuzz(reader: Reader, folder: Path, examples: int) -> None:
    contents = valid(reader, folder)

    @settings(
        max_examples=ASKED or examples,
        derandomize=not ASKED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def mutated(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(contents)))
        (folder / name).write_bytes(data.draw(mutations(contents[name])))
        try:
            outcome(reader, folder)
        finally:
            (folder / name).write_bytes(contents[name])

    mutated()


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_a_sentence_of_ours(name: str, tmp_path: Path) -> None:
    fuzz(READERS[name], tmp_path / "files", 50)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama-gqa", tmp_path_factory.mktemp("checkpoint") / "tiny")


def peft_reader(checkpoint: Path) -> Reader:
    model = loader.load_without_adapters(checkpoint)
    adapter = lora.fresh(model, lora.LoraConfig(rank=2), seed=1)
    for factors in adapter.factors.values():
        factors.B.data.normal_()
    return Reader(lambda folder: write_adapter(adapter, folder, model), lambda folder: read_adapter(folder, model))


def test_a_mutated_peft_folder_is_read_or_refused_in_a_sentence_of_ours(checkpoint: Path, tmp_path: Path) -> None:
    fuzz(peft_reader(checkpoint), tmp_path / "files", 80)


def test_a_mutated_checkpoint_is_loaded_or_refused_in_a_sentence_of_ours(checkpoint: Path, tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        for path in checkpoint.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    fuzz(Reader(make, loader.load_without_adapters), tmp_path / "files", 40)


NOT_IN_EVERY_AUDIT = {"prompts.json"} | {
    f"{name}.parquet"
    for name in ("instructions", "universal_tasks", "layer_draws", "necessity", "by_query", "precision")
}


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name, reader in READERS.items():
        if reader.read is converse:  # It is the test itself that opens the file.
            continue
        folder = tmp_path / name
        for file in valid(reader, folder):
            content = (folder / file).read_bytes()
            (folder / file).unlink()
            os.mkfifo(folder / file)
            if name == "steps of a cell" or file in NOT_IN_EVERY_AUDIT:
                # As if there were none: not every run has them.
                assert outcome(reader, folder) is None
            else:
                assert isinstance(outcome(reader, folder), IvlensError), (name, file)
            (folder / file).unlink()
            (folder / file).write_bytes(content)


def archive(path: Path, pickled: bytes | None = None, *, packed: bool = False) -> Path:
    """A tensor as torch saves it, but for its pickle, or packed."""
    torch.save(torch.zeros(1, 2**22), path)
    with zipfile.ZipFile(path) as source:
        held = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as target:
        for name, content in held.items():
            target.writestr(name, pickled if pickled and name.endswith("data.pkl") else content)
    return path


def test_a_packed_archive_is_refused_unread(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", packed=True)
    assert path.stat().st_size < 2**16
    with pytest.raises(IvlensError, match=r"is a packed archive, as torch never writes it"):
        vector_formats.read_vector(path)


def test_a_pickle_that_asks_for_memory_alone_is_refused_unread(tmp_path: Path) -> None:
    """`bytearray(10**11)` is on torch's own list of harmless calls."""
    pickled = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (10**11).to_bytes(5, "little") + b"\x85R."
    with pytest.raises(IvlensError, match=r"asks for \w+\.bytearray, which ivlens never runs"):
        vector_formats.read_vector(archive(tmp_path / "a.pt", pickled))


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1, 10**12), tmp_path / "a.pt")
    with bounded(), pytest.raises(IvlensError, match=r"of shape \(1, 1000000000000\) without that many numbers"):
        vector_formats.read_vector(tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", np.zeros(4, np.float32))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(4,), }" + b" " * 10, b"(40000000000,), }"))
    with bounded(), pytest.raises(IvlensError, match=r"it says \(40000000000,\) of float32, but holds 16 bytes"):
        vector_formats.read_vector(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("length", "kind", "content", "sentence"),
    [
        (2**60, 1, b"", "a list of 1152921504606846976 values behind its end"),
        (2**24, 1, bytes(2**24), "lists of lists, or of 16777216 values"),
        (1, 9, struct.pack("<IQ", 9, 1) * 2000, "lists of lists, or of 1 values"),
    ],
)
def test_a_list_in_a_gguf_file_is_not_followed_without_end(
    length: int, kind: int, content: bytes, sentence: str, tmp_path: Path
) -> None:
    """Numbers behind the end of a file read as nothing in the gguf package, and every number becomes an array there."""
    field = struct.pack("<Q1sIIQ", 1, b"x", 9, kind, length)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field + content)
    with bounded(), pytest.raises(IvlensError, match=sentence):
        vector_formats.read_vector(tmp_path / "a.gguf")


def test_an_offset_in_a_gguf_file_does_not_come_round_to_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    control_vectors.write_control_vector(path, control_vectors.ControlVector({1: torch.randn(20)}, "llama", "a"))
    shape = struct.pack("<IQI", 1, 20, 0)
    written, lying = (shape + struct.pack("<Q", offset) for offset in (0, 2**64 - 32))
    assert path.read_bytes().count(written) == 1
    path.write_bytes(path.read_bytes().replace(written, lying))
    with pytest.raises(IvlensError, match="is no readable GGUF control vector"):
        vector_formats.read_vector(path)


def test_gguf_files_of_other_things_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("direction.1", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(IvlensError, match=r"is a GGUF file of 'llama', not of a control vector"):
        vector_formats.read_vector(tmp_path / "a.gguf")


def test_a_small_table_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    """One text of 1 MiB in 2,048 lines, which the file holds once; and many equal numbers."""
    longest = pa.DictionaryArray.from_arrays(pa.array([0] * 2048, pa.int32()), pa.array(["x" * 2**20]))
    zeros = pa.array(np.zeros(2**27, np.int8))
    for column, reason in ((longest, "its column a unfolds to 2,147,483,648 bytes"), (zeros, "it unfolds to")):
        table = pa.table({"a": column})
        pq.write_table(table, tmp_path / "a.parquet", store_schema=False)
        assert (tmp_path / "a.parquet").stat().st_size < 2**22
        with bounded(), pytest.raises(IvlensError, match=reason):
            parquet.read_table(tmp_path / "a.parquet", remedy="")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": 2**20, "num_attention_heads": 2**10}, "describes [0-9,]+ parameters but the weights hold"),
        ({"vocab_size": 2**40}, "describes [0-9,]+ parameters but the weights hold"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers = 1000000000; at most 65,536 are"),
        ({"num_hidden_layers": 60_000}, "says num_hidden_layers = 60000; at most 30 is"),
        ({"max_position_embeddings": 10**10}, "says max_position_embeddings = 10000000000; at most 2,097,152 is"),
    ],
)
def test_a_configuration_of_a_larger_model_is_refused_before_memory_is_taken(
    change: dict[str, int], sentence: str, checkpoint: Path, tmp_path: Path
) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with bounded(), pytest.raises(IvlensError, match=sentence):
        loader.load_without_adapters(tmp_path)


def test_shards_outside_of_the_folder_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    shards = dict.fromkeys(load_file(tmp_path / "model-1.safetensors"), "../elsewhere.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    with pytest.raises(IvlensError, match=r"names '../elsewhere.safetensors', which is not in that folder"):
        loader.load_without_adapters(tmp_path)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "generation_config.json"])
def test_a_pipe_in_a_checkpoint_is_refused_and_not_waited_for(name: str, checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    os.mkfifo(tmp_path / name)
    with pytest.raises(IvlensError, match=f"{name} in .* cannot be read"):
        loader.load_without_adapters(tmp_path)


def test_a_packed_data_set_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """256 MiB of zeros in a file of some kilobytes."""
    data_set(tmp_path)
    path = tmp_path / "data-00000-of-00002.arrow"
    zeros = pa.table({"input": pa.array(["x"]), "zeros": pa.array([bytes(2**28)])})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, zeros.schema, options=options) as writer:
        writer.write_table(zeros)
    assert path.stat().st_size < 2**16
    with pytest.raises(IvlensError, match=f"{path.name} is packed, as save_to_disk never writes it"):
        read_data_set(tmp_path)


def test_a_data_set_reads_no_file_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    data_set(folder)
    (folder / "data-00000-of-00002.arrow").rename(tmp_path / "a.arrow")
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../a.arrow"
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(IvlensError, match="is not in that folder"):
        read_data_set(folder)
