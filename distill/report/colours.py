"""Colours of a report's pictures: classes, depth, masks and components of features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from students.features import resize_grid

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


def rgb(colour: str) -> tuple[int, int, int]:
    """#rrggbb as three numbers in 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def colour_classes(labels: NDArray) -> NDArray[np.uint8]:
    """Class indices (H, W) to RGB (H, W, 3); classes beyond the palette go round its colours."""
    palette = np.array([rgb(colour) for colour in CLASS_COLOURS], dtype=np.uint8)
    labels = np.asarray(labels, dtype=np.int64)
    beyond = labels >= len(palette)
    return palette[np.where(beyond, 1 + (labels - 1) % (len(palette) - 1), labels)]


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


def principal_colours(dense: Tensor, size: int) -> NDArray[np.uint8]:
    """Dense features (B, h, w, D) as RGB (B, size, size, 3) by their first three components.

    The basis is fitted over all tokens given. Each component is signed so that its largest
    loading is positive, scaled so that its 2nd and 98th percentiles are 0 and 1, clipped, and
    resized bicubically.
    """
    tokens = dense.detach().float().flatten(0, 2)
    centred = tokens - tokens.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    components = centred @ (basis * torch.where(largest < 0, -1.0, 1.0)).T
    if components.shape[1] < 3:
        missing = components.new_zeros(len(components), 3 - components.shape[1])
        components = torch.cat([components, missing], dim=1)
    low, high = torch.quantile(components, components.new_tensor([0.02, 0.98]), dim=0)
    scaled = (components - low) / (high - low).clamp_min(1e-12)
    grid = scaled.clamp(0, 1).view(*dense.shape[:3], 3)
    picture = resize_grid(grid, (size, size)).clamp(0, 1)
    return (picture * 255).round().to(torch.uint8).cpu().numpy()
