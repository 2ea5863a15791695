"""The order of samples that lie in shards: lanes that run through shards, in closed form.

The samples of shards can be counted only by opening them, so no permutation of all samples can be
had. Instead the shards are dealt to a fixed number of lanes, as cards are, anew each epoch. Draw k
belongs to lane k mod L; a lane runs through its shards one after the other, and a shard's samples
come shuffled. Any draw can be found by itself, given the counts of the shards that its lane has
passed, whatever the workers and the ranks.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distill.data.order import ATTEMPTS, mix, shuffled
from distill.data.shards import ShardedSource, sample_index, shard_and_place

LANES = 16
"""Shards that are read from at any time, if there are as many."""

_FURTHEST = 8


class Lanes:
    """The order of a sharded source; see distill.data.order.Order.

    In an epoch of a lane come all samples of the shards dealt to it; all lanes' epochs e together
    show every sample of every shard once. A lane passes to its next epoch by itself. Shards are
    dealt in turn, and the turn goes on from epoch to epoch, so that no lane falls behind by more
    than the samples of its shards.

    Args:
        source: whose shards are drawn from.
        seed: at least 0.
        number: of the source in its recipe.
    """

    def __init__(self, source: ShardedSource, seed: int, number: int):
        self.source, self.seed, self.number = source, seed, number
        self.shards = len(source.shards)
        self.lanes = min(LANES, self.shards)
        # The ordinal with which each lane's epochs begin, as far as they are known.
        self._starts: list[list[int]] = [[0] for _ in range(self.lanes)]
        self._dealt = lru_cache(maxsize=2 * LANES)(self._deal)
        self._shuffle = lru_cache(maxsize=4)(self._shuffled_shards)

    def at(self, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See Order.at; shards whose counts it takes are opened, and those drawn from made ready.

        Raises:
            UserError: if a shard cannot be had.
        """
        lanes, ordinals = draws % self.lanes, draws // self.lanes
        last: dict[int, int] = {}
        for lane, ordinal in zip(lanes.tolist(), ordinals.tolist(), strict=True):
            last[lane] = max(ordinal, last.get(lane, 0))
        while unknown := self._unknown(last):
            self.source.count(unknown)
        epoch, shard, place = np.empty((3, len(draws)), dtype=np.int64)
        for lane in last:
            its = lanes == lane
            epoch[its], shard[its], place[its] = self._locate(lane, ordinals[its])
        self.source.prepare(dict.fromkeys(shard.tolist()))
        self.source.fetch_ahead([s for lane, o in last.items() for s in self._next(lane, o)])
        key = mix(self.seed, 5, self.number, epoch, shard)
        return epoch, sample_index(shard, shuffled(place, self.source.counts[shard], key))

    def replacements(self, epoch: int, index: int) -> Iterator[int]:
        """See Order.replacements: others of the same shard, then one of each of other shards."""
        key = mix(self.seed, 2, epoch, index)
        shard, place = shard_and_place(index)
        near = min(ATTEMPTS, int(self.source.counts[shard]) - 1)
        for attempt in range(near):
            other = int(shuffled(attempt, self.source.counts[shard] - 1, key)[0])
            yield int(sample_index(shard, other + (other >= place)))
        for attempt in range(min(ATTEMPTS - near, self.shards - 1)):
            other = int(shuffled(attempt, self.shards - 1, key)[0])
            other += other >= shard
            self.source.count([other])
            place = int(mix(self.seed, 2, epoch, index, attempt)[0] % self.source.counts[other])
            yield int(sample_index(other, place))

    def _locate(self, lane: int, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """(3, N): epoch, shard and place in it of a lane's draws; all counts are known."""
        out = np.empty((3, len(ordinals)), dtype=np.int64)
        todo = np.ones(len(ordinals), dtype=bool)
        while np.any(todo):
            epoch, shards, ends, start = self._reach(lane, int(ordinals[todo].min()))
            here = todo & (ordinals >= start) & (ordinals < ends[-1])
            at = np.searchsorted(ends, ordinals[here], side="right")
            begins = ends[at] - self.source.counts[shards[at]]
            out[0, here], out[1, here], out[2, here] = epoch, shards[at], ordinals[here] - begins
            todo &= ~here
        return out

    def _unknown(self, last: dict[int, int]) -> list[int]:
        """Shards to count before these ordinals, by lane, can be found; none if they can."""
        self._pass_epochs(last)
        wanted: list[int] = []
        for lane, ordinal in last.items():
            _, shards, ends, start = self._reach(lane, ordinal)
            reached = int(ends[-1]) if len(ends) else start
            if reached <= ordinal:
                # Far ahead with nothing remembered, the shards passed are counted together.
                typical = (reached - start) // len(ends) if len(ends) else ordinal + 1
                many = 1 + min(_FURTHEST - 1, (ordinal - reached) // typical)
                wanted += shards[len(ends) : len(ends) + many].tolist()
        return wanted

    def _next(self, lane: int, ordinal: int) -> list[int]:
        """The shard that a lane passes to after that of `ordinal`."""
        epoch, shards, ends, _ = self._reach(lane, ordinal)
        following = int(np.searchsorted(ends, ordinal, side="right")) + 1
        if following == len(shards):
            return [int(self._dealt(lane, epoch + 1)[0])]
        return [int(shards[following])]

    def _reach(
        self, lane: int, ordinal: int
    ) -> tuple[int, NDArray[np.int64], NDArray[np.int64], int]:
        """The lane's epoch of `ordinal`, or the last whose beginning is known.

        (epoch, its shards, the ordinals at which they end as far as counts are known, the ordinal
        at which the epoch begins).
        """
        starts = self._starts[lane]
        epoch = bisect_right(starts, ordinal) - 1
        shards = self._dealt(lane, epoch)
        counts = self.source.counts[shards]
        known = int(np.argmin(counts >= 0)) if np.any(counts < 0) else len(counts)
        return epoch, shards, starts[epoch] + np.cumsum(counts[:known]), starts[epoch]

    def _pass_epochs(self, last: dict[int, int]) -> None:
        """Finds where the epochs of lanes begin, up to ordinals by lane or to unknown counts.

        All lanes go together, so that an epoch's shuffle is made once.
        """
        for epoch in itertools.count(min(len(self._starts[lane]) for lane in last) - 1):
            for lane, ordinal in last.items():
                starts = self._starts[lane]
                if len(starts) == epoch + 1:
                    counts = self.source.counts[self._dealt(lane, epoch)]
                    end = starts[-1] + int(counts.sum())
                    if np.all(counts >= 0) and end <= ordinal:
                        starts.append(end)
            if all(len(self._starts[lane]) <= epoch + 1 for lane in last):
                return

    def _deal(self, lane: int, epoch: int) -> NDArray[np.int64]:
        """The shards of a lane in an epoch, in order."""
        first = (lane - epoch * self.shards) % self.lanes
        return self._shuffle(epoch)[first :: self.lanes]

    def _shuffled_shards(self, epoch: int) -> NDArray[np.int64]:
        key = mix(self.seed, 4, self.number, epoch)
        return shuffled(np.arange(self.shards), self.shards, key)
