"""Calibration: the statistics of the teachers' features, before a stage trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from distill.engine.parts import Part
from distill.engine.rows import Rows
from distill.engine.targets import TargetTeacher
from students.moments import Moments

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
