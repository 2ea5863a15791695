"""Batches of the loader for tests."""

import torch

from distill.data.loader import batches

SETTINGS = {
    "policy": "eupe",
    "scale": (0.25, 1.0),
    "view_seed": 7,
    "canvas": 24,
    "batch_size": 12,
    "first_step": 0,
    "steps": 5,
    "workers": 0,
}


def load(sources, **changes):
    """All batches of the settings above, but for `changes`."""
    return list(batches(sources, **SETTINGS | changes))


def assert_same(first, second):
    """Both are the same batches."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.draws, b.draws)
        assert torch.equal(a.positions, b.positions)
        assert torch.equal(a.samples, b.samples)
        assert (a.names, a.bad) == (b.names, b.bad)
