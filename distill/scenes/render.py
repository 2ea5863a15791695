"""Drawing scenes: images, instance masks, segmentation, depth and keypoints, at any size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.scenes.generate import FAR, KINDS, MAX_SHAPES, NEAR, SceneParameters

_RGB = torch.tensor(
    [
        [0.90, 0.12, 0.12],
        [0.96, 0.52, 0.08],
        [0.94, 0.88, 0.12],
        [0.15, 0.70, 0.20],
        [0.15, 0.82, 0.86],
        [0.15, 0.25, 0.90],
        [0.62, 0.18, 0.78],
        [0.97, 0.97, 0.97],
    ]
)
_HAZE = 0.62
_HAZE_LENGTH = 7.0
_ANGLES = 720


@dataclass
class Rendered:
    """Pictures of N scenes.

    `image` (N, 3, S, S) uint8 RGB; `instances` (N, S, S) uint8, 0 the background and slot + 1
    elsewhere; `segmentation` (N, S, S) uint8, 0 the background and kind + 1 elsewhere;
    `depth` (N, S, S) float32 in scene units.
    """

    image: Tensor
    instances: Tensor
    segmentation: Tensor
    depth: Tensor


def _outlines() -> Tensor:
    """(kinds, _ANGLES) distance from a shape's centre to its edge by angle, at most 1."""
    angle = torch.arange(_ANGLES) * (2 * math.pi / _ANGLES)

    def polygon(sides: int, turn: float) -> Tensor:
        step = 2 * math.pi / sides
        return math.cos(step / 2) / torch.cos((angle + turn) % step - step / 2)

    def box(half_width: float, half_height: float) -> Tensor:
        across = half_width / torch.cos(angle).abs().clamp_min(1e-6)
        along = half_height / torch.sin(angle).abs().clamp_min(1e-6)
        return torch.minimum(across, along)

    def star(points: int, inner: float) -> Tensor:
        step = 2 * math.pi / points
        phase = ((angle + math.pi / 2) % step - step / 2).abs()  # step / 2 on a tip, 0 between
        # The edge is the straight line between a tip at radius 1 and a notch at `inner`.
        a, b = step / 2 - phase, phase
        return inner * math.sin(step / 2) / (torch.sin(b) * inner + torch.sin(a)).clamp_min(1e-6)

    # Image rows grow downwards: -sin is up. The dome's flat side is below.
    dome_edge = torch.where(torch.sin(angle) > 0, 0.35 / torch.sin(angle).clamp_min(1e-6), 9.0)
    lift = 0.35 * torch.sin(angle)
    dome_arc = -lift + (lift**2 + 1 - 0.35**2).sqrt()
    outlines = {
        "circle": torch.ones(_ANGLES),
        "square": polygon(4, 0.0) * 1.05,
        "triangle": polygon(3, math.pi / 2) * 1.1,
        "star": star(5, 0.42) * 1.15,
        "cross": torch.maximum(box(1.05, 0.36), box(0.36, 1.05)),
        "ring": torch.ones(_ANGLES) * 1.05,
        "bar": box(1.1, 0.38),
        "dome": torch.minimum(dome_edge, dome_arc * 0.95),
    }
    return torch.stack([outlines[kind] for kind in KINDS])


_OUTLINE = _outlines()
_HOLE = torch.tensor([0.55 if kind == "ring" else 0.0 for kind in KINDS])


def _wave(x: Tensor, y: Tensor, frequency: Tensor, angle: Tensor, phase: Tensor) -> Tensor:
    turn = 2 * math.pi * angle
    along = x * torch.cos(turn)[:, None, None] + y * torch.sin(turn)[:, None, None]
    return torch.sin(2 * math.pi * (along * frequency[:, None, None] + phase[:, None, None]))


def _background(scenes: SceneParameters, x: Tensor, y: Tensor) -> Tensor:
    """(N, 3, S, S) texture between two tones."""
    p = torch.from_numpy(scenes.pattern).float()
    frequency = 3 + 4 * p[:, 0]
    first = _wave(x, y, frequency, p[:, 1], p[:, 2])
    second = _wave(x, y, frequency, p[:, 1] + 0.25, p[:, 3])
    cloud = (
        _wave(x, y, 0.8 + p[:, 4], p[:, 5], p[:, 2])
        + _wave(x, y, 1.7 + p[:, 6], p[:, 7], p[:, 3])
        + _wave(x, y, 2.9 + p[:, 0], p[:, 1], p[:, 4])
    ) / 3
    kinds = torch.stack(
        [
            torch.zeros_like(first),
            (first * 4).clamp(-1, 1),
            (first * second * 6).clamp(-1, 1),
            ((first + second - 0.9) * 4).clamp(-1, 1),
            cloud,
        ]
    )
    mix = kinds[torch.from_numpy(scenes.texture), torch.arange(len(scenes))] * 0.5 + 0.5
    tones = torch.from_numpy(scenes.background).float()
    low, high = tones[:, 0, :, None, None], tones[:, 1, :, None, None]
    return low + (high - low) * mix[:, None]


def render(scenes: SceneParameters, size: int) -> Rendered:
    """Draw `scenes` at `size` x `size` pixels, shapes from back to front."""
    n = len(scenes)
    at = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(at, at, indexing="ij")
    x, y = x.expand(n, -1, -1), y.expand(n, -1, -1)

    image = _background(scenes, x, y)
    near, far = torch.from_numpy(scenes.horizon).float().unbind(1)
    depth = far[:, None, None] + (near - far)[:, None, None] * y
    instances = torch.zeros(n, size, size, dtype=torch.uint8)
    segmentation = torch.zeros(n, size, size, dtype=torch.uint8)

    for slot in range(MAX_SHAPES):
        rows = torch.from_numpy(np.flatnonzero(scenes.present[:, slot]))
        if not len(rows):
            continue
        picked = scenes.rows(rows.numpy())
        kind = torch.from_numpy(picked.kind[:, slot])
        cover, along = _cover(picked, slot, kind, x[rows], y[rows], size)
        colour = _RGB[torch.from_numpy(picked.colour[:, slot])][:, :, None, None]
        colour = colour * _shape_texture(picked, slot, along)[:, None]
        image[rows] = torch.lerp(image[rows], colour, cover[:, None])
        solid = cover > 0.5
        shape_depth = torch.from_numpy(picked.depth[:, slot].copy()).float()[:, None, None]
        depth[rows] = torch.where(solid, shape_depth, depth[rows])
        instances[rows] = torch.where(solid, slot + 1, instances[rows].int()).to(torch.uint8)
        seen = torch.where(solid, (kind + 1)[:, None, None], segmentation[rows].long())
        segmentation[rows] = seen.to(torch.uint8)

    depth = depth.clamp(NEAR, FAR)
    haze = 1 - torch.exp(-(depth - NEAR) / _HAZE_LENGTH)
    image = torch.lerp(image, torch.tensor(_HAZE), haze[:, None])
    direction, strength = torch.from_numpy(scenes.light).float().unbind(1)
    across = (x - 0.5) * torch.cos(direction)[:, None, None]
    down = (y - 0.5) * torch.sin(direction)[:, None, None]
    image = image * (1 + strength[:, None, None] * (across + down) * 2)[:, None]
    image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return Rendered(image, instances, segmentation, depth)


def _cover(
    scenes: SceneParameters, slot: int, kind: Tensor, x: Tensor, y: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """How much of each pixel a shape covers, and the pixel's place in the shape's own frame.

    Returns (n, S, S) in [0, 1] and (2, n, S, S) in units of the shape's radius.
    """

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values[:, slot].copy()).float()[:, None, None]

    radius, turn = column(scenes.radius), column(scenes.rotation)
    dx, dy = (x - column(scenes.x)) / radius, (y - column(scenes.y)) / radius
    u = dx * torch.cos(turn) + dy * torch.sin(turn)
    v = dy * torch.cos(turn) - dx * torch.sin(turn)
    away = (u * u + v * v).sqrt()
    bucket = (torch.atan2(v, u) * (_ANGLES / (2 * math.pi))).floor().long() % _ANGLES
    edge = _OUTLINE[kind[:, None, None], bucket]
    pixels = radius * size
    cover = ((edge - away) * pixels + 0.5).clamp(0, 1)
    hole = _HOLE[kind][:, None, None]
    cover = cover * torch.where(hole > 0, ((away - hole) * pixels + 0.5).clamp(0, 1), 1.0)
    return cover, torch.stack([u, v])


def _shape_texture(scenes: SceneParameters, slot: int, frame: Tensor) -> Tensor:
    """(n, S, S) brightness: plain, striped or dotted, fixed to the shape."""
    u, v = frame
    stripes = 0.86 + 0.14 * torch.sin(9 * (u + v))
    dots = 0.86 + 0.14 * torch.sin(10 * u) * torch.sin(10 * v)
    kinds = torch.stack([torch.ones_like(u), stripes, dots])
    which = torch.from_numpy(scenes.shape_texture[:, slot])
    return kinds[which, torch.arange(len(which))]


def keypoints(scenes: SceneParameters, size: int) -> np.ndarray:
    """(N, MAX_SHAPES, 5, 2) pixel x, y of each shape's centre and its right, lower, left and
    upper extremes in its own frame; NaN where there is no shape. Occlusion is not regarded:
    compare `Rendered.instances` at the point."""
    out = np.full((len(scenes), MAX_SHAPES, 5, 2), np.nan)
    quarter = _ANGLES // 4
    reach = _OUTLINE[:, ::quarter].numpy()[scenes.kind]  # (N, slots, 4): right, down, left, up
    local = np.zeros((*reach.shape[:2], 5, 2))
    local[:, :, 1, 0], local[:, :, 2, 1] = reach[..., 0], reach[..., 1]
    local[:, :, 3, 0], local[:, :, 4, 1] = -reach[..., 2], -reach[..., 3]
    cos, sin = np.cos(scenes.rotation)[..., None], np.sin(scenes.rotation)[..., None]
    u, v = local[..., 0], local[..., 1]
    radius = scenes.radius[..., None]
    out[..., 0] = (scenes.x[..., None] + radius * (u * cos - v * sin)) * size
    out[..., 1] = (scenes.y[..., None] + radius * (u * sin + v * cos)) * size
    out[~scenes.present] = np.nan
    return out
