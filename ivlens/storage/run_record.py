"""What was asked of a run, and is this the same run?

`run.json` in a run folder: the command, its settings, the model and task by their digests, the seed, the
versions. Two runs are the same if these agree; where they do not, the differences are named one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core

from ivlens.errors import RunError
from ivlens.storage.atomic_files import LARGEST_TEXT, reason, refuse_unusual, write_whole

SCHEMA_VERSION = 1
RECORD = "run.json"
MOST_FILES = 100_000
"""Of one run: each of them is looked at when it is read."""
_PACKAGES = ("ivlens", "torch", "transformer-lens")


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(_Strict):
    """A model or a task that a run was computed from. Of equal digests, they are the same."""

    name: str
    digest: str
    """Of the weights, or of the task's contents."""
    stored: str = ""
    """How weights that had to be dequantised were stored, and what rounding lost of adapters. Never compared."""
    backend: str = ""
    """What a model was loaded into, `hooked` or `bridge`. Not compared: the digest is another one."""

    precision: str = ""
    """Of a model that computed in 16 bits, how far its effects are from float32's. Never compared."""

    @pydantic.model_serializer
    def _without_empty(self) -> dict[str, str]:
        """A task is loaded into nothing, and most weights are stored as they are."""
        return {name: value for name, value in vars(self).items() if value}


class KeptFile(_Strict):
    """A file as it was written."""

    size: pydantic.NonNegativeInt
    sha256: str


class RunRecord(_Strict):
    """What `run.json` holds."""

    schema_version: Literal[1] = SCHEMA_VERSION
    command: str
    typed: tuple[str, ...] = ()
    """After `ivlens` on the command line that began the run; empty for one from Python. Never compared."""
    settings: dict[str, pydantic.JsonValue]
    """Everything else that decides the numbers."""
    sources: dict[str, Source]
    """By role: `model` and `task`, or `base`, `tuned` and `task`, ..."""
    seed: int
    versions: dict[str, str]
    started: pydantic.AwareDatetime
    finished: pydantic.AwareDatetime | None = None
    status: Literal["running", "heads", "complete"] = "running"
    """`heads`: no more was asked for than the effects of heads, and they are there."""
    files: Annotated[dict[str, KeptFile], pydantic.Field(max_length=MOST_FILES)] = {}
    """Those that belong to the run, by their names in its folder; runs of before have none. Never compared."""


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers, as they are installed here."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they will be read back: tuples become lists.

    Raises:
        RunError: JSON cannot hold them.
    """
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RunError(f"the settings cannot be recorded as JSON: {reason(error)}") from error


def write_record(folder: Path, record: RunRecord) -> None:
    """Write `run.json` into a folder, whole or not at all."""
    write_whole(folder / RECORD, f"{record.model_dump_json(indent=2)}\n".encode())


def read_record(folder: Path) -> RunRecord | None:
    """The record in a folder, or None where there is none.

    Raises:
        RunError: it is damaged, not ours or of another version, or `folder` is a file.
    """
    path = folder / RECORD
    remedy = "choose another --out, or delete the folder"
    try:
        refuse_unusual(path, LARGEST_TEXT)
        content = path.read_bytes()
        found = pydantic_core.from_json(content)
        version = found.get("schema_version") if isinstance(found, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise RunError(
                f"{folder} was written by another version of ivlens (its format is {version}, this version's "
                f"is {SCHEMA_VERSION}); {remedy}"
            )
        return RunRecord.model_validate_json(content)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise RunError(f"{folder} is a file, not a folder; choose another --out") from None
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise RunError(f"{path} is not the record of a run ({wrong}); {remedy}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({reason(error)}); {remedy}") from error


def refuse_another(
    folder: Path, asked: RunRecord, found: RunRecord, *, remedy: str = "choose another --out or ask for the same"
) -> None:
    """Raise a RunError that names every difference between what is asked and what `folder` holds."""
    here, there = _configuration(asked, found), _configuration(found, found)
    absent = (None, "not set")
    differences = [
        f"{key[1]} is {here.get(key, absent)[1]} here but {there.get(key, absent)[1]} in that run"
        for key in dict.fromkeys([*here, *there])
        if here.get(key, absent)[0] != there.get(key, absent)[0]
    ]
    if differences:
        raise RunError(f"{folder} holds another run: {'; '.join(differences)}; {remedy}")


def _configuration(record: RunRecord, found: RunRecord) -> dict[tuple[str, str], tuple[str, str]]:
    """What must agree for `record` to go on in the folder of `found`.

    By kind and name: the text that is compared, and the text that is shown.
    """
    compared = {("", "command"): record.command, ("", "seed"): record.seed}
    compared |= {("setting", key): value for key, value in flat(record.settings)}
    if found.status != "complete":  # Half the numbers from one version and half from another are of neither.
        compared |= {("version", package): version for package, version in record.versions.items()}
    texts = {key: json.dumps(value, sort_keys=True, ensure_ascii=False) for key, value in compared.items()}
    shown = {key: (text, text if len(text) <= 60 else f"{text[:57]}...") for key, text in texts.items()}
    for role, source in record.sources.items():
        shown["source", f"the {role}"] = (source.digest, f"{source.name} (digest {source.digest[:12]})")
    return shown


def configuration_digest(record: RunRecord) -> str:
    """Of everything that decides the numbers, by which files of one run are told from those of another."""
    digests = {role: source.digest for role, source in record.sources.items()}
    decisive = [record.command, record.settings, digests, record.seed, record.versions]
    return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots between the names of tables in tables, and their values."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
