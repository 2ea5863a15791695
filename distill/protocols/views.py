"""How pictures are shown to a model under evaluation: two deterministic views.

Both resize by bicubic interpolation with antialiasing on uint8, as Pillow's BICUBIC does: across,
then down. Pillow from 13 on goes down first where that is less work; as each pass is cut to 0 to
255, single pixels at hard edges then differ from the older one's, and from ours, by a few levels.

`centre_crop`: the short side to 256/224 of the size, then the central square (DINO's and DINOv2's
kNN and linear evaluation, arXiv 2104.14294 and 2304.07193: 256, then 224). `squashed`: to a square
whatever the aspect, so that all of the picture is seen (CLIP-like retrieval, dense tokens that
have to be laid over the whole picture).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from distill.protocols.task import View

SHORT_SIDE = 256 / 224
"""Of the resized picture's short side to the crop's."""


def centre_crop(size: int) -> View:
    """The central square of `size` pixels, of a picture whose short side is round(size * 256/224).

    Raises:
        ValueError: if `size` is less than 1.
    """
    return View("short side 256/224 bicubic, centre crop", _positive(size), partial(_crop, size))


def squashed(size: int) -> View:
    """All of the picture at `size` by `size` pixels, whatever its aspect.

    Raises:
        ValueError: if `size` is less than 1.
    """
    return View("squashed bicubic", _positive(size), partial(_squash, size))


# Functions of the module, since a view goes to the processes that read pictures.
def _crop(size: int, picture: Tensor) -> Tensor:
    short, (height, width) = round(size * SHORT_SIDE), picture.shape[-2:]
    if height <= width:
        target = short, max(short, round(short * width / height))
    else:
        target = max(short, round(short * height / width)), short
    resized = _resized(picture, target)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return resized[:, top : top + size, left : left + size]


def _squash(size: int, picture: Tensor) -> Tensor:
    return _resized(picture, (size, size))


def _resized(picture: Tensor, target: tuple[int, int]) -> Tensor:
    # Three channels side by side is what torch resizes fastest.
    shown = picture[None].contiguous(memory_format=torch.channels_last)[0]
    return tv.resize(shown, list(target), InterpolationMode.BICUBIC, antialias=True)


def _positive(size: int) -> int:
    if size < 1:
        raise ValueError(f"a view of {size} pixels: expected at least 1")
    return size
