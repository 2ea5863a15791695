"""Rows: which images of a batch a teacher sees, and what they weigh in the mean over all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of a rank's batch that a teacher sees.

    `index` (n,) int64 on the CPU, None for all of them. `weight` makes of a mean over these rows
    their part of the mean over the rows of the whole batch, as an average over ranks and a sum over
    the parts of a rank's batch add it up. `most`: how many the rank with most of them has, in the
    same part of its batch.
    """

    index: Tensor | None = None
    weight: float = 1.0
    most: int = 0

    @property
    def none(self) -> bool:
        """Whether there is no such row."""
        return self.index is not None and len(self.index) == 0

    def of(self, tokens: Tensor) -> Tensor:
        """These rows of (B, ...)."""
        if self.index is None:
            return tokens
        return tokens.index_select(0, self.index.to(tokens.device, non_blocking=True))


def rows_seen(positions: Tensor, share: float, batch_size: int, ranks: int) -> Rows:
    """The rows that a teacher with this `batch_share` sees, spread evenly over the stream.

    A position p of the stream belongs to them if floor((p + 1) share) > floor(p share): whichever
    rank holds it, and a stretch of n positions has at least floor(n share) of them.

    Args:
        positions: (b,) int64, b of the `batch_size` in order: a rank's rows, or a part of them.
        share: in (0, 1].
        batch_size: over all ranks.
        ranks: how many there are.
    """

    def before(position: int) -> int:
        return math.floor(position * share + 1e-9)

    count, of_rank = len(positions), batch_size // ranks
    if share == 1:
        return Rows(weight=count * ranks / batch_size, most=count)
    start = int(positions[0]) // batch_size * batch_size
    everywhere = before(start + batch_size) - before(start)
    seen = [before(p + 1) > before(p) for p in positions.tolist()]
    index = torch.tensor(seen).nonzero()[:, 0]
    same = range(start + (int(positions[0]) - start) % of_rank, start + batch_size, of_rank)
    most = max(before(first + count) - before(first) for first in same)
    return Rows(index, len(index) * ranks / everywhere, most)
