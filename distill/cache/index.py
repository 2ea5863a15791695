"""Which row lies where: 16 bytes a row in sorted arrays, whatever the number of rows."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

MISSING = np.iinfo(np.uint64).max
"""The place of a row that is not there."""

LARGEST = 1 << 21
"""Rows of the largest sorted array: merging two never takes more than some 100 MB beside."""

_LONG = 1 << 18


class RowIndex:
    """Places by key, both uint64; of two places of one key the one added last counts.

    Sorted arrays of falling length, the newest last; those of like length are merged, so that n
    rows added a few at a time cost n log n in all, and a look-up is a binary search in few arrays.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []

    def add(self, keys: NDArray[np.uint64], places: NDArray[np.uint64]) -> None:
        """Take in rows: keys and places (n,)."""
        for begin in range(0, len(keys), LARGEST):
            part = slice(begin, begin + LARGEST)
            self._runs.append(_sorted(keys[part][::-1], places[part][::-1]))
            while self._mergeable():
                (new_keys, new_places), (old_keys, old_places) = self._runs.pop(), self._runs.pop()
                self._runs.append(
                    _sorted(
                        np.concatenate([new_keys, old_keys]),
                        np.concatenate([new_places, old_places]),
                    )
                )

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The place of each key, MISSING for one that is not there."""
        order = np.argsort(keys)  # neighbours are found near each other
        keys = keys[order]
        ranked = np.full(len(keys), MISSING, dtype=np.uint64)
        for run_keys, run_places in reversed(self._runs):
            at = np.minimum(np.searchsorted(run_keys, keys), len(run_keys) - 1)
            here = (run_keys[at] == keys) & (ranked == MISSING)
            ranked[here] = run_places[at[here]]
        places = np.empty_like(ranked)
        places[order] = ranked
        return places

    def drop(self, key: np.uint64) -> None:
        """Forget a row."""
        for run_keys, run_places in self._runs:
            at = int(np.searchsorted(run_keys, key))
            if at < len(run_keys) and run_keys[at] == key:
                run_places[at] = MISSING

    def _mergeable(self) -> bool:
        if len(self._runs) < 2:
            return False
        new, old = len(self._runs[-1][0]), len(self._runs[-2][0])
        return 2 * new >= old and new + old <= LARGEST


def _sorted(
    keys: NDArray[np.uint64], places: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """By key, each once: of equal ones the first."""
    unique, first = np.unique(keys, return_index=True)
    return _apart(unique), _apart(places[first])


def _apart(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A long array in pages of its own: from the heap, those that were merged away would leave
    holes as large as all that is held."""
    if values.nbytes < _LONG:
        return values
    held = np.frombuffer(mmap.mmap(-1, values.nbytes), dtype=np.uint64)
    held[:] = values
    return held
