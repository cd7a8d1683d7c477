"""The axes of every tensor in ivlens, and the address of an attention head.

Axes are named as in TransformerLens: `batch pos layer head d_head d_model`; `prompt` where the batch is one row per
prompt, `row` where a prompt has been multiplied by interventions, `answer` for the tokens of an answer, `vocab`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError

HeadGrid = Float[Tensor, "layer head"]
MeanZ = Float[Tensor, "layer head d_head"]
Cie = Float[Tensor, "prompt layer head"]
Residual = Float[Tensor, " d_model"]

GIB = 2**30


class Head(NamedTuple):
    """The address of one attention head, counted from 0 and printed `L9H6`; function_vectors writes `(9, 6)`.

    >>> head = ivlens.Head(3, 4)
    >>> head, head.layer, effects.aie[head].shape
    (L3H4, 3, torch.Size([]))
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    __repr__ = __str__

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read `L9H6` back.

        Raises:
            IvlensError: `text` is not of that form.

        >>> tuple(ivlens.Head.parse("L9H6"))
        (9, 6)
        """
        match = re.fullmatch(r"L([0-9]{1,9})H([0-9]{1,9})", text.strip())
        if match is None:
            raise IvlensError(f"{text!r} is not a head; write it as L9H6 (layer 9, head 6, counted from 0)")
        return cls(int(match[1]), int(match[2]))
