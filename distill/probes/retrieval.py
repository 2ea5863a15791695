"""Retrieval by cosine: images by an image, and images and texts by each other.

Average precision is computed directly from the ranking: scores may be negative, which
torchmetrics' RetrievalMAP would take for "not retrieved". Recall at k is the field's hit rate: the
share of queries with a right answer among the first k (Radford et al., arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.probes.models import NothingToScore

RECALLS = (1, 5)

_QUERIES = 1024
_SCORES = 2**24
"""Of one block of queries, so that memory does not grow with the square of a data set."""


def average_precision(ranked: Tensor, scores: Tensor | None = None) -> Tensor:
    """(Q,) average precision of rankings: relevance (Q, N) bool, best first; each row has a hit.

    Mean over a query's relevant items of the precision at the item's rank. With `scores` (Q, N),
    descending, items of equal score are retrieved together: the precision is that at the last of
    them, whatever order they were found in.
    """
    hits = ranked.cumsum(1)
    ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    if scores is None:
        return (hits / ranks * ranked).sum(1) / hits[:, -1]
    differs = F.pad(scores[:, 1:] != scores[:, :-1], (0, 1), value=True)
    end = torch.where(differs, ranks, len(ranks)).flip(1).cummin(1).values.flip(1)
    return (hits.gather(1, end - 1) / end * ranked).sum(1) / hits[:, -1]


def image_retrieval(
    summary: Tensor,
    labels: Tensor,
    recalls: Sequence[int] = (1,),
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], int]:
    """Each image (N, D) asks for the others of its label (N,), by cosine, itself left out.

    Returns `map` and, for each k of `recalls`, `recall_at_k` in percent, and the number of queries:
    an image that is alone with its label asks for nothing and is not counted.

    Raises:
        NothingToScore: if no label occurs twice.
    """
    summary, labels = F.normalize(summary.to(device), dim=1), labels.to(device)
    precisions: list[Tensor] = []
    found: dict[int, list[Tensor]] = {k: [] for k in recalls}
    for rows in _blocks(len(summary), len(summary)):
        cosine = summary[rows] @ summary.T
        itself = torch.arange(len(cosine), device=cosine.device)
        cosine[itself, itself + rows.start] = -torch.inf
        # Itself, at -inf, comes last and is cut off.
        ordered, order = (t[:, :-1] for t in cosine.sort(dim=1, descending=True, stable=True))
        relevant = labels[order] == labels[rows, None]
        asks = relevant.any(1)
        relevant = relevant[asks]
        precisions.append(average_precision(relevant, ordered[asks]).cpu())
        for k in recalls:
            found[k].append(relevant[:, :k].any(1).cpu())
    queries = torch.cat(precisions)
    if not len(queries):
        raise NothingToScore("no two images share a label: nothing to retrieve")
    scores = {"map": 100 * float(queries.mean())}
    for k in recalls:
        scores[f"recall_at_{k}"] = 100 * float(torch.cat(found[k]).float().mean())
    return scores, len(queries)


def text_retrieval(images: Tensor, texts: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Recall at 1 and 5 in percent, both ways, of images (N, D) and the texts (N, D) of `captions`.

    Row i of both belongs together; rows with the same caption are right answers for each other.
    """
    kinds = {caption: kind for kind, caption in enumerate(dict.fromkeys(captions))}
    owner = torch.tensor([kinds[caption] for caption in captions])
    return cross_retrieval(images, texts, owner, owner)


def cross_retrieval(
    images: Tensor,
    texts: Tensor,
    image_kinds: Tensor,
    text_kinds: Tensor,
    recalls: Sequence[int] = RECALLS,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Recall at each k in percent, both ways: `text_to_image_rK` and `image_to_text_rK`.

    Images (N, D) and texts (C, D) are L2-normalised here and compared by dot product; those of
    equal kind, (N,) and (C,) int64, are right answers for each other.
    """
    images = F.normalize(images.to(device), dim=1)
    texts = F.normalize(texts.to(device), dim=1)
    image_kinds, text_kinds = image_kinds.to(device), text_kinds.to(device)
    forth = _recall(texts, images, text_kinds, image_kinds, recalls)
    back = _recall(images, texts, image_kinds, text_kinds, recalls)
    return {
        **{f"text_to_image_r{k}": value for k, value in forth.items()},
        **{f"image_to_text_r{k}": value for k, value in back.items()},
    }


def _recall(
    queries: Tensor, gallery: Tensor, asked: Tensor, kinds: Tensor, recalls: Sequence[int]
) -> dict[int, float]:
    hits = dict.fromkeys(recalls, 0)
    for rows in _blocks(len(queries), len(gallery)):
        cosine = queries[rows] @ gallery.T
        order = cosine.sort(dim=1, descending=True, stable=True).indices[:, : max(recalls)]
        right = kinds[order] == asked[rows, None]
        for k in recalls:
            hits[k] += int(right[:, :k].any(1).sum())
    return {k: 100 * count / len(queries) for k, count in hits.items()}


def _blocks(queries: int, gallery: int) -> Iterator[slice]:
    step = max(1, min(_QUERIES, _SCORES // max(gallery, 1)))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))
