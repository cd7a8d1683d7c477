"""A GGUF file gives the model that it was made of, or a sentence."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf_models import ARCHITECTURES, TEMPLATE, TOKENS, build_pair, write_gguf
from transformers import AutoModelForCausalLM

import ivlens
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.errors import IvlensError, ModelError
from ivlens.models import hooked

PROMPT = torch.randint(1, len(TOKENS), (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_pair("llama", tmp_path_factory.mktemp("gguf"), num_key_value_heads=2)


def log_probs(folder: Path) -> torch.Tensor:
    with quiet_transformers(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return model.eval()(PROMPT).logits.log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_file_computes_what_the_folder_that_it_was_made_of_computes(family: str, tmp_path: Path) -> None:
    fields = {"query_pre_attn_scalar": 256} if family == "gemma2" else {}
    fields |= {"query_pre_attn_scalar": 256, "layer_types": None} if family == "gemma3" else {}
    folder, file = build_pair(family, tmp_path, **fields)
    found = ivlens.load(file)(PROMPT).log_softmax(-1)
    torch.testing.assert_close(found, log_probs(folder), rtol=0, atol=2e-4)


def test_the_table_of_tensors_names_is_made_once(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = gguf.get_tensor_name_map, []
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *about: made.append(about) or make(*about))
    ivlens.load(pair[1])
    assert len(made) == 1


@pytest.mark.slow
def test_a_quantised_file_computes_nearly_that_and_says_how_it_is_stored(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    file = write_gguf(pair[0], tmp_path / "tiny.gguf", quantised=True, **{"general.file_type": 7})
    model = ivlens.load(file)
    gap = (model(PROMPT).log_softmax(-1) - log_probs(pair[0])).abs()
    assert 1e-4 < gap.mean() < 0.2
    assert hooked.stored_as(model) == "Q8_0, dequantised to float32"
    assert hooked.source(model).stored == "Q8_0, dequantised to float32"
    assert hooked.stored_as(ivlens.load("lab")) == ""


def test_without_a_file_type_the_packing_of_most_weights_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = write_gguf(pair[0], tmp_path / "tiny.gguf", quantised=True, **{"general.file_type": None})
    assert hooked.stored_as(ivlens.load(file)) == "Q8_0, dequantised to float32"


@pytest.mark.slow
def test_the_tokenizer_and_its_chat_template_are_the_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = ivlens.load(pair[1])
    assert model.to_str_tokens("cab a", prepend_bos=False) == ["c", "ab", " ", "a"]
    assert model.tokenizer.chat_template == TEMPLATE
    assert hooked.model_name(model) == "tiny"
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.gguf").write_bytes(pair[1].read_bytes())
    assert hooked.model_name(ivlens.load(tmp_path / "only")) == "a"


@pytest.mark.slow
def test_the_digits_of_smollm_are_tokens_of_their_own(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tokens = [*TOKENS[:-1], "12"]
    named = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["1 2"]}
    plain = ivlens.load(write_gguf(pair[0], tmp_path / "a.gguf", **named))
    smollm = ivlens.load(write_gguf(pair[0], tmp_path / "b.gguf", **named, **{"tokenizer.ggml.pre": "smollm"}))
    assert plain.to_str_tokens("12", prepend_bos=False) == ["12"]
    assert smollm.to_str_tokens("12", prepend_bos=False) == ["1", "2"]


ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192}


@pytest.mark.slow
def test_scaled_rotations_of_llama_3_are_read_from_their_factors(tmp_path: Path) -> None:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder, plain = build_pair("llama", tmp_path, rope_parameters=ROPE, max_position_embeddings=131072, head_dim=32)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(folder), "cpu")
    factors = 1 / 5e5 ** (torch.arange(0, 32, 2) / 32) / scaled
    assert {1.0, 8.0} <= {round(float(factor), 3) for factor in factors}
    file = add_tensor(plain, tmp_path / "scaled.gguf", "rope_freqs.weight", factors)
    found = ivlens.load(file)
    torch.testing.assert_close(
        found.blocks[0].attn.rotary_sin, ivlens.load(plain.parent / "base").blocks[0].attn.rotary_sin
    )
    assert not torch.equal(found.blocks[0].attn.rotary_sin, ivlens.load(plain).blocks[0].attn.rotary_sin)
    wrong = add_tensor(plain, tmp_path / "wrong.gguf", "rope_freqs.weight", factors * torch.linspace(1, 1.1, 16))
    with pytest.raises(ModelError, match=r"wrong\.gguf scales rotations in another way than Llama 3; give the model's"):
        ivlens.load(wrong)


def add_tensor(source: Path, path: Path, name: str, values: torch.Tensor) -> Path:
    read = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, str(read.fields["general.architecture"].contents()))
    for key, field in read.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
    for tensor in read.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor(name, values.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _with(**fields: object) -> Callable[[Path, Path], Path]:
    named = {key.replace("__", "."): value for key, value in fields.items()}
    return lambda folder, path: write_gguf(folder, path, **named)


def _other_magic(folder: Path, path: Path) -> Path:
    content = write_gguf(folder, path).read_bytes()
    path.write_bytes(b"GGML" + content[4:])
    return path


def _cut(folder: Path, path: Path) -> Path:
    content = write_gguf(folder, path).read_bytes()
    path.write_bytes(content[:-100])
    return path


def _counts(tensors: int, fields: int) -> Callable[[Path, Path], Path]:
    def write(folder: Path, path: Path) -> Path:
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields))
        return path

    return write


def _another_tensor(folder: Path, path: Path) -> Path:
    write_gguf(folder, path.with_name("whole.gguf"))
    return add_tensor(path.with_name("whole.gguf"), path, "blk.0.attn_sinks.weight", torch.ones(64))


def _part(folder: Path, path: Path) -> Path:
    return write_gguf(folder, path.with_name("a-00001-of-00002.gguf"))


def _two(folder: Path, path: Path) -> Path:
    for name in ("a.gguf", "b.gguf"):
        (path.parent / name).write_bytes(b"GGUF")
    return path.parent


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "magic": (_other_magic, r"is no readable GGUF file of a language model \(it does not begin with GGUF\); copy it"),
    "empty": (lambda _, path: (path.write_bytes(b"") and path) or path, r"is no readable GGUF file .*empty file"),
    "cut": (_cut, r"'.*' lies behind its end; it is truncated"),
    "tensors": (_counts(2**50, 1), r"version 3, 1125899906842624 tensors, 1 fields"),
    "fields": (_counts(1, 2**60), r"1 tensors, 1152921504606846976 fields"),
    "parts": (_with(split__count=3), r"is one of several parts; join them with llama\.cpp's llama-gguf-split --merge"),
    "name of a part": (_part, r"00001-of-00002\.gguf is one of several parts"),
    "several": (_two, r"has 2 GGUF files, a\.gguf and b\.gguf among them; give the path of one"),
    "no tokens": (
        _with(tokenizer__ggml__tokens=None),
        r"has no tokenizer \(tokenizer\.ggml\.tokens is missing\); give a file that has one",
    ),
    "scaled": (_with(llama__rope__scaling__type="yarn"), r"scales rotations \(yarn\), which transformers leaves out"),
    "layers": (_with(llama__block_count=2**30), r"says block_count = 1073741824; at most"),
    "width": (_with(llama__embedding_length=2**20), r"describes [\d,]+ parameters but the weights hold|cannot read"),
    "a tensor more": (_another_tensor, r"holds [\d,]+ numbers, of which transformers makes [\d,]+ parameters; it has"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_serve_is_refused_in_one_sentence(
    case: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    write, sentence = REFUSED[case]
    began = time.process_time()
    with pytest.raises(ModelError, match=sentence) as caught:
        ivlens.load(write(pair[0], tmp_path / "tiny.gguf"))
    assert "\n" not in str(caught.value) and time.process_time() - began < 20


def test_another_architecture_is_refused_with_the_way_there_is(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"is a GGUF file of 'mamba', which is not supported; .* TransformerBridge"):
        ivlens.load(tmp_path / "a.gguf")


def test_without_the_gguf_package_a_sentence_says_how_to_have_it(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivlens.storage.gguf_files.find_spec", lambda name: None)
    with pytest.raises(IvlensError, match=r"package gguf is not installed; run: pip install 'ivlens\[gguf\]'"):
        ivlens.load(pair[1])
