"""Targets: what the frozen teachers of a stage say of a batch, after their frozen normalisers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distill.engine.cached import CachedTeacher
from distill.engine.parts import Part
from distill.engine.rows import Rows
from distill.engine.sharding import is_sharded
from distill.losses import CHUNK
from students import Features
from students.keys import draw_size
from students.normalisers import Normaliser
from teachers import Teacher


@dataclass
class TargetTeacher:
    """A teacher in a stage: the sizes that it draws from, a normaliser per token kind, its weight
    in the loss, the share of each batch that it sees, and its features on disk, if any."""

    name: str
    teacher: Teacher
    sizes: list[int]
    normalisers: dict[str, Normaliser]
    weight: float = 1.0
    batch_share: float = 1.0
    cached: CachedTeacher | None = None

    @classmethod
    def of(
        cls,
        name: str,
        teacher: Teacher,
        sizes: list[int],
        normaliser: str,
        weight: float = 1.0,
        batch_share: float = 1.0,
        device: torch.device | None = None,
    ) -> TargetTeacher:
        """A teacher whose normalisers have yet to be calibrated, for pixels on `device` (default:
        the teacher's own)."""
        device = next(teacher.parameters()).device if device is None else device
        normalisers = {
            kind: Normaliser(normaliser, width).to(device)
            for kind, width in widths(teacher).items()
            if width is not None
        }
        return cls(name, teacher, sizes or [teacher.size], normalisers, weight, batch_share)

    def features(self, part: Part, rows: Rows, seed: int, stage: str, step: int) -> Features | None:
        """The teacher's own features of these rows of a part at this step's size, None if there is
        none."""
        pixels = part.pixels
        size, seen = draw_size(self.sizes, seed, stage, step, self.name), rows.of(pixels)
        if not is_sharded(self.teacher):
            if rows.none:
                return None
            if self.cached is None:
                return self.teacher(seen, size)
            of_part = slice(None) if rows.index is None else rows.index.numpy()
            prints = None if part.prints is None else part.prints[of_part]
            compute = partial(self.teacher, size=size)
            return self.cached.features(compute, seen, part.samples[of_part], prints, size)
        if not rows.most:
            return None
        # All ranks call it together, and its micro-batches as often: some row fills up what is
        # missing, and is thrown away.
        count = len(seen)
        filled = torch.cat([seen, pixels[:1].expand(rows.most - count, -1, -1, -1)])
        features = self.teacher(filled, size)
        return None if rows.none else features.map(lambda _, tokens: tokens[:count])

    def targets(self, features: Features) -> Features:
        """Features after the normalisers, in the teacher's own dtype and written over them:
        standardised, they need no more digits than it gave, and they are what a step holds most
        of. Float32 copies are of some images at a time."""
        return features.map(self._normalised)

    def _normalised(self, kind: str, tokens: Tensor) -> Tensor:
        at_once = max(1, CHUNK // max(1, tokens[:1].numel()))
        for images in tokens.split(at_once):
            images.copy_(self.normalisers[kind](images))
        return tokens


def widths(teacher: Teacher) -> dict[str, int | None]:
    """Width of each token kind that a teacher is asked for; None where it gives none."""
    dims = {"summary": teacher.summary_dim, "dense": teacher.dense_dim}
    return {kind: dims[kind] for kind in teacher.spec.tokens}
