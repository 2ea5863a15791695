"""Instance retrieval of landmarks: revisited Oxford and Paris.

Protocol (Radenovic et al., CVPR 2018, arXiv 1803.11285, and the benchmark's own
evaluation): queries, cut to their boxes, ask the gallery by the cosine of summaries, both squashed
to size. Three set-ups by what counts as right and what as junk, which is taken out of the ranking
before anything is counted:

    easy:   right = easy,        junk = junk and hard
    medium: right = easy, hard,  junk = junk
    hard:   right = hard,        junk = junk and easy

Average precision is the area under the precision-recall curve by trapezoids: with the j-th right
answer (from 0) at rank r (from 0), the mean over right answers of (p0 + p1) / 2, where p0 = j / r
(1 at r = 0) and p1 = (j + 1) / (r + 1). mP@10 is the share of right answers among the first
min(10, rank of the last right answer). Queries without a right answer in a set-up are left out of
it. Equal scores keep the gallery's order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.datasets.parts import Landmarks
from distill.probes.models import NothingToScore
from distill.probes.tasks import Outcome
from distill.protocols.spaces import kept
from distill.protocols.task import FieldTask, Rows, Setting
from distill.protocols.views import squashed

SETUPS = ("easy", "medium", "hard")
FIRST = 10

_CHUNK = 8192


def trapezoid_precision(ranks: Tensor) -> float:
    """Average precision in [0, 1] by trapezoids, of all right answers' ranks (P,) from 0, rising;
    P is at least 1."""
    found = torch.arange(len(ranks), dtype=torch.float64)
    ranks = ranks.double()
    before = torch.where(ranks == 0, 1.0, found / ranks.clamp(min=1))
    return float((before + (found + 1) / (ranks + 1)).mean() / 2)


def first_precision(ranks: Tensor, first: int = FIRST) -> float:
    """Precision in [0, 1] among the `first` answers, or up to the last right one if that is
    earlier; ranks as above."""
    depth = min(int(ranks[-1]) + 1, first)
    return int((ranks < depth).sum()) / depth


def setup_scores(order: Tensor, easy: Tensor, hard: Tensor, junk: Tensor) -> dict[str, float]:
    """One query's `SETUP_map` and `SETUP_mp10` in [0, 1], for the set-ups that have right answers.

    `order` (N,): the gallery's numbers, best first; the others are numbers of the gallery.
    """
    both, nothing = torch.cat([easy, hard]), easy[:0]
    scores = {}
    for setup, right, wrong in zip(SETUPS, (easy, both, hard), (hard, nothing, easy), strict=True):
        counted = order[~torch.isin(order, torch.cat([junk, wrong]))]
        ranks = torch.isin(counted, right).nonzero()[:, 0]
        if len(ranks):
            scores[f"{setup}_map"] = trapezoid_precision(ranks)
            scores[f"{setup}_mp{FIRST}"] = first_precision(ranks)
    return scores


def run(setting: Setting) -> Outcome:
    """`SETUP_map` and `SETUP_mp10` in percent, and the queries counted; a set-up in which no query
    has a right answer is left out.

    Raises:
        CannotProbe: if the model has no summary.
        NothingToScore: if no query has a right answer in any set-up.
    """
    part = setting.data.parts["landmarks"]
    assert isinstance(part, Landmarks)
    view = squashed(setting.size)
    queries = kept(setting, setting.features(part.queries, view), "summary")
    gallery = kept(setting, setting.features(part.gallery, view), "summary")
    cosine = _cosine(setting, queries, gallery)
    collected: dict[str, list[float]] = {}
    answered = 0
    for number, row in enumerate(cosine):
        order = row.argsort(descending=True, stable=True)
        truth = part.easy[number], part.hard[number], part.junk[number]
        scores = setup_scores(order, *truth)
        for metric, value in scores.items():
            collected.setdefault(metric, []).append(value)
        answered += bool(scores)
        setting.progress(number + 1, len(cosine))
    if not answered:
        raise NothingToScore("no query has a right answer in the gallery")
    return Outcome({m: 100 * sum(v) / len(v) for m, v in collected.items()}, answered)


def _cosine(setting: Setting, queries: Rows, gallery: Rows) -> Tensor:
    """(Q, N) on the CPU; the gallery is read in chunks."""
    asked = F.normalize(queries[:].to(setting.device), dim=1)
    parts = [
        (asked @ F.normalize(gallery[start : start + _CHUNK].to(setting.device), dim=1).T).cpu()
        for start in range(0, len(gallery), _CHUNK)
    ]
    return torch.cat(parts, 1)


TASK = FieldTask(
    name="landmarks",
    part="landmarks",
    kind="summary",
    metrics=tuple(f"{setup}_{metric}" for metric in ("map", f"mp{FIRST}") for setup in SETUPS),
    protocol="summary, squashed to size, cosine, revisited Oxford and Paris: junk removed, average "
    "precision by trapezoids, queries without a right answer left out",
    run=run,
)
