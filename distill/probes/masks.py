"""Promptable masks: a model's dense features in SAM's space, through SAM's own frozen decoder.

A decoder that reads more than dense features (SAM 2, EdgeTAM, SAM 3) answers for its own encoder's
pixels alone, by the same protocol.

Protocol (single-point evaluation of Kirillov et al., arXiv 2304.02643, section 7.1): one positive
point for each visible object, at its most interior pixel (the maximum of the distance to whatever
is not the object); of the three masks the one with the highest predicted IoU; bilinear to the
image, above 0 is inside. Mean over objects of the IoU with the visible mask. Objects with fewer
than 16 visible pixels in a 64-pixel image (in proportion to the area at other sizes) are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from distill.probes.models import NothingToScore
from students.features import resize_grid

LEAST_SHARE = 16 / 64**2

_BATCH = 32
_PIXELS = 2**24
"""Of all masks that are decoded at once."""


@dataclass(frozen=True)
class Prompts:
    """Q points with their objects: `image` (Q,) int64 row, `point` (Q, 2) int64 x and y in pixels,
    `mask` (Q, S, S) bool. Sorted by image."""

    image: Tensor
    point: Tensor
    mask: Tensor


def squared_distance(mask: Tensor) -> Tensor:
    """(N, H, W) int32: squared Euclidean distance, in pixels, to the nearest pixel outside.

    Mask (N, H, W) bool; whatever is beyond the image is outside. Exact, in two passes
    (Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012): along columns, then the minimum
    over the columns that can still be nearer.
    """
    # Beyond the box that holds all of them everything is outside: large images, small objects.
    rows, columns = mask.any(2).any(0).nonzero()[:, 0], mask.any(1).any(0).nonzero()[:, 0]
    found = torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    if len(rows):
        box = (slice(None), *(slice(int(at[0]), int(at[-1]) + 1) for at in (rows, columns)))
        found[box] = _squared_distance(mask[box])
    return found


def _squared_distance(mask: Tensor) -> Tensor:
    height = mask.shape[1]
    padded = F.pad(mask, (1, 1, 1, 1))
    at = torch.arange(height + 2, dtype=torch.int32)[None, :, None]
    outside_above = torch.where(padded, -1, at).cummax(1).values
    outside_below = torch.where(padded, height + 2, at).flip(1).cummin(1).values.flip(1)
    column = torch.minimum(at - outside_above, outside_below - at).to(torch.int32)
    best = column.square()
    for step in range(1, int(column.max())):
        beside = column.square() + step**2
        best[:, :, step:] = torch.minimum(best[:, :, step:], beside[:, :, :-step])
        best[:, :, :-step] = torch.minimum(best[:, :, :-step], beside[:, :, step:])
    return best[:, 1:-1, 1:-1]


def squashed_instances(instances: Tensor, size: int) -> Tensor:
    """Instances (H, W), 0 the background, at (size, size): nearest pixel centres, never mixed.

    Objects are numbered anew, from 1 in the order of their numbers, without gaps; one that falls
    between the pixel centres is not there any more.
    """
    rows, columns = (
        ((torch.arange(size) + 0.5) * (side / size)).long().clamp(max=side - 1)
        for side in instances.shape
    )
    shown = instances[rows][:, columns].long()
    numbers = shown.unique()
    return (torch.searchsorted(numbers[numbers != 0], shown) + 1) * (shown != 0)


def object_prompts(instances: Tensor) -> Prompts:
    """A point in every object of instances (N, S, S), 0 the background, that is visible enough.

    Of equally interior pixels the first in reading order is taken.
    """
    size = instances.shape[-1]
    images, points, masks = [], [], []
    for number in range(1, int(instances.max()) + 1):
        mask = instances == number
        # `max` only so that a tiny image does not prompt for objects that are not there.
        rows = (mask.flatten(1).sum(1) >= max(1.0, LEAST_SHARE * size * size)).nonzero()[:, 0]
        if not len(rows):
            continue
        mask = mask[rows]
        place = torch.cat([squared_distance(p).flatten(1).argmax(1) for p in mask.split(256)])
        images.append(rows)
        points.append(torch.stack([place % size, place // size], 1))
        masks.append(mask)
    if not images:
        none = torch.zeros(0, dtype=torch.int64)
        return Prompts(none, none.view(0, 1).expand(0, 2), torch.zeros(0, size, size).bool())
    image = torch.cat(images)
    order = image.argsort(stable=True)
    return Prompts(image[order], torch.cat(points)[order], torch.cat(masks)[order])


def largest_prompts(prompts: Prompts, images: int) -> Prompts:
    """The prompt of the largest object of each of the first images that have one, at most `images`
    of them.

    Raises:
        NothingToScore: if there are no prompts.
    """
    rows = []
    for image in prompts.image.unique()[:images]:
        own = (prompts.image == image).nonzero()[:, 0]
        rows.append(own[prompts.mask[own].flatten(1).sum(1).argmax()])
    if not rows:
        raise NothingToScore("no object is visible enough to be pointed at")
    kept = torch.stack(rows)
    return Prompts(prompts.image[kept], prompts.point[kept], prompts.mask[kept])


def mask_iou(
    dense: Tensor,
    prompts: Prompts,
    decoder: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    stride: int,
    device: torch.device | str = "cpu",
) -> float:
    """Mean IoU in percent over objects; arguments as those of `mask_ious`.

    Raises:
        NothingToScore: if there are no prompts.
    """
    return mean_overlap(mask_ious(dense, prompts, decoder, stride, device))


def own_mask_iou(
    images: NDArray[np.uint8],
    prompts: Prompts,
    segment: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
) -> float:
    """Mean IoU in percent over objects; arguments as those of `own_mask_ious`.

    Raises:
        NothingToScore: if there are no prompts.
    """
    return mean_overlap(own_mask_ious(images, prompts, segment, device))


def mean_overlap(overlaps: Tensor) -> float:
    """Mean in percent of objects' IoU (Q,).

    Raises:
        NothingToScore: if there are none.
    """
    if not len(overlaps):
        raise NothingToScore("no object is visible enough to be pointed at")
    return 100 * float(overlaps.mean())


@torch.no_grad()
def mask_ious(
    dense: Tensor,
    prompts: Prompts,
    decoder: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    stride: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(Q,) IoU of the prompts' objects, in any order, of dense (N, h, w, D) in the decoder's space.

    `decoder(dense, points, size)` is a teacher's MaskDecoder and `stride` that teacher's pixels per
    patch; dense maps are first brought to the grid that the teacher has at the images' size.
    """
    size = prompts.mask.shape[-1]
    grid = size // stride
    frame = grid * stride

    def answer(images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        maps = resize_grid(dense[images].to(device), (grid, grid))
        # Pixel centres of the image, as pixel indices of SAM's frame.
        return decoder(maps, ((points + 0.5) * (frame / size) - 0.5).to(device), frame)

    return _overlaps(len(dense), prompts, answer)


@torch.no_grad()
def own_mask_ious(
    images: NDArray[np.uint8],
    prompts: Prompts,
    segment: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
) -> Tensor:
    """(Q,) IoU of the prompts' objects, in any order, of a teacher's masks of images (N, 3, S, S),
    shown as they are: `segment(pixels, points, size)` is a teacher's Segmenter."""

    def answer(rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        # A copy: the images are a read-only memory map.
        pixels = torch.from_numpy(np.array(images[rows.numpy()]))
        return segment(pixels.to(device).float() / 255, points.to(device), images.shape[-1])

    return _overlaps(len(images), prompts, answer)


def best_masks(logits: Tensor, quality: Tensor, size: int) -> Tensor:
    """Masks (B, P, S, S) bool: of logits (B, P, M, h, w) those of the highest predicted IoU
    `quality` (B, P, M), where they are above 0 at `size` pixels (bilinear)."""
    best = quality.argmax(-1)[..., None, None, None].expand(-1, -1, 1, *logits.shape[-2:])
    chosen = logits.gather(2, best)[:, :, 0].float()
    return F.interpolate(chosen, (size, size), mode="bilinear", align_corners=False) > 0


def _overlaps(
    images: int, prompts: Prompts, answer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """`answer(rows, points)`: logits and predicted IoU for B of the images, by row, and P points of
    each, (B, P, 2) in pixels."""
    if not len(prompts.image):
        return torch.zeros(0)
    counts = torch.bincount(prompts.image, minlength=images)
    first = counts.cumsum(0) - counts
    size = prompts.mask.shape[-1]
    overlaps = []
    for number in counts[counts > 0].unique().tolist():  # images with as many objects go together
        batch = max(1, min(_BATCH, _PIXELS // (number * size * size)))
        for rows in (counts == number).nonzero()[:, 0].split(batch):
            asked = first[rows][:, None] + torch.arange(number)
            logits, quality = answer(rows, prompts.point[asked].float())
            inside = best_masks(logits, quality, size)
            overlaps.append(_iou(inside.cpu(), prompts.mask[asked]).flatten())
    return torch.cat(overlaps)


def _iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """IoU over the last two axes; the truth is never empty."""
    both = (predicted & truth).sum((-1, -2))
    return both / (predicted | truth).sum((-1, -2))
