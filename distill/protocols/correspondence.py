"""Semantic keypoint correspondence by nearest dense feature, training-free.

Protocol (SPair-71k, Min et al., arXiv 1908.10543, with frozen features as Probe3D, El Banani et
al., arXiv 2404.08636, and after it DINOv3): both pictures are squashed to size. The source's
feature at a keypoint is read off its L2-normalised dense map by bilinear interpolation; the answer
is the centre of the target's patch whose feature has the highest cosine with it (the target's map
is not upsampled, so an answer is exact up to half a patch), brought back to the target's own
pixels. It is correct within 0.1 times the longer side of the target object's box.

PCK is given both ways that are published: the mean over pairs of a pair's share of correct
keypoints (per image), and the share of all keypoints (per point), which weighs pairs with more
keypoints higher. Published figures are at 448 pixels for patches of 14 and 512 for patches of 16: a
grid of 32 by 32 for both. A size that is no multiple of the patch moves the answers: features of
such a model do not cover the right and the lower edge.

A keypoint is the centre of the pixel that it names: x = 0 lies half a pixel from the left edge.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.data.source import IndexedSource
from distill.datasets.parts import Correspondence
from distill.probes.models import NothingToScore
from distill.probes.tasks import Outcome
from distill.protocols.spaces import kept
from distill.protocols.task import FieldTask, Setting
from distill.protocols.views import squashed

ALPHA = 0.1


def matched_points(
    source: Tensor,
    target: Tensor,
    points: Tensor,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
) -> Tensor:
    """(K, 2) x and y in the target's pixels of what looks most like the source's points (K, 2).

    Dense maps (h, w, D) cover the whole of pictures of `source_size` and `target_size`, (height,
    width) in pixels. Of equally similar patches the first in reading order is taken.
    """
    height, width = source_size
    extent = points.new_tensor([width, height])
    # grid_sample counts from -1 to 1, edge to edge. A point in the outer half of an outer patch has
    # that patch's feature.
    places = ((points + 0.5) / extent * 2 - 1).to(source.device)
    maps = F.normalize(source, dim=-1).permute(2, 0, 1)[None]
    asked = F.grid_sample(
        maps, places[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, :, 0].T
    rows, columns = target.shape[:2]
    cosine = F.normalize(asked, dim=1) @ F.normalize(target, dim=-1).flatten(0, 1).T
    best = cosine.argmax(1).cpu()
    share = torch.stack([(best % columns + 0.5) / columns, (best // columns + 0.5) / rows], 1)
    return share * torch.tensor([target_size[1], target_size[0]]) - 0.5


def run(setting: Setting) -> Outcome:
    """`pck_per_image` and `pck_per_point` in percent, and the pairs counted.

    Raises:
        CannotProbe: if the model has no dense features.
        NothingToScore: if no pair has a keypoint.
    """
    part = setting.data.parts["correspondence"]
    assert isinstance(part, Correspondence)
    pairs = [pair for pair in part.pairs if len(pair.source_points)]
    if not pairs:
        raise NothingToScore("no pair of pictures has a keypoint that both show")
    stored = setting.features(part.pictures, squashed(setting.size))
    dense = kept(setting, stored, "dense")
    sizes: dict[int, tuple[int, int]] = {}
    shares, correct, points = [], 0, 0
    for done, pair in enumerate(pairs):
        for number in (pair.source, pair.target):
            if number not in sizes:
                sizes[number] = _size(part.pictures, number)
        source, target = dense[torch.tensor([pair.source, pair.target])].to(setting.device)
        found = matched_points(
            source, target, pair.source_points.float(), sizes[pair.source], sizes[pair.target]
        )
        distance = (found - pair.target_points).norm(dim=1)
        right = int((distance <= ALPHA * pair.reach).sum())
        shares.append(right / len(found))
        correct, points = correct + right, points + len(found)
        setting.progress(done + 1, len(pairs))
    per_image = 100 * sum(shares) / len(shares)
    values = {"pck_per_image": per_image, "pck_per_point": 100 * correct / points}
    return Outcome(values, len(pairs))


def _size(pictures: IndexedSource, number: int) -> tuple[int, int]:
    height, width = pictures.read(number).shape[1:]
    return height, width


TASK = FieldTask(
    name="correspondence",
    part="correspondence",
    kind="dense",
    metrics=("pck_per_image", "pck_per_point"),
    protocol="dense, training-free, squashed to size, source bilinear at the keypoint, nearest "
    f"patch of the target by cosine, PCK@{ALPHA} of the longer side of the target's box",
    run=run,
)
