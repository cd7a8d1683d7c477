"""Do two versions of ivlens compute the same numbers, bit for bit?

    python tests/record_numbers.py FOLDER          audit, compare, study and universal heads on the lab, written there
    python tests/record_numbers.py FOLDER OTHER    names every table and tensor in which two such folders differ

Which ivlens that is, is decided by PYTHONPATH: only its public surface is used. Everything runs in one thread, since
sums depend on the number of threads in their last bits.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

PLAN = """
name = "record"
tasks = ["class-letter", "continent-letter"]
general = ["antonym", "country-capital", "english-french"]
guides = ["antonym", "english-french"]
methods = ["lora", "lora+iv", "ewc+kl", "lwf", "olora", "replay+fv"]
seeds = [0, 1]
train_prompts = 8

[lora]
rank = 2

[training]
steps = 8
batch = 4
warmup = 1

[evaluation]
queries = 3
few_shot_queries = 2
shots = 3
probes = ["antonym"]
probe_prompts = 3
clean_prompts = 4
top = 3
"""
AUDITS = {
    "antonym": {"seed": 0},
    "country-capital": {"seed": 1, "effect": "nll", "corruption": "zero-shot", "source": "instruction"},
}


def record(folder: Path) -> None:
    """Everything that is compared; a folder that is there already is gone on with."""
    import ivlens
    from ivlens.prompts import zero_shot

    print(f"ivlens of {Path(ivlens.__file__).parent.parent} into {folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    lab = ivlens.load("lab")
    small = {"clean_prompts": 12, "prompts": 6, "draws": 2}
    for name, options in AUDITS.items():
        audit = ivlens.audit(lab, name, out=folder / f"audit-{name}", shots=4, top=5, other_tasks=1, **small, **options)
        audit.effects.to_frame().to_parquet(folder / f"effects-{name}.parquet", index=False)
    plan = folder / "plan.toml"
    plan.write_text(PLAN, encoding="utf-8")
    ivlens.study(plan, out=folder / "study", workers=1)
    adapter = folder / "study" / "cells" / "lora-0" / "adapter"
    ivlens.compare(lab, adapter, "antonym", out=folder / "compare", shots=4, top=5, queries=8, **small)
    universal = ivlens.universal_heads(lab, [ivlens.task(name) for name in ivlens.tasks()[:6]], top=5)
    universal.save(folder / "universal.safetensors")
    vector = ivlens.instruction_vector(lab, ivlens.task("antonym"), heads=universal.heads)
    vector.save(folder / "vector.safetensors")
    with ivlens.steered(lab, vector, scale=2.0):
        replies = ivlens.ask(lab, zero_shot(ivlens.task("antonym").pairs[:20]))
    replies.to_frame().to_parquet(folder / "replies.parquet", index=False)


def differences(one: Path, other: Path) -> Iterator[str]:
    """One line for every file, column or tensor that is not the same in both folders, bit for bit."""
    names = [
        {str(path.relative_to(folder)) for folder in [root] for path in root.rglob("*") if path.suffix in _READERS}
        for root in (one, other)
    ]
    if not names[0] | names[1]:
        yield f"neither {one} nor {other} has a table or a tensor"
    for name in sorted(names[0] ^ names[1]):
        yield f"{name}: only in {one if name in names[0] else other}"
    for name in sorted(names[0] & names[1]):
        ours, theirs = (_READERS[Path(name).suffix](root / name) for root in (one, other))
        for part in sorted(ours.keys() | theirs.keys()):
            if part not in ours or part not in theirs or not _same(ours[part], theirs[part]):
                yield f"{name}: {part}"


def _tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.view(torch.uint8).numpy() for name, tensor in load_file(path).items()}


def _columns(path: Path) -> dict[str, np.ndarray]:
    frame = pd.read_parquet(path)
    return {name: frame[name].to_numpy() for name in frame}


_READERS = {".parquet": _columns, ".safetensors": _tensors}


def _same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return ours.tolist() == theirs.tolist() if ours.dtype == object else ours.tobytes() == theirs.tobytes()


def main(folders: list[str]) -> int:
    if len(folders) == 1:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        record(Path(folders[0]))
        return 0
    if len(folders) == 2:
        found = list(differences(*map(Path, folders)))
        print("\n".join(found) or "the same, bit for bit")
        return 1 if found else 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
