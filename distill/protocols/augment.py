"""Crops for training: a random square of a picture at a random scale, drawn by key.

The usual pipeline of linear segmentation (DINOv2's, arXiv 2304.07193, after ADE20K's recipe in
mmsegmentation): the picture is resized so that its short side is `size` times a factor that is
uniform between two bounds, a square of `size` pixels is cut out at a uniform place, and mirrored
half the time. What lies outside a small picture is padding. Neither the colours are changed nor is
a crop drawn again that shows too much of one class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from students.keys import key
from students.pixels import resize

FLIP = 0.5
"""How often a crop is mirrored."""

PADDING = 0.45
"""Value of pixels outside the picture: about ImageNet's mean, so about 0 once normalised."""


@dataclass(frozen=True)
class Crop:
    """The square of `size` pixels at (`top`, `left`) of a picture resized to `height` x `width`.

    Where it reaches beyond the picture, below or right, there is padding.
    """

    height: int
    width: int
    top: int
    left: int
    size: int
    flip: bool


def resized_to(shape: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) of a picture of `shape` once its short side is `short` pixels."""
    side = min(shape)
    return max(1, round(shape[0] * short / side)), max(1, round(shape[1] * short / side))


def draw_crop(shape: tuple[int, int], size: int, scale: tuple[float, float], *keys: object) -> Crop:
    """A crop of `size` pixels from a picture of `shape` = (H, W).

    Its short side is first resized to `size` times a factor uniform in `scale`. The same `keys`
    always draw the same; the global random state is neither read nor changed.
    """
    generator = torch.Generator().manual_seed(key(*keys))
    draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    short = max(1, round(size * (scale[0] + draws[0] * (scale[1] - scale[0]))))
    height, width = resized_to(shape, short)
    top = int(draws[1] * (max(height - size, 0) + 1))
    left = int(draws[2] * (max(width - size, 0) + 1))
    return Crop(height, width, top, left, size, draws[3] < FLIP)


def cut_picture(picture: Tensor, crop: Crop) -> Tensor:
    """(3, size, size) float in [0, 1] of a picture (3, H, W) uint8, resized as encoders do it."""
    pixels = resize(picture[None].float() / 255, (crop.height, crop.width))[0]
    pixels = pixels[:, crop.top : crop.top + crop.size, crop.left : crop.left + crop.size]
    return _finished(pixels, crop, PADDING)


def cut_map(truth: Tensor, crop: Crop, padding: float) -> Tensor:
    """(size, size) of a map (H, W) at the same place, by the nearest pixel: nothing is mixed."""
    rows = _nearest(truth.shape[0], crop.height, crop.top, crop.size)
    columns = _nearest(truth.shape[1], crop.width, crop.left, crop.size)
    cut = truth[rows.to(truth.device)][:, columns.to(truth.device)]
    return _finished(cut, crop, padding)


def _nearest(length: int, resized: int, start: int, size: int) -> Tensor:
    """Which of `length` pixels lie under the centres of some of `resized`."""
    places = torch.arange(start, min(start + size, resized), dtype=torch.float64)
    return ((places + 0.5) * length / resized).long().clamp_(max=length - 1)


def _finished(cut: Tensor, crop: Crop, padding: float) -> Tensor:
    below, right = crop.size - cut.shape[-2], crop.size - cut.shape[-1]
    cut = F.pad(cut, (0, right, 0, below), value=padding)
    return cut.flip(-1) if crop.flip else cut
