"""Small stores for tests: features that are a function of their row."""

import numpy as np
import torch

from distill.cache import ChannelStatistics, StoreKey
from students import Features

SUMMARY, DENSE, GRID = 12, 20, (3, 2)
KEY = StoreKey({"dtype": "float32", "files": "a"}, 48, {"canvas": 64}, "tiny")
SOURCES = ["folder:/a", "folder:/b"]
STATISTICS = {
    "summary": ChannelStatistics(torch.zeros(SUMMARY), torch.ones(SUMMARY)),
    "dense": ChannelStatistics(torch.zeros(DENSE), torch.ones(DENSE)),
}


def rows(indices, source=0, view=0):
    """(n, 3) int64."""
    indices = np.asarray(indices, dtype=np.int64)
    return np.stack([np.full_like(indices, source), indices, np.full_like(indices, view)], 1)


def features(of):
    """What a teacher would give for these rows: no two rows alike."""
    summary, dense = [], []
    for source, index, view in np.asarray(of).tolist():
        draw = torch.Generator().manual_seed(source * 1_000_003 + index * 101 + view)
        summary.append(torch.randn(SUMMARY, generator=draw))
        dense.append(torch.randn(*GRID, DENSE, generator=draw))
    return Features(torch.stack(summary), torch.stack(dense))


def same(a, b):
    return torch.equal(a.summary, b.summary) and torch.equal(a.dense, b.dense)


def check_all_that_is_there(store, of):
    """Whatever the store gives is right; returns which rows are there."""
    found, mask = store.get(of)
    if mask.any():
        assert same(found, features(of[mask.numpy()]))
    return mask
