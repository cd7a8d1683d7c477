"""Is the tokenizer of a checkpoint readable, and does it fit the model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.checkpoints.tokenizer_bounds import check_tokenizer
from ivlens.errors import ModelError
from ivlens.storage.atomic_files import reason
from ivlens.storage.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_tokenizer(folder: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or in a GGUF file of it.

    Raises:
        ModelError: it is missing, or cannot be read.
    """
    from transformers import AutoTokenizer

    where = folder if gguf_file is None else folder / gguf_file
    if gguf_file is None:
        _check_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **({"gguf_file": gguf_file} if gguf_file else {})
        )
        _try_out(tokenizer)
    # The Rust tokenizers raise bare Exception for a file that they cannot read, and what is none when they give up.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer in {where} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return tokenizer


def _try_out(tokenizer: Any) -> None:
    """Ask once what is asked of it later: settings of the wrong type show only then."""
    ids = tokenizer.encode("a b", add_special_tokens=False)
    tokenizer.decode(ids, skip_special_tokens=True)
    tokenizer(["", "a"], padding=False, truncation=False)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise TypeError(f"model_max_length is {tokenizer.model_max_length!r}, no number")
    for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token):
        if token is not None:
            token.encode()


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"tokenizer.json is missing from {folder}; save the model's tokenizer there")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            content = read_json(folder / name)
        except (OSError, ValueError) as error:
            raise ModelError(f"{name} in {folder} is not readable JSON ({reason(error)}); copy it again") from error
        if not isinstance(content, dict):
            raise ModelError(f"{name} in {folder} is a JSON {type(content).__name__}; copy it again")
        if name == "tokenizer.json":
            check_tokenizer(folder / name, content)


def check_vocabulary(tokenizer: Any, n_embeddings: int, where: Path) -> None:
    """See that every token has an embedding, but for those that were added later, and choose one to pad with.

    A token that was added without an embedding, often one to pad with, is in no prompt unless a prompt says so.

    Raises:
        ModelError: tokens of the vocabulary itself have no embedding.
    """
    added = set(tokenizer.get_added_vocab())
    highest = max((place for token, place in tokenizer.get_vocab().items() if token not in added), default=0)
    if highest >= n_embeddings:
        raise ModelError(
            f"the tokenizer in {where} goes up to id {highest} but the model has {n_embeddings} "
            "embeddings; they are not of one model, or the embeddings were not resized"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= n_embeddings:
        # An id that exists; masks tell pads, never the id. The embeddings are not resized.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
