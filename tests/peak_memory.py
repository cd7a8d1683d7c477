"""Prints by how many MiB a sweep under a budget of argv[1] MiB raises the peak memory of the process."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import torch
from checkpoints import random_hooked

from ivlens.patching import sweep
from ivlens.prompts.tokens import Tokens

warnings.simplefilter("ignore")
torch.set_num_threads(1)  # Each thread of the matrix library would keep buffers of its own.
SIZES = {"n_layers": 6, "n_heads": 8, "d_model": 256, "d_head": 32, "d_mlp": 1024, "d_vocab": 20000, "n_ctx": 256}


def random_prompts(n: int, width: int) -> Tokens:
    return Tokens(
        prompts=torch.randint(3, 19000, (n, width)),
        mask=torch.ones(n, width, dtype=torch.bool),
        answers=torch.randint(3, 19000, (n, 2)),
        answer_mask=torch.ones(n, 2, dtype=torch.bool),
    )


def peak() -> float:
    # Not getrusage: its peak counts the process that this one was forked from.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


model = random_hooked("llama", dtype=torch.float32, **SIZES)
z = torch.randn(6, 8, 32)
sweep.sweep(model, random_prompts(1, 4), z, effect="nll")  # Loads libraries and their buffers.
before = peak()
sweep.sweep(model, random_prompts(48, 120), z, effect="nll", memory=int(sys.argv[1]) * 2**20)
print(peak() - before)
