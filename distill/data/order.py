"""Which sample stands at a position of the training stream: in closed form, with no state.

Any step can be computed by itself, so that workers, ranks and a resumed run agree without
talking, and no permutation is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from students.errors import UserError

BLOCK = 256
"""Positions in which every source gets its exact share."""

ATTEMPTS = 10
"""Replacements that are tried for a bad sample."""

# What a hash is for is its second part, so that uses of one seed do not meet: 0 a block of
# positions, 1 an epoch of samples, 2 replacements, 3 a block of steps, 4 a deal of shards,
# 5 samples of a shard (4 and 5: see distill.data.lanes).
_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(*parts: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of whole numbers (>= 0), element by element; arrays broadcast.

    Each part is folded in with SplitMix64's finaliser (Steele et al., 2014, "Fast splittable
    pseudorandom number generators").
    """
    state: NDArray[np.uint64] = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = _finalise(state + _GOLDEN + np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return state


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # uint64 arrays wrap around silently, as the algorithm wants (scalars would warn).
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(position: ArrayLike, n: ArrayLike, key: ArrayLike) -> NDArray[np.int64]:
    """Where a keyed permutation of 0..n-1 sends `position`: int64, 0 <= result < n.

    A balanced Feistel network (Luby and Rackoff, 1988) permutes the smallest 4^k >= n numbers,
    and cycle walking (Black and Rogaway, 2002) applies it until the result falls below n: at most
    four times on average.

    Args:
        position: whole numbers, 0 <= position < n.
        n: size of the permuted range, at least 1, up to 2^62.
        key: 64-bit, one for all or one for each position (see mix).
        All three broadcast against each other; the result is at least one-dimensional.

    Raises:
        ValueError: if a position is outside 0..n-1.
    """
    at, size, keys = np.broadcast_arrays(*np.atleast_1d(position, n, key))
    if np.any(at < 0) or np.any(at >= size):
        raise ValueError("a position to shuffle must be at least 0 and below n")
    value = at.astype(np.uint64)
    size, keys = size.astype(np.uint64), keys.astype(np.uint64)
    half = np.array([max(1, (int(m - 1).bit_length() + 1) // 2) for m in np.unique(size)])
    bits = half[np.searchsorted(np.unique(size), size)].astype(np.uint64)
    walking = np.arange(value.size)
    while walking.size:
        moved = _feistel(value[walking], bits[walking], keys[walking])
        value[walking] = moved
        walking = walking[moved >= size[walking]]
    return value.astype(np.int64)


def _feistel(
    value: NDArray[np.uint64], bits: NDArray[np.uint64], keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One pass over 2 * `bits` bits."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = value >> bits, value & mask
    state = mix(keys)
    for _ in range(_ROUNDS):
        state = state + _GOLDEN  # a half is below 2^31, so no two rounds hash the same number
        left, right = right, left ^ (_finalise(state + right) & mask)
    return (left << bits) | right


class Order(Protocol):
    """The order in which a source's samples are drawn: its k-th draw for any k, with no state."""

    def at(self, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(epoch, index) of each draw, counted from 0: two int64 arrays as long as `draws`."""

    def replacements(self, epoch: int, index: int) -> Iterator[int]:
        """Indices to show, one after the other, for want of a bad sample; at most ATTEMPTS."""


class Permutation:
    """The order of a source of `length` samples: all of them, shuffled anew each epoch.

    Args:
        length: at least 1.
        seed: at least 0.
        source: number of the source in its recipe; sources of one length differ in their order.
    """

    def __init__(self, length: int, seed: int, source: int):
        self.length, self.seed, self.source = length, seed, source

    def at(self, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See Order.at: any n successive draws that begin at a multiple of n show each sample."""
        epoch, place = np.divmod(draws, self.length)
        return epoch, shuffled(place, self.length, mix(self.seed, 1, self.source, epoch))

    def replacements(self, epoch: int, index: int) -> Iterator[int]:
        """See Order.replacements: others of the source, in an order of the bad sample's own."""
        for attempt in range(min(ATTEMPTS, self.length - 1)):
            key = mix(self.seed, 2, epoch, index)
            other = int(shuffled(attempt, self.length - 1, key)[0])
            yield other + (other >= index)


class Mixture:
    """Several sources mixed by shares into one endless stream of positions 0, 1, 2, ...

    In each block of 256 positions every source gets its share, rounded by largest remainder, at
    shuffled places.

    Args:
        shares: positive weights, in any unit.
        seed: at least 0; the same seed gives the same stream.
        use: sets apart streams of one seed.

    Raises:
        UserError: if a share is not positive and finite, or so small that it rounds to nothing.
    """

    def __init__(self, shares: Sequence[float], seed: int, use: int = 0):
        self.counts = block_counts(shares)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.seed, self.use = seed, use

    def at(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(source, draw) of each position: two int64 arrays (P,).

        A source's draws are numbered from 0 and each comes up once.
        """
        block, offset = np.divmod(np.atleast_1d(np.asarray(positions, dtype=np.int64)), BLOCK)
        slot = shuffled(offset, BLOCK, mix(self.seed, self.use, block))
        source = np.searchsorted(self.starts, slot, side="right") - 1
        return source, block * self.counts[source] + slot - self.starts[source]


class Schedule:
    """Which samples a step's batch is made of: mixed ones, or all from one source.

    A homogeneous source gets its share of the steps, exact in each block of 256 of them, and
    such a batch is wholly its own; in the other steps the other sources are mixed by their shares
    (see Mixture). Without homogeneous sources row r of step t is position t * batch_size + r of
    the mixture.

    Args:
        shares: positive weights of the sources, in any unit.
        homogeneous: for each source, whether its batches are its own.
        batch_size: over all ranks.
        seed: at least 0.

    Raises:
        UserError: as Mixture; also if a share of steps rounds to nothing.
    """

    def __init__(
        self, shares: Sequence[float], homogeneous: Sequence[bool], batch_size: int, seed: int
    ):
        alone = [i for i, own in enumerate(homogeneous) if own]
        mixed = [i for i, own in enumerate(homogeneous) if not own]
        self.batch_size = batch_size
        self.members = [np.array([i]) for i in alone]
        self.mixtures = [Mixture([1.0], seed) for _ in alone]
        weights = [shares[i] for i in alone]
        if mixed:
            self.members.append(np.array(mixed))
            self.mixtures.append(Mixture([shares[i] for i in mixed], seed))
            weights.append(sum(shares[i] for i in mixed))
        self.steps = Mixture(weights, seed, use=3) if len(weights) > 1 else None

    def at(self, step: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(source, draw) of some rows, 0 to batch_size - 1, of a step: two int64 arrays (R,)."""
        group, turn = 0, step
        if self.steps is not None:
            group, turn = (int(part[0]) for part in self.steps.at(step))
        source, draw = self.mixtures[group].at(turn * self.batch_size + rows)
        return self.members[group][source], draw


def block_counts(shares: Sequence[float]) -> NDArray[np.int64]:
    """How many of a block's 256 positions each share gets, by largest remainder: (S,), sum 256.

    Raises:
        UserError: if a share is not positive and finite, or gets no position.
    """
    weights = np.asarray(shares, dtype=np.float64)
    if not (np.all(np.isfinite(weights)) and np.all(weights > 0)):
        raise UserError(f"shares of sources must be positive numbers, not {list(shares)}")
    exact = weights / weights.sum() * BLOCK
    counts = np.floor(exact).astype(np.int64)
    most_left_over = np.argsort(-(exact - counts), kind="stable")
    counts[most_left_over[: BLOCK - counts.sum()]] += 1
    if np.any(counts == 0):
        smallest = float(weights.min() / weights.sum())
        raise UserError(
            f"a source's share is {smallest:.2g} of the whole, less than one image in {BLOCK}: "
            f"raise it or leave the source out"
        )
    return counts
