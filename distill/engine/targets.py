"""Targets: what the frozen teachers of a stage say of a batch, after their normalisers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.engine.cached import CachedTeacher
from distill.engine.parts import Part
from distill.engine.rows import Rows
from distill.engine.sharding import is_sharded
from distill.losses import CHUNK
from students import Features
from students.keys import draw_size
from students.normalisers import Normaliser, RunningStandardise, build_normaliser
from teachers import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class TargetTeacher:
    """A teacher in a stage: the sizes that it draws from, a normaliser per token kind, its weight
    in the loss, the share of each batch that it sees, and its features on disk, if any.

    `momentum` is that of a running normaliser, and `seen` what it will follow at the end of a step:
    for each token kind (1 + 2 D,), the number of targets so far, their sum and that of squares.
    """

    name: str
    teacher: Teacher
    sizes: list[int]
    normalisers: dict[str, Normaliser]
    weight: float = 1.0
    batch_share: float = 1.0
    cached: CachedTeacher | None = None
    momentum: float = 0.01
    seen: dict[str, Tensor] = field(default_factory=dict, repr=False)

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
        momentum: float = 0.01,
    ) -> TargetTeacher:
        """A teacher whose normalisers have yet to be calibrated, for pixels on `device` (default:
        the teacher's own)."""
        device = next(teacher.parameters()).device if device is None else device
        normalisers = {
            kind: build_normaliser(normaliser, width).to(device)
            for kind, width in widths(teacher).items()
            if width is not None
        }
        sizes = sizes or [teacher.size]
        return cls(name, teacher, sizes, normalisers, weight, batch_share, momentum=momentum)

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
        normaliser = self.normalisers[kind]
        at_once = max(1, CHUNK // max(1, tokens[:1].numel()))
        for images in tokens.split(at_once):
            targets = normaliser(images)
            if normaliser.running:
                self._see(kind, targets)
            images.copy_(targets)
        return tokens

    def _see(self, kind: str, targets: Tensor) -> None:
        """Add float32 targets to what a running normaliser will follow."""
        rows = targets.flatten(0, -2)
        count = rows.new_full((1,), len(rows))
        found = torch.cat([count, rows.sum(0), torch.linalg.vector_norm(rows, dim=0).square()])
        self.seen[kind] = self.seen[kind] + found if kind in self.seen else found

    def follow(self, accelerator: Accelerator) -> bool:
        """Let running normalisers follow the targets since the last call, those of all ranks and
        parts of a batch, and return whether there are any. All ranks call it, at the end of a step:
        within one, all parts see the same normaliser. Nothing here waits for the device."""
        running = {
            kind: normaliser
            for kind, normaliser in self.normalisers.items()
            if isinstance(normaliser, RunningStandardise)
        }
        if not running:
            return False
        own = [  # a rank may have seen no row of a teacher
            self.seen.get(kind, normaliser.mean.new_zeros(1 + 2 * normaliser.width))
            for kind, normaliser in running.items()
        ]
        self.seen.clear()
        total = accelerator.reduce(torch.cat(own).to(accelerator.device), "sum")
        parts = total.split([len(part) for part in own])
        for normaliser, part in zip(running.values(), parts, strict=True):
            part = part.to(normaliser.mean.device)
            sums, squares = part[1:].split(normaliser.width)
            normaliser.update(part[0], sums, squares, self.momentum)
        return True


def widths(teacher: Teacher) -> dict[str, int | None]:
    """Width of each token kind that a teacher is asked for; None where it gives none."""
    dims = {"summary": teacher.summary_dim, "dense": teacher.dense_dim}
    return {kind: dims[kind] for kind in teacher.spec.tokens}
