"""Which sample stands at a position of the training stream: in closed form, with no state.

Any step can be computed by itself, so that workers, ranks and a resumed run agree without
talking, and no permutation is held in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from students.errors import UserError

BLOCK = 256
"""Positions in which every source gets its exact share."""

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


class Mixture:
    """Several sources mixed by shares into one endless stream of positions 0, 1, 2, ...

    In each block of 256 positions every source gets its share, rounded by largest remainder, at
    shuffled places. Each source runs through its samples in an order of its own, shuffled anew
    each epoch: any `n` successive draws from a source of n samples that begin at a multiple of n
    show each of them once.

    Args:
        lengths: samples of each source, at least 1.
        shares: positive weights, in any unit.
        seed: at least 0; the same seed gives the same stream.

    Raises:
        UserError: if a share is not positive and finite, or so small that it rounds to nothing.
    """

    def __init__(self, lengths: Sequence[int], shares: Sequence[float], seed: int):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.counts = block_counts(shares)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.seed = seed

    def at(
        self, positions: ArrayLike
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(source, epoch, index) of each position: three int64 arrays (P,)."""
        block, offset = np.divmod(np.atleast_1d(np.asarray(positions, dtype=np.int64)), BLOCK)
        # The constants set the two uses of the seed apart.
        slot = shuffled(offset, BLOCK, mix(self.seed, 0, block))
        source = np.searchsorted(self.starts, slot, side="right") - 1
        draw = block * self.counts[source] + slot - self.starts[source]
        length = self.lengths[source]
        epoch, place = np.divmod(draw, length)
        return source, epoch, shuffled(place, length, mix(self.seed, 1, source, epoch))


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
