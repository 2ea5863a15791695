"""Source `scenes:`: images of the procedural world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distill.scenes.dataset import Scenes
from students.errors import UserError, did_you_mean

VALIDATION_WORLDS = 10_000
"""World seeds from here up are what probes are scored on: no training image may show them."""


@dataclass(frozen=True)
class _SceneOptions:
    count: int = 8192
    size: int = 96
    seed: int = 0


class ScenesSource:
    """Images of the procedural world: `count` scenes of world `seed`, `size` pixels square.

    They are rendered the first time and kept in the cache folder.

    Raises:
        UserError: for an unknown key, a value that is no legal integer, or a world that is kept
            for validation.
    """

    example: ClassVar[str] = "scenes:count=8192,size=96,seed=0"

    def __init__(self, rest: str):
        options = _scene_options(rest)
        self.seed = options.seed
        self.images = Scenes(options.count, options.size, options.seed).images

    @staticmethod
    def check(rest: str) -> str | None:
        """What is wrong with `scenes:rest`, one line, or None; draws nothing."""
        try:
            _scene_options(rest)
        except UserError as error:
            return str(error)
        return None

    @staticmethod
    def count(rest: str) -> int:
        """How many images `scenes:rest` has; draws nothing."""
        return _scene_options(rest).count

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        """See Source.read; never a bad sample."""
        return torch.from_numpy(np.array(self.images[index]))

    def name(self, index: int) -> str:
        """`scene SEED:INDEX`."""
        return f"scene {self.seed}:{index}"


def _scene_options(rest: str) -> _SceneOptions:
    known = {"count": 1, "size": 8, "seed": 0}  # key: smallest legal value
    given: dict[str, int] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            raise UserError(f"scenes: {part!r} is not key=value: write {ScenesSource.example}")
        if key not in known:
            raise UserError(f"scenes: has no option {key!r}{did_you_mean(key, known)}")
        if not (value.isascii() and value.isdigit() and int(value) >= known[key]):
            raise UserError(
                f"scenes: {key}={value} must be a whole number of at least {known[key]}"
            )
        given[key] = int(value)
    options = _SceneOptions(**given)
    if options.seed >= VALIDATION_WORLDS:
        raise UserError(
            f"scenes: seed={options.seed} is a world kept for validation: "
            f"train on a seed below {VALIDATION_WORLDS}"
        )
    return options
