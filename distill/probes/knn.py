"""Nearest neighbours by cosine, and classification by their votes, without any training.

Protocol (Wu et al., arXiv 1805.01978; DINO, arXiv 2104.14294): L2-normalised summaries, the
k = 10 training images of highest cosine vote for their class with weight exp(cosine / 0.07).

The training images may be many and on disk. They are read once, block by block, and never held as
a whole; of the cosines of a block only those above a query's k-th best so far are sorted, so that
nearly all of the time goes into the matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 10
TEMPERATURE = 0.07

_BLOCK = 8192
"""Training images at a time."""
_CHUNK = 512
"""Queries at a time: their cosines, 16 MiB, may stay in a processor's cache."""


class Vectors(Protocol):
    """(N, D) float32 or float64: a tensor, or rows on disk that are read slice by slice."""

    @property
    def shape(self) -> torch.Size:
        """(N, D)."""

    def __getitem__(self, index: Any) -> Tensor:
        """The rows of a slice."""

    def __len__(self) -> int:
        """N."""


def knn(
    train: Vectors,
    train_labels: Tensor,
    test: Vectors,
    test_labels: Tensor,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> float:
    """Top-1 accuracy in percent, of test (M, D) by train (N, D) with labels (M,) and (N,), int64.

    Of equally near neighbours the one that comes first in `train` is taken; of classes with equal
    votes the one of lowest index wins.

    Raises:
        ValueError: if `k` is not between 1 and N.
    """
    return accuracies(train, train_labels, test, test_labels, (k,), temperature)[k]


def accuracies(
    train: Vectors,
    train_labels: Tensor,
    test: Vectors,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, float]:
    """`knn` for each k of `ks`, from one search for the largest of them, on `device`.

    `progress` is told of (training images searched, of all).

    Raises:
        ValueError: if any k is not between 1 and N.
    """
    for k in ks:
        if not 1 <= k <= len(train):
            raise ValueError(f"k = {k} neighbours of {len(train)} training images")
    classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1
    cosine, rows = neighbours(train, test[:], max(ks), device, progress)
    hits = dict.fromkeys(ks, 0)
    for start in range(0, len(test), _CHUNK):
        part = slice(start, start + _CHUNK)
        weights, voted = (cosine[part] / temperature).exp(), train_labels[rows[part]]
        votes, counted = weights.new_zeros(len(weights), classes), 0
        for k in sorted(hits):
            votes.scatter_add_(1, voted[:, counted:k], weights[:, counted:k])
            counted = k
            hits[k] += int((votes.argmax(1) == test_labels[part]).sum())
    return {k: 100 * hit / len(test) for k, hit in hits.items()}


def neighbours(
    gallery: Vectors,
    queries: Tensor,
    k: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """The k rows of `gallery` (N, D) of highest cosine to each of `queries` (M, D).

    Returns cosines (M, k), highest first, and row numbers (M, k) int64, on the CPU. Of equal
    cosines the lower row number comes first, and is taken first.

    Memory beside the queries and the result: a block of the gallery and 16 MiB of its cosines.

    Raises:
        ValueError: if `k` is not between 1 and N.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k = {k} neighbours of {len(gallery)} training images")
    parts = [F.normalize(part.to(device), dim=1) for part in queries.split(_CHUNK)]
    best = [_Best(part, k) for part in parts]
    block = max(k, _BLOCK)
    for start in range(0, len(gallery), block):
        rows = F.normalize(gallery[start : start + block].to(device), dim=1).T
        for part, found in zip(parts, best, strict=True):
            found.add(part @ rows, start)
        progress(min(start + block, len(gallery)), len(gallery))
    if not best:
        return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
    return torch.cat([b.cosine.cpu() for b in best]), torch.cat([b.rows.cpu() for b in best])


class _Best:
    """The k best rows so far of some queries, in order."""

    def __init__(self, queries: Tensor, k: int):
        self.k, self.begun = k, False
        self.cosine = queries.new_full((len(queries), k), -torch.inf)
        self.rows = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)

    def add(self, cosine: Tensor, first: int) -> None:
        """Take in cosines (M, n) to rows `first` to `first` + n - 1; the first time n >= k."""
        if self.begun:
            # A later row has to be nearer than the last of the best, not as near.
            wanted = cosine > self.cosine[:, -1:]
        else:
            # topk leaves open which of equal values it takes; the k-th value itself is certain.
            wanted = cosine >= cosine.topk(self.k, sorted=False).values.amin(1, keepdim=True)
        self.begun = True
        query, column = _where(wanted)
        if not len(query):
            return
        count = wanted.new_zeros(len(cosine), dtype=torch.int64).index_add_(
            0, query, torch.ones_like(query)
        )
        # Those of a query side by side, in the order of their rows.
        place = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query]
        width = int(count.max())
        values = cosine.new_full((len(cosine), width), -torch.inf)
        values[query, place] = cosine[query, column]
        rows = self.rows.new_zeros(len(cosine), width)
        rows[query, place] = column + first
        # Stable: of equal values the one that was there before, or whose row is lower, stays first.
        order = torch.cat([self.cosine, values], 1).sort(dim=1, descending=True, stable=True)
        self.cosine = order.values[:, : self.k]
        self.rows = torch.cat([self.rows, rows], 1).gather(1, order.indices[:, : self.k])


def _where(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the few that are true of `wanted` (M, n), in order."""
    if wanted.shape[1] % 8:
        row, column = wanted.nonzero(as_tuple=True)
        return row, column
    # Eight at a time, as whole numbers, which is several times faster.
    row, word = wanted.view(torch.int64).nonzero(as_tuple=True)
    found, bit = wanted.unflatten(1, (-1, 8))[row, word].nonzero(as_tuple=True)
    return row[found], word[found] * 8 + bit
