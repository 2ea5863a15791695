"""What is in a scene: shapes, textures, light and depth, drawn from (seed, index) alone.

A scene is a lit, textured background that recedes towards the top, with one to four
shapes on it. Everything that an annotation needs is decided here as numbers in relative
units, so that `render` can draw the same scene at any size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

KINDS = ("circle", "square", "triangle", "star", "cross", "ring", "bar", "dome")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
TEXTURES = ("plain", "striped", "checked", "dotted", "cloudy")
MAX_SHAPES = 4
NEAR, FAR = 1.0, 10.0
"""Range of depth in the scene's unit of length (a renderer never goes outside it)."""

_DRAWS = 128
_CANDIDATES = 8
_TWINS = 0.3


@dataclass
class SceneParameters:
    """Numbers of N scenes; shapes are ordered from the farthest to the nearest.

    `x`, `y` and `radius` are fractions of the image's side, `rotation` is in radians and
    `depth` in scene units (`NEAR` to `FAR`). Slots at or beyond `count` hold no shape.
    """

    index: np.ndarray  # (N,) int64
    count: np.ndarray  # (N,) int64, 1 to MAX_SHAPES
    kind: np.ndarray  # (N, MAX_SHAPES) int64, index into KINDS
    colour: np.ndarray  # (N, MAX_SHAPES) int64, index into COLOURS
    large: np.ndarray  # (N, MAX_SHAPES) bool: the shape's own size, not its size in the image
    x: np.ndarray  # (N, MAX_SHAPES)
    y: np.ndarray  # (N, MAX_SHAPES)
    radius: np.ndarray  # (N, MAX_SHAPES)
    rotation: np.ndarray  # (N, MAX_SHAPES)
    depth: np.ndarray  # (N, MAX_SHAPES)
    shape_texture: np.ndarray  # (N, MAX_SHAPES) int64: 0 plain, 1 striped, 2 dotted
    texture: np.ndarray  # (N,) int64, index into TEXTURES
    background: np.ndarray  # (N, 2, 3): two RGB tones in [0, 1]
    pattern: np.ndarray  # (N, 8): frequencies, angles and phases of the background, in [0, 1]
    light: np.ndarray  # (N, 2): direction (radians) and strength of the light
    horizon: np.ndarray  # (N, 2): depth of the background at the bottom and at the top edge

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: slice | np.ndarray) -> SceneParameters:
        """The same for some of the scenes."""
        return SceneParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def present(self) -> np.ndarray:
        """(N, MAX_SHAPES) bool: which slots hold a shape."""
        return np.arange(MAX_SHAPES)[None, :] < self.count[:, None]

    @property
    def main(self) -> np.ndarray:
        """(N,) slot of the shape that takes the most room in the image."""
        return np.where(self.present, self.radius, -1.0).argmax(1)

    @property
    def label(self) -> np.ndarray:
        """(N,) class of the main shape: kind * len(COLOURS) + colour, 64 in all."""
        rows = np.arange(len(self))
        main = self.main
        return self.kind[rows, main] * len(COLOURS) + self.colour[rows, main]


def _uniforms(seed: int, indices: np.ndarray) -> np.ndarray:
    """(N, _DRAWS) uniform numbers, each row a pure function of (seed, index)."""
    out = np.empty((len(indices), _DRAWS))
    for row, index in enumerate(indices):
        out[row] = np.random.Generator(np.random.Philox(key=[seed, int(index)])).random(_DRAWS)
    return out


def draw_scenes(seed: int, indices: np.ndarray) -> SceneParameters:
    """Parameters of the scenes `indices` (N,) of the world `seed`."""
    indices = np.asarray(indices, dtype=np.int64)
    slots = MAX_SHAPES
    u = _uniforms(seed, indices)
    take = iter(np.split(u, np.arange(slots, _DRAWS, slots), axis=1))

    count = 1 + (next(take)[:, 0] * slots).astype(np.int64)
    kind = (next(take) * len(KINDS)).astype(np.int64)
    colour = (next(take) * len(COLOURS)).astype(np.int64)
    # Twins: without them, telling objects apart would be no more than telling kinds apart.
    kind = np.where(next(take) < _TWINS, kind[:, :1], kind)
    colour = np.where(next(take) < _TWINS, colour[:, :1], colour)
    large = next(take) < 0.5
    depth = np.sort(NEAR + 0.2 + 3.3 * next(take), axis=1)[:, ::-1]
    # The farther, the smaller, but never so far that 64 pixels could not show the outline.
    radius = np.where(large, 0.235, 0.165) * (1.75 / (depth + 0.55)) ** 0.5
    rotation = (next(take) - 0.5) * 0.9
    shape_texture = np.searchsorted([0.5, 0.75], next(take))
    x, y = _place(radius, np.stack([next(take) for _ in range(2 * _CANDIDATES)], axis=2))

    scalars = u[:, -32:]
    tones = 0.25 + 0.5 * scalars[:, 0:1] + 0.12 * (scalars[:, 1:4] - 0.5)
    second = tones + (0.10 + 0.10 * scalars[:, 4:5]) * np.where(scalars[:, 5:6] < 0.5, -1, 1)
    near = 4.6 + 1.2 * scalars[:, 6]
    return SceneParameters(
        index=indices,
        count=count,
        kind=kind,
        colour=colour,
        large=large,
        x=x,
        y=y,
        radius=radius,
        rotation=rotation,
        depth=depth,
        shape_texture=shape_texture,
        texture=(scalars[:, 7] * len(TEXTURES)).astype(np.int64),
        background=np.clip(np.stack([tones, second], axis=1), 0.05, 0.95),
        pattern=scalars[:, 8:16],
        light=np.stack([2 * np.pi * scalars[:, 16], 0.1 + 0.25 * scalars[:, 17]], axis=1),
        horizon=np.stack([near, near + 1.5 + 2.5 * scalars[:, 18]], axis=1),
    )


def _place(radius: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, slots) in [0, 1] in which shapes overlap, but hide little of each other.

    Of `_CANDIDATES` positions for each shape, the one with the most room to those placed
    before it, room beyond 90 % of the two radii counting as enough.
    """
    n, slots = radius.shape
    x, y = np.zeros((n, slots)), np.zeros((n, slots))
    rows = np.arange(n)
    for slot in range(slots):
        r = radius[:, slot, None]
        cx = r + (1 - 2 * r) * candidates[:, slot, :_CANDIDATES]
        cy = r + (1 - 2 * r) * candidates[:, slot, _CANDIDATES:]
        room = np.full((n, _CANDIDATES), 0.9)
        for other in range(slot):
            gap = np.hypot(cx - x[:, other, None], cy - y[:, other, None])
            room = np.minimum(room, gap / (r + radius[:, other, None]))
        best = room.argmax(1)
        x[:, slot], y[:, slot] = cx[rows, best], cy[rows, best]
    return x, y
