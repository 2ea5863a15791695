"""The scalar of each adapter: what a prediction that was trained by cosine lacks is its length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.engine.objective import compare
from distill.engine.parts import Part
from distill.engine.rows import Rows
from distill.engine.trainee import Trainee
from distill.losses import best_scale, token_loss

if TYPE_CHECKING:
    from distill.engine.stage import Stage


@torch.no_grad()
def calibrate_scales(stage: Stage, trainees: list[Trainee]) -> None:
    """Fit each adapter's scalar s, the least squares of s * prediction to target."""
    steps = min(stage.config.calibration_batches, stage.config.train.steps)
    # A rank may see no row of a teacher: all of them add up the same sums.
    sums = {
        (i, name, kind): torch.zeros(3, dtype=torch.float64, device=stage.device)
        for i, trainee in enumerate(trainees)
        for name in trainee.learner.teachers
        for kind in trainee.learner.space(name).kinds
        if stage.config.loss.terms(name, kind)
    }
    for trainee in trainees:
        trainee.result.eval()
    with stage.progress.task(f"{stage.name}: scaling adapters", steps) as bar:
        for step, batch, pixels in stage.pixels(0, steps):
            for part in stage.parts(batch, pixels):
                _sum_up(stage, trainees, step, part, stage.roster.of(part.positions), sums)
            bar.advance()
    for (i, name, kind), total in sums.items():
        scale = trainees[i].result.space(name).scales[kind]
        scale.data.copy_(best_scale(stage.accelerator.reduce(total, "sum")))


def _sum_up(
    stage: Stage,
    trainees: list[Trainee],
    step: int,
    part: Part,
    rows: dict[str, Rows],
    sums: dict[tuple[int, str, str], Tensor],
) -> None:
    """Add what `best_scale` needs of a part to `sums`."""
    targets = stage.targets(step, part, rows)
    for i, trainee in enumerate(trainees):
        predictions = stage.predict(trainee.result, trainee.plan, step, part, rows)
        for name, target in targets.items():
            if name not in predictions:
                continue
            for kind, ours, theirs in compare(name, predictions[name], target, stage.config.loss):
                _, own = token_loss(ours, theirs, {})
                sums[i, name, kind] += own.double()
