"""Calibration: the statistics of the teachers' features, before a stage trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from distill.engine.parts import Part
from distill.engine.rows import Rows
from distill.engine.targets import TargetTeacher
from students import UserError
from students.moments import Moments
from students.normalisers import Normaliser

if TYPE_CHECKING:
    from accelerate import Accelerator


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

    Raises:
        UserError: for a teacher whose features are not finite, if a covariance is made of them.
    """
    teachers = list(teachers)
    moments = {
        (teacher.name, kind): Moments(
            normaliser.width, normaliser.mean.device, normaliser.needs_covariance
        )
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
            found = merged_over_ranks(moments[teacher.name, kind], accelerator)
            if not float(found.count):
                raise UserError(
                    f"stages.{stage}.calibration_batches: {teacher.name} sees no image in them, so "
                    "its targets cannot be measured; give more of them, or a larger share to the "
                    "images that it sees"
                )
            if normaliser.needs_covariance:
                _check_finite(found, teacher.name, kind, normaliser.kind)
            normaliser.fit(found)
            if normaliser.needs_covariance:
                _share(normaliser, accelerator)


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
    if moments.co is not None:
        # Chan's formula for all ranks at once: gathered, their matrices would be many.
        delta = moments.mean - total.mean
        co = moments.co + torch.outer(delta, delta) * moments.count
        total.co = accelerator.reduce(co.to(accelerator.device), "sum").to(moments.device)
    return total


def _check_finite(moments: Moments, teacher: str, kind: str, normaliser: str) -> None:
    if not bool(moments.covariance.isfinite().all()):
        raise UserError(
            f"teachers.{teacher}.normaliser: {normaliser!r} needs finite features, and over the "
            f"calibration batches some {kind} ones are not; try teachers.{teacher}.dtype=float32"
        )


def _share(normaliser: Normaliser, accelerator: Accelerator) -> None:
    """Give all ranks the first one's: an eigenvector's sign is the device's choice."""
    from accelerate.utils import broadcast

    for buffer in normaliser.buffers():
        buffer.copy_(broadcast(buffer.to(accelerator.device)))
