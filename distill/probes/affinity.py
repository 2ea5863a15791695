"""Instance affinity: do two patches agree more within an object than across objects?

Training-free. A patch belongs to the object that owns at least 60 % of its pixels. Over all pairs
of object patches of one image, the cosine of their dense features should be higher where the two
lie on the same object: area under the ROC curve, for each image that has pairs of both sorts, then
the mean. Features are brought to one grid (a patch every 8 pixels) so that models of different
strides answer for the same patches, and the mean over the evaluated images is subtracted first: a
common offset would drown the differences that cosine is to show.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.probes.models import NothingToScore
from students.features import resize_grid

PATCH = 8
OWNED = 0.6


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve of scores (N,) for positive (N,) bool; a tie counts one half.

    The Mann-Whitney statistic from mid-ranks. NaN where one of the two sorts is missing.
    """
    _, place, count = scores.unique(return_inverse=True, return_counts=True)
    # Mid-rank of a group of equal scores: those before it, and half of its own.
    ranks = (count.cumsum(0) - (count - 1) / 2)[place].double()
    yes = int(positive.sum())
    no = len(scores) - yes
    if not yes or not no:
        return float("nan")
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def patch_owners(instances: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, h, w) int64: the object with at least OWNED of a patch's pixels, 0 where none has.

    Instances (N, H, W), 0 the background; H and W need not be multiples of the grid.
    """
    top = int(instances.max())
    shares = torch.stack(
        [
            F.adaptive_avg_pool2d((instances == k).float()[:, None], grid)[:, 0]
            for k in range(1, top + 1)
        ]
        or [torch.zeros(len(instances), *grid)]
    )
    # In float32 a share of exactly 0.6 may come out as 0.59999996.
    most, owner = shares.max(0)
    return torch.where(most >= OWNED - 1e-6, owner + 1, torch.zeros_like(owner))


def instance_affinity(dense: Tensor, instances: Tensor) -> tuple[float, int]:
    """Mean AUC in percent for dense (N, h, w, D) and instances (N, S, S), and the images counted.

    Raises:
        NothingToScore: if no image has pairs of both sorts.
    """
    side = max(instances.shape[1] // PATCH, 1)
    owners = patch_owners(instances, (side, side)).flatten(1)
    dense = resize_grid(dense, (side, side)).flatten(1, 2)
    dense = F.normalize(dense - dense.mean((0, 1)), dim=-1)
    areas = []
    for tokens, owner in zip(dense, owners, strict=True):
        patches, owner = tokens[owner > 0], owner[owner > 0]
        if len(owner) < 3 or bool((owner == owner[0]).all()):
            continue
        one, other = torch.triu_indices(len(owner), len(owner), offset=1)
        areas.append(auc((patches @ patches.T)[one, other], owner[one] == owner[other]))
    counted = torch.tensor(areas, dtype=torch.float64)
    counted = counted[~counted.isnan()]
    if not len(counted):
        raise NothingToScore("no image has two object patches together and two apart")
    return 100 * float(counted.mean()), len(counted)
