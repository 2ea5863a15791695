"""Targets: what the frozen teachers of a stage say of a batch, after their frozen normalisers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.engine.cached import CachedTeacher
from distill.engine.parts import Part
from distill.engine.sharding import is_sharded
from distill.losses import CHUNK
from students import Features
from students.keys import draw_size
from students.normalisers import Moments, Normaliser
from teachers import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Rows:
    """The rows of a rank's batch that a teacher sees.

    `index` (n,) int64 on the CPU, None for all of them. `weight` makes of a mean over these rows
    their part of the mean over the rows of the whole batch, as an average over ranks and a sum over
    the parts of a rank's batch add it up. `most`: how many the rank with most of them has, in the
    same part of its batch.
    """

    index: Tensor | None = None
    weight: float = 1.0
    most: int = 0

    @property
    def none(self) -> bool:
        """Whether there is no such row."""
        return self.index is not None and len(self.index) == 0

    def of(self, tokens: Tensor) -> Tensor:
        """These rows of (B, ...)."""
        if self.index is None:
            return tokens
        return tokens.index_select(0, self.index.to(tokens.device, non_blocking=True))


def rows_seen(positions: Tensor, share: float, batch_size: int, ranks: int) -> Rows:
    """The rows that a teacher with this `batch_share` sees, spread evenly over the stream.

    A position p of the stream belongs to them if floor((p + 1) share) > floor(p share): whichever
    rank holds it, and a stretch of n positions has at least floor(n share) of them.

    Args:
        positions: (b,) int64, b of the `batch_size` in order: a rank's rows, or a part of them.
        share: in (0, 1].
        batch_size: over all ranks.
        ranks: how many there are.
    """

    def before(position: int) -> int:
        return math.floor(position * share + 1e-9)

    count, of_rank = len(positions), batch_size // ranks
    if share == 1:
        return Rows(weight=count * ranks / batch_size, most=count)
    start = int(positions[0]) // batch_size * batch_size
    everywhere = before(start + batch_size) - before(start)
    seen = [before(p + 1) > before(p) for p in positions.tolist()]
    index = torch.tensor(seen).nonzero()[:, 0]
    same = range(start + (int(positions[0]) - start) % of_rank, start + batch_size, of_rank)
    most = max(before(first + count) - before(first) for first in same)
    return Rows(index, len(index) * ranks / everywhere, most)


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


def calibrate(
    teachers: Iterable[TargetTeacher],
    batches: Iterable[tuple[int, Part, dict[str, Rows]]],
    *,
    seed: int,
    stage: str,
    accelerator: Accelerator,
) -> None:
    """Fit every normaliser on (step, part, rows by teacher), over the sizes that the stage draws.

    Statistics are float64 on each rank and merged by Chan's formula, so that any number of ranks
    gives the same normaliser (EUPE measures over 500 batches and then keeps mean and std).
    """
    teachers = list(teachers)
    moments = {
        (teacher.name, kind): Moments(len(normaliser.mean), normaliser.mean.device)
        for teacher in teachers
        for kind, normaliser in teacher.normalisers.items()
    }
    for step, part, rows in batches:
        for teacher in teachers:
            features = teacher.features(part, rows[teacher.name], seed, stage, step)
            if features is None:
                continue
            for kind in teacher.normalisers:
                tokens = features.get(kind)
                assert tokens is not None
                moments[teacher.name, kind].update(tokens)
    for teacher in teachers:
        for kind, normaliser in teacher.normalisers.items():
            normaliser.fit(merged_over_ranks(moments[teacher.name, kind], accelerator))


def merged_over_ranks(moments: Moments, accelerator: Accelerator) -> Moments:
    """The moments of all ranks together, the same on each."""
    if accelerator.num_processes == 1:
        return moments
    own = torch.cat([moments.count[None], moments.mean, moments.squares])[None]
    total = Moments(len(moments.mean), moments.device)
    for row in accelerator.gather(own.to(accelerator.device)).to(moments.device):
        width = len(moments.mean)
        if row[0] > 0:  # a rank may have seen no row at all
            total.merge(row[0], row[1 : 1 + width], row[1 + width :])
    return total
