"""What is trained on: prompts with and without their instruction, and which of them a step reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.prompts.tokens import Tokens
from ivlens.random_streams import Stream, open_stream


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is trained on.

    Which prompts a step reads follows from the seed alone (`rows`). They are padded to the longest of them, and where a
    step is taken in parts, sorted by length first, so that a part is padded to its own.

    Raises:
        ShapeMismatch: not as many prompts with an instruction as without.
        IvlensError: `new` or `replayed` is out of range.

    >>> training.Examples(prompts=examples.prompts, bare=examples.bare, new=12, replayed=0.25).new
    12
    """

    prompts: Tokens
    bare: Tokens
    """The same queries without their instruction, in the same order."""
    new: int
    """The first so many are of the task being learned; the others are replayed."""
    replayed: float = 0.0
    """Share of replayed prompts in a batch."""

    def __post_init__(self) -> None:
        if len(self.bare) != len(self.prompts):
            raise ShapeMismatch(
                f"there are {len(self.prompts)} prompts, but {len(self.bare)} without an instruction; give as many"
            )
        if not 1 <= self.new <= len(self.prompts):
            raise IvlensError(f"{self.new} of {len(self.prompts)} prompts are said to be new; name 1 or more of them")
        if not 0 <= self.replayed < 1:
            raise IvlensError(f"the share of replayed prompts is {self.replayed}; it must be 0 or more and below 1")

    @cached_property
    def lengths(self) -> Int[Tensor, " prompt"]:
        """Tokens of each prompt and its answer.

        >>> examples.lengths.shape, bool((examples.lengths > 1).all())
        (torch.Size([16]), True)
        """
        return self.prompts.mask.sum(1) + self.prompts.answer_mask.sum(1)

    def rows(self, step: int, batch: int, seed: int) -> np.ndarray:
        """Which prompts a step reads: the new ones in random order, epoch by epoch, and a draw of the others.

        Args:
            step: Counted from 0.
            batch: How many.

        Raises:
            IvlensError: the batch is too small for its share of replayed prompts.

        >>> two = [examples.rows(step, 8, 0) for step in (0, 1)]  # An epoch of 16 prompts.
        >>> two[0].shape, sorted({*two[0].tolist(), *two[1].tolist()}) == list(range(16))
        ((8,), True)
        """
        replaying = self.replayed > 0 and len(self.prompts) > self.new
        old = round(self.replayed * batch) if replaying else 0
        if replaying and not 0 < old < batch:
            raise IvlensError(
                f"a batch of {batch} with a share of {self.replayed} replayed has {old} old and {batch - old} new "
                "prompts; choose a larger batch"
            )
        places = range(step * (batch - old), (step + 1) * (batch - old))
        begun = {place // self.new for place in places}
        epochs = {epoch: open_stream(seed, Stream.TRAINING_ORDER, epoch).permutation(self.new) for epoch in begun}
        fresh = [epochs[place // self.new][place % self.new] for place in places]
        drawn = open_stream(seed, Stream.REPLAYED, step).integers(self.new, max(self.new + 1, len(self.prompts)), old)
        return np.array([*fresh, *drawn], dtype=np.int64)
