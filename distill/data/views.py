"""Views: what is cut out of a sample, and the random numbers of its colours.

A view is a pure function of (view_seed, epoch, index): the same in every worker, on every rank, in
every stage and after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from students.errors import UserError, did_you_mean

DRAWS = ("brightness", "contrast", "saturation", "hue", "sigma", "solarise")
"""The columns of a view's colour draws.

brightness, contrast, saturation: factors, 1 = unchanged. hue: shift in turns of the colour circle,
-0.5 to 0.5, 0 = unchanged. sigma: of the blur, in 224ths of the canvas's side, 0 = none.
solarise: 1 or 0.
"""

NEUTRAL = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
"""Draws that change nothing."""

_TRIES = 10
_RATIO = (3 / 4, 4 / 3)
_CROP = 2 * _TRIES + 2
_UNIFORMS = _CROP + 9
"""Random numbers of a view: two a try and a place for the crop, nine for the rest."""


@dataclass(frozen=True)
class ViewPolicy:
    """How views are drawn.

    `crop`: "random" (an area of the recipe's `scale`, aspect 3/4 to 4/3) or "centre" (the largest
    centred square). `flip`, `jitter`, `blur` and `solarise` are probabilities. Strengths are for
    jitter: factors from 1 - x to 1 + x, a hue shift up to `hue` turns either way; `sigma` is the
    range of the blur at a canvas of 224 pixels.
    """

    crop: Literal["random", "centre"]
    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0


POLICIES: dict[str, ViewPolicy] = {
    # EUPE (arXiv 2603.22387) names crop, flip, jitter, blur and solarisation and no figures. They
    # are DINOv2's (arXiv 2304.07193, after BYOL, arXiv 2006.07733, table 6) without its grey
    # images: jitter in 0.8; blur in 1.0 and 0.1 of its two large crops, here one half of all;
    # solarisation in 0.2.
    "eupe": ViewPolicy(crop="random", flip=0.5, jitter=0.8, blur=0.5, solarise=0.2),
    "crop": ViewPolicy(crop="random", flip=0.5),
    "flip": ViewPolicy(crop="centre", flip=0.5),
    "centre": ViewPolicy(crop="centre"),
}
"""`eupe`: crop, flip and colours; `crop`: crop and flip; `flip`: the centre square, mirrored half
the time; `centre`."""


@dataclass(frozen=True, eq=False)
class View:
    """One view of one sample.

    `box` is (x0, y0, x1, y1) in the source's pixels, x1 and y1 exclusive; `flip` mirrors left and
    right; `draws` (6,) float32 holds the columns DRAWS.
    """

    box: tuple[int, int, int, int]
    flip: bool
    draws: NDArray[np.float32]


def check_views(policy: str, scale: Sequence[float]) -> None:
    """Whether views can be drawn.

    Raises:
        UserError: if the policy is unknown, or scale is not (lo, hi) with 0 < lo <= hi <= 1.
    """
    if policy not in POLICIES:
        raise UserError(f"unknown view policy {policy!r}{did_you_mean(policy, POLICIES)}")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"the scale of views {list(scale)} must be two shares of the image's area, "
            f"smallest first, above 0 and at most 1, as in [0.25, 1.0]"
        )


def draw_view(
    policy: str,
    scale: Sequence[float],
    view_seed: int,
    epoch: int,
    index: int,
    size: tuple[int, int],
) -> View:
    """The view of sample `index` in `epoch`; `size` is the sample's (height, width) in pixels.

    Random crops are those of Inception as torchvision draws them: an area uniform in `scale`, an
    aspect log-uniform in 3/4 to 4/3, ten tries, then the centre at the nearest legal aspect. The
    number of random numbers does not depend on what they are, so no draw shifts another.

    Raises:
        UserError: if the policy is unknown or the scale is not 0 < lo <= hi <= 1.
    """
    check_views(policy, scale)
    p = POLICIES[policy]
    u = _uniforms(view_seed, epoch, index)
    crop, rest = u[:_CROP], u[_CROP:]
    box = _random_box(crop, scale, size) if p.crop == "random" else _centre_box(size)
    draws = np.array(NEUTRAL, dtype=np.float32)
    if rest[1] < p.jitter:
        for column, strength in enumerate((p.brightness, p.contrast, p.saturation)):
            draws[column] = 1 + strength * (2 * rest[2 + column] - 1)
        draws[3] = p.hue * (2 * rest[5] - 1)
    if rest[6] < p.blur:
        draws[4] = p.sigma[0] + (p.sigma[1] - p.sigma[0]) * rest[7]
    draws[5] = rest[8] < p.solarise
    return View(box, bool(rest[0] < p.flip), draws)


def cut(image: Tensor, view: View, canvas: int) -> Tensor:
    """The view's pixels: (3, H, W) uint8 RGB to (3, canvas, canvas) uint8 RGB.

    Only the crop is resized (bicubic, antialiased); colours are left to the device.
    """
    x0, y0, x1, y1 = view.box
    # Three channels side by side is what torch resizes fastest.
    crop = image[None, :, y0:y1, x0:x1].contiguous(memory_format=torch.channels_last)[0]
    resized = tv.resize(crop, [canvas, canvas], InterpolationMode.BICUBIC, antialias=True)
    return resized.flip(-1) if view.flip else resized


def _uniforms(view_seed: int, epoch: int, index: int) -> list[float]:
    """Numbers in [0, 1) that belong to this triple alone.

    Philox (Salmon et al., 2011) is a function of a key and a counter; its counter's lowest word
    runs, the other words hold what is asked for.
    """
    counter = np.array([0, 0, index, epoch], dtype=np.uint64)
    philox = np.random.Philox(key=np.array([view_seed, 0], dtype=np.uint64), counter=counter)
    return np.random.Generator(philox).random(_UNIFORMS).tolist()


def _random_box(
    u: list[float], scale: Sequence[float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    height, width = size
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for attempt in range(_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[2 * attempt])
        aspect = math.exp(low + (high - low) * u[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x0, y0 = int(u[-2] * (width - w + 1)), int(u[-1] * (height - h + 1))
            return x0, y0, x0 + w, y0 + h
    return _centre_box(size, _RATIO)


def _centre_box(
    size: tuple[int, int], ratio: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int, int, int]:
    """The largest centred box whose width / height lies within `ratio`."""
    height, width = size
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    x0, y0 = (width - w) // 2, (height - h) // 2
    return x0, y0, x0 + w, y0 + h


def neutral_draws(rows: int) -> Tensor:
    """(rows, 6) float32 draws that leave every image as it is."""
    return torch.tensor(NEUTRAL, dtype=torch.float32).repeat(rows, 1)
