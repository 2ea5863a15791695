"""What a person would say of a scene, and the words that such sentences are made of."""

from __future__ import annotations

import numpy as np

from distill.scenes.generate import COLOURS, KINDS, TEXTURES, SceneParameters

VOCABULARY = sorted(
    {"a", "and", "on", "background", "small", "large", "with", *KINDS, *COLOURS, *TEXTURES}
)


def caption(scenes: SceneParameters, row: int) -> str:
    """The whole scene, shapes from left to right, e.g. "a large red star and a small blue ring
    on a striped background"."""
    shapes = np.argsort(scenes.x[row, : scenes.count[row]])
    return f"{_list(scenes, row, shapes)} on a {TEXTURES[scenes.texture[row]]} background"


def partial_captions(scenes: SceneParameters, row: int) -> list[str]:
    """One short caption per shape, without its size or the background: "a red star"."""
    return [
        f"a {COLOURS[scenes.colour[row, s]]} {KINDS[scenes.kind[row, s]]}"
        for s in range(scenes.count[row])
    ]


def _list(scenes: SceneParameters, row: int, shapes: np.ndarray) -> str:
    return " and ".join(
        f"a {'large' if scenes.large[row, s] else 'small'} "
        f"{COLOURS[scenes.colour[row, s]]} {KINDS[scenes.kind[row, s]]}"
        for s in shapes
    )
