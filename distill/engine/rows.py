"""Rows: which images of a batch a teacher sees, and what they weigh in the mean over all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.order import Schedule
from distill.recipe.schema import Recipe, StageConfig


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


def rows_seen(
    positions: Tensor,
    share: float,
    batch_size: int,
    ranks: int,
    shown: NDArray[np.bool_] | None = None,
) -> Rows:
    """The rows that a teacher with this `batch_share` sees, spread evenly over the stream.

    A position p of the stream belongs to them if floor((p + 1) share) > floor(p share): whichever
    rank holds it, and a stretch of n positions has at least floor(n share) of them.

    Args:
        positions: (b,) int64, b of the `batch_size` in order: a rank's rows, or a part of them.
        share: in (0, 1].
        batch_size: over all ranks.
        ranks: how many there are.
        shown: (batch_size,), whether a row of the batch is one that the teacher may see at all
            (None: every row).
    """
    count = len(positions)
    if share == 1 and shown is None:
        return Rows(weight=count * ranks / batch_size, most=count)
    start = int(positions[0]) // batch_size * batch_size
    bounds = np.floor(np.arange(start, start + batch_size + 1) * share + 1e-9)
    seen = bounds[1:] > bounds[:-1]
    if shown is not None:
        seen = seen & shown
    places = positions.numpy() - start
    index = torch.from_numpy(np.flatnonzero(seen[places]))
    of_rank = batch_size // ranks
    most = int(seen.reshape(ranks, of_rank)[:, places % of_rank].sum(1).max())
    return Rows(index, len(index) * ranks / max(1, int(seen.sum())), most)


def partition_of_rows(stage: StageConfig) -> NDArray[np.int64]:
    """The number of the partition that each row of a batch is in: (batch_size,).

    Every batch has the same number of rows of each, rounded by largest remainder, spread evenly
    over it, so that ranks have about as many of each.
    """
    shares = [part.share for part in stage.partitions.values()] or [1.0]
    exact = np.array(shares) / sum(shares) * stage.train.batch_size
    counts = np.floor(exact + 1e-9).astype(np.int64)
    left_over = np.argsort(-(exact - counts), kind="stable")
    counts[left_over[: stage.train.batch_size - counts.sum()]] += 1
    numbers = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / max(1, count) for count in counts])
    return numbers[np.argsort(places, kind="stable")]


def partition_sizes(stage: StageConfig) -> dict[str, int]:
    """How many rows of a batch each partition has."""
    counts = np.bincount(partition_of_rows(stage), minlength=len(stage.partitions))
    return dict(zip(stage.partitions, counts.tolist(), strict=False))


class Roster:
    """Who sees which row of a stage's batches: partitions, batch shares, sources with teachers of
    their own.

    Args:
        recipe, stage: the stage's settings and where its images come from.
        shares: each teacher's `batch_share`.
        ranks: how many processes share a batch.
    """

    def __init__(self, recipe: Recipe, stage: StageConfig, shares: Mapping[str, float], ranks: int):
        self.shares, self.ranks = dict(shares), ranks
        self.batch_size = stage.train.batch_size
        self.partitions = list(stage.partitions)
        self.numbers = partition_of_rows(stage)
        self._in_partition = {name: self._rows_of(stage, name) for name in shares}
        sources = list(recipe.data.train.values())
        self._listed = [source.teachers for source in sources]
        self._schedule = None
        if any(self._listed):
            self._schedule = Schedule(
                [source.share for source in sources],
                [source.homogeneous for source in sources],
                self.batch_size,
                recipe.data.view_seed,
            )

    def of(self, positions: Tensor) -> dict[str, Rows]:
        """The rows that each teacher sees, of some rows at these positions of the stream."""
        sources = self._sources(int(positions[0]) // self.batch_size)
        return {
            name: rows_seen(
                positions, share, self.batch_size, self.ranks, self._shown(name, sources)
            )
            for name, share in self.shares.items()
        }

    def split(self, positions: Tensor) -> list[tuple[str | None, Tensor | None]]:
        """The partitions that have some of these rows: (name, their places among them (n,) int64);
        (None, None), all of them, where a stage has no partitions."""
        if not self.partitions:
            return [(None, None)]
        own = self.numbers[(positions % self.batch_size).numpy()]
        return [
            (name, torch.from_numpy(np.flatnonzero(own == number)))
            for number, name in enumerate(self.partitions)
            if (own == number).any()
        ]

    def _rows_of(self, stage: StageConfig, teacher: str) -> NDArray[np.bool_] | None:
        """(batch_size,), whether a row is in a partition that the teacher sees; None: all are."""
        parts = stage.partitions.values()
        own = [not part.teachers or teacher in part.teachers for part in parts]
        return None if all(own) else np.array(own)[self.numbers]

    def _sources(self, step: int) -> NDArray[np.int64] | None:
        """The number of the source of each row of a step; None where it makes no difference."""
        if self._schedule is None:
            return None
        return self._schedule.at(step, np.arange(self.batch_size))[0]

    def _shown(self, teacher: str, sources: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
        shown = self._in_partition[teacher]
        if sources is None:
            return shown
        own = np.array([not listed or teacher in listed for listed in self._listed])[sources]
        return own if shown is None else own & shown
