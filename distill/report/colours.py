"""Colours of a report's pictures: classes, depth and masks."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

CLASS_COLOURS = (
    "#3b3f45",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
    "#ffffff",
)
"""The background's grey, then Okabe and Ito's colours, which colour-blind readers tell apart."""

# Anchors of cividis (Nunez, Anderton and Renslow 2018), even in lightness for all readers.
_CIVIDIS = np.array(
    [(0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56)]
)
NEAR_COLOUR, FAR_COLOUR = "#fee838", "#00224e"
"""The ends of depth's colours."""


def rgb(colour: str) -> tuple[int, int, int]:
    """#rrggbb as three numbers in 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def class_colours(classes: int) -> list[str]:
    """#rrggbb of so many classes: CLASS_COLOURS, then hues a golden angle apart, each lightness in
    its turn, so that classes of neighbouring numbers differ much."""
    further = []
    for k in range(classes - len(CLASS_COLOURS)):
        hue, lightness = (k * 0.381966 + 0.05) % 1, (0.45, 0.7, 0.58)[k % 3]
        channels = colorsys.hls_to_rgb(hue, lightness, (0.65, 0.8)[k // 3 % 2])
        further.append("#" + "".join(f"{round(255 * channel):02x}" for channel in channels))
    return [*CLASS_COLOURS, *further][:classes]


def colour_classes(labels: NDArray) -> NDArray[np.uint8]:
    """Class indices (H, W) to RGB (H, W, 3) by `class_colours`; below 0, what counts nowhere, is
    black."""
    labels = np.asarray(labels, dtype=np.int64)
    colours = [rgb(colour) for colour in class_colours(max(int(labels.max(initial=0)) + 1, 1))]
    # Black stands last, where an index of -1 finds it.
    return np.array([*colours, (0, 0, 0)], dtype=np.uint8)[np.maximum(labels, -1)]


def colour_depth(depth: NDArray, near: float, far: float) -> NDArray[np.uint8]:
    """Depth (H, W) to RGB (H, W, 3): `near` yellow, `far` dark blue, clipped outside."""
    closeness = 1 - np.clip((np.asarray(depth, dtype=np.float64) - near) / (far - near), 0, 1)
    at = np.linspace(0, 1, len(_CIVIDIS))
    channels = [np.interp(closeness, at, _CIVIDIS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay_mask(
    image: NDArray[np.uint8], mask: NDArray, point: tuple[int, int], colour: str = "#e69f00"
) -> NDArray[np.uint8]:
    """A mask (H, W) over an image (H, W, 3), with a cross at the prompt `point` (x, y).

    Outside the mask the image is dimmed; inside it is tinted.
    """
    picture = image.astype(np.float64)
    inside = np.asarray(mask, dtype=bool)[..., None]
    tinted = 0.45 * picture + 0.55 * np.array(rgb(colour))
    out = np.where(inside, tinted, 0.35 * picture).round().astype(np.uint8)
    x, y = point
    arm = max(1, image.shape[0] // 32)
    out[max(0, y - arm) : y + arm + 1, x] = 255
    out[y, max(0, x - arm) : x + arm + 1] = 255
    return out
