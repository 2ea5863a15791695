"""Maps of a whole picture from overlapping square windows, as many protocols score dense tasks.

The picture's short side is resized to the windows' `size`. Windows go over it by `stride`, two
thirds of the size by the published protocol (341 of 512); the last of a row is moved back until it
ends with the picture. Where windows overlap, their maps are averaged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.protocols.augment import resized_to
from students.pixels import resize

AT_ONCE = 16
"""Windows that an encoder is shown together."""


def stride_of(size: int) -> int:
    """Pixels from a window to the next: two thirds of its size, rounded."""
    return max(1, round(size * 2 / 3))


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side of `length` >= `window` pixels; every pixel is covered."""
    last = length - window
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def shown(picture: Tensor, size: int) -> Tensor:
    """(3, h, w) float in [0, 1] of a picture (3, H, W) uint8, its short side `size` pixels."""
    height, width = picture.shape[1:]
    return resize(picture[None].float() / 255, resized_to((height, width), size))[0]


def over_windows(
    pixels: Tensor, size: int, maps_of: Callable[[Tensor], Tensor], stride: int | None = None
) -> Tensor:
    """Maps (K, h, w) of pixels (C, h, w), both sides at least `size`: averages over windows.

    `maps_of` answers windows (n, C, size, size) with (n, K, size, size); n is at most AT_ONCE.
    """
    height, width = pixels.shape[1:]
    stride = stride or stride_of(size)
    places = [
        (top, left) for top in starts(height, size, stride) for left in starts(width, size, stride)
    ]
    total = counted = torch.zeros(())
    for first in range(0, len(places), AT_ONCE):
        some = places[first : first + AT_ONCE]
        windows = torch.stack([pixels[:, y : y + size, x : x + size] for y, x in some])
        maps = maps_of(windows)
        if not first:
            total = maps.new_zeros(maps.shape[1], height, width)
            counted = maps.new_zeros(height, width)
        for (y, x), one in zip(some, maps, strict=True):
            total[:, y : y + size, x : x + size] += one
            counted[y : y + size, x : x + size] += 1
    return total.div_(counted)
