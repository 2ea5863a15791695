"""Classification by the nearest neighbours of the summary, without any training.

Protocol (Wu et al., arXiv 1805.01978; DINO, arXiv 2104.14294): L2-normalised summaries, the
k = 10 training images of highest cosine vote for their class with weight exp(cosine / 0.07).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 10
TEMPERATURE = 0.07

_CHUNK = 1024


def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
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
    if not 1 <= k <= len(train):
        raise ValueError(f"k = {k} neighbours of {len(train)} training images")
    classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1
    train = F.normalize(train, dim=1)
    hits = 0
    for start in range(0, len(test), _CHUNK):
        cosine = F.normalize(test[start : start + _CHUNK], dim=1) @ train.T
        # topk leaves the order of equal values open; a stable sort does not.
        near, rows = (part[:, :k] for part in cosine.sort(dim=1, descending=True, stable=True))
        votes = near.new_zeros(len(near), classes).scatter_add_(
            1, train_labels[rows], (near / temperature).exp()
        )
        hits += int((votes.argmax(1) == test_labels[start : start + _CHUNK]).sum())
    return 100 * hits / len(test)
