"""Retrieval by cosine: images by an image, and images and texts by each other.

Average precision is computed directly from the ranking: scores may be negative, which
torchmetrics' RetrievalMAP would take for "not retrieved". Recall at k is the field's hit rate: the
share of queries with a right answer among the first k (Radford et al., arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.probes.models import NothingToScore

RECALLS = (1, 5)

_CHUNK = 1024


def average_precision(ranked: Tensor) -> Tensor:
    """(Q,) average precision of rankings: relevance (Q, N) bool, best first; each row has a hit.

    Mean over a query's relevant items of the precision at the item's rank.
    """
    hits = ranked.cumsum(1)
    ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    return (hits / ranks * ranked).sum(1) / hits[:, -1]


def image_retrieval(summary: Tensor, labels: Tensor) -> tuple[dict[str, float], int]:
    """Each image (N, D) asks for the others of its label (N,), by cosine, itself left out.

    Returns `map` and `recall_at_1` in percent, and the number of queries: an image that is alone
    with its label asks for nothing and is not counted.

    Raises:
        NothingToScore: if no label occurs twice.
    """
    summary = F.normalize(summary, dim=1)
    precisions, first = [], []
    for start in range(0, len(summary), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(summary)))
        itself = rows[:, None] == torch.arange(len(summary))
        cosine = (summary[rows] @ summary.T).masked_fill(itself, -torch.inf)
        # Itself, at -inf, comes last and is cut off.
        order = cosine.sort(dim=1, descending=True, stable=True).indices[:, :-1]
        relevant = labels[order] == labels[rows, None]
        relevant = relevant[relevant.any(1)]
        precisions.append(average_precision(relevant))
        first.append(relevant[:, 0])
    queries = torch.cat(precisions)
    if not len(queries):
        raise NothingToScore("no two images share a label: nothing to retrieve")
    scores = {
        "map": 100 * float(queries.mean()),
        "recall_at_1": 100 * float(torch.cat(first).float().mean()),
    }
    return scores, len(queries)


def text_retrieval(images: Tensor, texts: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Recall at 1 and 5 in percent, both ways, of images (N, D) and the texts (N, D) of `captions`.

    Both are L2-normalised here and compared by dot product. Row i of both belongs together; rows
    with the same caption are right answers for each other.
    """
    kinds = {caption: kind for kind, caption in enumerate(dict.fromkeys(captions))}
    owner = torch.tensor([kinds[caption] for caption in captions])
    images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    return {
        **{f"text_to_image_r{k}": _recall(texts, images, owner, k) for k in RECALLS},
        **{f"image_to_text_r{k}": _recall(images, texts, owner, k) for k in RECALLS},
    }


def _recall(queries: Tensor, gallery: Tensor, owner: Tensor, k: int) -> float:
    order = (queries @ gallery.T).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return 100 * float((owner[order] == owner[:, None]).any(1).float().mean())
