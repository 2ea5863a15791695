"""The index of rows, against a dictionary."""

import numpy as np

from distill.cache import index as module
from distill.cache.index import MISSING, RowIndex


def filled(steps, seed=0):
    """An index and the dictionary that it must agree with."""
    draw = np.random.default_rng(seed)
    index, plain = RowIndex(), {}
    for _ in range(steps):
        keys = draw.integers(0, 400, draw.integers(1, 20)).astype(np.uint64)
        places = draw.integers(0, 1 << 60, len(keys)).astype(np.uint64)
        index.add(keys, places)
        plain.update(zip(keys.tolist(), places.tolist(), strict=True))
        if draw.random() < 0.3:
            gone = draw.integers(0, 400, 1).astype(np.uint64)[0]
            index.drop(gone)
            plain.pop(int(gone), None)
    return index, plain


def check(index, plain):
    everything = np.arange(450, dtype=np.uint64)
    expected = [plain.get(key, int(MISSING)) for key in everything.tolist()]
    assert index.find(everything).tolist() == expected


def test_finds_what_was_added_last():
    check(*filled(120))


def test_the_same_where_arrays_have_a_largest_size(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 64)
    check(*filled(120, seed=1))


def test_an_empty_index_has_nothing():
    assert RowIndex().find(np.arange(3, dtype=np.uint64)).tolist() == [int(MISSING)] * 3


def test_sixteen_bytes_a_row_in_few_arrays():
    index = RowIndex()
    for begin in range(0, 64_000, 8):
        index.add(np.arange(begin, begin + 8, dtype=np.uint64), np.arange(8, dtype=np.uint64))
    assert len(index._runs) < 16
    assert sum(keys.nbytes + places.nbytes for keys, places in index._runs) == 16 * 64_000
