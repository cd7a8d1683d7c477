"""Where is the checkpoint that was asked for: in this package, on this machine, or on the hub?"""

from __future__ import annotations

from pathlib import Path

from ivlens.checkpoints import known_models
from ivlens.checkpoints.checkpoint import flat
from ivlens.errors import ModelError, suggest
from ivlens.storage.atomic_files import reason
from ivlens.storage.user_cache import expand_user

LAB = Path(__file__).parents[1] / "lab" / "model"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def find_checkpoint(model: str | Path, *, revision: str | None = None) -> Path:
    """The folder or GGUF file of `lab`, of a path, of a known name, or of a hub id (downloaded, or out of its cache).

    Raises:
        ModelError: there is no such thing, or the hub cannot be reached or does not know it.
    """
    if model == "lab":
        if not (LAB / "config.json").is_file():
            raise ModelError(
                f"the lab model is missing from this installation ({LAB}); reinstall ivlens, "
                "or train it with python -m ivlens.lab.train"
            )
        return LAB
    path = expand_user(model)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # The second: a null, or half a character.
        raise ModelError(f"{str(model)[:60]!r} cannot be a folder ({reason(error)}); give another path") from error
    if is_folder:
        return _in_folder(path)
    if is_there and path.suffix == ".gguf":
        return path
    if is_there:
        raise ModelError(
            f"{model} is a file; give a GGUF file, or the folder that has config.json and model.safetensors in it"
        )
    if isinstance(model, str) and model in known_models.KNOWN:
        return known_models.find(model) or _known_from_hub(model)
    if isinstance(model, Path) or model.startswith((".", "/", "~")) or model.count("/") > 1 or not model:
        raise ModelError(f"there is no folder {str(model)!r}; give a Hugging Face folder, a hub id, or 'lab'")
    try:
        return _from_hub(model, revision)
    except ModelError as error:
        meant = suggest(model, ["lab", *known_models.KNOWN], most=1)
        if not meant:
            raise
        raise ModelError(f"{error}; {meant}") from error


def _in_folder(folder: Path) -> Path:
    """The folder, or the one GGUF file in it where it has no weights beside that."""
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")):
        return folder
    if len(files) > 1:
        raise ModelError(
            f"{folder} has {len(files)} GGUF files, {files[0].name} and {files[1].name} among them; "
            "give the path of one"
        )
    return files[0]


def _known_from_hub(name: str) -> Path:
    try:
        return _from_hub(known_models.KNOWN[name].hub, None)
    except ModelError as error:
        raise ModelError(
            f"{name} has not been fetched, and the Hugging Face hub did not give it either; "
            f"{known_models.how_to_fetch(name)}"
        ) from error


def _from_hub(name: str, revision: str | None) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=HUB_FILES,
            ignore_patterns=["*/*", "consolidated*"],
            etag_timeout=5,
        )
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a hub id; give one, or 'lab'") from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"the Hugging Face hub did not give {name!r} (revision {revision or 'main'}): {flat(error)}; "
            "check the name, and log in if the model is gated"
        ) from error
    # No network, HF_HUB_OFFLINE, a time-out, a connection that broke off, a full disk.
    except (OSError, httpx.HTTPError) as error:
        raise ModelError(
            f"there is no folder {name!r} here and it cannot be had from the Hugging Face hub "
            f"({type(error).__name__}); give the path of a downloaded folder, or go online"
        ) from error
    return Path(found)
