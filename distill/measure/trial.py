"""Trial steps of a stage with any number of images: which of them fit into memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from distill.data.loader import Batch
from distill.engine.memory import out_of_memory
from distill.engine.rows import Roster
from distill.engine.stage import Stage
from distill.engine.trainee import Trainee
from distill.measure.memory import (
    MemoryLine,
    fit_line,
    largest_by_trying,
    memory_limit,
    peak_memory,
)
from distill.measure.steps import DRAWS, synchronise, work


class Trial:
    """Single steps of a stage with any number of images, at the largest sizes that it draws."""

    def __init__(self, stage: Stage, trainees: list[Trainee]):
        self.stage, self.trainees = stage, trainees
        steps = range(min(DRAWS, stage.config.train.steps))
        self.number = max(steps, key=lambda step: work(stage, step))

    def largest_before(self, at_once: int) -> tuple[int | None, MemoryLine | None, int | None]:
        """Images at once that fit, found without danger, with line and limit of what was worked
        out; on a GPU None if the recipe's own number fits: there is time to try more."""
        device = self.stage.device
        limit = memory_limit(device)
        if device.type == "cuda":
            return (None if self.fits(at_once) else self._by_halves(at_once)), None, limit
        peaks: list[tuple[int, int]] = []
        images = max(1, min(4, at_once // 4))
        self.run(images)  # the optimiser's moments come with the first step
        while len(peaks) < 2 or images <= at_once // 2:
            if len(peaks) >= 2 and limit and fit_line(peaks).at(images) > 0.8 * limit:
                break
            with peak_memory(device) as peak:
                self.run(images)
            if peak.bytes is None:
                return None, None, limit
            peaks.append((images, peak.bytes))
            images *= 2
        line = fit_line(peaks[-3:])
        return (None if limit is None else line.largest(limit)), line, limit

    def _by_halves(self, at_once: int) -> int:
        return largest_by_trying(self.fits, max(1, at_once // 2), at_once)

    def fits(self, images: int) -> bool:
        """Whether a step with so many images at once does not run out of memory."""
        try:
            self.run(images)
            synchronise(self.stage.device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            return True
        for trainee in self.trainees:
            trainee.optimiser.zero_grad(set_to_none=True)
            trainee.tally.of_step = {}
        if self.stage.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def run(self, images: int) -> None:
        """One step."""
        stage, before = self.stage, self.stage.config
        train = replace(before.train, batch_size=images, micro_batch=None)
        shape = (images, 3, stage.canvas, stage.canvas)
        pixels = torch.rand(shape, device=stage.device)
        empty = torch.empty(0)
        samples = torch.zeros(images, 3, dtype=torch.int64)
        batch = Batch(empty, empty, torch.arange(images), samples, [""] * images, [])
        stage.config = replace(before, train=train)
        roster = stage.roster
        ranks = stage.accelerator.num_processes
        stage.roster = Roster(stage.recipe, stage.config, roster.shares, ranks)
        try:
            stage.step(self.trainees, self.number, batch, pixels)
        finally:
            stage.config, stage.roster = before, roster
