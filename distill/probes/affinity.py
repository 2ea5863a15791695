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
    most = torch.zeros(len(instances), *grid, device=instances.device)
    owner = torch.zeros(len(instances), *grid, dtype=torch.int64, device=instances.device)
    for number in range(1, int(instances.max()) + 1):
        share = F.adaptive_avg_pool2d((instances == number).float()[:, None], grid)[:, 0]
        owner = torch.where(share > most, number, owner)
        most = torch.maximum(most, share)
    # In float32 a share of exactly 0.6 may come out as 0.59999996.
    return torch.where(most >= OWNED - 1e-6, owner, 0)


def instance_affinity(dense: Tensor, instances: Tensor) -> tuple[float, int]:
    """Mean AUC in percent for dense (N, h, w, D) and instances (N, S, S), and the images counted.

    Raises:
        NothingToScore: if no image has pairs of both sorts.
    """
    side = max(instances.shape[1] // PATCH, 1)
    dense = resize_grid(dense, (side, side))
    owners = patch_owners(instances, (side, side))
    return mean_affinity(image_affinities(dense, owners, dense.mean((0, 1, 2))))


def image_affinities(dense: Tensor, owners: Tensor, mean: Tensor) -> Tensor:
    """(N,) float64: each image's AUC in [0, 1], NaN where it has not pairs of both sorts.

    `dense` (N, h, w, D) on the grid of `owners` (N, h, w), as from `patch_owners`; `mean` (D,) is
    that of all evaluated images.
    """
    tokens = F.normalize(dense - mean, dim=-1).flatten(1, 2)
    areas = []
    for image, owner in zip(tokens, owners.flatten(1), strict=True):
        patches, owner = image[owner > 0], owner[owner > 0]
        if len(owner) < 3 or bool((owner == owner[0]).all()):
            areas.append(float("nan"))
            continue
        one, other = torch.triu_indices(len(owner), len(owner), offset=1, device=owner.device)
        areas.append(auc((patches @ patches.T)[one, other], owner[one] == owner[other]))
    return torch.tensor(areas, dtype=torch.float64)


def mean_affinity(areas: Tensor) -> tuple[float, int]:
    """Mean in percent of images' AUCs (N,) without the NaN, and how many there are.

    Raises:
        NothingToScore: if there are none.
    """
    counted = areas[~areas.isnan()]
    if not len(counted):
        raise NothingToScore("no image has two object patches together and two apart")
    return 100 * float(counted.mean()), len(counted)
